"""openai/guided-diffusion: unconditional models, a bare state dict and the flags beside it."""

from __future__ import annotations

import itertools
import shlex
from pathlib import Path
from typing import Any

from ..engine.config import ModelConfig, ScheduleConfig
from ..errors import ModelError
from ..networks.blocks import UNetConfig
from . import names
from .foreign import WEIGHT_SUFFIXES, Found, Part, Settings, impossible, read_settings
from .source import Source
from .transfer import Tensors

NAME = "guided-diffusion"
LICENCE = "MIT (openai/guided-diffusion) if these are its weights; else unknown"

# What the flags are where a command line doesn't name them.
DEFAULTS: dict[str, Any] = {
    "image_size": 64,
    "num_channels": 128,
    "num_res_blocks": 2,
    "num_heads": 4,
    "num_heads_upsample": -1,
    "num_head_channels": -1,
    "attention_resolutions": "16,8",
    "channel_mult": "",
    "dropout": 0.0,
    "class_cond": False,
    "use_scale_shift_norm": True,
    "resblock_updown": False,
    "use_new_attention_order": False,
    "learn_sigma": False,
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "predict_xstart": False,
    "rescale_timesteps": False,
}
BOOLEANS = {
    "true": True, "yes": True, "1": True, "false": False, "no": False, "0": False,
}  # fmt: skip
MULTIPLIERS = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
}


def recognises(source: Source) -> bool:
    """A `.pt` file that is a bare state dict of an ADM U-Net, or a folder with one and flags."""
    if source.path.is_dir():
        return (source.path / "model_flags.json").exists() and len(_weights(source.path)) == 1
    content = source.own_content()
    return "time_embed.0.weight" in content and "input_blocks.0.0.weight" in content


def read(source: Source) -> Found:
    """eps_theta, with its learned variance if it has one."""
    weights = _weights(source.path)[0] if source.path.is_dir() else source.path
    flags = _flags(source)
    unet = _unet(flags)
    tensors = Tensors.from_content(source.content(weights), str(weights))
    config = ModelConfig(
        _schedule(flags),
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
    return Found(NAME, config, parts, notes=notes)


def _weights(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in WEIGHT_SUFFIXES)


def _flags(source: Source) -> Settings:
    """The flags: JSON or YAML, or a command line in a text file, over the defaults."""
    place = source.folder / "model_flags.json"
    path = source.first("flags (pass them as --config)", [source.config or place])
    structured = path.suffix in (".json", ".yml", ".yaml")
    given = read_settings(path) if structured else parsed_flags(path)
    return Settings(str(path), DEFAULTS | given)


def parsed_flags(path: Path) -> dict[str, Any]:
    """`--name value` pairs of a text file, as in the project's README. Raises ModelError."""
    try:
        words = shlex.split(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} can't be read as flags: {error}") from error
    words = [part for word in words for part in word.split("=", 1)]
    flags: dict[str, Any] = {}
    for name, value in itertools.zip_longest(words[::2], words[1::2]):
        if not name.startswith("--") or value is None:
            raise ModelError(f"{path}: at {name!r}, write --name value pairs")
        key = name.removeprefix("--")
        flags[key] = _as(type(DEFAULTS.get(key, "")), value, f"{path}: {name}")
    return flags


def _as(kind: type, value: str, where: str) -> Any:
    """A flag's text as the type of its default."""
    try:
        return BOOLEANS[value.lower()] if kind is bool else kind(value)
    except (ValueError, KeyError) as error:
        raise ModelError(f"{where} {value!r} isn't of type {kind.__name__}") from error


def _unet(flags: Settings) -> UNetConfig:
    flags.refuse("class_cond", False)
    flags.refuse("num_heads_upsample", -1, flags.values["num_heads"])
    size = flags.get("image_size", int)
    text = flags.get("channel_mult", str)
    if not text and size not in MULTIPLIERS:
        raise ModelError(f"{flags.where}: channel_mult must be given for image_size {size}")
    head_channels = flags.get("num_head_channels", int)
    try:
        return UNetConfig(
            image_size=size,
            channels=3,
            patch=1,
            base_channels=flags.get("num_channels", int),
            multipliers=tuple(map(float, text.split(","))) if text else MULTIPLIERS[size],
            blocks=flags.get("num_res_blocks", int),
            attention=tuple(map(int, flags.get("attention_resolutions", str).split(","))),
            head_channels=head_channels if head_channels > 0 else None,
            heads=flags.get("num_heads", int),
            time_conditioning="scale_shift" if flags.values["use_scale_shift_norm"] else "additive",
            resampling="residual" if flags.values["resblock_updown"] else "convolution",
            learn_sigma=flags.get("learn_sigma", bool),
            groups=32,
            norm_eps=1e-5,
            dropout=float(flags.get("dropout", (int, float))),
        )
    except ValueError as error:
        raise impossible(flags.where, error) from error


def _schedule(flags: Settings) -> ScheduleConfig:
    flags.refuse("noise_schedule", "linear", "cosine")
    timesteps = flags.get("diffusion_steps", int)
    if timesteps != 1000:
        flags.refuse("rescale_timesteps", False)
    scale = 1000 / max(1, timesteps)
    return ScheduleConfig(flags.values["noise_schedule"], timesteps, 1e-4 * scale, 0.02 * scale)
