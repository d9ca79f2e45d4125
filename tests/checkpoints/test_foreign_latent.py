"""Latent diffusion pipelines and first stages on disk, with diffusers itself as the reference."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import latent_models
import pytest
import torch
from diffusers import LDMPipeline
from latent_models import KINDS, LATENT, pipeline, pixels, theirs
from safetensors.torch import load_file, save_file

from pdae_cli.checkpoints import load_dpm, load_first_stage, read_model, write_model
from pdae_cli.checkpoints.convert import read_foreign
from pdae_cli.checkpoints.export import write_diffusers
from pdae_cli.checkpoints.source import Source
from pdae_cli.diffusion.trajectory import Sampling
from pdae_cli.engine.model import Model
from pdae_cli.errors import ModelError, UsageError

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own
source, model = latent_models.source, latent_models.model


class TestFirstStage:
    @pytest.mark.parametrize("name", KINDS)
    def test_latents_and_pictures_are_those_of_diffusers(self, name: str, tmp_path: Path) -> None:
        reference = theirs(name)
        reference.save_pretrained(str(tmp_path / "stage"))
        ours, _ = load_first_stage(str(tmp_path / "stage"))
        shift, scale = reference.config.get("shift_factor") or 0, reference.config.scaling_factor
        with torch.no_grad():
            found = reference.encode(pixels())
            plain = found.latents if "vq" in name else found.latent_dist.mode()
            latents = ours.encode(pixels())
            torch.testing.assert_close(latents, (plain - shift) * scale, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(
                ours.decode(latents), reference.decode(plain).sample, atol=1e-5, rtol=1e-5
            )

    @pytest.mark.parametrize(("name", "scale", "told"), [("vq", 1.0, True), ("kl", 0.18215, False)])
    def test_without_a_scaling_factor_a_vq_model_is_older_than_the_field(
        self, name: str, scale: float, told: bool, tmp_path: Path
    ) -> None:
        """CompVis/ldm-celebahq-256 is: its latents were never scaled."""
        pipeline(tmp_path, name)
        config = tmp_path / "vqvae" / "config.json"
        facts = json.loads(config.read_text())
        del facts["scaling_factor"]
        config.write_text(json.dumps(facts))
        made = read_foreign(Source(tmp_path))
        assert made.model.first_stage is not None
        assert made.model.first_stage.cfg.scale == scale
        said = list[str]()
        load_first_stage(str(tmp_path), said.append)
        for notes in (made.notes, said):
            assert any("latents are taken unscaled" in note for note in notes) is told

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
            ({"scaling_factor": 10**400}, "the number 1000"),
            ({"shift_factor": float("nan")}, "shift must be"),
            ({"latent_channels": 10**12}, "latent channels must be"),
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

    def test_one_without_the_other_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="AutoencoderKL or VQModel"):
            load_first_stage(str(tmp_path))
        pipeline(tmp_path)
        (tmp_path / "vqvae").rename(tmp_path / "elsewhere")
        with pytest.raises(ModelError, match=r"vqvae/config\.json: no such file"):
            load_dpm(str(tmp_path))
        with pytest.raises(ModelError, match="train dpm --first-stage"):
            load_dpm(str(tmp_path / "elsewhere"))


class TestModel:
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

    def test_a_written_model_is_the_same_model(self, model: Model, tmp_path: Path) -> None:
        write_model(tmp_path, model)
        again = read_model(tmp_path, "latent")
        assert again.config.first_stage == model.config.first_stage
        assert torch.equal(again.encode(pixels()).z, model.encode(pixels()).z)
        codes = replace(model.encode(pixels()), weights_sha="")
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


def test_a_conversion_counts_every_tensor(source: Path) -> None:
    conversion = read_foreign(Source(source))
    used = {row.what.rsplit(" → ", 1)[1]: row.used for row in conversion.rows}
    assert used["first_stage"] == len(theirs("vq").state_dict())
