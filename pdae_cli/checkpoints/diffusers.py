"""diffusers: UNet2DModel, DDPMPipeline and LDMPipeline folders, current and old layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import init_empty_weights
from torch import Tensor

from ..engine.config import ModelConfig, ScheduleConfig
from ..engine.tensors import check, load
from ..errors import ModelError
from ..networks.blocks import UNetConfig
from ..networks.first_stage import KINDS, FirstStage, FirstStageConfig
from . import names
from .foreign import Found, Part, Settings, impossible, read_settings
from .native import build_first_stage, guarded
from .source import Source
from .transfer import Tensors, transfer

NAME = "diffusers"
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
ATTENTION_BLOCKS = {"AttnDownBlock2D", "AttnUpBlock2D"}
RESIDUAL_BLOCKS = {"ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"}
PLAIN_BLOCKS = {"DownBlock2D", "UpBlock2D"}
BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x_0"}

FIRST_STAGES = ("vqvae", "vae")  # their folders in a pipeline

# What a field is where an old or partial config.json doesn't name it.
DEFAULTS: dict[str, Any] = {
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "resnet_time_scale_shift": "default",
    "dropout": 0.0,
}
FIRST_STAGE_DEFAULTS: dict[str, Any] = {
    "layers_per_block": 1,
    "norm_num_groups": 32,
    "mid_block_add_attention": True,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "num_vq_embeddings": 256,
    "vq_embed_dim": None,
    "scaling_factor": 0.18215,
    "shift_factor": None,
}


def recognises(source: Source) -> bool:
    """A pipeline's folder (model_index.json), or a UNet2DModel's own."""
    if not source.path.is_dir():
        return False
    if (source.path / "model_index.json").exists():
        return True
    config = source.path / "config.json"
    return config.exists() and "_class_name" in read_settings(config)


def read(source: Source) -> Found:
    """eps_theta and its scheduler, and of a latent diffusion model the first stage."""
    stage = first_stage_folder(source)
    if stage == source.path:
        raise ModelError(
            f"{stage} is a first stage, without a diffusion model of its latents; `pdae train dpm "
            f"--first-stage {stage}` trains one"
        )
    folder = network_folder(source)
    settings = Settings(
        str(folder / "config.json"), DEFAULTS | read_settings(folder / "config.json")
    )
    unet = unet_config(settings)
    first_stage = None if stage is None else read_first_stage(source, stage)
    scheduler = _scheduler(source, folder)
    config = ModelConfig(
        schedule_config(scheduler),
        unet,
        prediction=_prediction(scheduler),
        licence=source.licence,
        variance=_variance(scheduler),
        clip_sample=scheduler.get("clip_sample", bool, True),
        source=f"{NAME}: {source.path.name}",
        first_stage=None if first_stage is None else first_stage[0],
    )
    parts = [Part("dpm", _tensors(source, folder), names.diffusers_unet(unet))]
    parts += [] if first_stage is None else [first_stage[1]]
    return Found(NAME, config, parts, settings=read_settings(folder / "config.json"))


def network_folder(source: Source) -> Path:
    """Where the network lies: `unet/` in a pipeline, the folder itself in an old one."""
    index = source.path / "model_index.json"
    if index.exists():
        parts = Settings(str(index), read_settings(index)).get("unet", list)
        if not parts or parts[-1] != "UNet2DModel":
            raise ModelError(f"{index}: its unet is {parts[-1:]}, only UNet2DModel is supported")
    places = [source.path / "unet" / "config.json", source.path / "config.json"]
    return source.first("config.json of the UNet2DModel", places).parent


def _scheduler(source: Source, folder: Path) -> Settings:
    name = "scheduler_config.json"
    places = [
        source.path / "scheduler" / name,
        source.path / name,
        folder.parent / "scheduler" / name,
    ]
    path = source.first("scheduler_config.json (the noise schedule)", places)
    return Settings(str(path), read_settings(path))


def _tensors(source: Source, folder: Path) -> Tensors:
    path = source.first("weights", [folder / name for name in WEIGHTS])
    pickled = path.suffix == ".bin"
    found = source.content(path) if pickled else guarded(path, lambda: load(path, check(path)))
    return Tensors(str(path), _current_names(found))


def _current_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under today's names; attention's were others before diffusers 0.12."""
    renamed = {}
    for name, value in tensors.items():
        parts = name.split(".")
        if "attentions" in parts and parts[-2] in names.DIFFUSERS_OLD_NAMES:
            parts[-2] = names.DIFFUSERS_OLD_NAMES[parts[-2]]
        renamed[".".join(parts)] = value
    return renamed


# --- The network --------------------------------------------------------------------------------


def unet_config(settings: Settings) -> UNetConfig:
    """A UNet2DModel's shape. Raises ModelError that names what our networks can't follow."""
    settings.refuse("_class_name", "UNet2DModel")
    settings.refuse("center_input_sample", False)
    settings.refuse("time_embedding_type", "positional")
    settings.refuse("act_fn", "silu", "swish")
    settings.refuse("mid_block_type", "UNetMidBlock2D")
    settings.refuse("mid_block_scale_factor", 1)
    settings.refuse("add_attention", True)
    settings.refuse("class_embed_type", None)
    settings.refuse("num_class_embeds", None)
    settings.refuse("resnet_time_scale_shift", "default", "scale_shift")
    widths = settings.numbers("block_out_channels")
    groups = settings.get("norm_num_groups", int)
    scale_shift = settings.values["resnet_time_scale_shift"] == "scale_shift"
    settings.refuse("attn_norm_num_groups", groups, *([] if scale_shift else [None]))
    size, channels = settings.get("sample_size", int), settings.get("in_channels", int)
    out_channels = settings.get("out_channels", int)
    settings.refuse("out_channels", channels, 2 * channels)
    head_channels = settings.get("attention_head_dim", (int, type(None)))
    if not widths or any(type(width) is not int or width < 1 for width in widths):
        raise ModelError(f"{settings.where}: block_out_channels are {widths}")
    try:
        return UNetConfig(
            image_size=size,
            channels=channels,
            patch=1,
            base_channels=widths[0],
            multipliers=tuple(width / widths[0] for width in widths),
            blocks=settings.get("layers_per_block", int),
            attention=_attention(settings, size),
            head_channels=head_channels,
            heads=1,
            time_conditioning="scale_shift" if scale_shift else "additive",
            resampling=_resampling(settings),
            learn_sigma=out_channels == 2 * channels,
            groups=groups,
            norm_eps=float(settings.get("norm_eps", (int, float))),
            dropout=float(settings.get("dropout", (int, float))),
            embedding_channels=settings.values.get("time_embedding_dim") or 4 * widths[0],
            sine_first=not settings.get("flip_sin_to_cos", bool),
            frequency_shift=settings.get("freq_shift", int),
        )
    except ValueError as error:
        raise impossible(settings.where, error) from error


def _blocks(settings: Settings, key: str) -> list[str]:
    blocks = list(settings.get(key, (list, tuple)))
    unknown = set(blocks) - ATTENTION_BLOCKS - RESIDUAL_BLOCKS - PLAIN_BLOCKS
    if unknown or len(blocks) != len(settings.values["block_out_channels"]):
        raise ModelError(f"{settings.where}: {key} {blocks} isn't supported")
    return blocks


def _attention(settings: Settings, size: int) -> tuple[int, ...]:
    """Feature-map sizes with attention: both halves of the U-Net must have it at the same."""
    down, up = _blocks(settings, "down_block_types"), _blocks(settings, "up_block_types")
    marks = [[block in ATTENTION_BLOCKS for block in blocks] for blocks in (down, up[::-1])]
    if marks[0] != marks[1]:
        raise ModelError(f"{settings.where}: attention must be at the same levels down and up")
    return tuple(size // 2**level for level, has in enumerate(marks[0]) if has)


def _resampling(settings: Settings) -> str:
    """How all blocks but the last of each half resample; mixtures are refused."""
    kinds = {
        _block_resampling(settings, key, f"{direction}sample_type", block)
        for key, direction in (("down_block_types", "down"), ("up_block_types", "up"))
        for block in _blocks(settings, key)[:-1]
    }
    if len(kinds) > 1:
        raise ModelError(f"{settings.where}: blocks that resample in different ways")
    if kinds == {"resnet"}:
        return "residual"
    settings.refuse("downsample_padding", 0, 1)
    return "convolution" if settings.values["downsample_padding"] == 1 else "convolution_right"


def _block_resampling(settings: Settings, key: str, option: str, block: str) -> str:
    if block in ATTENTION_BLOCKS:
        settings.refuse(option, "conv", "resnet")
        return str(settings.values[option])
    return "resnet" if block in RESIDUAL_BLOCKS else "conv"


# --- The first stage ----------------------------------------------------------------------------


def first_stage_folder(source: Source) -> Path | None:
    """Where a pipeline keeps it, or the folder of one alone; None where there is none. Raises
    ModelError for one of another kind, whose latents would pass for pictures."""
    index, alone = source.path / "model_index.json", source.path / "config.json"
    parts = read_settings(index) if index.exists() else {}
    for name in FIRST_STAGES:
        config = source.path / name / "config.json"
        if config.exists() or parts.get(name) not in (None, [None, None]):
            Settings(str(config), read_settings(config)).refuse("_class_name", *KINDS)
            return config.parent
    found = alone.exists() and read_settings(alone).get("_class_name") in KINDS
    return source.path if found else None


def load_first_stage(source: Source) -> FirstStage:
    """The first stage of a pipeline, or one alone. Raises ModelError."""
    folder = first_stage_folder(source)
    if folder is None:
        raise ModelError(f"{source.path} holds no {' or '.join(KINDS)} of diffusers")
    config, part = read_first_stage(source, folder)
    with init_empty_weights(include_buffers=True):
        network = build_first_stage(config)
    transfer(network, part.table, part.source)
    part.source.check_all_used()
    return network


def read_first_stage(source: Source, folder: Path) -> tuple[FirstStageConfig, Part]:
    """Its shape and weights. Raises ModelError."""
    path = folder / "config.json"
    config = first_stage_config(Settings(str(path), FIRST_STAGE_DEFAULTS | read_settings(path)))
    tensors = _tensors(source, folder)
    modules = {name.rpartition(".")[0] for name in tensors.tensors}
    return config, Part("first_stage", tensors, {f"network.{one}": (one,) for one in modules})


def first_stage_config(settings: Settings) -> FirstStageConfig:
    """Its shape. Raises ModelError that names what isn't supported."""
    settings.refuse("_class_name", *KINDS)
    settings.refuse("act_fn", "silu")
    settings.refuse("norm_type", "group")
    settings.refuse("latents_mean", None)
    settings.refuse("latents_std", None)
    channels, latent = settings.get("in_channels", int), settings.get("latent_channels", int)
    settings.refuse("out_channels", channels)
    bottleneck = settings.get("use_quant_conv", bool)
    settings.refuse("use_post_quant_conv", bottleneck)
    try:
        return FirstStageConfig(
            kind=settings.get("_class_name", str),
            channels=channels,
            latent_channels=latent,
            down_blocks=tuple(map(str, settings.get("down_block_types", (list, tuple)))),
            up_blocks=tuple(map(str, settings.get("up_block_types", (list, tuple)))),
            widths=tuple(map(int, settings.numbers("block_out_channels"))),
            blocks=settings.get("layers_per_block", int),
            groups=settings.get("norm_num_groups", int),
            middle_attention=settings.get("mid_block_add_attention", bool),
            bottleneck=bottleneck,
            codes=settings.get("num_vq_embeddings", int),
            code_channels=settings.get("vq_embed_dim", int, None) or latent,
            scale=float(settings.get("scaling_factor", (int, float))),
            shift=float(settings.get("shift_factor", (int, float), None) or 0),
        )
    except (ValueError, OverflowError) as error:
        raise impossible(settings.where, error) from error


# --- The scheduler ------------------------------------------------------------------------------


def schedule_config(scheduler: Settings) -> ScheduleConfig:
    """The beta schedule. Raises ModelError that names what isn't supported."""
    scheduler.refuse("trained_betas", None)
    scheduler.refuse("rescale_betas_zero_snr", False)
    scheduler.refuse("thresholding", False)
    scheduler.refuse("clip_sample_range", 1, 1.0)
    scheduler.refuse("beta_schedule", *BETAS)
    return ScheduleConfig(
        BETAS[scheduler.get("beta_schedule", str)],
        scheduler.get("num_train_timesteps", int),
        float(scheduler.get("beta_start", (int, float))),
        float(scheduler.get("beta_end", (int, float))),
    )


def _prediction(scheduler: Settings) -> str:
    scheduler.refuse("prediction_type", *PREDICTIONS)
    return PREDICTIONS[scheduler.get("prediction_type", str, "epsilon")]


def _variance(scheduler: Settings) -> str:
    scheduler.refuse("variance_type", "fixed_small", "fixed_large", "learned_range")
    variance = scheduler.get("variance_type", str, "fixed_small")
    return {"fixed_large": "large", "learned_range": "learned"}.get(variance, "small")
