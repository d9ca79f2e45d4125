"""openai's improved- and guided-diffusion: unconditional models, a state dict and the flags beside
it; and what Diff-AE, PDAE and latent-diffusion, which grew from them, share with them."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path
from typing import Any

from ..engine.config import ModelConfig, ScheduleConfig
from ..engine.tensors import shown
from ..errors import ModelError
from ..networks.unet import UNetConfig
from . import names
from .reading import SAFETENSORS, read_text
from .source import Fields, Foreign, Settings, Source
from .transfer import Part, Tensors

NAME = "guided-diffusion"
LICENCE = "MIT (openai/guided-diffusion) if these are its weights; else unknown"
WEIGHT_SUFFIXES = {".pt", ".pth", ".ckpt", ".bin", ".pkl", SAFETENSORS}
MARK = "time_embed.0.weight"  # a tensor of every ADM U-Net

# What the flags are where a command line doesn't name them.
DEFAULTS: dict[str, Any] = {
    "image_size": 64, "num_channels": 128, "num_res_blocks": 2, "num_heads": 4,
    "num_heads_upsample": -1, "num_head_channels": -1, "attention_resolutions": "16,8",
    "channel_mult": "", "dropout": 0.0, "class_cond": False, "use_scale_shift_norm": True,
    "resblock_updown": False, "use_new_attention_order": False, "learn_sigma": False,
    "diffusion_steps": 1000, "noise_schedule": "linear", "predict_xstart": False,
    "sigma_small": False,
}  # fmt: skip
FIELDS = Fields(
    "improved-/guided-diffusion: flags",
    taken="image_size num_channels channel_mult num_res_blocks attention_resolutions num_heads "
    "num_heads_upsample num_head_channels dropout use_scale_shift_norm resblock_updown "
    "use_new_attention_order learn_sigma sigma_small diffusion_steps noise_schedule "
    "rescale_timesteps predict_xstart",
    fixed={
        "class_cond": (False,),
        "clip_denoised": (True,),
        "large_size": (),
        "small_size": (),
        "in_channels": (3,),
        "use_spatial_transformer": (False,),
    },
    idle={
        "of training": "use_kl rescale_learned_sigmas lr batch_size microbatch ema_rate "
        "lr_anneal_steps weight_decay schedule_sampler data_dir save_interval log_interval "
        "resume_checkpoint fp16_scale_growth p2_gamma p2_k",
        "of speed and memory": "use_checkpoint use_fp16",
        "of its sampling; --inference-steps, --solver and --parity are ours": "timestep_respacing "
        "use_ddim num_samples model_path out_dir",
        "of a classifier beside the model": "classifier_path classifier_scale classifier_use_fp16 "
        "classifier_width classifier_depth classifier_attention_resolutions classifier_pool "
        "classifier_use_scale_shift_norm classifier_resblock_updown",
    },
)
# Flags of no default of ours, by their type.
TEXT_FLAGS: dict[str, Any] = {
    "rescale_timesteps": False, "clip_denoised": True, "use_spatial_transformer": False,
    "in_channels": 3,
}  # fmt: skip
MAX_FLAGS = 64 << 10  # bytes of a text of them
BOOLEANS = dict.fromkeys(("true", "yes", "1"), True) | dict.fromkeys(("false", "no", "0"), False)
MULTIPLIERS = {
    512: (0.5, 1, 1, 2, 2, 4, 4), 256: (1, 1, 2, 2, 4, 4), 128: (1, 1, 2, 3, 4), 64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
}  # fmt: skip
NORM: dict[str, Any] = {"groups": 32, "norm_eps": 1e-5}  # of every ADM network


def adm(shape: Settings, usual: bool = True, **fields: Any) -> UNetConfig:
    """An ADM U-Net by what programs say alike, and `fields` of ours. `usual`: whether time enters
    by scale and shift, and blocks resample, where the config doesn't say. Raises ModelError."""
    scaled = shape.flag("use_scale_shift_norm", usual)
    residual = shape.flag("resblock_updown", usual)
    given = NORM | heads(shape) | {
        "patch": 1,
        "time_conditioning": "scale_shift" if scaled else "additive",
        "resampling": "residual" if residual else "convolution",
        "learn_sigma": False,
        "dropout": shape.get("dropout", float, 0.0),
    }  # fmt: skip
    return shape.build(UNetConfig, **given | fields)


def attention_sizes(shape: Settings, size: int) -> tuple[int, ...]:
    """Feature-map sizes with attention, where a field says how many times smaller they are than
    `size`. Raises ModelError."""
    rates = [int(rate) for rate in shape.numbers("attention_resolutions")]
    if any(rate < 1 for rate in rates):
        raise ModelError(f"{shape.where}: attention_resolutions are {shown(rates)}")
    return tuple(size // rate for rate in rates)


def heads(shape: Settings, channels: str = "num_head_channels") -> dict[str, Any]:
    """Channels of an attention head, where they aren't -1, or else the number of heads."""
    given = shape.get(channels, int, -1)
    return {"head_channels": given if given > 0 else None, "heads": shape.get("num_heads", int, 1)}


def schedule_config(betas: str, timesteps: int) -> ScheduleConfig:
    """ADM's betas: linear ones scaled so that any number of timesteps ends in the same noise.
    Raises ValueError for fewer than 21, whose last beta would be 1."""
    scale = 1000 / max(1, timesteps)
    return ScheduleConfig(betas, timesteps, 1e-4 * scale, 0.02 * scale)


def time_scale(flags: Settings, name: str, timesteps: int, default: Any = ...) -> float:
    """What timesteps are multiplied by before the network sees them."""
    return 1000 / max(1, timesteps) if flags.get(name, bool, default) else 1.0


def recognises(source: Source) -> bool:
    """A file with a state dict of an ADM U-Net, or a folder with flags."""
    if source.path.is_dir():
        return (source.path / "model_flags.json").exists()
    tensors = Tensors.around(MARK, source.content(), str(source.path)).tensors
    return MARK in tensors and "input_blocks.0.0.weight" in tensors


def read(source: Source) -> Foreign:
    """eps_theta, with its learned variance if it has one."""
    weights = _only_weights(source.path) if source.path.is_dir() else source.path
    notes = ["the weights are taken as they are; of several files, the ema_* one is the better"]
    flags = _flags(source).follow(FIELDS, notes)
    flags = Settings(flags.where, {**DEFAULTS, **flags.values})
    tensors = Tensors.around(MARK, source.content(weights), str(weights))
    flags.refuse("noise_schedule", "linear", "cosine")
    timesteps = flags.get("diffusion_steps", int)
    if timesteps != 1000 and "rescale_timesteps" not in flags.values:
        raise ModelError(
            f"{flags.where} doesn't say rescale_timesteps, which matters with {timesteps} "
            "timesteps: True is improved-diffusion's default, False guided-diffusion's; add the "
            "one it was trained with"
        )
    unet = _unet(flags, time_scale(flags, "rescale_timesteps", timesteps, default=False))
    fixed = "small" if flags.get("sigma_small", bool) else "large"
    config = ModelConfig(
        flags.build(schedule_config, flags.values["noise_schedule"], timesteps),
        unet,
        prediction="x_0" if flags.get("predict_xstart", bool) else "eps",
        licence=LICENCE,
        variance="learned" if unet.learn_sigma else fixed,
        source=f"{NAME}: {weights.name}",
    )
    new_order = flags.get("use_new_attention_order", bool)
    parts = [Part("dpm", tensors, names.adm_unet(unet), new_order)]
    return Foreign(config, parts, notes=notes)


def _only_weights(folder: Path) -> Path:
    """The one checkpoint in a folder. Raises ModelError where there is another number of them."""
    every = sorted(path for path in folder.iterdir() if path.suffix in WEIGHT_SUFFIXES)
    found = [path for path in every if path.suffix != SAFETENSORS] or every
    if not found:
        looked = ", ".join(f"*{suffix}" for suffix in sorted(WEIGHT_SUFFIXES))
        raise ModelError(f"{folder} holds no weights; looked for {looked}")
    if len(found) > 1:
        names = ", ".join(shown(path.name)[1:-1] for path in found[:6]) + ", …" * (len(found) > 6)
        raise ModelError(f"{folder} holds {len(found)} files of weights, {names}; name one of them")
    return found[0]


def _flags(source: Source) -> Settings:
    """The flags: JSON or YAML, or `--name value` pairs in a text file, also of lines that end in
    backslashes, or as a shell's `FLAGS="--name value"`."""
    place = source.config or source.folder / "model_flags.json"
    path = source.first("flags (pass them as --config)", [place])
    if path.suffix in (".json", ".yml", ".yaml"):
        return Settings.read(path)
    try:
        text = re.sub(r"\\\r?\n", " ", read_text(path, MAX_FLAGS))
        text = re.sub(r"(?m)^\s*(?:export\s+)?\w+=([\"'])(.*)\1\s*$", r" \2 ", text)
        words = shlex.split(text)
    except ValueError as error:
        raise ModelError(f"{path} can't be read as flags: {error}") from error
    pairs = (word.split("=", 1) if word.startswith("--") else [word] for word in words)
    words = [part for pair in pairs for part in pair]
    flags: dict[str, Any] = {}
    for name, value in itertools.zip_longest(words[::2], words[1::2]):
        if not name.startswith("--") or value is None:
            raise ModelError(f"{path}: at {shown(name)}, write --name value pairs")
        key = name.removeprefix("--")
        kind = type(DEFAULTS.get(key, TEXT_FLAGS.get(key, "")))
        try:
            flags[key] = BOOLEANS[value.lower()] if kind is bool else kind(value)
        except (ValueError, KeyError) as error:
            told = f"{shown(name)[1:-1]} {shown(value)}"
            raise ModelError(f"{path}: {told} isn't of type {kind.__name__}") from error
    return Settings(str(path), flags)


def _unet(flags: Settings, scale: float) -> UNetConfig:
    flags.refuse("num_heads_upsample", -1, flags.values["num_heads"])
    size, multipliers = flags.get("image_size", int), _listed(flags, "channel_mult", float)
    if not multipliers and size not in MULTIPLIERS:
        raise ModelError(f"{flags.where}: channel_mult must be given for image_size {size}")
    return adm(
        flags,
        image_size=size,
        channels=3,
        **flags.integers(base_channels="num_channels", blocks="num_res_blocks"),
        multipliers=multipliers or MULTIPLIERS[size],
        attention=_listed(flags, "attention_resolutions", int),
        learn_sigma=flags.get("learn_sigma", bool),
        time_scale=scale,
    )


def _listed(flags: Settings, name: str, kind: type[Any]) -> tuple[Any, ...]:
    """Numbers with commas between them, of YAML also a list, or one alone. Raises ModelError."""
    given = flags.values[name]
    parts = given if isinstance(given, list) else str(given).split(",")
    try:
        return tuple(kind(str(one)) for one in parts if one != "")
    except ValueError as error:
        raise ModelError(f"{flags.where}: {name} is {shown(given)}, not numbers") from error
