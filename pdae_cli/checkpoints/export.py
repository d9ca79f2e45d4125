"""A model's eps_theta as a folder that diffusers' DDPMPipeline runs; with a first stage,
LDMPipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from ..engine.config import ModelConfig
from ..engine.model import Model
from ..errors import UsageError
from ..files import write_bytes
from ..networks.blocks import Attention, UNetConfig
from . import diffusers
from .names import diffusers_unet
from .transfer import separated

VARIANCES = {"small": "fixed_small", "large": "fixed_large", "learned": "learned_range"}


def write_diffusers(model: Model, folder: Path) -> str:
    """Write model_index.json, unet/, scheduler/ and the first stage as vqvae/; returns the
    pipeline's class. Raises UsageError for a network that diffusers' UNet2DModel can't be."""
    unet, scheduler = unet_config(model.config.unet), scheduler_config(model.config)
    first_stage = model.first_stage
    if first_stage is not None:
        _need(first_stage.cfg.shift == 0, "latents that are shifted, in an LDMPipeline")
        _need(not model.config.unet.learn_sigma, "learned variance, in an LDMPipeline")
    pipeline = "DDPMPipeline" if first_stage is None else "LDMPipeline"
    index: dict[str, Any] = {
        "_class_name": pipeline,
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "unet": ["diffusers", "UNet2DModel"],
    }
    _write_network(folder / "unet", unet, unet_tensors(model))
    if first_stage is not None:
        cfg, tensors = first_stage.cfg, first_stage.network.state_dict()
        index["vqvae"] = ["diffusers", cfg.kind]
        _write_network(folder / "vqvae", {"_class_name": cfg.kind} | cfg.arguments(), tensors)
    write_bytes(folder / "scheduler" / "scheduler_config.json", _json(scheduler))
    write_bytes(folder / "model_index.json", _json(index))
    return pipeline


def _write_network(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    kept = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    weights = save(kept, metadata={"format": "pt"})
    write_bytes(folder / "diffusion_pytorch_model.safetensors", weights)
    write_bytes(folder / "config.json", _json(config))


def unet_tensors(model: Model) -> dict[str, Tensor]:
    """eps_theta's tensors by diffusers' names."""
    table, tensors = diffusers_unet(model.config.unet), {}
    for name, value in model.dpm.state_dict().items():
        module, _, kind = name.rpartition(".")
        theirs = table[module]
        parts = [value]
        if len(theirs) > 1:
            attention = model.dpm.get_submodule(module.rpartition(".")[0])
            assert isinstance(attention, Attention)
            parts = list(separated(value, attention.heads).chunk(len(theirs)))
        for path, part in zip(theirs, parts, strict=True):
            tensors[f"{path}.{kind}"] = part
    return tensors


def unet_config(cfg: UNetConfig) -> dict[str, Any]:
    """A UNet2DModel's config.json."""
    _need(cfg.patch == 1, f"space-to-depth at the input (patch {cfg.patch})")
    _need(not cfg.z_channels, "conditioning on z inside eps_theta")
    _need(cfg.base_channels == cfg.widths[0], "a time embedding of another width than its input")
    _need(min(cfg.widths) >= cfg.groups, f"fewer channels than norm groups ({cfg.groups})")
    _need(bool(cfg.head_channels) or cfg.heads == 1, f"a fixed number of {cfg.heads} heads")
    attention = [size in cfg.attention for size in cfg.sizes]
    plain = "Resnet{}sampleBlock2D" if cfg.resampling == "residual" else "{}Block2D"
    kind = "resnet" if cfg.resampling == "residual" else "conv"
    return {
        "_class_name": "UNet2DModel",
        "sample_size": cfg.image_size,
        "in_channels": cfg.channels,
        "out_channels": cfg.channels * (2 if cfg.learn_sigma else 1),
        "center_input_sample": False,
        "time_embedding_type": "positional",
        "time_embedding_dim": cfg.embedding_channels,
        "freq_shift": cfg.frequency_shift,
        "flip_sin_to_cos": not cfg.sine_first,
        "down_block_types": [
            "AttnDownBlock2D" if has else plain.format("Down") for has in attention
        ],
        "up_block_types": [
            "AttnUpBlock2D" if has else plain.format("Up") for has in attention[::-1]
        ],
        "block_out_channels": cfg.widths,
        "layers_per_block": cfg.blocks,
        "mid_block_scale_factor": 1,
        "downsample_padding": 0 if cfg.resampling == "convolution_right" else 1,
        "downsample_type": kind,
        "upsample_type": kind,
        "dropout": cfg.dropout,
        "act_fn": "silu",
        "attention_head_dim": cfg.head_channels,
        "norm_num_groups": cfg.groups,
        "attn_norm_num_groups": cfg.groups,
        "norm_eps": cfg.norm_eps,
        "resnet_time_scale_shift": (
            "scale_shift" if cfg.time_conditioning == "scale_shift" else "default"
        ),
        "add_attention": True,
    }


def scheduler_config(config: ModelConfig) -> dict[str, Any]:
    """A DDPMScheduler's scheduler_config.json, or what an LDMPipeline takes, a DDIMScheduler's."""
    betas = {ours: theirs for theirs, ours in diffusers.BETAS.items()}
    predictions = {ours: theirs for theirs, ours in diffusers.PREDICTIONS.items()}
    schedule = config.schedule
    _need(schedule.betas in betas, f"{schedule.betas} betas")
    variance = {"variance_type": VARIANCES[config.variance]} if config.first_stage is None else {}
    return variance | {
        "_class_name": "DDPMScheduler" if config.first_stage is None else "DDIMScheduler",
        "num_train_timesteps": schedule.timesteps,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "beta_schedule": betas[schedule.betas],
        "clip_sample": config.clip_sample,
        "prediction_type": predictions[config.prediction],
    }


def _need(possible: bool, what: str) -> None:
    if not possible:
        raise UsageError(f"diffusers' UNet2DModel has no {what}; this model can't be exported")


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=2).encode() + b"\n"
