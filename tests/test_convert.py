"""Conversion: real diffusers as the reference, and what happens to sources that aren't whole.

The numbers of the other families are in test_golden.py.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import (
    Command,
    picture,
    randomise,
    read_pickles_here,
    tiny_model,
    unet_config,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from pdae_cli.checkpoints import load_dpm, names, read_model
from pdae_cli.checkpoints.convert import Source, family_of, open_source, read_foreign
from pdae_cli.checkpoints.export import write_diffusers
from pdae_cli.checkpoints.hub import fetch
from pdae_cli.checkpoints.transfer import interleaved, separated
from pdae_cli.engine.config import ModelConfig, ScheduleConfig
from pdae_cli.engine.model import Model
from pdae_cli.errors import ModelError, UsageError
from pdae_cli.networks.unet import UNet

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of other people's packages
    import diffusers
    from diffusers import (
        DDIMInverseScheduler,
        DDIMScheduler,
        DDPMPipeline,
        DDPMScheduler,
        UNet2DModel,
    )

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own
diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()

# google/ddpm-celebahq-256 in small: additive time, convolutions padded on one side, one head.
DDPM_STYLE: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": (16, 16, 32),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": None,
    "norm_num_groups": 8,
    "norm_eps": 1e-6,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
}
ADM_STYLE: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": (16, 32),
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "resnet_time_scale_shift": "scale_shift",
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
    "attn_norm_num_groups": 8,
}
SHAPES: dict[str, dict[str, Any]] = {
    "ddpm": DDPM_STYLE,
    "adm": ADM_STYLE,
    "symmetric padding": DDPM_STYLE | {"downsample_padding": 1},
    "heads of 8": DDPM_STYLE | {"attention_head_dim": 8, "layers_per_block": 2},
    "frequencies": DDPM_STYLE | {"flip_sin_to_cos": True, "freq_shift": 0},
    "uneven widths": DDPM_STYLE | {"block_out_channels": (16, 24, 40)},
    "no attention but the middle": DDPM_STYLE
    | {"down_block_types": ("DownBlock2D",) * 3, "up_block_types": ("UpBlock2D",) * 3},
    "gray": DDPM_STYLE | {"in_channels": 1, "out_channels": 1},
    "learned variance": ADM_STYLE | {"out_channels": 6},
    "wide time embedding": DDPM_STYLE | {"time_embedding_dim": 96},
    "attention everywhere": ADM_STYLE
    | {"down_block_types": ("AttnDownBlock2D",) * 2, "up_block_types": ("AttnUpBlock2D",) * 2},
}


def pipeline(folder: Path, shape: dict[str, Any], **scheduler: Any) -> UNet2DModel:
    """A random pipeline of diffusers, saved to a folder; returns its network."""
    torch.manual_seed(3)
    unet = UNet2DModel(**shape).eval()
    randomise(unet, 0.05)
    DDPMPipeline(unet, DDPMScheduler(**scheduler)).save_pretrained(str(folder))
    return unet


def states(model: Model, count: int = 2) -> Tensor:
    unet = model.config.unet
    generator = torch.Generator().manual_seed(5)
    size = (count, unet.channels, unet.image_size, unet.image_size)
    return torch.randn(size, generator=generator)


def converted(folder: Path) -> Model:
    return read_foreign(Source(folder)).model


class TestDiffusers:
    @pytest.mark.parametrize("name", SHAPES)
    def test_outputs_are_those_of_diffusers(self, name: str, tmp_path: Path) -> None:
        theirs = pipeline(tmp_path, SHAPES[name])
        model = converted(tmp_path)
        x, t = states(model), torch.tensor([3, 801])
        with torch.no_grad():
            assert torch.allclose(model.dpm(x, t), theirs(x, t).sample, atol=2e-5)

    @pytest.mark.parametrize("name", SHAPES)
    def test_export_is_the_inverse(self, name: str, tmp_path: Path) -> None:
        """Converted and exported again, a pipeline has its tensors back to the bit."""
        pipeline(tmp_path / "there", SHAPES[name])
        write_diffusers(converted(tmp_path / "there"), tmp_path / "back")
        weights = "unet/diffusion_pytorch_model.safetensors"
        before, after = (load_file(tmp_path / one / weights) for one in ("there", "back"))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)

    @pytest.mark.parametrize(
        "scheduler",
        [
            {},
            {"beta_schedule": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 0.012},
            {"beta_schedule": "squaredcos_cap_v2"},
            {"num_train_timesteps": 400, "beta_end": 0.05},
        ],
    )
    def test_schedule(self, scheduler: dict[str, Any], tmp_path: Path) -> None:
        pipeline(tmp_path, DDPM_STYLE, **scheduler)
        model = converted(tmp_path)
        expected = DDPMScheduler(**scheduler).alphas_cumprod.double()
        assert torch.allclose(model.schedule.alpha_bar, expected, rtol=2e-4, atol=1e-9)

    @pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
    def test_predictions_become_eps(self, kind: str, tmp_path: Path) -> None:
        """Whatever the network predicts, one DDIM step is the one that diffusers makes."""
        theirs = pipeline(tmp_path, ADM_STYLE, prediction_type=kind, clip_sample=False)
        model = converted(tmp_path)
        scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False)
        scheduler.set_timesteps(10)
        x = states(model)
        with torch.no_grad():
            expected = x
            for t in scheduler.timesteps:
                expected = scheduler.step(theirs(expected, t).sample, t, expected).prev_sample
        settings = sampling(inference_steps=10)
        ours = model.trajectory(settings).to_picture(model.guided(settings), x, [])
        assert torch.allclose(ours, expected, atol=2e-3 * expected.abs().max().item())

    @pytest.mark.parametrize("clip", [False, True])
    def test_parity_follows_their_schedulers_both_ways(self, clip: bool, tmp_path: Path) -> None:
        theirs = pipeline(tmp_path, DDPM_STYLE, clip_sample=clip)
        model = converted(tmp_path)
        assert model.config.clip_sample is clip
        settings = sampling(inference_steps=10)
        trajectory, predict = model.trajectory(settings), model.guided(settings)
        for scheduler, encode in ((DDIMScheduler, False), (DDIMInverseScheduler, True)):
            program = scheduler(clip_sample=clip)
            program.set_timesteps(10)
            expected = x = states(model) * 0.5
            with torch.no_grad():
                for t in program.timesteps:
                    expected = program.step(theirs(expected, t).sample, t, expected).prev_sample
            if encode:
                ours = trajectory.to_noise(predict, x).x_T
            else:
                ours = trajectory.to_picture(predict, x, [])
            assert torch.allclose(ours, expected, atol=1e-3 * expected.abs().max().item())

    @pytest.mark.parametrize(
        ("where", "field", "value"),
        [
            ("unet", "center_input_sample", True),
            ("unet", "time_embedding_type", "fourier"),
            ("unet", "act_fn", "gelu"),
            ("unet", "mid_block_scale_factor", 2.0),
            ("unet", "add_attention", False),
            ("unet", "num_class_embeds", 10),
            ("unet", "down_block_types", ["DownBlock2D", "SkipDownBlock2D", "DownBlock2D"]),
            ("unet", "up_block_types", ["AttnUpBlock2D", "UpBlock2D", "UpBlock2D"]),
            ("unet", "_class_name", "UNet2DConditionModel"),
            ("unet", "sample_size", None),
            ("unet", "norm_num_groups", 7),
            ("scheduler", "prediction_type", "flow"),
            ("scheduler", "beta_schedule", "sigmoid"),
            ("scheduler", "trained_betas", [0.1]),
            ("scheduler", "rescale_betas_zero_snr", True),
            ("scheduler", "thresholding", True),
        ],
    )
    def test_what_isnt_supported_is_refused_by_name(
        self, where: str, field: str, value: Any, tmp_path: Path
    ) -> None:
        pipeline(tmp_path, DDPM_STYLE)
        name = "config.json" if where == "unet" else "scheduler_config.json"
        path = tmp_path / where / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
        named = {"norm_num_groups": "groups", "up_block_types": "attention"}.get(field, field)
        with pytest.raises(ModelError, match=named if field != "_class_name" else "Condition"):
            converted(tmp_path)

    def test_an_old_layout_with_old_names_in_a_bin(self, tmp_path: Path) -> None:
        """Everything at the root, attention as query, key, value, proj_attn, a partial config."""
        theirs = pipeline(tmp_path / "new", DDPM_STYLE)
        old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        tensors = {}
        for name, value in theirs.state_dict().items():
            for new_name, old_name in old.items():
                name = name.replace(f".{new_name}.", f".{old_name}.")
            tensors[name] = value
        folder = tmp_path / "old"
        folder.mkdir()
        torch.save(tensors, folder / "diffusion_pytorch_model.bin")
        shutil.copy(tmp_path / "new/unet/config.json", folder)
        shutil.copy(tmp_path / "new/scheduler/scheduler_config.json", folder)
        model = converted(folder)
        x, t = states(model), torch.tensor([3, 801])
        with torch.no_grad():
            assert torch.allclose(model.dpm(x, t), theirs(x, t).sample, atol=2e-5)

    def test_a_missing_part_is_named(self, tmp_path: Path) -> None:
        pipeline(tmp_path, DDPM_STYLE)
        weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
        tensors = load_file(weights)
        lost = tensors.pop("mid_block.attentions.0.to_k.weight")
        save_file(tensors, weights)
        with pytest.raises(
            ModelError, match=r"lacks the tensor mid_block\.attentions\.0\.to_k\.weight"
        ):
            converted(tmp_path)
        save_file(tensors | {"mid_block.attentions.0.to_k.weight": lost[:4].clone()}, weights)
        with pytest.raises(ModelError, match=r"to_q.* has shape"):
            converted(tmp_path)
        weights.unlink()
        with pytest.raises(ModelError, match="found no weights; looked for"):
            converted(tmp_path)

    def test_a_tensor_too_many_is_named(self, tmp_path: Path) -> None:
        pipeline(tmp_path, DDPM_STYLE)
        weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
        save_file(load_file(weights) | {"another.weight": torch.ones(1)}, weights)
        with pytest.raises(ModelError, match=r"doesn't account for: another\.weight"):
            converted(tmp_path)


def sampling(**changes: Any) -> Any:
    from pdae_cli.diffusion.sampling import Sampling

    return Sampling(parity="diffusers").changed(changes)


class TestExport:
    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"time_conditioning": "additive", "resampling": "convolution"},
            {"resampling": "convolution_right", "sine_first": True, "frequency_shift": 1},
            {"learn_sigma": True, "multipliers": (1, 2, 2), "blocks": 2, "attention": (16, 8)},
            {"head_channels": None, "heads": 1},
        ],
        ids=str,
    )
    def test_diffusers_runs_it_with_the_same_output(
        self, changes: dict[str, Any], tmp_path: Path
    ) -> None:
        torch.manual_seed(1)
        cfg = unet_config(**changes)
        unet = UNet(cfg)
        randomise(unet)
        variance = "learned" if cfg.learn_sigma else "large"
        config = ModelConfig(ScheduleConfig(betas="cosine"), cfg, "v", variance=variance)
        model = Model(config, unet)
        write_diffusers(model, tmp_path)
        program = DDPMPipeline.from_pretrained(str(tmp_path))
        x, t = states(model), torch.tensor([10, 900])
        with torch.no_grad():
            assert torch.allclose(program.unet(x, t).sample, unet(x, t), atol=2e-5)
        assert program.scheduler.config.prediction_type == "v_prediction"
        expected = program.scheduler.alphas_cumprod.double()
        assert torch.allclose(model.schedule.alpha_bar, expected, rtol=1e-3, atol=1e-7)
        images = program(batch_size=1, num_inference_steps=2, output_type="np").images
        assert images.shape == (1, 32, 32, 3)

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"patch": 2, "attention": (8,)}, "patch 2"),
            ({"head_channels": None, "heads": 2}, "2 heads"),
            ({"multipliers": (2, 2)}, "time embedding"),
        ],
    )
    def test_what_diffusers_has_no_place_for(
        self, changes: dict[str, Any], reason: str, tmp_path: Path
    ) -> None:
        with pytest.raises(UsageError, match=reason):
            write_diffusers(tiny_model(**changes), tmp_path)
        assert not list(tmp_path.iterdir())

    def test_command(self, pdae: Command, tiny_folder: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        result = pdae("export", "--to", "diffusers", "-o", out)
        assert result.code == 0 and "DDPMPipeline" in result.text
        assert converted(out).config.unet == read_model(tiny_folder, "tiny").config.unet
        assert pdae("export", "--to", "diffusers", "-o", out).code == 2
        assert pdae("export", "--to", "jax", "-o", tmp_path / "other").code == 2


def test_attention_orders_are_permutations() -> None:
    qkv = torch.arange(24.0).reshape(24, 1)
    heads = interleaved(qkv, 2)
    assert heads.flatten()[:4].tolist() == [0, 1, 2, 3]  # first head's queries
    assert heads.flatten()[4:8].tolist() == [8, 9, 10, 11]  # … and keys
    assert torch.equal(separated(heads, 2), qkv)


# --- guided-diffusion, made on the spot: our network under its names -----------------------------


def guided(folder: Path, change: Callable[[dict[str, Any]], None] = lambda flags: None) -> Model:
    """A tiny guided-diffusion checkpoint and the model that it must become."""
    torch.manual_seed(2)
    cfg = unet_config(
        image_size=32, base_channels=32, groups=32, multipliers=(1.0, 2.0), attention=(16,),
        head_channels=16, heads=4, dropout=0.0,
    )  # fmt: skip
    unet = UNet(cfg)
    randomise(unet)
    table = names.adm_unet(cfg)
    state = {}
    for name, value in unet.state_dict().items():
        module, _, kind = name.rpartition(".")
        (theirs,) = table[module]
        attention = module.endswith((".qkv", "attention.out")) and kind == "weight"
        state[f"{theirs}.{kind}"] = value[:, :, None] if attention else value
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "ema.pt")
    flags: dict[str, Any] = {
        "image_size": 32, "num_channels": 32, "num_res_blocks": 1, "num_head_channels": 16,
        "attention_resolutions": "16", "channel_mult": "1,2", "use_scale_shift_norm": True,
        "resblock_updown": True, "learn_sigma": False,
    }  # fmt: skip
    change(flags)
    (folder / "model_flags.json").write_text(json.dumps(flags))
    return Model(ModelConfig(ScheduleConfig(), cfg), unet)


class TestGuided:
    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        read_pickles_here(monkeypatch)

    def test_a_folder_and_a_file_give_the_same_network(self, tmp_path: Path) -> None:
        original = guided(tmp_path)
        x, t = states(original), torch.tensor([5, 700])
        text = tmp_path / "flags.txt"
        flags = json.loads((tmp_path / "model_flags.json").read_text())
        text.write_text(" ".join(f"--{name} {value}" for name, value in flags.items()))
        for source in (Source(tmp_path), Source(tmp_path / "ema.pt", text)):
            assert family_of(source) == "guided-diffusion"
            model = read_foreign(source).model
            with torch.no_grad():
                assert torch.allclose(model.dpm(x, t), original.dpm(x, t), atol=1e-5)

    def test_the_new_attention_order(self, tmp_path: Path) -> None:
        """All queries, then all keys, then all values, instead of head by head."""
        original = guided(tmp_path, lambda flags: flags.update(use_new_attention_order=True))
        state = torch.load(tmp_path / "ema.pt", weights_only=True)
        for name, value in state.items():
            if ".qkv." in name:
                state[name] = separated(value, len(value) // 3 // 16)
        torch.save(state, tmp_path / "ema.pt")
        model = converted(tmp_path)
        x, t = states(original), torch.tensor([5, 700])
        with torch.no_grad():
            assert torch.allclose(model.dpm(x, t), original.dpm(x, t), atol=1e-5)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("--image_size 32 --learn_sigma", "at '--learn_sigma', write --name value pairs"),
            ("image_size 32", "at 'image_size'"),
            ("--learn_sigma maybe", "'maybe' isn't of type bool"),
            ("--num_channels wide", "'wide' isn't of type int"),
        ],
    )
    def test_flags_that_arent_pairs(self, text: str, message: str, tmp_path: Path) -> None:
        guided(tmp_path)
        (tmp_path / "flags.txt").write_text(text)
        with pytest.raises(ModelError, match=message):
            read_foreign(Source(tmp_path / "ema.pt", tmp_path / "flags.txt"))

    def test_flags_that_say_nothing_about_the_network_are_told(self, tmp_path: Path) -> None:
        guided(tmp_path, lambda flags: flags.update(use_ddim=True))
        notes = read_foreign(Source(tmp_path)).notes
        assert any("left out: use_ddim" in note for note in notes)

    @pytest.mark.parametrize(
        ("flag", "value", "message"),
        [
            ("class_cond", True, "class_cond True isn't supported"),
            ("channel_mult", "1,3", "shape"),
            ("num_res_blocks", 2, "lacks the tensor|shape"),
            ("channel_mult", "1", "doesn't account for|lacks|shape"),
            ("noise_schedule", "sqrt", "noise_schedule"),
            ("image_size", "big", "image_size is 'big'"),
        ],
    )
    def test_flags_that_dont_fit(self, flag: str, value: Any, message: str, tmp_path: Path) -> None:
        guided(tmp_path, lambda flags: flags.update({flag: value}))
        with pytest.raises(ModelError, match=message):
            converted(tmp_path)


class TestCommand:
    """`pdae convert` itself."""

    def test_convert_then_use(self, pdae: Command, tmp_path: Path) -> None:
        guided(tmp_path / "source")
        out = tmp_path / "model"
        result = pdae("convert", tmp_path / "source", "-o", out)
        assert result.code == 0 and "guided-diffusion" in result.text and "licence" in result.text
        assert sorted(p.name for p in out.iterdir()) == [
            "README.md", "config.json", "model.safetensors",
        ]  # fmt: skip
        assert '"E_phi"' not in pdae("info", out).text
        sample = pdae("sample", "--unconditional", "-n", 2, "-o", tmp_path / "s.png", "-m", out,
                      "--inference-steps", 2)  # fmt: skip
        assert sample.code == 0, sample.err
        picture(0).save(tmp_path / "a.png")
        encode = pdae("encode", tmp_path / "a.png", "-m", out, "-o", tmp_path / "z.safetensors")
        assert encode.code == 4 and "lacks an encoder" in encode.err
        again = pdae("convert", tmp_path / "source", "-o", out)
        assert again.code == 2 and "--overwrite" in again.err
        (out / "attributes.safetensors").write_text("of the model before")
        assert pdae("convert", tmp_path / "source", "-o", out, "--overwrite").code == 0
        assert not (out / "attributes.safetensors").exists()

    def test_json_is_one_object(self, pdae: Command, tmp_path: Path) -> None:
        guided(tmp_path / "source")
        result = pdae("convert", tmp_path / "source", "-o", tmp_path / "m", "--json")
        record = json.loads(result.text)
        assert record["family"] == "guided-diffusion" and record["tensors"][0]["used"] > 50

    def test_failures_are_one_line_and_write_nothing(self, pdae: Command, tmp_path: Path) -> None:
        guided(tmp_path / "no-flags")
        (tmp_path / "no-flags" / "model_flags.json").unlink()
        (tmp_path / "text.pt").write_text("not a checkpoint")
        (tmp_path / "empty").mkdir()
        unit = tmp_path / "autoencoder"
        unit.mkdir()
        torch.save({"ema_decoder": {}, "ema_encoder": {}}, unit / "checkpoint.pt")
        cases = {
            tmp_path / "no-flags" / "ema.pt": "found no flags",
            tmp_path / "text.pt": "text.pt",
            tmp_path / "empty": "no known family",
            unit / "checkpoint.pt": "found no config.yml",
            tmp_path / "nothing": "no such file",
        }
        for source, message in cases.items():
            result = pdae("convert", source, "-o", tmp_path / "out")
            assert result.code == 4, result.err
            assert message in result.err and len(result.err.splitlines()) == 1, result.err
            assert result.out == b"" and not (tmp_path / "out").exists()

    def test_a_model_of_ours_needs_no_conversion(self, tiny_folder: Path) -> None:
        with pytest.raises(ModelError, match="already"):
            read_foreign(open_source(str(tiny_folder)))

    def test_other_commands_point_to_convert(self, pdae: Command, tmp_path: Path) -> None:
        pipeline(tmp_path, DDPM_STYLE)
        result = pdae("sample", "-m", tmp_path, "-o", tmp_path / "s.png", "--unconditional")
        assert result.code == 4 and "pdae convert" in result.err


class TestHub:
    """Hub ids, on the Hub's own cache layout on disk, read through huggingface_hub."""

    @pytest.fixture
    def cached(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """someone/ddpm as the cache keeps it, offline; returns its snapshot."""
        from huggingface_hub import constants

        repository = tmp_path / "cache" / "models--someone--ddpm"
        snapshot = repository / "snapshots" / ("b" * 40)
        pipeline(snapshot, DDPM_STYLE)
        (snapshot / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("b" * 40)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        return snapshot

    def test_an_id_is_converted_with_its_licence(
        self, cached: Path, pdae: Command, tmp_path: Path
    ) -> None:
        for name in ("someone/ddpm", f"someone/ddpm@{'b' * 40}"):
            result = pdae("convert", name, "-o", tmp_path / "model", "--overwrite")
            assert result.code == 0, result.err
            assert "licence: apache-2.0" in result.text
            assert "apache-2.0" in (tmp_path / "model" / "README.md").read_text()
        model = read_model(tmp_path / "model", "m")
        x, t = states(model), torch.tensor([1, 500])
        with torch.no_grad():
            assert torch.allclose(model.dpm(x, t), converted(cached).dpm(x, t), atol=1e-5)

    def test_dpm_takes_an_id(self, cached: Path) -> None:
        assert load_dpm("someone/ddpm").config.licence == "apache-2.0"
        with pytest.raises(ModelError, match="the Hub didn't give it"):
            load_dpm("someone/else")

    def test_only_what_is_needed_is_asked_for_and_its_size_told(
        self, cached: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Pickles only where there are no safetensors; a large download is announced."""
        files = {
            "unet/diffusion_pytorch_model.safetensors": 300 << 20,
            "unet/diffusion_pytorch_model.bin": 300 << 20,
            "training/optimizer.bin": 900 << 20,
        }
        asked: list[list[str]] = []

        class Api:
            def model_info(self, repository: str, **options: Any) -> Any:
                siblings = [SimpleNamespace(rfilename=k, size=v) for k, v in files.items()]
                return SimpleNamespace(siblings=siblings, card_data=None)

        def snapshot(repository: str, allow_patterns: list[str], **options: Any) -> str:
            asked.append(allow_patterns)
            return str(cached)

        monkeypatch.setattr("huggingface_hub.HfApi", Api)
        monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
        said: list[str] = []
        fetch("someone/ddpm", said.append)
        assert said == ["someone/ddpm: 300 MiB to download, unless in the cache"]
        assert not any(name.endswith(".bin") for name in asked[0])
        del files["unet/diffusion_pytorch_model.safetensors"]
        fetch("someone/ddpm", said.append)
        assert "unet/diffusion_pytorch_model.bin" in asked[1]


class TestTraining:
    """`train autoencoder --dpm SRC` on foreign models: they train, and eps_theta stays as it is."""

    @pytest.mark.parametrize("family", ["diffusers", "diffusers-adm", "guided"])
    def test_a_few_steps(self, family: str, pdae: Command, tmp_path: Path) -> None:
        source, data = tmp_path / "source", tmp_path / "data"
        data.mkdir()
        for seed in range(8):
            picture(seed, (32, 32)).save(data / f"{seed}.png")
        if family == "guided":
            guided(source)
        else:
            shape = DDPM_STYLE if family == "diffusers" else ADM_STYLE
            pipeline(source, shape | {"sample_size": 32}, beta_schedule="scaled_linear")
        before = read_foreign(Source(source)).model.dpm.state_dict()
        short = ("--z-dim", 8, "--images", 6, "--batch-size", 2, "--save-every", 3)
        run = ("train", "autoencoder", data, "--dpm", source, "-o", tmp_path / "run")
        result = pdae(*run, *short)
        assert result.code == 0, result.err
        model = read_model(tmp_path / "run", "run")
        for name, value in model.dpm.state_dict().items():
            assert torch.equal(value, before[name]), name
        assert model.gradient_estimator is not None
        assert model.gradient_estimator.output.conv.weight.abs().max() > 0
        codes = model.encode(states(model, 1).clamp(-1, 1), inference_steps=2)
        assert model.decode(codes).isfinite().all()
