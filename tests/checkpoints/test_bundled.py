"""The bundled model, end to end: what the README promises, on generated and on real photos."""

from __future__ import annotations

import email
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import BUNDLED, ROOT, SHARED
from PIL import Image
from readme_commands import readme_command

import pdae_cli
from pdae_cli.diffusion.trajectory import PRESETS
from pdae_cli.engine.attributes import auroc, balanced_accuracy
from pdae_cli.evaluation import metrics
from pdae_cli.training.autoencoder import gap_residuals

pytestmark = pytest.mark.skipif(not BUNDLED.is_dir(), reason="weights/faces64 isn't there")
FACES = sorted((ROOT / "examples" / "faces").glob("*.png"))


@pytest.fixture(scope="module")
def faces64() -> pdae_cli.Model:
    return pdae_cli.load("faces64", device="cpu")


@pytest.fixture(scope="module")
def x_0(faces64: pdae_cli.Model) -> torch.Tensor:
    return faces64.pictures(FACES[:3])


def test_the_public_api(faces64: pdae_cli.Model, x_0: torch.Tensor) -> None:
    """DESIGN's Python example: shapes and types."""
    codes = faces64.encode(FACES[:3], inference_steps=10)
    assert codes.z.shape == (3, faces64.config.encoder.z_dim)  # type: ignore[union-attr]
    assert codes.x_T is not None and codes.x_T.shape == x_0.shape
    assert faces64.decode(codes, inference_steps=20).shape == x_0.shape
    eps, gradient = faces64.predict(x_0, torch.tensor([10, 500, 900]), codes.z)
    assert gradient is not None and eps.shape == gradient.shape == x_0.shape
    assert torch.allclose(faces64.encode_z(x_0), codes.z, atol=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_results_dont_depend_on_batch_size(
    faces64: pdae_cli.Model, x_0: torch.Tensor, preset: str
) -> None:
    """A picture's codes, and the picture of codes, are the same to the bit alone and in a batch."""
    together = faces64.encode(x_0, **PRESETS[preset])
    alone = faces64.encode(x_0[1:2], **PRESETS[preset])
    for name, part in together.tensors().items():
        assert torch.equal(part[1:2], alone.tensors()[name])
    assert torch.equal(faces64.decode(together)[1:2], faces64.decode(alone))


@pytest.mark.parametrize(
    ("preset", "equal"), [("fast", 0.3), ("default", 0.9), ("exact", 1.0), ("archival", 1.0)]
)
def test_presets_give_pixels_back(
    faces64: pdae_cli.Model, x_0: torch.Tensor, preset: str, equal: float
) -> None:
    back = faces64.decode(faces64.encode(x_0, **PRESETS[preset]))
    assert metrics.equal_share(back, x_0).mean() >= equal
    assert metrics.mse(back, x_0).mean() < 2.2e-5  # the authors', of 27 to 55 times as many steps


def test_an_edit_raises_the_score_and_moves_the_picture(faces64: pdae_cli.Model) -> None:
    codes = faces64.encode(FACES[:2], inference_steps=10)
    assert faces64.attributes is not None
    for name in ("Smiling", "Eyeglasses", "Male", "Young", "Blond_Hair"):
        moved = faces64.manipulate(codes, [(name, 0.3)])
        column = faces64.attributes.index(name)
        assert (faces64.scores(moved) - faces64.scores(codes))[:, column].min() > 1
        change = (faces64.decode(moved) - faces64.decode(codes)).abs().mean().item()
        assert 0.005 < change < 0.5, name


def test_edits_of_exact_codes_are_those_of_a_fine_solution(
    faces64: pdae_cli.Model, x_0: torch.Tensor
) -> None:
    """Nearer to them than the default's, and much nearer than without residual_T."""

    def edited(**changes: Any) -> torch.Tensor:
        return faces64.manipulate(faces64.encode(x_0[:1], **changes), [("Smiling", 0.3)])

    fine = faces64.decode(edited(inference_steps=100))
    exact = edited(**PRESETS["exact"])
    error = metrics.mse(faces64.decode(exact), fine)
    assert error < metrics.mse(faces64.decode(edited()), fine)
    assert error < metrics.mse(faces64.decode(replace(exact, residual_T=None)), fine) / 2


def test_z_is_used(faces64: pdae_cli.Model, x_0: torch.Tensor) -> None:
    """The right z closes more of the posterior mean gap than another picture's."""
    t, eps = torch.tensor([300, 500, 700]), torch.randn(x_0.shape)
    z = faces64.encode_z(x_0)
    plain, right = gap_residuals(faces64, x_0, t, eps, z)
    _, wrong = gap_residuals(faces64, x_0, t, eps, z.roll(1, 0))
    assert right.sum() < plain.sum() and right.sum() < wrong.sum()


@pytest.mark.slow
def test_a_real_photo_through_a_shell_pipe(tmp_path: Path) -> None:
    """encode | manipulate | decode on a photograph, as three processes."""
    from skimage import data

    photo = tmp_path / "astronaut.png"
    Image.fromarray(data.astronaut()).crop((130, 0, 330, 200)).save(photo)
    pdae = f"{sys.executable} -m pdae_cli"
    fast = "--inference-steps 10"
    done = subprocess.run(
        f"{pdae} encode {photo} -o - {fast} | {pdae} manipulate - --attr smiling --scale 0.3 -o - "
        f"| {pdae} decode - -o - > {tmp_path}/edited.png",
        shell=True, cwd=ROOT, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout == b"" and done.stderr == b""
    with Image.open(tmp_path / "edited.png") as edited:
        assert edited.size == (64, 64)
        assert "manipulate" not in edited.info and "decode" in edited.info["pdae"]


def test_readme_commands_are_single_lines_that_use_the_constraints() -> None:
    for name in ("edit", "test"):
        command = readme_command(name)
        assert "\n" not in command and "-c constraints.txt" in command


@pytest.mark.slow
def test_a_wheel_carries_the_weights(tmp_path: Path) -> None:
    """Built and unpacked, the package finds faces64 without the checkout, and says the terms of
    both: of the program, and of the weights."""
    if shutil.which("pip") is None:
        pytest.skip("no pip")
    wheel = [
        sys.executable,
        *["-m", "pip", "wheel", "--no-deps", "-q", "-w"],
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(wheel, check=True, capture_output=True)
    shutil.unpack_archive(next(tmp_path.glob("*.whl")), tmp_path / "site", "zip")
    (about,) = (tmp_path / "site").glob("*.dist-info")
    said = email.message_from_string((about / "METADATA").read_text())
    assert said["License-Expression"] == "Apache-2.0 AND LicenseRef-faces64-non-commercial-research"
    for file in said.get_all("License-File") or ["none"]:
        assert (about / "licenses" / file).read_bytes() == (ROOT / file).read_bytes()
    assert (tmp_path / "site" / "pdae_cli" / "py.typed").is_file()
    code = "import pdae_cli.checkpoints as c; print(c.model_folder('faces64'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "site")},
    )  # fmt: skip
    assert done.stdout.strip() == str(tmp_path / "site" / "pdae_cli" / "weights" / "faces64")


@pytest.mark.slow
def test_the_models_figures_on_held_out_faces(faces64: pdae_cli.Model) -> None:
    """The card's AUROC figures, again, where the data set is at hand."""
    data = SHARED / "data" / "faces64.zip"
    if not data.is_file():
        pytest.skip(f"the data set is not at {data}; set PDAE_SHARED")
    from pdae_cli.training.data import open_pictures, split
    from pdae_cli.training.labels import find_labels
    from pdae_cli.training.latent import encode_all

    pictures = open_pictures(data, 64)
    labels = find_labels(data, None, pictures.names)
    assert labels is not None and faces64.attributes is not None
    _, held_out = split(pictures, labels)
    scores = faces64.attributes.scores(faces64.normalise(encode_all(faces64, held_out)))
    truth = labels.matrix(held_out.names)
    for name, fact in faces64.attributes.facts.items():
        column, true = faces64.attributes.index(name), truth[:, labels.attributes.index(name)]
        known = true >= 0
        found = auroc(scores[known, column], true[known])
        assert found == pytest.approx(fact["auroc"], abs=0.005), name
        found = balanced_accuracy(scores[known, column], true[known])
        assert found == pytest.approx(fact["balanced_accuracy"], abs=0.01), name
        spread = scores[:, column].std().item()  # of other faces than those it was measured on
        assert spread == pytest.approx(fact["score_sd"], rel=0.2), name


def test_the_card_states_its_figures() -> None:
    model, card = pdae_cli.load("faces64", "cpu"), (BUNDLED / "README.md").read_text()
    figures = json.loads((BUNDLED / "figures.json").read_text())
    for word in ("CelebA", "LFW", "non-commercial", "pdae train dpm", "pdae train autoencoder"):
        assert word in card
    assert figures["digest"] == model.weights_sha and model.config.licence != "unknown"
    assert model.attributes is not None and len(model.attributes.names) == 40
    assert model.latent_dpm is not None
