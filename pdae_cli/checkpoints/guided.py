"""openai/guided-diffusion: unconditional models, a bare state dict and the flags beside it; and
what Diff-AE and PDAE, which grew from it, share with it."""

from __future__ import annotations

import itertools
import shlex
from pathlib import Path
from typing import Any

from ..engine.config import ModelConfig, ScheduleConfig
from ..errors import ModelError
from ..networks.unet import UNetConfig
from . import names
from .source import Found, Settings, Source
from .transfer import Part, Tensors

NAME = "guided-diffusion"
LICENCE = "MIT (openai/guided-diffusion) if these are its weights; else unknown"
WEIGHT_SUFFIXES = {".pt", ".pth", ".ckpt", ".bin", ".pkl"}

# What the flags are where a command line doesn't name them.
DEFAULTS: dict[str, Any] = {
    "image_size": 64, "num_channels": 128, "num_res_blocks": 2, "num_heads": 4,
    "num_heads_upsample": -1, "num_head_channels": -1, "attention_resolutions": "16,8",
    "channel_mult": "", "dropout": 0.0, "class_cond": False, "use_scale_shift_norm": True,
    "resblock_updown": False, "use_new_attention_order": False, "learn_sigma": False,
    "diffusion_steps": 1000, "noise_schedule": "linear", "predict_xstart": False,
    "rescale_timesteps": False,
}  # fmt: skip
BOOLEANS = dict.fromkeys(("true", "yes", "1"), True) | dict.fromkeys(("false", "no", "0"), False)
MULTIPLIERS = {
    512: (0.5, 1, 1, 2, 2, 4, 4), 256: (1, 1, 2, 2, 4, 4), 128: (1, 1, 2, 3, 4), 64: (1, 2, 3, 4),
}  # fmt: skip
# Of every ADM network; of its U-Nets, unless flags say otherwise.
NORM: dict[str, Any] = {"groups": 32, "norm_eps": 1e-5}
ADM = NORM | {"patch": 1, "time_conditioning": "scale_shift", "resampling": "residual"}


def heads(shape: Settings, channels: str = "num_head_channels") -> dict[str, Any]:
    """Channels of an attention head, where they aren't -1, or else the number of heads."""
    given = shape.get(channels, int, -1)
    return {"head_channels": given if given > 0 else None, "heads": shape.get("num_heads", int, 1)}


def schedule_config(betas: str, timesteps: int) -> ScheduleConfig:
    """ADM's betas: linear ones scaled so that any number of timesteps ends in the same noise."""
    scale = 1000 / max(1, timesteps)
    return ScheduleConfig(betas, timesteps, 1e-4 * scale, 0.02 * scale)


def recognises(source: Source) -> bool:
    """A `.pt` file that is a bare state dict of an ADM U-Net, or a folder with one and flags."""
    if source.path.is_dir():
        return (source.path / "model_flags.json").exists() and len(_weights(source.path)) == 1
    content = source.content()
    return "time_embed.0.weight" in content and "input_blocks.0.0.weight" in content


def read(source: Source) -> Found:
    """eps_theta, with its learned variance if it has one."""
    weights = _weights(source.path)[0] if source.path.is_dir() else source.path
    flags = _flags(source)
    unet = _unet(flags)
    tensors = Tensors.below("", source.content(weights), str(weights))
    flags.refuse("noise_schedule", "linear", "cosine")
    timesteps = flags.get("diffusion_steps", int)
    if timesteps != 1000:
        flags.expect(rescale_timesteps=False)
    config = ModelConfig(
        flags.build(schedule_config, flags.values["noise_schedule"], timesteps),
        unet,
        prediction="x_0" if flags.get("predict_xstart", bool) else "eps",
        licence=LICENCE,
        variance="learned" if unet.learn_sigma else "large",
        source=f"{NAME}: {weights.name}",
    )
    new_order = flags.get("use_new_attention_order", bool)
    parts = [Part("dpm", tensors, names.adm_unet(unet), new_order)]
    notes = ["the weights are taken as they are; of several files, the ema_* one is the better"]
    others = sorted(set(flags.values) - set(DEFAULTS))
    if others:
        notes.append(f"flags that don't shape the network, left out: {', '.join(others)}")
    return Found(config, parts, notes=notes)


def _weights(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in WEIGHT_SUFFIXES)


def _flags(source: Source) -> Settings:
    """The flags: JSON or YAML, or `--name value` pairs in a text file, over the defaults."""
    place = source.config or source.folder / "model_flags.json"
    path = source.first("flags (pass them as --config)", [place])
    if path.suffix in (".json", ".yml", ".yaml"):
        return Settings.read(path, DEFAULTS)
    try:
        words = shlex.split(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} can't be read as flags: {error}") from error
    words = [part for word in words for part in word.split("=", 1)]
    flags = dict(DEFAULTS)
    for name, value in itertools.zip_longest(words[::2], words[1::2]):
        if not name.startswith("--") or value is None:
            raise ModelError(f"{path}: at {name!r}, write --name value pairs")
        key = name.removeprefix("--")
        kind = type(DEFAULTS.get(key, ""))
        try:
            flags[key] = BOOLEANS[value.lower()] if kind is bool else kind(value)
        except (ValueError, KeyError) as error:
            raise ModelError(f"{path}: {name} {value!r} isn't of type {kind.__name__}") from error
    return Settings(str(path), flags)


def _unet(flags: Settings) -> UNetConfig:
    flags.expect(class_cond=False)
    flags.refuse("num_heads_upsample", -1, flags.values["num_heads"])
    size, text = flags.get("image_size", int), flags.get("channel_mult", str)
    if not text and size not in MULTIPLIERS:
        raise ModelError(f"{flags.where}: channel_mult must be given for image_size {size}")
    return flags.build(
        UNetConfig,
        image_size=size,
        channels=3,
        patch=1,
        **flags.integers(base_channels="num_channels", blocks="num_res_blocks"),
        multipliers=tuple(map(float, text.split(","))) if text else MULTIPLIERS[size],
        attention=tuple(map(int, flags.get("attention_resolutions", str).split(","))),
        **heads(flags),
        time_conditioning="scale_shift" if flags.values["use_scale_shift_norm"] else "additive",
        resampling="residual" if flags.values["resblock_updown"] else "convolution",
        learn_sigma=flags.get("learn_sigma", bool),
        dropout=flags.get("dropout", float),
        **NORM,
    )
