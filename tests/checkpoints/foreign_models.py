"""Checkpoints of other programs in small, made on the spot: our networks under their names."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import randomise, read_pickles_here, unet_config
from torch import Tensor, nn

from pdae_cli.checkpoints import names
from pdae_cli.checkpoints.convert import read_foreign
from pdae_cli.checkpoints.source import Source
from pdae_cli.engine.config import ModelConfig, ScheduleConfig
from pdae_cli.engine.model import Model
from pdae_cli.networks.latent import LatentConfig, LatentDPM
from pdae_cli.networks.unet import UNet

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of other people's packages
    import diffusers
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

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


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read pickles in this process, where no command is tested."""
    if "pdae" not in request.fixturenames:
        read_pickles_here(monkeypatch)


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


def under_their_names(network: nn.Module, table: names.Table) -> dict[str, Tensor]:
    """A network's tensors as the source keeps them; attention is made of 1x1 convolutions there."""
    state = {}
    for name, value in network.state_dict().items():
        module, _, kind = name.rpartition(".")
        (theirs,) = table[module]
        in_attention = theirs.endswith((".qkv", ".proj_out")) and kind == "weight"
        state[f"{theirs}.{kind}"] = value[..., None] if in_attention else value
    return state


def made(network: nn.Module) -> nn.Module:
    randomise(network, 0.05)
    return network


def latent_state(cfg: LatentConfig) -> dict[str, Tensor]:
    """The MLP's tensors; the authors keep each linear_emb a second time."""
    state = under_their_names(made(LatentDPM(cfg)), names.latent_mlp(cfg.layers))
    again = {k.replace("linear_emb", "cond_layers.1"): v for k, v in state.items()}
    return state | {k: v for k, v in again.items() if "cond_layers" in k}


def save(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(dict(content), path)


def guided(folder: Path, change: Callable[[dict[str, Any]], None] = lambda flags: None) -> Model:
    """A tiny guided-diffusion checkpoint and the model that it must become."""
    torch.manual_seed(2)
    cfg = unet_config(
        image_size=32, base_channels=32, groups=32, multipliers=(1.0, 2.0), attention=(16,),
        head_channels=16, heads=4, dropout=0.0,
    )  # fmt: skip
    unet = UNet(cfg)
    randomise(unet)
    save(folder / "ema.pt", under_their_names(unet, names.adm_unet(cfg)))
    flags: dict[str, Any] = {
        "image_size": 32, "num_channels": 32, "num_res_blocks": 1, "num_head_channels": 16,
        "attention_resolutions": "16", "channel_mult": "1,2", "use_scale_shift_norm": True,
        "resblock_updown": True, "learn_sigma": False,
    }  # fmt: skip
    change(flags)
    (folder / "model_flags.json").write_text(json.dumps(flags))
    return Model(ModelConfig(ScheduleConfig(), cfg), unet)
