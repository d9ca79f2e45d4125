"""latent-diffusion's checkpoints: names as diffusers' own converter knows them, numbers as its
networks compute them. Its U-Net is ADM's, whose numbers are in test_golden_others.py."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import foreign_models
import pytest
import torch
import yaml
from conftest import randomise, unet_config
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from foreign_models import converted, save, states, under_their_names
from latent_models import LATENT, LEVELS, pixels
from safetensors.torch import save_file

from pdae_cli.checkpoints import names
from pdae_cli.checkpoints.convert import family_of, read_foreign
from pdae_cli.checkpoints.source import Source
from pdae_cli.errors import ModelError
from pdae_cli.networks.unet import UNet

pytestmark = pytest.mark.filterwarnings("ignore")  # of others
quick = foreign_models.quick

STAGES: dict[str, dict[str, Any]] = {
    "VQModel": {"latent_channels": 3, "num_vq_embeddings": 16, "vq_embed_dim": 3},
    "AutoencoderKL": {"latent_channels": 3},
}
THEIRS = (
    (r"(down|up)_blocks\.(\d+)", lambda m: f"{m[1]}.{m[2] if m[1] == 'down' else 2 - int(m[2])}"),
    (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"resnets\.", "block."), (r"(down|up)samplers\.0", r"\1sample"),
    (r"conv_shortcut", "nin_shortcut"), (r"group_norm", "norm"), (r"to_([qkv])", r"\1"),
    (r"to_out\.0", "proj_out"), (r"conv_norm_out", "norm_out"),
)  # fmt: skip


def checkpoint(folder: Path, kind: str = "VQModel", **changes: Any) -> tuple[UNet, Any]:
    """A random one, as their trainer leaves it; returns its networks."""
    import diffusers

    torch.manual_seed(1)
    shape = LEVELS | STAGES[kind] | {"scaling_factor": 0.7, "norm_num_groups": 32}
    shape |= {"block_out_channels": (32, 32, 64)}
    stage = getattr(diffusers, kind)(**shape).eval()
    cfg = unet_config(
        image_size=LATENT, base_channels=32, groups=32, time_conditioning="additive",
        resampling="convolution", attention=(4,), head_channels=16,
    )  # fmt: skip
    unet = UNet(cfg).eval()
    for network in (stage, unet):
        randomise(network, 0.05)
    state, whole = {}, stage.state_dict()
    for name, value in whole.items():
        for ours, theirs in THEIRS:
            name = re.sub(ours, theirs, name)
        in_attention = re.search(r"attn_1\.(q|k|v|proj_out)\.weight", name)
        state[f"first_stage_model.{name}"] = value[..., None, None] if in_attention else value
    back = convert_ldm_vae_checkpoint(state, stage.config)
    assert back.keys() <= whole.keys() and len(back) > 80
    assert all(torch.equal(back[k].reshape(whole[k].shape), whole[k]) for k in back)
    own = under_their_names(unet, names.adm_unet(cfg))
    for name, value in own.items():  # the average's names have no dots
        state[f"model.diffusion_model.{name}"] = torch.zeros_like(value)
        state["model_ema." + f"diffusion_model.{name}".replace(".", "")] = value
    state |= {"first_stage_model.loss.logvar": torch.ones(1), "betas": torch.ones(1000)}
    save(folder / "model.ckpt", {"state_dict": state, "epoch": 1, "callbacks": {}})
    double = kind == "AutoencoderKL"
    stage_params = {"embed_dim": 3, "n_embed": 16, "ddconfig": {
        "double_z": double, "z_channels": 3, "resolution": 32, "in_channels": 3, "out_ch": 3,
        "ch": 32, "ch_mult": [1, 1, 2], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
    }}  # fmt: skip
    unet_params = {
        "image_size": LATENT, "in_channels": 3, "out_channels": 3, "model_channels": 32,
        "attention_resolutions": [2], "num_res_blocks": 1, "channel_mult": [1, 2],
        "num_head_channels": 16,
    }  # fmt: skip
    params = {
        "linear_start": 0.0015, "linear_end": 0.0195, "timesteps": 1000, "image_size": LATENT,
        "channels": 3, "scale_factor": 0.7, "cond_stage_config": "__is_unconditional__",
        "unet_config": {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
                        "params": unet_params},
        "first_stage_config": {"target": f"ldm.models.autoencoder.{kind}", "params": stage_params},
    } | changes  # fmt: skip
    (folder / "config.yaml").write_text(yaml.dump({"model": {"params": params}, "data": {}}))
    return unet, stage


def test_a_file_of_nothing_but_tensors(tmp_path: Path) -> None:
    """As checkpoints are pruned, and in safetensors; one that reads texts is told before a config
    is asked for."""
    unet, _ = checkpoint(tmp_path)
    path = tmp_path / "pruned.safetensors"
    state = torch.load(tmp_path / "model.ckpt", weights_only=True)["state_dict"]
    save_file({k: v.contiguous() for k, v in state.items()}, path)
    made = read_foreign(Source(path))
    x, t = states(made.model), torch.tensor([5, 700])
    with torch.no_grad():
        assert torch.allclose(made.model.dpm(x, t), unet(x, t), atol=1e-5)
    (tmp_path / "config.yaml").unlink()
    save_file({k: v.clone() for k, v in state.items()} | {"cond_stage_model.w": x}, path)
    with pytest.raises(ModelError, match=r"pruned\.safetensors: a conditional model; only uncond"):
        read_foreign(Source(path))


@pytest.mark.parametrize("kind", STAGES)
def test_networks_and_schedule(tmp_path: Path, kind: str) -> None:
    unet, stage = checkpoint(tmp_path, kind)
    assert family_of(Source(tmp_path)) == "latent-diffusion"
    model = converted(tmp_path)
    x, t = states(model), torch.tensor([5, 700])
    with torch.no_grad():
        assert torch.allclose(model.dpm(x, t), unet(x, t), atol=1e-5)
        latents = stage.encode(pixels())
        latents = latents.latents if kind == "VQModel" else latents.latent_dist.mode()
        assert torch.allclose(model.latents(pixels()), latents * 0.7, atol=1e-5)
        assert torch.allclose(
            model.from_latents(latents * 0.7), stage.decode(latents).sample, atol=1e-4
        )
    betas = torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64) ** 2
    assert torch.allclose(model.schedule.beta, betas)


def test_its_folder_names_it_also_where_a_file_is_a_link(tmp_path: Path) -> None:
    folder, blobs = tmp_path / "faces", tmp_path / "blobs"
    folder.mkdir()
    blobs.mkdir()
    checkpoint(folder)
    (folder / "model.ckpt").rename(blobs / "1f2e")
    (folder / "model.ckpt").symlink_to(blobs / "1f2e")
    assert converted(folder).config.source == "latent-diffusion: faces/model.ckpt"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cond_stage_config": {"target": "bert"}}, "conditional model"),
        ({"beta_schedule": "cosine"}, "beta_schedule 'cosine'"),
        ({"scale_factor": 0.0}, "scale must be"),
        ({"v_posterior": 0.5}, "v_posterior"),
    ],
)
def test_what_isnt_taken_is_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    checkpoint(tmp_path, **change)
    with pytest.raises(ModelError, match=words):
        converted(tmp_path)


@pytest.mark.parametrize("size", [12, 64])
def test_attention_of_no_level_is_refused(tmp_path: Path, size: int) -> None:
    checkpoint(tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(path.read_text().replace("attn_resolutions: []", f"attn_resolutions: [{size}]"))
    with pytest.raises(
        ModelError, match=rf"attn_resolutions \[{size}\] of levels of \[32, 16, 8\]"
    ):
        converted(tmp_path)


@pytest.mark.parametrize("field", ["tanh_out", "give_pre_end"])
def test_decoders_that_end_otherwise_are_refused(tmp_path: Path, field: str) -> None:
    checkpoint(tmp_path)
    path = tmp_path / "config.yaml"
    content = yaml.safe_load(path.read_text())
    coder = content["model"]["params"]["first_stage_config"]["params"]["ddconfig"]
    for value in (False, True):
        coder[field] = value
        path.write_text(yaml.dump(content))
        if value:
            with pytest.raises(ModelError, match=f"{field} True isn't supported"):
                converted(tmp_path)
        else:
            converted(tmp_path)


def test_without_its_config(tmp_path: Path) -> None:
    """Their trainer keeps it in configs/ beside checkpoints/."""
    checkpoint(tmp_path / "logs")
    config = (tmp_path / "logs" / "config.yaml").rename(tmp_path / "c.yaml")
    with pytest.raises(ModelError, match=r"config\.yaml of the model \(pass it as --config\)"):
        converted(tmp_path / "logs")
    assert read_foreign(Source(tmp_path / "logs", config)).family == "latent-diffusion"
