"""diffusers: UNet2DModel, DDPMPipeline and LDMPipeline, current and old layouts, and what its
training scripts leave."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..diffusion.parity import SchedulerConfig
from ..engine.config import ModelConfig, ScheduleConfig
from ..engine.tensors import shown
from ..errors import ModelError
from ..networks.unet import UNetConfig
from . import names
from .first_stage import first_stage_folder, read_first_stage, tensors_in
from .source import Fields, Foreign, Settings, Source
from .transfer import Part

NAME = "diffusers"
MARK = "time_embedding.linear_1.weight"  # a tensor of every UNet2DModel
NETWORKS = ("unet", "unet_ema")  # of a training script's checkpoint
ATTENTION_BLOCKS = {"AttnDownBlock2D", "AttnUpBlock2D"}
RESIDUAL_BLOCKS = {"ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"}
PLAIN_BLOCKS = {"DownBlock2D", "UpBlock2D"}
# Their word → ours.
BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x_0"}
VARIANCES = {"fixed_small": "small", "fixed_large": "large", "learned_range": "learned"}

# What every UNet2DModel of ours is.
ALIKE: dict[str, Any] = {
    "_class_name": "UNet2DModel",
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "mid_block_scale_factor": 1,
    "add_attention": True,
}
UNET = Fields(
    "diffusers: UNet2DModel",
    taken="sample_size in_channels out_channels block_out_channels down_block_types up_block_types "
    "layers_per_block downsample_type upsample_type downsample_padding attention_head_dim "
    "norm_num_groups attn_norm_num_groups norm_eps resnet_time_scale_shift time_embedding_dim "
    "freq_shift flip_sin_to_cos dropout",
    fixed={name: (value,) for name, value in ALIKE.items()} | {
        "mid_block_type": ("UNetMidBlock2D",), "class_embed_type": (), "num_class_embeds": (),
        "act_fn": ("silu", "swish"),
    },
    idle={"of learned time embeddings, which are refused": "num_train_timesteps"},
    null="attention_head_dim add_attention mid_block_type flip_sin_to_cos",
)  # fmt: skip
# Of the discrete process that DDPM is trained with; betas of their defaults are DDPM's.
SCHEDULERS = (
    "DDPMScheduler", "DDIMScheduler", "DDIMInverseScheduler", "DDPMParallelScheduler",
    "DDIMParallelScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverMultistepInverseScheduler", "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler", "UniPCMultistepScheduler", "SASolverScheduler",
)  # fmt: skip
SCHEDULER = Fields(
    "diffusers: scheduler_config.json",
    taken="num_train_timesteps beta_schedule beta_start beta_end prediction_type predict_epsilon "
    "variance_type clip_sample clip_sample_range timestep_spacing steps_offset "
    "set_alpha_to_one",
    fixed={
        "_class_name": SCHEDULERS, "trained_betas": (), "rescale_betas_zero_snr": (False,),
        "thresholding": (False,), "use_flow_sigmas": (False,), "flow_shift": (1,),
        "use_dynamic_shifting": (False,), "shift_terminal": (), "snr_shift_scale": (),
    },
    idle={
        "of thresholding, which is refused": "dynamic_thresholding_ratio sample_max_value",
        "of samplers that diffusers' DDIM isn't; ours have options": "algorithm_type solver_order "
        "solver_type solver_p lower_order_final euler_at_final final_sigmas_type "
        "lambda_min_clipped use_karras_sigmas use_exponential_sigmas use_beta_sigmas "
        "use_lu_lambdas skip_prk_steps predict_x0 disable_corrector predictor_order "
        "corrector_order sigma_min sigma_max tau_func time_shift_type timestep_values "
        "tensor_format kwargs",
    },
    null="clip_sample set_alpha_to_one",
)  # fmt: skip


def recognises(source: Source) -> bool:
    """A pipeline's folder (model_index.json), a UNet2DModel's own, or one with such folders."""
    if not source.path.is_dir():
        return False
    places = [source.path / name / "config.json" for name in NETWORKS]
    if any(os.path.lexists(place) for place in (source.path / "model_index.json", *places)):
        return True
    config = source.path / "config.json"
    return os.path.lexists(config) and "_class_name" in Settings.read(config).values


def read(source: Source) -> Foreign:
    """eps_theta and its scheduler, and of a latent diffusion model the first stage."""
    stage = first_stage_folder(source)
    if stage == source.path:
        raise ModelError(
            f"{stage} is a first stage, without a diffusion model of its latents; `pdae train dpm "
            f"--first-stage {stage}` trains one"
        )
    folder, notes = _network(source), list[str]()
    settings = Settings.read(folder / "config.json").follow(UNET, notes)
    unet, first_stage = _unet(settings), None
    parts = [Part("dpm", tensors_in(source, folder, MARK), names.diffusers_unet(unet))]
    if stage is not None:
        first_stage, part = read_first_stage(source, stage, notes)
        parts.append(part)
    config = ModelConfig(
        unet=unet,
        **_scheduler(source, folder, notes),
        source=f"{NAME}: {source.path.name}",
        first_stage=first_stage,
    )
    return Foreign(config, parts, settings=settings.values, notes=notes)


def _network(source: Source) -> Path:
    """The folder of the UNet2DModel: `unet/` of a pipeline, the root of an old one, a network's
    own. Raises ModelError."""
    index = source.path / "model_index.json"
    if os.path.lexists(index):
        kind = Settings.read(index).get("unet", list)[-1:]
        if kind != ["UNet2DModel"]:
            raise ModelError(f"{index}: its unet is {shown(kind)}, only UNet2DModel is supported")
    elif (source.path / "unet_ema" / "config.json").exists():
        raise ModelError(
            f"{source.path} is a training script's checkpoint: convert {source.path / 'unet_ema'} "
            "(its averaged network), with --config scheduler_config.json"
        )
    places = [source.path / "unet" / "config.json", source.path / "config.json"]
    return source.first("config.json of the UNet2DModel", places).parent


def _scheduler(source: Source, folder: Path, notes: list[str]) -> dict[str, Any]:
    """The fields of a ModelConfig that the scheduler fixes. Raises ModelError."""
    name = "scheduler_config.json"
    places = [source.path / "scheduler" / name, source.path / name]
    places.append(folder.parent / "scheduler" / name)
    if source.config is not None:
        places = [source.config]
    place = source.first(f"{name}, the noise schedule (pass it as --config)", places)
    settings = Settings.read(place).follow(SCHEDULER, notes)
    kind = settings.get("_class_name", str, "DDIMScheduler")
    if not kind.startswith(("DDIM", "DDPM")):
        notes.append(f"sampled by our solvers, or as diffusers' DDIM (--parity), not its {kind}")
    betas = settings.word("beta_schedule", BETAS, "linear")
    ends = settings.get("beta_start", float, 1e-4), settings.get("beta_end", float, 0.02)
    timesteps = settings.get("num_train_timesteps", int, 1000)
    predicted = "epsilon" if settings.flag("predict_epsilon", True) else "sample"
    if predicted == "sample":
        settings.refuse("prediction_type", predicted)
    return {
        "schedule": settings.build(ScheduleConfig, betas, timesteps, *ends),
        "prediction": settings.word("prediction_type", PREDICTIONS, predicted),
        "variance": settings.word("variance_type", VARIANCES, "fixed_small"),
        "clip_sample": settings.flag("clip_sample", True),
        "scheduler": settings.build(
            SchedulerConfig,
            settings.get("timestep_spacing", str, "leading"),
            settings.get("steps_offset", int, 0),
            settings.flag("set_alpha_to_one", True),
            settings.get("clip_sample_range", float, 1.0),
        ),
    }


def _unet(settings: Settings) -> UNetConfig:
    """A UNet2DModel's shape; old and partial configs leave out what is usual. Raises ModelError
    that names what our networks can't follow."""
    settings.refuse("resnet_time_scale_shift", "default", "scale_shift")
    widths = settings.numbers("block_out_channels", int)
    groups = settings.get("norm_num_groups", int, 32)
    scale_shift = settings.values.get("resnet_time_scale_shift") == "scale_shift"
    if scale_shift and "attn_norm_num_groups" not in settings.values:
        raise ModelError(f"{settings.where}: attn_norm_num_groups null isn't supported")
    settings.refuse("attn_norm_num_groups", groups)
    size, channels = _side(settings), settings.get("in_channels", int, 3)
    settings.refuse("out_channels", channels, 2 * channels)
    if not widths or min(widths) < 1:
        raise ModelError(f"{settings.where}: block_out_channels are {shown(widths)}")
    if groups < 1 or any(width % groups for width in widths):
        raise ModelError(f"{settings.where}: norm_num_groups {groups} of {shown(widths)} channels")
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
        learn_sigma=settings.get("out_channels", int, 3) == 2 * channels,
        groups=groups,
        norm_eps=settings.get("norm_eps", float, 1e-5),
        dropout=settings.get("dropout", float, 0.0),
        embedding_channels=settings.get("time_embedding_dim", int, 4 * widths[0]),
        sine_first=not settings.flag("flip_sin_to_cos", True),
        frequency_shift=settings.get("freq_shift", int, 0),
    )


def _side(settings: Settings) -> int:
    """The side of x_t, from a number or a pair. Raises ModelError."""
    size = settings.get("sample_size", int | list | tuple)
    pair = [size, size] if isinstance(size, int) else settings.numbers("sample_size", int)
    if len(pair) != 2 or pair[0] != pair[1]:
        raise ModelError(f"{settings.where}: sample_size {shown(size)}; only square ones are taken")
    return int(pair[0])


def _layout(settings: Settings, size: int, levels: int) -> tuple[tuple[int, ...], str]:
    """Feature-map sizes with attention, and how blocks resample; both halves must be alike."""
    marks, kinds = [], set()
    for way in ("down", "up"):
        blocks = list(settings.get(f"{way}_block_types", list | tuple))
        known = ATTENTION_BLOCKS | RESIDUAL_BLOCKS | PLAIN_BLOCKS
        if not all(one in known for one in map(str, blocks)) or len(blocks) != levels:
            raise ModelError(f"{settings.where}: {way}_block_types {shown(blocks)} isn't supported")
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
