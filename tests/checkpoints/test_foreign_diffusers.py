"""diffusers' pipelines, with diffusers itself as the reference; and back by `export`."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command, randomise, tiny_model, unet_config
from foreign_models import ADM_STYLE, DDPM_STYLE, converted, pipeline, states
from safetensors.torch import load_file, save_file

from pdae_cli.checkpoints import read_model, write_model
from pdae_cli.checkpoints.export import write_diffusers
from pdae_cli.engine.config import ModelConfig, ScheduleConfig
from pdae_cli.engine.model import Model
from pdae_cli.errors import ModelError, UsageError
from pdae_cli.networks.unet import UNet

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of other people's packages
    from diffusers import DDPMPipeline, DDPMScheduler

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own

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


class TestDiffusers:
    @pytest.mark.parametrize("name", SHAPES)
    def test_outputs_are_those_of_diffusers_and_export_is_the_inverse(
        self, name: str, tmp_path: Path
    ) -> None:
        """Converted and exported again, a pipeline has its tensors back to the bit."""
        theirs = pipeline(tmp_path / "there", SHAPES[name])
        model = converted(tmp_path / "there")
        x, t = states(model), torch.tensor([3, 801])
        with torch.no_grad():
            assert torch.allclose(model.dpm(x, t), theirs(x, t).sample, atol=2e-5)
        write_diffusers(model, tmp_path / "back")
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

    def test_a_part_that_is_missing_or_too_many_is_named(self, tmp_path: Path) -> None:
        pipeline(tmp_path, DDPM_STYLE)
        weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
        tensors = load_file(weights)
        lost = tensors.pop("mid_block.attentions.0.to_k.weight")
        save_file(tensors, weights)
        with pytest.raises(ModelError, match=r"lacks the tensor mid_block.*0\.to_k\.weight"):
            converted(tmp_path)
        save_file(tensors | {"mid_block.attentions.0.to_k.weight": lost[:4].clone()}, weights)
        with pytest.raises(ModelError, match=r"to_q.* has shape"):
            converted(tmp_path)
        whole = tensors | {"mid_block.attentions.0.to_k.weight": lost}
        save_file(whole | {"another.weight": torch.ones(1)}, weights)
        with pytest.raises(ModelError, match=r"doesn't account for: another\.weight"):
            converted(tmp_path)
        weights.unlink()
        with pytest.raises(ModelError, match="found no weights; looked for"):
            converted(tmp_path)


class TestExport:
    @pytest.mark.parametrize(
        ("variance", "changes"),
        [
            ("large", {}),
            ("large", {"time_conditioning": "additive", "resampling": "convolution"}),
            ("large", {"resampling": "convolution_right", "sine_first": True,
                       "frequency_shift": 1}),
            ("learned", {"learn_sigma": True, "multipliers": (1, 2, 2), "blocks": 2,
                         "attention": (16, 8)}),
            ("small", {"learn_sigma": True}),  # of a source that doesn't say it
            ("learned", {}),  # likewise, the other way round
            ("large", {"head_channels": None, "heads": 1}),
        ],
        ids=str,
    )  # fmt: skip
    def test_diffusers_runs_it_with_the_same_output(
        self, variance: str, changes: dict[str, Any], tmp_path: Path
    ) -> None:
        torch.manual_seed(1)
        cfg = unet_config(**changes)
        unet = UNet(cfg)
        randomise(unet)
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
        result = pdae("export", "--to", "diffusers-unet", "-o", out)
        assert result.code == 0 and "DDPMPipeline" in result.text
        assert converted(out).config.unet == read_model(tiny_folder, "tiny").config.unet
        assert pdae("export", "--to", "diffusers", "-o", out).code == 2
        assert not (out / "LICENSE.md").exists()
        assert pdae("export", "--to", "jax", "-o", tmp_path / "other").code == 2

    def test_the_terms_go_along(self, pdae: Command, tiny_folder: Path, tmp_path: Path) -> None:
        """And away again with the export that brought them."""
        model, out = read_model(tiny_folder, "m"), tmp_path / "out"
        model.config = replace(model.config, licence="non-commercial-research")
        write_model(tmp_path / "m", model)
        (tmp_path / "m" / "LICENSE.md").write_text("Not for sale.")
        to = ("export", "--to", "diffusers-unet", "-o", out, "--overwrite")
        assert pdae(*to, "-m", tmp_path / "m").code == 0
        assert (out / "LICENSE.md").read_text() == "Not for sale."
        card = (out / "README.md").read_text()
        assert "\nLicence: non-commercial-research\n" in card and "DDPMPipeline.from_pre" in card
        assert str(tmp_path) not in card
        back = pdae("convert", out, "-o", tmp_path / "back", "--json")
        assert '"licence": "non-commercial-research"' in back.text
        assert pdae(*to).code == 0
        assert "LICENSE.md" not in [path.name for path in out.iterdir()]
        assert "Licence: unknown" in (out / "README.md").read_text()
