"""Numbers that the peers' own programs computed, tensor by tensor.

Each expected file says what one procedure of one program gives on tiny networks of random weights,
with how far its float32 is from its float64; converted, those networks must give the same here.
"""

from __future__ import annotations

import copy
import json
import lzma
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from pdae_cli.checkpoints import names
from pdae_cli.checkpoints.convert import read_foreign
from pdae_cli.checkpoints.pdae import CELEBA_ATTRIBUTES
from pdae_cli.checkpoints.source import Source
from pdae_cli.diffusion import parity, solvers
from pdae_cli.diffusion.noise import slerp
from pdae_cli.diffusion.sampling import Sampling
from pdae_cli.diffusion.schedule import Schedule
from pdae_cli.diffusion.trajectory import LATENT_SCHEDULE
from pdae_cli.engine import model as engine
from pdae_cli.engine.attributes import Attributes
from pdae_cli.engine.codes import Codes, between
from pdae_cli.engine.model import Model
from pdae_cli.networks.encoder import EncoderConfig
from pdae_cli.pictures.images import to_float
from pdae_cli.training.autoencoder import AutoencoderLoss, gap_residuals
from pdae_cli.training.dpm import DPMLoss
from pdae_cli.training.latent import LatentLoss

PDAE = ("pdae_A_celeba64", "pdae_B_ffhq128")
DIFFAE = ("diffae_ddpm64", "diffae_autoenc64")
GUIDED = ("guided_uncond64_learnsigma", "guided_uncond64_fixedsigma")
DIFFUSERS = ("diffusers_ddpm", "diffusers_adm")
COMMITTED = Path(__file__).parent / "golden"


# --- What is expected, and how it is computed here ----------------------------------------------


class Expected:
    """Expected tensors and how exact they are; checks that none is left out."""

    def __init__(self, where: str, tensors: dict[str, Tensor], atol: dict[str, float]) -> None:
        self.where, self.tensors, self.atol = where, tensors, atol
        self.extra: dict[str, Any] = {}
        self.other_inputs: dict[str, Tensor] = {}
        self.left = {name for name in tensors if not name.startswith("in.")}

    def __getitem__(self, name: str) -> Tensor:
        """An input, or an expected tensor."""
        return self.tensors[name] if name in self.tensors else self.other_inputs[name]

    def starting(self, prefix: str) -> list[tuple[str, str]]:
        """Expected tensors whose names start so, each with the rest of its name."""
        found = [name for name in self.tensors if name.startswith(prefix)]
        return [(name, name.removeprefix(prefix)) for name in sorted(found)]

    def check(
        self, name: str, got: Tensor | None, *, rtol: float = 0.0, atol: float | None = None
    ) -> None:
        """Compare within the file's own atol; integers must be equal."""
        want, where = self.tensors[name], f"{self.where}: {name}"
        assert got is not None, f"{where} is missing"
        assert got.shape == want.shape, f"{where} is {tuple(got.shape)}, not {tuple(want.shape)}"
        self.left.discard(name)
        if not want.is_floating_point():
            assert got.tolist() == want.tolist(), where
            return
        if atol is None:
            atol = 0.0 if rtol else self.atol[name]
        off = ((got.double() - want.double()).abs() - rtol * want.double().abs()).max().item()
        assert off <= atol, f"{where} is off by {off:.2e}, allowed are {atol:.2e}"

    def check_states(self, name: str, got: Tensor) -> None:
        """`got`: (steps, N, C, H, W); expected are all or every fifth of the first picture."""
        want = self.tensors[name]
        first = got[:, 0]
        self.check(name, first if len(first) == len(want) else first[4::5])

    def complete(self) -> None:
        assert not self.left, f"{self.where}: nothing was compared with {sorted(self.left)}"


def expected_in(folder: Path, name: str) -> Expected:
    """An expected file of a fixture; inputs that it lacks are in two others of the folder."""
    place = folder / "expected" if (folder / "expected").is_dir() else folder
    manifest = json.loads((place / "manifest.json").read_text())
    facts = manifest["files"][f"{name}.safetensors"]["tensors"]
    atol = {tensor: fact["atol"] for tensor, fact in facts.items() if "atol" in fact}
    where = f"{folder.name}/{name}"
    expected = Expected(where, load_file(place / f"{name}.safetensors"), atol)
    expected.extra = manifest["extra"]
    for other in ("ddim_decode_10", "forward"):
        if (place / f"{other}.safetensors").exists():
            expected.other_inputs |= load_file(place / f"{other}.safetensors")
    return expected


covered: set[str] = set()  # the files that some test is about, as FOLDER/NAME


def about(folders: Sequence[str], *files: str) -> pytest.MarkDecorator:
    """The test is about these files of these folders, and gets one after the other."""
    pairs = [(folder, name) for folder in folders for name in files]
    covered.update(f"{folder}/{name}" for folder, name in pairs)
    return pytest.mark.parametrize(("folder", "name"), pairs)


@pytest.fixture(scope="session")
def golden(shared: Path) -> Path:
    return shared / "golden"


@cache
def converted(path: Path) -> Model:
    """What a checkpoint becomes. Tests share it, so none may change it."""
    return read_foreign(Source(path)).model


class States(list[Tensor]):
    """The state after each step of every trajectory of another program's DDIM."""

    def taken(self) -> Tensor:
        """Those since the last time: (steps, N, ...)."""
        together = torch.stack(self)
        self.clear()
        return together


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> States:
    """What the engine's trajectories go through."""
    states, ddim = States(), parity.ddim
    monkeypatch.setattr(
        parity, "ddim", lambda *values, **named: ddim(*values, **named, seen=states.append)
    )
    return states


def alone(model: Model) -> solvers.Predict:
    """eps_theta of a diffusion model."""
    return lambda x, t: model.predict(x, at(t, x), None)[0]


def to_noise(model: Model, program: str, x_0: Tensor, count: int) -> Tensor:
    """x_T that a program infers; a diffusion model alone has no `encode`."""
    steps = parity.steps(program, model.schedule, count, encode=True)
    return parity.ddim(alone(model), x_0, steps, clip=True, recompute=True)


def timesteps(program: str, model: Model, count: int, encode: bool = False) -> Tensor:
    """Where a program asks the network, in its order."""
    return torch.tensor([step.t for step in parity.steps(program, model.schedule, count, encode)])


def codes(z: Tensor, x_T: Tensor, **sampling: Any) -> Codes:
    return Codes(z, x_T, digests=("",) * len(z), sampling=sampling)


def no_z(x_T: Tensor, **sampling: Any) -> Codes:
    """Codes for a diffusion model alone."""
    return codes(torch.zeros(len(x_T), 0), x_T, guidance=0, **sampling)


def at(t: int, x: Tensor) -> Tensor:
    return torch.full((len(x),), t)


def shifted(model: Model, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
    """eps_theta - shift_t G_psi: the noise of the shifted posterior mean (PDAE eq. 8, 10)."""
    eps, gradient = model.predict(x, t, z)
    assert gradient is not None
    return eps - model.schedule.shift[t].float()[:, None, None, None] * gradient


def sampled(moments: tuple[Tensor, Tensor], noise: Tensor, last: bool) -> Tensor:
    """A draw from p(x_there | x_here) with given noise; its mean where it is the last."""
    mean, log_variance = moments
    return mean if last else mean + (log_variance / 2).exp() * noise


def test_no_file_is_left_out(golden: Path) -> None:
    files = {f"{path.parents[1].name}/{path.stem}" for path in golden.glob("*/expected/*.safet*")}
    files |= {f"{path.parent.name}/{path.stem}" for path in golden.glob("pdae_*/*.safetensors")}
    assert files == covered | ELSEWHERE


# --- PDAE (ckczzj/PDAE) -------------------------------------------------------------------------


def pdae_model(golden: Path, folder: str) -> Model:
    return converted(golden / folder)


def pdae_dpm(golden: Path, folder: str) -> Model:
    return converted(golden / folder / "pre-trained-dpms" / folder.rpartition("_")[2])


def stop(model: Model, count: int) -> int:
    """Where samples and `stop_percent` 0.3 leave the trajectory to eps_theta."""
    return parity.guide_until(parity.steps("pdae", model.schedule, count, encode=False))


@about(PDAE, "forward")
def test_pdae_networks(golden: Path, folder: str, name: str) -> None:
    expected, model = expected_in(golden / folder, name), pdae_model(golden, folder)
    x_0, x_t, mixed = expected["in.x0"], expected["in.x_t"], expected["in.t_mixed"]
    z = model.encoder(x_0)
    expected.check("z", z)
    for t in (0, 1, 500, 999):
        rows = len(expected[f"decoder_eps_t{t}"])
        eps, gradient = model.predict(x_t[:rows], at(t, x_t[:rows]), z[:rows])
        expected.check(f"decoder_eps_t{t}", eps)
        expected.check(f"decoder_gradient_t{t}", gradient)
    eps, gradient = model.predict(x_t, mixed, z.flip(0))
    expected.check("decoder_eps_tmixed_zflip", eps)
    expected.check("decoder_gradient_tmixed_zflip", gradient)
    x = x_t[: len(expected["unet_eps_t500"])]
    expected.check("unet_eps_t500", alone(pdae_dpm(golden, folder))(x, 500))
    noised = model.schedule.add_noise(x_0, mixed, expected["in.noise"])
    expected.check("q_sample_tmixed", noised)
    expected.complete()


@about(PDAE, "losses")
def test_pdae_losses_and_gradients(golden: Path, folder: str, name: str) -> None:
    """The authors draw t evenly and weigh by lambda_t; our density changes no expectation."""
    expected, model = expected_in(golden / folder, name), pdae_model(golden, folder)
    x_0 = expected["in.x0"]
    heads, encoder = copy.deepcopy((model.heads, model.encoder_network))
    assert encoder is not None and heads.gradient is not None
    objective = AutoencoderLoss(heads, encoder, model.schedule).eval()
    objective.weight = model.schedule.loss_weight()
    regular = DPMLoss(pdae_dpm(golden, folder).heads, model.schedule)
    for loss, number in expected.starting("representation_loss_"):
        t, noise = expected[f"in.loss_t_{number}"], expected[f"in.loss_noise_{number}"]
        objective.zero_grad()
        value = objective(x_0, t, noise)
        value.backward()
        expected.check(loss, value.detach())
        expected.check(f"regular_loss_{number}", regular(x_0, t, noise).detach())
    assert isinstance(model.config.encoder, EncoderConfig)
    tables = {
        "decoder.": (heads.gradient, names.pdae_gradient(model.config.unet)),
        "encoder.": (encoder, names.pdae_encoder(model.config.encoder)),
    }
    gradients = {
        f"{prefix}{table[ours.rpartition('.')[0]][0]}.{ours.rpartition('.')[2]}": parameter.grad
        for prefix, (network, table) in tables.items()
        for ours, parameter in network.named_parameters()
    }
    for gradient, parameter in expected.starting("grad_2."):
        want = expected[gradient]
        got = gradients[parameter].reshape(want.shape)
        expected.check(gradient, got, rtol=1e-3, atol=1e-5 * want.abs().max().item())
    norms = expected.extra["grad_norms_loss_2"]
    assert set(norms) == set(gradients)
    for parameter, norm in norms.items():
        assert gradients[parameter].norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-8)
    expected.complete()


@about(PDAE, "ddim_encode_10", "ddim_encode_20")
def test_pdae_encodes(golden: Path, folder: str, name: str, seen: States) -> None:
    expected, model = expected_in(golden / folder, name), pdae_model(golden, folder)
    count, x_0 = int(name.rpartition("_")[2]), expected["in.x0"][: len(expected["in.z"])]
    made = model.encode(x_0, parity="pdae", inference_steps=count)
    expected.check("x_T", made.x_T)
    ((every, _),) = expected.starting("states_")
    expected.check_states(every, seen.taken())
    expected.complete()


@about(PDAE, "ddim_decode_10", "ddim_decode_20")
def test_pdae_decodes(golden: Path, folder: str, name: str, seen: States) -> None:
    expected, model = expected_in(golden / folder, name), pdae_model(golden, folder)
    count, x_T, z = int(name.rpartition("_")[2]), expected["in.x_T"], expected["in.z"]
    for share, guide_until in (("00", 0), ("30", stop(model, count))):
        made = codes(z, x_T, parity="pdae", inference_steps=count, guide_until=guide_until)
        expected.check(f"x_0_stop{share}", model.decode(made))
        ((every, _),) = expected.starting(f"states_stop{share}_")
        expected.check_states(every, seen.taken())
    expected.complete()


@about(PDAE, "autoencode")
def test_pdae_autoencodes(golden: Path, folder: str, name: str) -> None:
    expected, model = expected_in(golden / folder, name), pdae_model(golden, folder)
    rows = len(expected["reconstruction_enc20_dec10"])
    made = model.encode(expected["in.x0"][:rows], parity="pdae", inference_steps=20)
    expected.check("reconstruction_enc20_dec10", model.decode(made, inference_steps=10))
    expected.complete()


@about(PDAE, "ddim_regular")
def test_pdae_without_z(golden: Path, folder: str, name: str, seen: States) -> None:
    expected, model = expected_in(golden / folder, name), pdae_dpm(golden, folder)
    x_T = expected["in.x_T"]
    x_0 = expected["in.x0"][: len(x_T)]
    made = no_z(x_T, parity="pdae", inference_steps=10)
    expected.check("x_0_ddim10", model.decode(made))
    expected.check_states("states_ddim10_every5_sample0", seen.taken())
    expected.check("x_T_ddim10", to_noise(model, "pdae", x_0, 10))
    expected.complete()


@about(PDAE, "interpolation")
def test_pdae_interpolates(golden: Path, folder: str, name: str) -> None:
    expected, model = expected_in(golden / folder, name), replace(pdae_model(golden, folder))
    a, b = expected["in.slerp_a"], expected["in.slerp_b"]
    ends = codes(model.encoder(expected["in.x0"]), torch.cat([a, b]))
    settings: dict[str, Any] = {"parity": "pdae", "inference_steps": 10}
    made = model.interpolate(ends, [0.3], mode="trajectory", **settings)
    expected.check("trajectory_ddim10_alpha030", made)
    expected.check("lerp_decode_ddim10_alpha030", model.interpolate(ends, [0.3], **settings))
    middle = between(ends, [step / 10 for step in range(11)])
    assert middle.x_T is not None
    for name_, share in expected.starting("slerp_"):
        expected.check(name_, middle.x_T[int(share) // 10, None])
    for name_, share in expected.starting("lerp_z_"):
        expected.check(name_, middle.z[int(share) // 10, None])
    # Half way both ends count by 1 / (2 cos(theta / 2)).
    ends_flat = torch.stack([a.flatten(), b.flatten()], dim=1)
    counts = torch.linalg.lstsq(ends_flat, slerp(a, b, 0.5).flatten()[:, None]).solution
    expected.check("theta", 2 * (1 / (2 * counts.mean())).acos())
    expected.complete()


@about(PDAE, "manipulation")
def test_pdae_manipulates(golden: Path, folder: str, name: str) -> None:
    """By s sqrt(512) along w/|w|, whatever the length of z."""
    expected, model = expected_in(golden / folder, name), pdae_model(golden, folder)
    weight, bias = expected["in.classifier_weight"], expected["in.classifier_bias"]
    model = replace(model, attributes=Attributes(list(CELEBA_ATTRIBUTES), weight, bias))
    x_0, x_T = expected["in.x0"], expected["in.x_T"]
    z = model.encoder(x_0)
    made = codes(z[: len(x_T)], x_T, parity="pdae", inference_steps=10)
    for what, attribute, scale in (
        ("class31_scale030", "Smiling", 0.3),
        ("class24_scalem010", "No Beard", -0.1),
    ):
        moved = model.manipulate(made, [(attribute, scale)])
        expected.check(f"z_manipulated_{what}", moved.z)
        expected.check(f"image_{what}", model.decode(moved))
    labels = (expected["in.labels"] > 0).float()
    scores = model.scores(codes(z, x_T))
    expected.check("bce_loss", F.binary_cross_entropy_with_logits(scores, labels))
    expected.complete()


@about(PDAE, "ddpm_step")
def test_pdae_samples_ancestrally(golden: Path, folder: str, name: str) -> None:
    """Steps between neighbouring timesteps, with the posterior's variance."""
    expected, model = expected_in(golden / folder, name), pdae_model(golden, folder)
    schedule, noise, eps = model.schedule, expected["in.step_noise"], expected["in.step_eps"]
    x = expected["in.x_t"][: len(noise)]
    for step_name, t in expected.starting("noise_p_sample_t"):
        step = neighbours(schedule, int(t))
        small = solvers.ancestral(x, eps, step.here, step.there, "small", clip=False)
        expected.check(step_name, sampled(small, noise, t == "0"))
        clipped = solvers.ancestral(x, eps, step.here, step.there, "small", clip=True)
        expected.check(f"x0_clip_p_sample_t{t}", sampled(clipped, noise, t == "0"))
        if f"noise_p_sample_range_t{t}" in expected.tensors:
            expected.check(f"x0_noclip_p_sample_t{t}", sampled(small, noise, t == "0"))
            share = expected["in.step_range"]
            learned = solvers.ancestral(
                x, eps, step.here, step.there, "learned", clip=False, interpolation=share
            )
            expected.check(f"noise_p_sample_range_t{t}", sampled(learned, noise, t == "0"))
    z, predict = expected["in.z"], alone(pdae_dpm(golden, folder))
    x = y = expected["in.x_tail"]
    for t in (3, 2, 1, 0):
        noise, times = expected[f"in.chain_noise_{3 - t}"], at(t, x)
        deviation = schedule.posterior_variance[t].sqrt().item()
        x = schedule.model_mean(x, times, shifted(model, x, times, z)) + deviation * noise
        y = schedule.model_mean(y, times, predict(y, t)) + deviation * noise
    expected.check("representation_ddpm_tail4", x)
    expected.check("regular_ddpm_tail4", y)
    expected.complete()


def neighbours(schedule: Schedule, t: int) -> parity.Step:
    """The step from t to t - 1; from 0 to the picture."""
    return parity.Step(t, schedule.alpha_bar[t].item(), schedule.alpha_bar_prev[t].item())


@about(PDAE, "denoise_one_step")
def test_pdae_predicts_x_0(golden: Path, folder: str, name: str) -> None:
    expected, model = expected_in(golden / folder, name), pdae_model(golden, folder)
    x_0, t = expected["in.x0"], expected["in.t_mixed"]
    x_t = model.schedule.add_noise(x_0, t, expected["in.noise"])
    z = model.encoder(x_0)
    eps, _ = model.predict(x_t, t, None)
    expected.check("predicted_x_0", model.schedule.predict_x_0(x_t, t, eps))
    eps = shifted(model, x_t, t, z)
    expected.check("autoencoder_predicted_x_0", model.schedule.predict_x_0(x_t, t, eps))
    expected.complete()


@about(["pdae_A_celeba64"], "gap")
@pytest.mark.slow
def test_pdae_posterior_mean_gap(golden: Path, folder: str, name: str) -> None:
    """Over t = T-1 … 0, with one (uniform) noise for all."""
    expected, model = expected_in(golden / folder, name), pdae_model(golden, folder)
    x_0, noise, schedule = expected["in.x0"], expected["in.gap_noise"], model.schedule
    z = model.encoder(x_0)
    gaps = []
    for t in torch.arange(999, -1, -1).split(50):
        x, eps = (part.expand(len(t), *part.shape[1:]) for part in (x_0, noise))
        gaps.append(torch.stack(gap_residuals(model, x, t, eps, z.expand(len(t), -1))))
    factor = schedule.beta**2 / (schedule.alpha * (1 - schedule.alpha_bar)) / x_0.numel()
    plain, shifted_gap = torch.cat(gaps, dim=1).double() * factor.flip(0)
    expected.check("predicted_posterior_mean_gap", plain, rtol=1e-3)
    expected.check("autoencoder_posterior_mean_gap", shifted_gap, rtol=1e-3)
    expected.complete()


@about(PDAE, "latent")
def test_pdae_latent_dpm(
    golden: Path, folder: str, name: str, seen: States, monkeypatch: pytest.MonkeyPatch
) -> None:
    """z_T and the predicted z_0 are clamped; samples leave their last 30 % to eps_theta."""
    expected, model = expected_in(golden / folder, name), pdae_model(golden, folder)
    network, z, x_T = model.latent_dpm, expected["in.lat_z"], expected["in.x_T"]
    assert network is not None
    with torch.no_grad():
        for out, t in expected.starting("mlp_out_t"):
            expected.check(out, network(z, at(int(t), z)))
        z_0 = model.normalise(model.encoder(expected["in.x0"]))
        loss = LatentLoss(network, LATENT_SCHEDULE)
        value = loss(z_0, expected["in.lat_t"], expected["in.lat_noise"])
        expected.check("latent_l1_loss", value)
    for count in (10, 20):
        z = model.solve_z(expected["in.lat_zT"], Sampling(inference_steps=count, parity="pdae"))
        expected.check(f"z_norm_states_ddim{count}", seen.taken())
        expected.check(f"z_denorm_ddim{count}", z)
        made = codes(z, x_T, parity="pdae", inference_steps=10, guide_until=stop(model, 10))
        expected.check(f"image_ddim{count}_dec10", model.decode(made))
        seen.clear()
    given = {z.shape[1:]: expected["in.lat_zT"], x_T.shape[1:]: x_T}
    monkeypatch.setattr(engine, "normal", lambda generators, shape: given[torch.Size(shape)])
    pictures, sampled_z = model.sample(len(x_T), parity="pdae", inference_steps=10)
    expected.check("z_denorm_ddim10", sampled_z)
    expected.check("image_ddim10_dec10", pictures)
    expected.complete()


# --- Diff-AE (phizaz/diffae) --------------------------------------------------------------------


def diffae_model(golden: Path, folder: str) -> Model:
    name = {"diffae_ddpm64": "tiny64_ddpm", "diffae_autoenc64": "tiny64_autoenc_latent"}[folder]
    return converted(golden / folder / "checkpoints" / name)


def diffae_z(model: Model, x_0: Tensor) -> Tensor | None:
    """z where eps_theta takes one."""
    return model.encoder(x_0) if model.takes_z else None


@about(DIFFAE, "forward")
def test_diffae_networks(golden: Path, folder: str, name: str) -> None:
    expected, model = expected_in(golden / folder, name), diffae_model(golden, folder)
    x_t, mixed = expected["in.x_t"], expected["in.t_mixed"]
    z = diffae_z(model, expected["in.x0"])
    for t in (0, 1, 500, 999):
        expected.check(f"eps_t{t}", model.predict(x_t, at(t, x_t), z)[0])
    eps, _ = model.predict(x_t, mixed, z)
    expected.check("eps_tmixed", eps)
    if z is not None:
        expected.check("cond", z)
        expected.check("eps_tmixed_from_x_start", eps)
        expected.check("eps_tmixed_condflip", model.predict(x_t, mixed, z.flip(0))[0])
    expected.complete()


@about(DIFFAE, "loss")
def test_diffae_loss(golden: Path, folder: str, name: str) -> None:
    expected, model = expected_in(golden / folder, name), diffae_model(golden, folder)
    x_0, noise, t = expected["in.x0"], expected["in.noise"], expected["in.t_mixed"]
    x_t = model.schedule.add_noise(x_0, t, noise)
    eps, _ = model.predict(x_t, t, diffae_z(model, x_0))
    expected.check("x_t", x_t)
    expected.check("pred_xstart", model.schedule.predict_x_0(x_t, t, eps))
    expected.check("loss_per_sample", (noise - eps).square().mean((1, 2, 3)))
    if not model.takes_z:
        loss = DPMLoss(model.heads, model.schedule)
        each = [loss(*(part[row : row + 1] for part in (x_0, t, noise))) for row in range(len(x_0))]
        expected.check("loss_per_sample", torch.stack(each))
    expected.complete()


@about(DIFFAE, "ddim_T10", "ddim_T20")
def test_diffae_ddim(golden: Path, folder: str, name: str, seen: States) -> None:
    expected, model = expected_in(golden / folder, name), diffae_model(golden, folder)
    count, x_0, x_T = int(name.rpartition("_T")[2]), expected["in.x0"], expected["in.x_T"]
    settings: dict[str, Any] = {"parity": "diffae", "inference_steps": count}
    expected.check("timestep_map", timesteps("diffae", model, count, encode=True))
    if model.takes_z:
        made = model.encode(x_0, **settings)
        expected.check("encode_x_T", made.x_T)
        made = replace(made, x_T=x_T)
    else:
        expected.check("encode_x_T", to_noise(model, "diffae", x_0, count))
        made = no_z(x_T, **settings)
    for every, _ in expected.starting("encode_states_"):
        expected.check_states(every, seen.taken())
    seen.clear()
    expected.check("decode_x_0", model.decode(made))
    for every, _ in expected.starting("decode_states_"):
        expected.check_states(every, seen.taken())
    expected.complete()


@about(DIFFAE, "p_sample_T10")
def test_diffae_samples_ancestrally(golden: Path, folder: str, name: str) -> None:
    expected, model = expected_in(golden / folder, name), diffae_model(golden, folder)
    x, noise = expected["in.x_t"], expected["in.noise"]
    steps = parity.steps("diffae", model.schedule, 10, encode=False)[::-1]
    # The fixture's z are those of the pictures in forward.
    z = diffae_z(model, expected["in.x0"])
    for drawn, index in expected.starting("sample_i"):
        step = steps[int(index)]
        eps, _ = model.predict(x, at(step.t, x), z)
        moments = solvers.ancestral(x, eps, step.here, step.there, model.config.variance, clip=True)
        expected.check(drawn, sampled(moments, noise, index == "0"))
    expected.complete()


@about(["diffae_autoenc64"], "latent")
def test_diffae_latent_dpm(golden: Path, folder: str, name: str, seen: States) -> None:
    """Nothing is clamped; the result is denormalised."""
    expected, model = expected_in(golden / folder, name), diffae_model(golden, folder)
    network, z = model.latent_dpm, expected["in.lat_z"]
    assert network is not None
    with torch.no_grad():
        for out, t in expected.starting("latent_net_t"):
            expected.check(out, network(z, at(int(t), z)))
    z = model.solve_z(expected["in.lat_zT"], Sampling(inference_steps=20, parity="diffae"))
    expected.check("z_states_T20", seen.taken())
    expected.check("z_denorm", z)
    made = codes(z, expected["in.x_T"], parity="diffae", inference_steps=10)
    expected.check("image_T10", model.decode(made))
    expected.complete()


# --- guided-diffusion (openai) ------------------------------------------------------------------


@about(GUIDED, "forward")
def test_guided_networks(golden: Path, folder: str, name: str) -> None:
    expected, model = expected_in(golden / folder, name), converted(golden / folder)
    x_t, mixed = expected["in.x_t"], expected["in.t_mixed"]
    with torch.no_grad():
        for t in (0, 1, 500, 999):
            expected.check(f"out_t{t}", model.dpm(x_t, at(t, x_t)))
        expected.check("out_tmixed", model.dpm(x_t, mixed))
        assert torch.equal(model.predict(x_t, mixed, None)[0], model.dpm(x_t, mixed)[:, :3])
    expected.complete()


@about(GUIDED, "sampling_ddim10")
def test_guided_ddim(golden: Path, folder: str, name: str, seen: States) -> None:
    expected, model = expected_in(golden / folder, name), converted(golden / folder)
    expected.check("timestep_map", timesteps("diffae", model, 10, encode=True))
    made = no_z(expected["in.x_T"], parity="diffae", inference_steps=10)
    expected.check("ddim_x_0", model.decode(made))
    expected.check_states("ddim_states_sample0", seen.taken())
    expected.check("ddim_reverse_x_T", to_noise(model, "diffae", expected["in.x0"], 10))
    expected.check_states("ddim_reverse_states_sample0", seen.taken())
    expected.complete()


@about(GUIDED, "sampling_25")
def test_guided_samples_ancestrally(golden: Path, folder: str, name: str) -> None:
    """Timesteps evenly from 0 to T-1, rounded; variance learned or beta."""
    expected, model = expected_in(golden / folder, name), converted(golden / folder)
    x, noise, alpha_bar = expected["in.x_t"], expected["in.noise"], model.schedule.alpha_bar
    times = [round(index * 999 / 24) for index in range(25)]
    expected.check("timestep_map", torch.tensor(times))
    levels = [1.0, *alpha_bar[times].tolist()]
    steps = [parity.Step(times[i], levels[i + 1], levels[i]) for i in range(25)]
    floor = (1 - levels[1]) / (1 - levels[2]) * (1 - levels[2] / levels[1])  # of the second step
    for drawn, index in expected.starting("sample_i"):
        step = steps[int(index)]
        with torch.no_grad():
            output = model.dpm(x, at(step.t, x))
        moments = solvers.ancestral(
            x,
            output[:, :3],
            step.here,
            step.there,
            model.config.variance,
            True,
            output[:, 3:],
            floor,
        )
        expected.check(f"mean_i{index}", moments[0])
        expected.check(f"log_variance_i{index}", moments[1])
        expected.check(drawn, sampled(moments, noise, index == "0"))
    expected.complete()


# --- diffusers ----------------------------------------------------------------------------------


@about(DIFFUSERS, "forward")
def test_diffusers_networks(golden: Path, folder: str, name: str) -> None:
    """From a pipeline, and where there is one from the layout of old repositories."""
    for index in sorted((golden / folder).glob("*/model_index.json")):
        expected, model = expected_in(golden / folder, name), converted(index.parent)
        x_t = expected["in.x_t"]
        for t in (0, 1, 500, 999):
            expected.check(f"eps_t{t}", model.predict(x_t, at(t, x_t), None)[0])
        expected.check("eps_tmixed", model.predict(x_t, expected["in.t_mixed"], None)[0])
        expected.complete()
        current = diffusers_model(golden, folder).config
        assert replace(model.config, source=current.source) == current


@about(DIFFUSERS, "ddim10")
def test_diffusers_ddim(golden: Path, folder: str, name: str, seen: States) -> None:
    """As the scheduler's clip_sample says; its inverse with it divides by small numbers, so the
    stored states are its test, each a step from the one before."""
    expected, model = expected_in(golden / folder, name), diffusers_model(golden, folder)
    x_0, x_T = expected["in.x0"], expected["in.x_T"]
    decode, encode = (parity.steps("diffusers", model.schedule, 10, way) for way in (False, True))
    expected.check("ddim_timesteps", timesteps("diffusers", model, 10))
    expected.check("inverse_timesteps", timesteps("diffusers", model, 10, encode=True))
    made = no_z(x_T, parity="diffusers", inference_steps=10)
    expected.check("ddim_x_0_clip", model.decode(made))
    expected.check_states("ddim_states_clip_sample0", seen.taken())
    unclipped = replace(model, config=replace(model.config, clip_sample=False))
    expected.check("ddim_x_0_noclip", unclipped.decode(made))
    predict = alone(model)
    clipped = parity.ddim(predict, x_T, decode, clip=True, recompute=True)
    expected.check("ddim_x_0_clip_useclippedeps", clipped)
    free = parity.ddim(predict, x_T, decode, clip=False, recompute=True)
    expected.check("ddim_x_0_noclip_useclippedeps", free)
    free = parity.ddim(predict, x_0, encode, clip=False, recompute=False)
    expected.check("inverse_x_T_noclip", free)
    stored = expected["inverse_states_clip_sample0"]
    stepped = torch.cat([
        parity.ddim(predict, x, [step], clip=True, recompute=False)
        for x, step in zip([x_0[:1], *stored[:-1, None]], encode, strict=True)
    ])  # fmt: skip
    expected.check("inverse_states_clip_sample0", stepped, atol=5e-5)  # about as exact as eps
    whole = parity.ddim(predict, x_0, encode, clip=True, recompute=False)
    expected.check("inverse_x_T_clip", whole)
    expected.complete()


@about(DIFFUSERS, "ddpm_step")
def test_diffusers_samples_ancestrally(golden: Path, folder: str, name: str) -> None:
    """At t = 1 diffusers' coefficients, 1 - alpha_bar in float32, have but four digits."""
    expected, model = expected_in(golden / folder, name), diffusers_model(golden, folder)
    x, noise = expected["in.x_t"], expected["in.noise"]
    for drawn, t in expected.starting("prev_sample_t"):
        eps, _ = model.predict(x, at(int(t), x), None)
        step = neighbours(model.schedule, int(t))
        moments = solvers.ancestral(x, eps, step.here, step.there, model.config.variance, clip=True)
        rounded = 1e-4 if t == "1" else None
        expected.check(drawn, sampled(moments, noise, t == "0"), atol=rounded)
    expected.complete()


def diffusers_model(golden: Path, folder: str) -> Model:
    return converted(golden / folder / "pipeline")


# --- Tables and pictures ------------------------------------------------------------------------

# What other tests are about: the timestep embedding in test_networks, pixels and metrics in
# test_metrics.
ELSEWHERE = {
    "pdae_schedules/timestep_embedding",
    "pdae_data_and_metrics/to_uint8",
    "pdae_data_and_metrics/metrics",
}


@about(["pdae_schedules"], "linear_T1000", "cosine_T1000")
def test_schedules(golden: Path, folder: str, name: str) -> None:
    """Tables, or what the functions with these coefficients make of 0 and 1."""
    expected, schedule = expected_in(golden / folder, name), Schedule(name.partition("_")[0])
    t = torch.arange(schedule.timesteps)
    zeros, ones = torch.zeros(len(t), 1, dtype=torch.float64), torch.ones(len(t), 1).double()
    alpha_bar, variance = schedule.alpha_bar, schedule.posterior_variance
    ours = {
        "betas": schedule.beta,
        "alphas": schedule.alpha,
        "alphas_cumprod": alpha_bar,
        "alphas_cumprod_prev": schedule.alpha_bar_prev,
        "alphas_cumprod_next": torch.cat([alpha_bar[1:], zeros[0]]),
        "sqrt_alphas_cumprod": schedule.add_noise(ones, t, zeros),
        "sqrt_one_minus_alphas_cumprod": schedule.add_noise(zeros, t, ones),
        "log_one_minus_alphas_cumprod": (1 - alpha_bar).log(),
        "sqrt_recip_alphas_cumprod": schedule.predict_x_0(ones, t, zeros),
        "sqrt_recip_alphas_cumprod_m1": -schedule.predict_x_0(zeros, t, ones),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": torch.cat([variance[1:2], variance[1:]]).log(),
        "x_0_posterior_mean_x_0_coef": schedule.posterior_mean(ones, zeros, t),
        "x_0_posterior_mean_x_t_coef": schedule.posterior_mean(zeros, ones, t),
        "noise_posterior_mean_x_t_coef": schedule.model_mean(ones, t, zeros),
        "noise_posterior_mean_noise_coef": -schedule.model_mean(zeros, t, ones),
        "shift_coef": -schedule.shift,
        "weight": schedule.loss_weight(),
    }
    for table, values in ours.items():
        expected.check(table, values.flatten(), rtol=1e-6, atol=1e-12)
    expected.complete()


@about(
    ["pdae_schedules"],
    *("ddim_linear_T1000", "ddim_linear_T1000_numpy1"),
    *("ddim_cosine_T1000", "ddim_cosine_T1000_numpy1"),
    *("latent_const0.008_T1000", "latent_const0.008_T1000_numpy1"),
)
def test_ddim_tables(golden: Path, folder: str, name: str) -> None:
    """The authors take differences of alpha_bar in float32 (under NumPy 1 some in float64), which
    leaves 1 - alpha_bar_0 four digits, of cosine three, and cosine's alpha_bar_{T-1} none."""
    expected = expected_in(golden / folder, name)
    cosine, latent = "cosine" in name, "latent" in name
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
    expected.complete()


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
def test_pixels_become_numbers(golden: Path, folder: str, name: str) -> None:
    """The authors' crop and bilinear resize are Pillow's; ours, by Lanczos, differ on purpose."""
    expected = expected_in(golden / folder, name)
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
    expected.complete()


# --- What the repository has of it --------------------------------------------------------------


@pytest.fixture(scope="session")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One checkpoint of each family as its program leaves it; large files are kept compressed."""
    root = tmp_path_factory.mktemp("golden")
    shutil.copytree(COMMITTED, root, dirs_exist_ok=True)
    for path in root.rglob("*.xz"):
        path.with_suffix("").write_bytes(lzma.decompress(path.read_bytes()))
    return root


class Few(Expected):
    """A committed file: of pictures, every fourth row and column."""

    def __init__(self, folder: Path) -> None:
        path = folder / "expected.safetensors"
        with safe_open(path, "pt") as file:
            atol = json.loads(file.metadata()["atol"])
        super().__init__(folder.name, load_file(path), atol)

    def check(self, name: str, got: Tensor | None, **tolerances: Any) -> None:
        picture = got is not None and got.ndim == 4
        super().check(name, got[..., ::4, ::4] if picture else got, **tolerances)


def test_a_clone_reads_pdae(committed: Path) -> None:
    expected, conversion = Few(committed / "pdae"), read_foreign(Source(committed / "pdae"))
    model = conversion.model
    assert conversion.family == "pdae"
    x_0, x_t, z = expected["in.x0"], expected["in.x_t"], model.encoder(expected["in.x0"])
    expected.check("z", z)
    for t in (1, 999):
        eps, gradient = model.predict(x_t, at(t, x_t), z)
        expected.check(f"eps_t{t}", eps)
        expected.check(f"gradient_t{t}", gradient)
    made = model.encode(x_0, parity="pdae", inference_steps=10)
    expected.check("x_T_encode10", made.x_T)
    expected.check("x_0_decode10", model.decode(replace(made, x_T=expected["in.x_T"])))
    settings = Sampling(inference_steps=10, parity="pdae")
    expected.check("z_latent10", model.solve_z(expected["in.z_T"], settings))
    expected.complete()


def test_a_clone_reads_diffae(committed: Path) -> None:
    """Its callbacks are keyed by a class of PyTorch Lightning, which isn't installed."""
    path = committed / "diffae" / "tiny64_autoenc_latent"
    assert b"pytorch_lightning.callbacks.model_checkpoint" in (path / "last.ckpt").read_bytes()
    expected, conversion = Few(committed / "diffae"), read_foreign(Source(path))
    model = conversion.model
    assert conversion.family == "diffae" and model.attributes is not None
    x_0, x_t, z = expected["in.x0"], expected["in.x_t"], model.encoder(expected["in.x0"])
    expected.check("z", z)
    for t in (1, 999):
        expected.check(f"eps_t{t}", model.predict(x_t, at(t, x_t), z)[0])
    made = model.encode(x_0, parity="diffae", inference_steps=10)
    expected.check("x_T_encode10", made.x_T)
    expected.check("x_0_decode10", model.decode(replace(made, x_T=expected["in.x_T"])))
    settings = Sampling(inference_steps=20, parity="diffae")
    expected.check("z_latent20", model.solve_z(expected["in.z_T"], settings))
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
