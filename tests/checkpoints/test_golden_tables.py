"""The authors' tables and pixels, tensor by tensor (see test_golden_pdae.py); what a clone has.

No expected file may be left out of these tests.
"""

from __future__ import annotations

import json
import lzma
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import expectations
import pytest
import test_golden_others  # noqa: F401, fills `covered`
import test_golden_pdae  # noqa: F401
import torch
from conftest import ROOT
from expectations import GOLDEN, Expected, about, at, covered
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from pdae_cli.checkpoints.convert import read_foreign
from pdae_cli.checkpoints.source import Source
from pdae_cli.diffusion import parity
from pdae_cli.diffusion.schedule import Schedule, posterior
from pdae_cli.diffusion.solvers import ancestral
from pdae_cli.diffusion.trajectory import LATENT_SCHEDULE, Sampling
from pdae_cli.pictures.images import to_float

expected = expectations.expected


# What other tests are about: the timestep embedding in test_networks, pixels and metrics in
# test_metrics.
ELSEWHERE = {
    "pdae_schedules/timestep_embedding",
    "pdae_data_and_metrics/to_uint8",
    "pdae_data_and_metrics/metrics",
}


@pytest.mark.usefixtures("shared")
def test_no_file_is_left_out() -> None:

    files = {f"{path.parents[1].name}/{path.stem}" for path in GOLDEN.glob("*/expected/*.safet*")}
    files |= {f"{path.parent.name}/{path.stem}" for path in GOLDEN.glob("pdae_*/*.safetensors")}
    assert files == covered | ELSEWHERE


@about(["pdae_schedules"], "linear_T1000", "cosine_T1000")
def test_schedules(expected: Expected) -> None:
    """Tables, or what the functions with these coefficients make of 0 and 1."""
    schedule = Schedule(expected.name.partition("_")[0])
    t = torch.arange(schedule.timesteps)
    zeros, ones = torch.zeros(len(t), 1, dtype=torch.float64), torch.ones(len(t), 1).double()
    alpha_bar = schedule.alpha_bar
    of_x_0, of_x_t, variance = posterior(alpha_bar, schedule.alpha_bar_prev)
    means = [
        ancestral(torch.tensor([1.0, 0]).double(), torch.tensor([0.0, 1]).double(), *pair, "small")[
            0
        ]
        for pair in zip(alpha_bar.tolist(), schedule.alpha_bar_prev.tolist(), strict=True)
    ]  # of x_t alone, and of eps alone
    of_x_t_alone, of_eps = torch.stack(means).T
    ours = {
        "betas": schedule.beta,
        "alphas": schedule.alpha,
        "alphas_cumprod": alpha_bar,
        "alphas_cumprod_prev": schedule.alpha_bar_prev,
        "alphas_cumprod_next": torch.cat([alpha_bar[1:], zeros[0]]),
        "sqrt_alphas_cumprod": schedule.add_noise(ones, t, zeros),
        "sqrt_one_minus_alphas_cumprod": schedule.add_noise(zeros, t, ones),
        "log_one_minus_alphas_cumprod": (1 - alpha_bar).log(),
        "sqrt_recip_alphas_cumprod": schedule.level(t, ones).x_0(ones, zeros),
        "sqrt_recip_alphas_cumprod_m1": -schedule.level(t, zeros).x_0(zeros, ones),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": torch.cat([variance[1:2], variance[1:]]).log(),
        "x_0_posterior_mean_x_0_coef": of_x_0,
        "x_0_posterior_mean_x_t_coef": of_x_t,
        "noise_posterior_mean_x_t_coef": of_x_t_alone,
        "noise_posterior_mean_noise_coef": -of_eps,
        "shift_coef": -schedule.shift,
        "weight": schedule.loss_weight(),
    }
    for table, values in ours.items():
        expected.check(table, values.flatten(), rtol=1e-6, atol=1e-12)


@about(
    ["pdae_schedules"],
    *("ddim_linear_T1000", "ddim_linear_T1000_numpy1"),
    *("ddim_cosine_T1000", "ddim_cosine_T1000_numpy1"),
    *("latent_const0.008_T1000", "latent_const0.008_T1000_numpy1"),
)
def test_ddim_tables(expected: Expected) -> None:
    """The authors take differences of alpha_bar in float32 (under NumPy 1 some in float64), which
    leaves 1 - alpha_bar_0 four digits, of cosine three, and cosine's alpha_bar_{T-1} none."""
    cosine, latent = "cosine" in expected.name, "latent" in expected.name
    schedule = LATENT_SCHEDULE if latent else Schedule("cosine" if cosine else "linear")
    rough = {
        "new_betas": 1e-3,
        "sqrt_one_minus_alphas_cumprod": 1e-3 if cosine else 1e-4,
        "sqrt_recip_alphas_cumprod_m1": 1e-3 if cosine else 1e-4,
    }
    for count in (10, 20, 100, 500, 1000):
        grid = f"ddim{count}"
        for table, values in ddim_tables(schedule, count).items():
            if f"{grid}.{table}" not in expected.tensors:
                continue  # the latent chain's files have but some
            want = expected[f"{grid}.{table}"]
            if cosine and table != "timesteps" and want.is_floating_point():
                values = torch.cat([values[:-2], want[-2:]])
            expected.check(f"{grid}.{table}", values, rtol=rough.get(table, 1e-6))
    if latent and "betas_float64" in expected.tensors:
        expected.check("betas_float64", schedule.beta, rtol=1e-12)
        expected.check("alphas_cumprod", schedule.alpha_bar, rtol=1e-6)
        expected.check("sqrt_alphas_cumprod", schedule.alpha_bar.sqrt(), rtol=1e-6)
        expected.check("sqrt_one_minus_alphas_cumprod", (1 - schedule.alpha_bar).sqrt(), rtol=1e-6)


def ddim_tables(schedule: Schedule, count: int) -> dict[str, Tensor]:
    """The authors' tables from the states of our steps, picture first."""
    steps = parity.steps("pdae", schedule, count, encode=True)
    back = parity.steps("pdae", schedule, count, encode=False)
    alpha_bar = torch.tensor([steps[0].here, *(step.there for step in steps)], dtype=torch.float64)
    previous = torch.cat([torch.ones(1), alpha_bar[:-1]])
    return {
        "timestep_map": torch.tensor([steps[0].t, *(step.t for step in back[::-1])]),
        "timesteps": torch.tensor(len(steps)),
        "new_betas": 1 - alpha_bar / previous,
        "alphas_cumprod_prev": previous,
        "alphas_cumprod_next": torch.cat([alpha_bar[1:], torch.zeros(1)]),
        "sqrt_one_minus_alphas_cumprod": (1 - alpha_bar).sqrt(),
        "sqrt_recip_alphas_cumprod": 1 / alpha_bar.sqrt(),
        "sqrt_recip_alphas_cumprod_m1": (1 / alpha_bar - 1).sqrt(),
    }


@about(["pdae_data_and_metrics"], "preprocess")
def test_pixels_become_numbers(expected: Expected) -> None:
    """The authors' crop and bilinear resize are Pillow's; ours, by Lanczos, differ on purpose."""
    for which, source, box, size in (
        ("celeba64_x_0", "in.celeba_uint8_hwc", (25, 57, 153, 185), 64),
        ("ffhq128_x_0", "in.ffhq_uint8_hwc", None, 128),
    ):
        image = Image.fromarray(expected[source].numpy())
        image = image.crop(box) if box else image
        small = image.resize((size, size), Image.Resampling.BILINEAR)
        pixels = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8)
        x_0 = to_float(pixels.reshape(size, size, 3).permute(2, 0, 1))
        expected.check(which, x_0, atol=1e-6)


# --- What the repository has of it --------------------------------------------------------------


@pytest.fixture(scope="session")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One checkpoint of each family as its program leaves it; large files are kept compressed."""
    root = tmp_path_factory.mktemp("golden")
    shutil.copytree(ROOT / "tests" / "golden", root, dirs_exist_ok=True)
    for path in root.rglob("*.xz"):
        path.with_suffix("").write_bytes(lzma.decompress(path.read_bytes()))
    return root


class Few(Expected):
    """A committed file: of pictures, every fourth row and column."""

    def __init__(self, folder: Path) -> None:
        path = folder / "expected.safetensors"
        with safe_open(path, "pt") as file:
            atol = json.loads(file.metadata()["atol"])
        super().__init__(folder.name, path.stem, load_file(path), atol)

    def check(self, name: str, got: Tensor | None, **tolerances: Any) -> None:
        picture = got is not None and got.ndim == 4
        super().check(name, got[..., ::4, ::4] if picture else got, **tolerances)


@pytest.mark.parametrize(
    ("family", "path", "count"),
    [("pdae", "pdae", 10), ("diffae", "diffae/tiny64_autoenc_latent", 20)],
)
def test_a_clone_reads_autoencoders(committed: Path, family: str, path: str, count: int) -> None:
    expected, conversion = Few(committed / family), read_foreign(Source(committed / path))
    model = conversion.model
    assert conversion.family == family
    if family == "diffae":  # its callbacks are keyed by a class of a package that isn't installed
        lightning = b"pytorch_lightning.callbacks.model_checkpoint"
        assert lightning in (committed / path / "last.ckpt").read_bytes()
        assert model.attributes is not None
    x_0, x_t, z = expected["in.x0"], expected["in.x_t"], model.encode_z(expected["in.x0"])
    expected.check("z", z)
    for t in (1, 999):
        eps, gradient = model.predict(x_t, at(t, x_t), z)
        expected.check(f"eps_t{t}", eps)
        if family == "pdae":
            expected.check(f"gradient_t{t}", gradient)
    made = model.encode(x_0, parity=family, inference_steps=10)
    expected.check("x_T_encode10", made.x_T)
    expected.check("x_0_decode10", model.decode(replace(made, x_T=expected["in.x_T"])))
    settings = Sampling(inference_steps=count, parity=family)
    expected.check(f"z_latent{count}", model.solve_z(expected["in.z_T"], settings))
    expected.complete()


@pytest.mark.parametrize("family", ["guided-diffusion", "diffusers"])
def test_a_clone_reads_diffusion_models(committed: Path, family: str) -> None:
    expected, conversion = Few(committed / family), read_foreign(Source(committed / family))
    assert conversion.family == family
    x_t = expected["in.x_t"]
    for t in (1, 999):
        with torch.no_grad():
            expected.check(f"output_t{t}", conversion.model.dpm(x_t, at(t, x_t)))
    expected.complete()
