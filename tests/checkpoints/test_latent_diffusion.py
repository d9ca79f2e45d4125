"""PDAE on a latent diffusion model: E_phi sees pictures, everything in x_t's place is latents.

diffusers' own AutoencoderKL, VQModel and LDMPipeline are the reference.
"""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import latent_models
import pytest
import torch
from conftest import Command
from labelled import labelled
from latent_models import LATENT, SIZE, pipeline, pixels
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from pdae_cli.checkpoints import load_dpm, load_first_stage, read_model
from pdae_cli.diffusion.noise import generator
from pdae_cli.diffusion.trajectory import Sampling
from pdae_cli.engine import editing
from pdae_cli.engine.guidance import by_classifier
from pdae_cli.engine.model import Model
from pdae_cli.errors import InputError, ModelError, UsageError
from pdae_cli.evaluation.gap import gap
from pdae_cli.evaluation.likelihood import likelihood
from pdae_cli.evaluation.reconstruction import reconstruction
from pdae_cli.networks.classifier import Classes
from pdae_cli.networks.first_stage import FirstStageConfig, in_parts
from pdae_cli.training.autoencoder import AutoencoderLoss
from pdae_cli.training.classifier import new_classifier
from pdae_cli.training.dpm import new_dpm

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own
source, model = latent_models.source, latent_models.model


class TestModel:
    def test_a_picture_is_the_same_in_every_batch(self, model: Model) -> None:
        latents = model.latents(pixels(5))
        back = model.from_latents(latents)
        for row in range(5):
            one = slice(row, row + 1)
            assert torch.equal(model.latents(pixels(5)[one]), latents[one])
            assert torch.equal(model.from_latents(latents[one]), back[one])

    def test_an_accelerator_computes_few_large_pictures_at_once(self) -> None:
        """Latents that fit in memory mustn't fail it as feature maps of pictures."""
        for size, expected in ((512, [2, 2, 1]), (2048, [1] * 5), (64, [5])):
            asked: list[int] = []

            def network(x: Tensor, asked: list[int] = asked) -> Tensor:
                asked.append(len(x))
                return x

            x = torch.empty((5, 3, size // 8, size // 8), device="meta")
            assert in_parts(network, x, size**2).shape == x.shape
            assert asked == expected

    def test_compiled_training_compiles_the_first_stage_not_at_all(self, model: Model) -> None:
        """It would do so once for each picture of a batch."""
        assert model.encoder is not None
        objective = AutoencoderLoss(model.heads, model.encoder, model.schedule, model.latents)
        eps, t = torch.zeros((2, *model.config.state_shape)), torch.tensor([10, 500])
        convolutions: list[str] = []

        def kept(graph: Any, inputs: Any) -> Any:
            called = (str(n.target) for n in graph.graph.nodes if n.op == "call_function")
            convolutions.extend(name for name in called if "conv" in name)
            return graph.forward

        compiled = torch.compile(objective, backend=kept)
        torch.testing.assert_close(compiled(pixels(), t, eps), objective(pixels(), t, eps))
        trained = [*model.heads.modules(), *model.encoder.modules()]
        assert 0 < len(convolutions) <= sum(isinstance(m, torch.nn.Conv2d) for m in trained)

    @pytest.mark.parametrize("parity", ["pdae", "diffae"])
    def test_latents_are_not_clamped_as_pictures(self, model: Model, parity: str) -> None:
        """Programs that know pictures only clamp x_0 to their range."""
        with pytest.raises(UsageError, match="latents"):
            model.encode(pixels(), parity=parity)
        with pytest.raises(UsageError, match="latents"):
            model.sample(1, unconditional=True, parity=parity)

    def test_codes_of_pictures_are_not_of_latents(self, model: Model) -> None:
        codes = replace(model.encode(pixels()), x_T=torch.zeros((2, 3, SIZE, SIZE)))
        with pytest.raises(InputError, match=r"x_T of \(3, 32, 32\).*\(3, 8, 8\)"):
            model.decode(codes)

    def test_codes_are_of_the_picture_and_of_its_latents(self, model: Model) -> None:
        codes = model.encode(pixels())
        assert codes.x_T is not None and codes.x_T.shape == (2, 3, LATENT, LATENT)
        torch.testing.assert_close(codes.z, model.encode_z(pixels()))
        alone = model.guided(Sampling(), codes.z)
        x_T = model.trajectory(Sampling()).to_noise(alone, pixels()).x_T
        torch.testing.assert_close(codes.x_T, x_T)

    def test_what_is_lost_is_the_first_stages_own_loss(self, tmp_path: Path) -> None:
        """The ODE, solved reversibly, brings every latent back."""
        pipeline(tmp_path, "kl")
        model = load_dpm(str(tmp_path))
        plain = model.guided(way := Sampling(solver="leapfrog"))
        found = model.trajectory(way).to_noise(plain, pixels())
        assert found.x_T is not None
        back = model.trajectory(way).to_picture(plain, found.x_T, [], found.residual_T)
        expected = model.from_latents(model.latents(pixels()))
        assert back.shape == (2, 3, SIZE, SIZE)
        torch.testing.assert_close(back, expected, atol=1e-2, rtol=0)
        assert (back - pixels()).abs().max() > 0.1  # a first stage of random weights loses much

    def test_edits_and_inpainting_keep_what_is_outside_of_a_mask(self, model: Model) -> None:
        codes, mask = model.encode(pixels(1)), torch.zeros(1, 1, SIZE, SIZE)
        mask[..., 8:17, 8:20] = 1
        outside = (mask == 0).expand(1, 3, SIZE, SIZE)
        edited = replace(codes, z=codes.z + 3)
        within, whole = editing.decode_within(model, codes, edited, mask), model.decode(codes)
        made = editing.inpaint(model, pixels(1), mask, inference_steps=4)
        for changed, before in ((within, whole), (made, pixels(1))):
            assert torch.equal(changed[outside], before[outside])
            assert not torch.equal(changed[~outside], before[~outside])

    def test_what_is_of_pixels_is_refused(self, model: Model) -> None:
        with pytest.raises(ModelError, match="latents"):
            likelihood(model, pixels(1), [torch.Generator()])
        with pytest.raises(ModelError, match="latents"):
            editing.colourise(model, pixels(1))

    @pytest.mark.parametrize(("size", "channels"), [(30, 3), (32, 1)])
    def test_pictures_without_latents_are_refused(
        self, source: Path, size: int, channels: int
    ) -> None:
        stage, _ = load_first_stage(str(source))
        shape = {"base_channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": ()}
        more = {"patch": 1, "head_channels": 8, "dropout": 0.0}
        with pytest.raises(UsageError, match="first stage is of pictures of 3 channels"):
            new_dpm(0, "linear", "v", stage, image_size=size, channels=channels, **shape, **more)

    def test_the_factor_is_that_of_the_levels(self, model: Model) -> None:
        stage = model.config.first_stage
        assert isinstance(stage, FirstStageConfig) and stage.factor == SIZE // LATENT
        assert (model.config.image_size, model.config.channels) == (SIZE, 3)
        assert model.config.state_shape == (3, LATENT, LATENT)


def test_a_classifier_of_pictures_is_none_of_latents(model: Model) -> None:
    """Of the same shape and noise, and yet of something else."""
    classes = Classes(("Smiling",), exclusive=False)
    of_latents = new_classifier(model, classes, 8, seed=0)
    y, how = torch.ones((1, 1), dtype=torch.int8), Sampling(inference_steps=2)
    made = by_classifier(model, of_latents, y, 1.0, [0], how, 0)
    assert made.shape == (1, 3, SIZE, SIZE)
    of_pictures = replace(of_latents, config=replace(of_latents.config, image_size=LATENT))
    with pytest.raises(UsageError, match="other pictures or noise"):
        by_classifier(model, of_pictures, y, 1.0, [0], how, 0)


def test_nor_is_one_of_another_first_stages(model: Model) -> None:
    """Whose latents have the same shape."""
    classifier = new_classifier(model, Classes(("Smiling",), exclusive=False), 8, seed=0)
    other = replace(model, first_stage=copy.deepcopy(model.first_stage))
    assert other.first_stage is not None
    next(other.first_stage.parameters()).mul_(2)
    y, how = torch.ones((1, 1), dtype=torch.int8), Sampling(inference_steps=2)
    with pytest.raises(UsageError, match="is of other latents than"):
        by_classifier(other, classifier, y, 1.0, [0], how, 0)


def test_a_first_stage_is_read_through_once(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for each batch of samples that a classifier guides."""
    model, read = replace(model), list[object]()
    monkeypatch.setattr("pdae_cli.engine.model.networks_sha", lambda one: read.append(one) or "sha")
    assert [model.first_stage_sha for _ in range(3)] == ["sha"] * 3 and len(read) == 1


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled(tmp_path_factory.mktemp("data") / "photos", 24, 16)


FEW = ("--images", 8, "--batch-size", 4, "--device", "cpu", "--quiet")


def test_a_pipeline_is_trained_on_and_used(
    pdae: Command, source: Path, photos: Path, tmp_path: Path
) -> None:
    """convert → train → attributes → encode, decode, manipulate, sample."""
    converted, run = tmp_path / "converted", tmp_path / "run"
    result = pdae("convert", source, "-o", converted)
    assert result.code == 0 and b"first_stage" in result.out, result.err
    done = pdae("train", "autoencoder", photos, "--dpm", converted, "-o", run, "--z-dim", 6, *FEW)
    assert done.code == 0, done.err
    assert pdae("attributes", "fit", photos, "-m", run, "--device", "cpu").code == 0
    latent = ("--width", 16, "--layers", 3)
    assert pdae("train", "latent", photos, "-m", run, *latent, *FEW).code == 0
    told = json.loads(pdae("info", run, "--json").out)
    assert told["parameters"]["first stage"] > 0 and told["first_stage"]["kind"] == "VQModel"

    face, common = photos / "03.png", ("-m", run, "--device", "cpu")
    codes = tmp_path / "z.safetensors"
    assert pdae("encode", face, "-o", codes, *common).code == 0
    assert load_file(codes)["x_T"].shape == (1, 3, LATENT, LATENT)
    assert pdae("decode", codes, "-o", tmp_path / "back.png", *common).code == 0
    with Image.open(tmp_path / "back.png") as image:
        assert image.size == (SIZE, SIZE)
    edit = ("--attr", "red", "--scale", 0.3, "-o", tmp_path / "edit.png")
    assert pdae("manipulate", face, *edit, *common).code == 0
    assert pdae("manipulate", codes, *edit, "--overwrite", *common).code == 0
    made = json.loads(pdae("reconstruct", face, "-o", tmp_path / "r.png", "--json", *common).out)
    assert made["status"] == "done" and 0 < made["ssim"] <= 1
    assert pdae("sample", "-n", 2, "-o", tmp_path / "samples", *common).code == 0
    assert pdae("interpolate", face, photos / "04.png", "-o", tmp_path / "s.png", *common).code == 0
    refused = pdae("colourise", face, "-o", tmp_path / "c.png", *common)
    assert refused.code == 4 and "latents" in refused.err
    exported = pdae("export", "-m", run, "--to", "diffusers", "-o", tmp_path / "exported")
    assert exported.code == 0, exported.err
    tensors = load_dpm(str(tmp_path / "exported")).dpm.state_dict()
    for name, value in load_dpm(str(source)).dpm.state_dict().items():
        assert torch.equal(tensors[name], value), name


def test_eps_theta_is_trained_on_latents(
    pdae: Command, source: Path, photos: Path, tmp_path: Path
) -> None:
    shape = ("--image-size", 32, "--base-channels", 8, "--multipliers", "1,2", "--blocks", 1)
    rest = ("--attention", 4, "--head-channels", 8, "--dropout", 0)
    stage = ("--first-stage", source)
    done = pdae("train", "dpm", photos, "-o", tmp_path / "dpm", *stage, *shape, *rest, *FEW)
    assert done.code == 0, done.err
    model = read_model(tmp_path / "dpm", "dpm")
    assert model.config.state_shape == (3, LATENT, LATENT)
    reference, _ = load_first_stage(str(source))
    assert model.first_stage is not None
    for name, value in reference.state_dict().items():
        assert torch.equal(model.first_stage.state_dict()[name], value), name  # it stays frozen
    pictures, _ = model.sample(1, unconditional=True, inference_steps=2)
    assert pictures.shape == (1, 3, SIZE, SIZE)


def test_a_model_brings_its_own_first_stage(pdae: Command, source: Path, tmp_path: Path) -> None:
    both = ("--init-from", tmp_path / "dpm", "--first-stage", source)
    done = pdae("train", "dpm", tmp_path, "-o", tmp_path / "more", *both)
    assert done.code == 2 and "--first-stage" in done.err


def test_experiments_take_latent_models(model: Model) -> None:
    """The gap is that of latents, by the formula on their own noise; sheets show pictures."""
    finding = gap(model, pixels(), timesteps=[300])
    x_0, t = model.latents(pixels()), torch.full((2,), 300)
    eps = torch.randn(x_0.shape, generator=generator(0, "gap"))
    eps_theta, _ = model.predict(model.schedule.add_noise(x_0, t, eps), t, None)
    s = model.schedule
    factor = s.beta[300] ** 2 / s.alpha[300] / (1 - s.alpha_bar[300])
    expected = ((eps - eps_theta).square().mean() * factor).item()
    assert finding.rows[0]["gap"] == pytest.approx(expected, rel=1e-4)
    assert finding.sheet is not None and finding.sheet.shape[1] > 6 * SIZE
    recovered = reconstruction(model, pixels(), solvers=["dpmpp"], steps=[3])
    assert recovered.rows[0]["nfe"] == 6
