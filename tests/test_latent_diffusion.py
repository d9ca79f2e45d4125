"""PDAE on a latent diffusion model: E_phi sees pictures, everything in x_t's place is latents.

diffusers' own AutoencoderKL, VQModel and LDMPipeline are the reference.
"""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command, picture, randomise
from safetensors.torch import load_file, save_file
from torch import Tensor

from pdae_cli.checkpoints import load_dpm, load_first_stage, read_model, write_model
from pdae_cli.checkpoints.convert import Source, read_foreign
from pdae_cli.checkpoints.export import write_diffusers
from pdae_cli.diffusion.noise import generator
from pdae_cli.diffusion.sampling import Sampling
from pdae_cli.engine import editing
from pdae_cli.engine.conditional import by_classifier
from pdae_cli.engine.model import Model
from pdae_cli.errors import InputError, ModelError, UsageError
from pdae_cli.evaluation.gap import gap
from pdae_cli.evaluation.likelihood import likelihood
from pdae_cli.evaluation.reconstruction import reconstruction
from pdae_cli.networks.classes import Classes
from pdae_cli.networks.first_stage import FirstStageConfig, in_parts
from pdae_cli.training.autoencoder import AutoencoderLoss, with_autoencoder
from pdae_cli.training.classifier import new_classifier
from pdae_cli.training.dpm import new_dpm

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of other people's packages
    import diffusers
    from diffusers import AutoencoderKL, DDIMScheduler, LDMPipeline, UNet2DModel, VQModel

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own
diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()

SIZE, LATENT = 32, 8  # pixels, and latents of a factor of 4
LEVELS: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (8, 8, 16),
    "norm_num_groups": 4,
}
KINDS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "kl": (AutoencoderKL, LEVELS | {"latent_channels": 4, "scaling_factor": 0.7}),
    "vq": (VQModel, LEVELS | {"latent_channels": 3, "num_vq_embeddings": 32}),
    "kl, shifted": (AutoencoderKL, LEVELS | {"latent_channels": 4, "shift_factor": 0.25}),
    "kl, no bottleneck": (
        AutoencoderKL,
        LEVELS | {"latent_channels": 4, "use_quant_conv": False, "use_post_quant_conv": False},
    ),
    "vq, codes of their own width": (
        VQModel,
        LEVELS | {"latent_channels": 3, "num_vq_embeddings": 16, "vq_embed_dim": 5},
    ),
    "vq, attention": (
        VQModel,
        LEVELS
        | {
            "latent_channels": 3,
            "down_block_types": (*["DownEncoderBlock2D"] * 2, "AttnDownEncoderBlock2D"),
            "up_block_types": ("AttnUpDecoderBlock2D", *["UpDecoderBlock2D"] * 2),
        },
    ),
}


def theirs(name: str) -> Any:
    """A first stage of diffusers with random weights."""
    kind, shape = KINDS[name]
    torch.manual_seed(1)
    network = kind(**shape).eval()
    randomise(network, 0.1)
    return network


def pipeline(folder: Path, name: str = "vq") -> LDMPipeline:
    """A latent diffusion pipeline with random weights, written to a folder."""
    stage = theirs(name)
    channels = stage.config.latent_channels
    torch.manual_seed(2)
    unet = UNet2DModel(
        sample_size=LATENT,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
    ).eval()
    randomise(unet, 0.03)
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False)
    made = LDMPipeline(stage, unet, scheduler)
    made.save_pretrained(str(folder))
    return made


def pixels(count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.rand((count, 3, SIZE, SIZE), generator=generator) * 2 - 1


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ldm") / "pipeline"
    pipeline(folder)
    return folder


@pytest.fixture
def model(source: Path) -> Model:
    """A whole latent PDAE, with G_psi and E_phi of random weights."""
    made = with_autoencoder(load_dpm(str(source)), z_dim=6, seed=0)
    assert made.gradient_estimator is not None and made.encoder_network is not None
    randomise(made.gradient_estimator, 0.03)
    made.name = "latent"
    return made


class TestFirstStage:
    @pytest.mark.parametrize("name", KINDS)
    def test_latents_and_pictures_are_those_of_diffusers(self, name: str, tmp_path: Path) -> None:
        reference = theirs(name)
        reference.save_pretrained(str(tmp_path / "stage"))
        ours = load_first_stage(str(tmp_path / "stage"))
        shift, scale = reference.config.get("shift_factor") or 0, reference.config.scaling_factor
        with torch.no_grad():
            found = reference.encode(pixels())
            plain = found.latents if "vq" in name else found.latent_dist.mode()
            latents = ours.encode(pixels())
            torch.testing.assert_close(latents, (plain - shift) * scale, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(
                ours.decode(latents), reference.decode(plain).sample, atol=1e-5, rtol=1e-5
            )

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

    def test_attention_of_old_files(self, tmp_path: Path) -> None:
        """diffusers before 0.12 called its layers otherwise."""
        theirs("kl").save_pretrained(str(tmp_path))
        path = tmp_path / "diffusion_pytorch_model.safetensors"
        old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        tensors = load_file(path)
        renamed = {}
        for name, value in tensors.items():
            for new, before in old.items():
                name = name.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
            renamed[name] = value
        assert renamed.keys() != tensors.keys()
        save_file(renamed, path)
        ours = load_first_stage(str(tmp_path)).state_dict()
        for name, value in tensors.items():
            assert torch.equal(ours[f"network.{name}"], value), name

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"latents_mean": [0.0] * 4}, "latents_mean"),
            ({"act_fn": "gelu"}, "act_fn"),
            ({"layers_per_block": 10**9}, "blocks"),
            ({"block_out_channels": [8, 8, 18]}, "groups"),
            ({"down_block_types": ["DownBlock2D"] * 3}, "DownBlock2D"),
            ({"latent_channels": 5}, "shape"),
            ({"scaling_factor": 0}, "scale"),
            ({"scaling_factor": 10**400}, "float"),
            ({"shift_factor": float("nan")}, "shift nan"),
            ({"latent_channels": 10**12}, "channels or codes"),  # bytes past 64 bits
            ({"block_out_channels": [8 * 10**9] * 3}, "widths"),
        ],
    )
    def test_what_cannot_be_is_one_line(
        self, changes: dict[str, Any], said: str, tmp_path: Path
    ) -> None:
        theirs("kl").save_pretrained(str(tmp_path))
        config = tmp_path / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | changes))
        with pytest.raises(ModelError, match=said) as raised:
            load_first_stage(str(tmp_path))
        assert "\n" not in str(raised.value)

    def test_a_damaged_file_is_one_line(self, tmp_path: Path) -> None:
        theirs("kl").save_pretrained(str(tmp_path))
        path = tmp_path / "diffusion_pytorch_model.safetensors"
        tensors = load_file(path)
        tensors.pop("decoder.conv_in.weight")
        save_file(tensors, path)
        with pytest.raises(ModelError, match=r"decoder\.conv_in\.weight"):
            load_first_stage(str(tmp_path))

    @pytest.mark.parametrize("named", ["vqvae", "vae"])
    def test_one_of_another_kind_is_an_error(self, named: str, tmp_path: Path) -> None:
        """Else its latents would pass for pictures."""
        pipeline(tmp_path)
        (tmp_path / "vqvae").rename(tmp_path / named)
        (tmp_path / "model_index.json").write_text("{}")
        config = tmp_path / named / "config.json"
        facts = json.loads(config.read_text())
        config.write_text(json.dumps(facts | {"_class_name": "AutoencoderTiny"}))
        with pytest.raises(ModelError, match="AutoencoderTiny"):
            load_dpm(str(tmp_path))

    def test_one_that_is_missing_is_an_error(self, tmp_path: Path) -> None:
        pipeline(tmp_path)
        (tmp_path / "vqvae").rename(tmp_path / "elsewhere")
        with pytest.raises(ModelError, match=r"vqvae/config\.json is missing"):
            load_dpm(str(tmp_path))

    def test_one_alone_is_no_diffusion_model(self, tmp_path: Path) -> None:
        theirs("kl").save_pretrained(str(tmp_path))
        with pytest.raises(ModelError, match="train dpm --first-stage"):
            load_dpm(str(tmp_path))

    def test_a_folder_without_one_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="AutoencoderKL or VQModel"):
            load_first_stage(str(tmp_path))


class TestModel:
    def test_compiled_training_compiles_the_first_stage_not_at_all(self, model: Model) -> None:
        """It would do so once for each picture of a batch."""
        assert model.encoder_network is not None
        objective = AutoencoderLoss(
            model.heads, model.encoder_network, model.schedule, model.latents
        )
        eps, t = torch.zeros((2, *model.config.state_shape)), torch.tensor([10, 500])
        convolutions: list[str] = []

        def kept(graph: Any, inputs: Any) -> Any:
            called = (str(n.target) for n in graph.graph.nodes if n.op == "call_function")
            convolutions.extend(name for name in called if "conv" in name)
            return graph.forward

        compiled = torch.compile(objective, backend=kept)
        torch.testing.assert_close(compiled(pixels(), t, eps), objective(pixels(), t, eps))
        trained = [*model.heads.modules(), *model.encoder_network.modules()]
        assert 0 < len(convolutions) <= sum(isinstance(m, torch.nn.Conv2d) for m in trained)

    @pytest.mark.parametrize("name", ["vq", "kl"])
    def test_export_makes_the_pipeline_again(self, name: str, tmp_path: Path) -> None:
        """Same pictures of the same noise, by diffusers' own loop, up to rounding."""
        before = pipeline(tmp_path / "before", name)
        write_diffusers(load_dpm(str(tmp_path / "before")), tmp_path / "after")
        after = LDMPipeline.from_pretrained(str(tmp_path / "after"))
        made = [
            one(1, torch.Generator().manual_seed(0), 0.0, 3, output_type="np").images
            for one in (before, after)
        ]
        assert abs(made[0] - made[1]).max() < 1e-4 and made[0].std() > 0.01

    def test_what_an_ldm_pipeline_cannot_do_is_not_begun(self, tmp_path: Path) -> None:
        pipeline(tmp_path / "before", "kl, shifted")
        with pytest.raises(UsageError, match="shifted"):
            write_diffusers(load_dpm(str(tmp_path / "before")), tmp_path / "after")
        assert not (tmp_path / "after").exists()

    def test_samples_are_those_of_diffusers(self, source: Path, tmp_path: Path) -> None:
        """LDMPipeline's loop on the same noise, 10 steps of its own DDIM."""
        reference = LDMPipeline.from_pretrained(str(source))
        reference.set_progress_bar_config(disable=True)
        model = load_dpm(str(source))
        x_T = torch.randn((2, 3, LATENT, LATENT), generator=torch.Generator().manual_seed(0))
        drawn = reference(2, torch.Generator().manual_seed(0), 0.0, 10, output_type="np").images
        sampling = Sampling(parity="diffusers", inference_steps=10)
        ours = model.trajectory(sampling).to_picture(model.guided(sampling), x_T, [])
        expected = torch.from_numpy(drawn).permute(0, 3, 1, 2) * 2 - 1
        torch.testing.assert_close(ours.clamp(-1, 1), expected, atol=2e-4, rtol=0)

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
        torch.testing.assert_close(codes.z, model.encoder(pixels()))
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
        back = model.trajectory(way).to_picture(plain, found.x_T, [], found.eps_T)
        expected = model.from_latents(model.latents(pixels()))
        assert back.shape == (2, 3, SIZE, SIZE)
        torch.testing.assert_close(back, expected, atol=1e-2, rtol=0)
        assert (back - pixels()).abs().max() > 0.1  # a first stage of random weights loses much

    def test_a_written_model_is_the_same_model(self, model: Model, tmp_path: Path) -> None:
        write_model(tmp_path, model)
        again = read_model(tmp_path, "latent")
        assert again.config.first_stage == model.config.first_stage
        assert torch.equal(again.encode(pixels()).z, model.encode(pixels()).z)
        codes = replace(model.encode(pixels()), digest="")
        assert torch.equal(again.decode(codes), model.decode(codes))

    def test_a_hostile_config_is_refused_before_anything_is_built(
        self, model: Model, tmp_path: Path
    ) -> None:
        write_model(tmp_path, model)
        path = tmp_path / "config.json"
        config = json.loads(path.read_text())
        for field, value in (("blocks", 10**9), ("kind", "Pipeline"), ("widths", [1] * 99)):
            changed = config | {"first_stage": config["first_stage"] | {field: value}}
            path.write_text(json.dumps(changed))
            with pytest.raises(ModelError, match="config"):
                read_model(tmp_path, "latent")
        path.write_text(json.dumps(config))
        config["first_stage"]["latent_channels"] = 7
        path.write_text(json.dumps(config))
        with pytest.raises(ModelError, match="latents of 7 channels"):
            read_model(tmp_path, "latent")

    def test_without_diffusers_one_line_says_what_to_install(
        self, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_model(tmp_path, model)
        monkeypatch.setitem(sys.modules, "diffusers", None)
        with pytest.raises(ModelError, match=r"pip install 'pdae-cli\[diffusers\]'"):
            read_model(tmp_path, "latent")

    def test_edits_outside_of_a_mask_are_none(self, model: Model) -> None:
        codes, mask = model.encode(pixels(1)), torch.zeros(1, 1, SIZE, SIZE)
        mask[..., 8:17, 8:20] = 1
        edited = replace(codes, z=codes.z + 3)
        within, whole = editing.decode_within(model, codes, edited, mask), model.decode(codes)
        outside = (mask == 0).expand_as(whole)
        assert torch.equal(within[outside], whole[outside])
        assert not torch.equal(within, whole)

    def test_inpainting_keeps_what_is_known(self, model: Model) -> None:
        mask = torch.zeros(1, 1, SIZE, SIZE)
        mask[..., 8:17, 8:20] = 1
        made = editing.inpaint(model, pixels(1), mask, inference_steps=4)
        outside = (mask == 0).expand_as(made)
        assert torch.equal(made[outside], pixels(1)[outside])
        assert not torch.equal(made[~outside], pixels(1)[~outside])

    def test_likelihoods_of_latents_are_refused(self, model: Model) -> None:
        with pytest.raises(ModelError, match="latents"):
            likelihood(model, pixels(1), [torch.Generator()])

    def test_colours_of_latents_are_refused(self, model: Model) -> None:
        with pytest.raises(ModelError, match="latents"):
            editing.colourise(model, pixels(1))

    @pytest.mark.parametrize(("size", "channels"), [(30, 3), (32, 1)])
    def test_pictures_without_latents_are_refused(
        self, source: Path, size: int, channels: int
    ) -> None:
        stage = load_first_stage(str(source))
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


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rows = ["name,Smiling"]
    for number in range(24):
        picture(number).save(folder / f"{number:02}.png")
        rows.append(f"{number:02}.png,{number % 2}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


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
    assert picture_size(tmp_path / "back.png") == (SIZE, SIZE)
    edit = ("--attr", "Smiling", "--scale", 0.3, "-o", tmp_path / "edit.png")
    assert pdae("manipulate", face, *edit, *common).code == 0
    assert pdae("manipulate", codes, *edit, "--overwrite", *common).code == 0
    made = json.loads(pdae("reconstruct", face, "-o", tmp_path / "r.png", "--json", *common).out)
    assert made["status"] == "done" and 0 < made["ssim"] <= 1
    assert pdae("sample", "-n", 2, "-o", tmp_path / "samples", *common).code == 0
    assert pdae("interpolate", face, photos / "04.png", "-o", tmp_path / "s.png", *common).code == 0
    refused = pdae("colourise", face, "-o", tmp_path / "c.png", *common)
    assert refused.code == 4 and "latents" in refused.err
    exported = pdae("export", *common, "--to", "diffusers", "-o", tmp_path / "exported")
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
    reference = load_first_stage(str(source))
    assert model.first_stage is not None
    for name, value in reference.state_dict().items():
        assert torch.equal(model.first_stage.state_dict()[name], value), name  # it stays frozen
    pictures, _ = model.sample(1, unconditional=True, inference_steps=2)
    assert pictures.shape == (1, 3, SIZE, SIZE)


def test_a_model_brings_its_own_first_stage(pdae: Command, source: Path, tmp_path: Path) -> None:
    both = ("--init-from", tmp_path / "dpm", "--first-stage", source)
    done = pdae("train", "dpm", tmp_path, "-o", tmp_path / "more", *both)
    assert done.code == 2 and "--first-stage" in done.err


def picture_size(path: Path) -> tuple[int, int]:
    from PIL import Image

    with Image.open(path) as image:
        return image.size


def test_a_conversion_counts_every_tensor(source: Path) -> None:
    conversion = read_foreign(Source(source))
    used = {row.what.rsplit(" → ", 1)[1]: row.used for row in conversion.rows}
    assert used["first_stage"] == len(theirs("vq").state_dict())


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
