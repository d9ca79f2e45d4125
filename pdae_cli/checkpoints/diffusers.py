"""diffusers both ways: UNet2DModel, DDPMPipeline and LDMPipeline, current and old layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from accelerate import init_empty_weights
from safetensors.torch import save
from torch import Tensor

from ..engine.config import ModelConfig, ScheduleConfig
from ..engine.model import Model
from ..engine.tensors import check, load
from ..errors import ModelError, UsageError
from ..files import write_bytes
from ..networks.first_stage import KINDS, FirstStage, FirstStageConfig
from ..networks.layers import Attention
from ..networks.unet import UNetConfig
from . import names
from .native import build_first_stage, guarded
from .source import Found, Settings, Source
from .transfer import Part, Tensors, separated, transfer

NAME = "diffusers"
WEIGHTS = "diffusion_pytorch_model.safetensors"
ATTENTION_BLOCKS = {"AttnDownBlock2D", "AttnUpBlock2D"}
RESIDUAL_BLOCKS = {"ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"}
PLAIN_BLOCKS = {"DownBlock2D", "UpBlock2D"}
# Their word → ours.
BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x_0"}
VARIANCES = {"fixed_small": "small", "fixed_large": "large", "learned_range": "learned"}

# What every UNet2DModel of ours is.
FIXED: dict[str, Any] = {
    "_class_name": "UNet2DModel",
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "mid_block_scale_factor": 1,
    "add_attention": True,
}


def recognises(source: Source) -> bool:
    """A pipeline's folder (model_index.json), or a UNet2DModel's own."""
    if not source.path.is_dir():
        return False
    if (source.path / "model_index.json").exists():
        return True
    config = source.path / "config.json"
    return config.exists() and "_class_name" in Settings.read(config).values


def read(source: Source) -> Found:
    """eps_theta and its scheduler, and of a latent diffusion model the first stage."""
    stage = _first_stage_folder(source)
    if stage == source.path:
        raise ModelError(
            f"{stage} is a first stage, without a diffusion model of its latents; `pdae train dpm "
            f"--first-stage {stage}` trains one"
        )
    index = source.path / "model_index.json"
    if index.exists():
        kind = Settings.read(index).get("unet", list)[-1:]
        if kind != ["UNet2DModel"]:
            raise ModelError(f"{index}: its unet is {kind}, only UNet2DModel is supported")
    # Of a pipeline in `unet/`; at the root in an old one, and of a network alone.
    places = [source.path / "unet" / "config.json", source.path / "config.json"]
    path = source.first("config.json of the UNet2DModel", places)
    settings = Settings.read(path)
    unet, first_stage = _unet(settings), None
    parts = [Part("dpm", _tensors(source, path), names.diffusers_unet(unet))]
    if stage is not None:
        first_stage, part = _first_stage(source, stage)
        parts.append(part)
    config = ModelConfig(
        unet=unet,
        **_scheduler(source, path.parent),
        licence=source.licence,
        source=f"{NAME}: {source.path.name}",
        first_stage=first_stage,
    )
    return Found(config, parts, settings=settings.values)


def _tensors(source: Source, config: Path) -> Tensors:
    """The tensors beside a config, under today's names; attention's were others before 0.12."""
    places = [config.with_name(WEIGHTS).with_suffix(one) for one in (".safetensors", ".bin")]
    path = source.first("weights", places)
    if path.suffix == ".bin":
        found = source.content(path)
    else:
        with guarded(path):
            found = load(path, check(path))
    renamed = {}
    for name, value in found.items():
        parts = name.split(".")
        if "attentions" in parts:
            parts[-2] = names.DIFFUSERS_OLD_NAMES.get(parts[-2], parts[-2])
        renamed[".".join(parts)] = value
    return Tensors(str(path), renamed)


def _scheduler(source: Source, folder: Path) -> dict[str, Any]:
    """The fields of a ModelConfig that the scheduler fixes. Raises ModelError."""
    name = "scheduler_config.json"
    places = [source.path / "scheduler" / name, source.path / name]
    places.append(folder.parent / "scheduler" / name)
    scheduler = Settings.read(source.first(f"{name} (the noise schedule)", places))
    scheduler.expect(trained_betas=None, rescale_betas_zero_snr=False, thresholding=False)
    scheduler.expect(clip_sample_range=1)
    scheduler.refuse("beta_schedule", *BETAS)
    scheduler.refuse("prediction_type", *PREDICTIONS)
    scheduler.refuse("variance_type", *VARIANCES)
    betas, timesteps = BETAS[scheduler.get("beta_schedule", str)], "num_train_timesteps"
    ends = scheduler.get("beta_start", float), scheduler.get("beta_end", float)
    return {
        "schedule": scheduler.build(ScheduleConfig, betas, scheduler.get(timesteps, int), *ends),
        "prediction": PREDICTIONS[scheduler.get("prediction_type", str, "epsilon")],
        "variance": VARIANCES[scheduler.get("variance_type", str, "fixed_small")],
        "clip_sample": scheduler.get("clip_sample", bool, True),
    }


def _unet(settings: Settings) -> UNetConfig:
    """A UNet2DModel's shape; old and partial configs leave out what is usual. Raises ModelError
    that names what our networks can't follow."""
    settings.expect(**FIXED, mid_block_type="UNetMidBlock2D")
    settings.expect(class_embed_type=None, num_class_embeds=None)
    settings.refuse("act_fn", "silu", "swish")
    settings.refuse("resnet_time_scale_shift", "default", "scale_shift")
    widths = settings.numbers("block_out_channels")
    groups = settings.get("norm_num_groups", int, 32)
    scale_shift = settings.values.get("resnet_time_scale_shift") == "scale_shift"
    settings.refuse("attn_norm_num_groups", groups, *([] if scale_shift else [None]))
    size, channels = settings.get("sample_size", int), settings.get("in_channels", int)
    settings.refuse("out_channels", channels, 2 * channels)
    if not widths or any(type(width) is not int or width < 1 for width in widths):
        raise ModelError(f"{settings.where}: block_out_channels are {widths}")
    attention, resampling = _layout(settings, size, len(widths))
    return settings.build(
        UNetConfig,
        image_size=size,
        channels=channels,
        patch=1,
        base_channels=widths[0],
        multipliers=tuple(width / widths[0] for width in widths),
        blocks=settings.get("layers_per_block", int, 2),
        attention=attention,
        head_channels=settings.get("attention_head_dim", int | None, 8),
        heads=1,
        time_conditioning="scale_shift" if scale_shift else "additive",
        resampling=resampling,
        learn_sigma=settings.get("out_channels", int) == 2 * channels,
        groups=groups,
        norm_eps=settings.get("norm_eps", float, 1e-5),
        dropout=settings.get("dropout", float, 0.0),
        embedding_channels=settings.values.get("time_embedding_dim") or 4 * widths[0],
        sine_first=not settings.get("flip_sin_to_cos", bool, True),
        frequency_shift=settings.get("freq_shift", int, 0),
    )


def _layout(settings: Settings, size: int, levels: int) -> tuple[tuple[int, ...], str]:
    """Feature-map sizes with attention, and how blocks resample; both halves must be alike."""
    marks, kinds = [], set()
    for way in ("down", "up"):
        blocks = list(settings.get(f"{way}_block_types", list | tuple))
        known = ATTENTION_BLOCKS | RESIDUAL_BLOCKS | PLAIN_BLOCKS
        if not known.issuperset(blocks) or len(blocks) != levels:
            raise ModelError(f"{settings.where}: {way}_block_types {blocks} isn't supported")
        marks.append([block in ATTENTION_BLOCKS for block in blocks])
        for block in blocks[:-1]:  # the last of a half keeps its size
            if block in ATTENTION_BLOCKS:
                settings.refuse(f"{way}sample_type", "conv", "resnet")
                kinds.add(settings.values.get(f"{way}sample_type", "conv"))
            else:
                kinds.add("resnet" if block in RESIDUAL_BLOCKS else "conv")
    if marks[0] != marks[1][::-1]:
        raise ModelError(f"{settings.where}: attention must be at the same levels down and up")
    if len(kinds) > 1:
        raise ModelError(f"{settings.where}: blocks that resample in different ways")
    attention = tuple(size // 2**level for level, has in enumerate(marks[0]) if has)
    if kinds == {"resnet"}:
        return attention, "residual"
    settings.refuse("downsample_padding", 0, 1)
    padded = settings.values.get("downsample_padding", 1) == 1
    return attention, "convolution" if padded else "convolution_right"


# --- The first stage ----------------------------------------------------------------------------


def load_first_stage(source: Source) -> FirstStage:
    """Load the first stage of a pipeline, or one alone. Raises ModelError."""
    folder = _first_stage_folder(source)
    if folder is None:
        raise ModelError(f"{source.path} holds no {' or '.join(KINDS)} of diffusers")
    try:
        config, part = _first_stage(source, folder)
    except (ValueError, ArithmeticError) as error:
        raise ModelError(f"{folder}: its config describes no network: {error}") from error
    with init_empty_weights(include_buffers=True):
        network = build_first_stage(config)
    transfer(network, part)
    part.source.check_all_used()
    return network


def _first_stage_folder(source: Source) -> Path | None:
    """Where a pipeline keeps it, or the folder of one alone; None where there is none. Raises
    ModelError for one of another kind, whose latents would pass for pictures."""
    index, alone = source.path / "model_index.json", source.path / "config.json"
    parts = Settings.read(index).values if index.exists() else {}
    for name in ("vqvae", "vae"):
        config = source.path / name / "config.json"
        if config.exists() or parts.get(name) not in (None, [None, None]):
            Settings.read(config).refuse("_class_name", *KINDS)
            return config.parent
    found = alone.exists() and Settings.read(alone).values.get("_class_name") in KINDS
    return source.path if found else None


def _first_stage(source: Source, folder: Path) -> tuple[FirstStageConfig, Part]:
    """Its shape and weights. Raises ModelError that names what isn't supported."""
    settings = Settings.read(folder / "config.json")
    settings.refuse("_class_name", *KINDS)
    settings.expect(act_fn="silu", norm_type="group", latents_mean=None, latents_std=None)
    channels, latent = settings.get("in_channels", int), settings.get("latent_channels", int)
    before, after = (settings.get(f"use_{one}quant_conv", bool, True) for one in ("", "post_"))
    settings.expect(out_channels=channels, use_quant_conv=after, use_post_quant_conv=before)
    config = settings.build(
        FirstStageConfig,
        kind=settings.get("_class_name", str),
        channels=channels,
        latent_channels=latent,
        down_blocks=tuple(map(str, settings.get("down_block_types", list | tuple))),
        up_blocks=tuple(map(str, settings.get("up_block_types", list | tuple))),
        widths=tuple(map(int, settings.numbers("block_out_channels"))),
        blocks=settings.get("layers_per_block", int, 1),
        groups=settings.get("norm_num_groups", int, 32),
        middle_attention=settings.get("mid_block_add_attention", bool, True),
        bottleneck=before,
        codes=settings.get("num_vq_embeddings", int, 256),
        code_channels=settings.get("vq_embed_dim", int, None) or latent,
        scale=settings.get("scaling_factor", float, 0.18215),
        shift=settings.get("shift_factor", float, None) or 0.0,
    )
    tensors = _tensors(source, folder / "config.json")
    modules = {name.rpartition(".")[0] for name in tensors.tensors}
    return config, Part("first_stage", tensors, {f"network.{one}": (one,) for one in modules})


# --- Export -------------------------------------------------------------------------------------


def write_diffusers(model: Model, folder: Path) -> str:
    """Write eps_theta as a folder that diffusers' DDPMPipeline runs: model_index.json, unet/ and
    scheduler/; with a first stage, as vqvae/, LDMPipeline. Returns the pipeline's class.

    Raises UsageError for a network that diffusers' UNet2DModel can't be.
    """
    unet, scheduler = _unet_json(model.config.unet), _scheduler_json(model.config)
    first_stage = model.first_stage
    if first_stage is not None:
        _need(first_stage.cfg.shift == 0, "latents that are shifted, in an LDMPipeline")
        _need(not model.config.unet.learn_sigma, "learned variance, in an LDMPipeline")
    pipeline = "DDPMPipeline" if first_stage is None else "LDMPipeline"
    index = {"_class_name": pipeline, "scheduler": ["diffusers", scheduler["_class_name"]]}
    networks = {"unet": (unet, _unet_tensors(model))}
    if first_stage is not None:
        shape = {"_class_name": first_stage.cfg.kind} | first_stage.cfg.arguments()
        networks["vqvae"] = (shape, first_stage.network.state_dict())
    files = {"scheduler/scheduler_config.json": scheduler}
    for name, (shape, tensors) in networks.items():
        index[name] = ["diffusers", shape["_class_name"]]
        files[f"{name}/config.json"] = shape
        kept = {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}
        write_bytes(folder / name / WEIGHTS, save(kept, metadata={"format": "pt"}))
    for file, content in (files | {"model_index.json": index}).items():
        write_bytes(folder / file, json.dumps(content, indent=2).encode() + b"\n")
    return pipeline


def _unet_tensors(model: Model) -> dict[str, Tensor]:
    """eps_theta's tensors by diffusers' names."""
    table = names.diffusers_unet(model.config.unet)
    tensors: dict[str, Tensor] = {}
    for name, value in model.dpm.state_dict().items():
        module, _, kind = name.rpartition(".")
        theirs, parts = table[module], [value]
        if len(theirs) > 1:
            attention = model.dpm.get_submodule(module.rpartition(".")[0])
            assert isinstance(attention, Attention)
            parts = list(separated(value, attention.heads).chunk(len(theirs)))
        tensors |= {f"{path}.{kind}": part for path, part in zip(theirs, parts, strict=True)}
    return tensors


def _unet_json(cfg: UNetConfig) -> dict[str, Any]:
    """A UNet2DModel's config.json."""
    _need(cfg.patch == 1, f"space-to-depth at the input (patch {cfg.patch})")
    _need(not cfg.z_channels, "conditioning on z inside eps_theta")
    _need(cfg.base_channels == cfg.widths[0], "a time embedding of another width than its input")
    _need(min(cfg.widths) >= cfg.groups, f"fewer channels than norm groups ({cfg.groups})")
    _need(bool(cfg.head_channels) or cfg.heads == 1, f"a fixed number of {cfg.heads} heads")
    residual, scale_shift = cfg.resampling == "residual", cfg.time_conditioning == "scale_shift"
    plain = "Resnet{}sampleBlock2D" if residual else "{}Block2D"
    down, up = (
        [f"Attn{way}Block2D" if size in cfg.attention else plain.format(way) for size in s]
        for way, s in (("Down", cfg.sizes), ("Up", cfg.sizes[::-1]))
    )
    return FIXED | {
        "sample_size": cfg.image_size,
        "in_channels": cfg.channels,
        "out_channels": cfg.channels * (2 if cfg.learn_sigma else 1),
        "time_embedding_dim": cfg.embedding_channels,
        "freq_shift": cfg.frequency_shift,
        "flip_sin_to_cos": not cfg.sine_first,
        "down_block_types": down,
        "up_block_types": up,
        "block_out_channels": cfg.widths,
        "layers_per_block": cfg.blocks,
        "downsample_padding": 0 if cfg.resampling == "convolution_right" else 1,
        "downsample_type": "resnet" if residual else "conv",
        "upsample_type": "resnet" if residual else "conv",
        "dropout": cfg.dropout,
        "act_fn": "silu",
        "attention_head_dim": cfg.head_channels,
        "norm_num_groups": cfg.groups,
        "attn_norm_num_groups": cfg.groups,
        "norm_eps": cfg.norm_eps,
        "resnet_time_scale_shift": "scale_shift" if scale_shift else "default",
    }


def _scheduler_json(config: ModelConfig) -> dict[str, Any]:
    """A DDPMScheduler's scheduler_config.json, or what an LDMPipeline takes, a DDIMScheduler's."""
    betas, predictions, variances = (
        {ours: theirs for theirs, ours in table.items()}
        for table in (BETAS, PREDICTIONS, VARIANCES)
    )
    schedule, pictures = config.schedule, config.first_stage is None
    _need(schedule.betas in betas, f"{schedule.betas} betas")
    return ({"variance_type": variances[config.variance]} if pictures else {}) | {
        "_class_name": "DDPMScheduler" if pictures else "DDIMScheduler",
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
