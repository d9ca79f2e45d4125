"""First stages of latent diffusion models: diffusers' AutoencoderKL and VQModel."""

from __future__ import annotations

from pathlib import Path

from accelerate import init_empty_weights

from ..engine.computing import Say, ignore
from ..errors import ModelError
from ..networks.first_stage import KINDS, FirstStage, FirstStageConfig
from .hub import STEM
from .native import build_first_stage
from .reading import weights_beside
from .source import Fields, Settings, Source
from .transfer import Part, Tensors, transfer

# Attention before diffusers 0.12.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
FIELDS = Fields(
    "diffusers: AutoencoderKL, VQModel",
    taken="_class_name in_channels out_channels latent_channels down_block_types up_block_types "
    "block_out_channels layers_per_block norm_num_groups mid_block_add_attention "
    "use_quant_conv use_post_quant_conv num_vq_embeddings vq_embed_dim scaling_factor "
    "shift_factor",
    fixed={
        "_class_name": KINDS,
        "act_fn": ("silu", "swish"),
        "norm_type": ("group",),
        "latents_mean": (),
        "latents_std": (),
        "lookup_from_codebook": (False,),
    },
    idle={
        "of speed and memory; pictures have any size, numbers 32 bits": "sample_size force_upcast"
    },
    null="mid_block_add_attention use_quant_conv use_post_quant_conv",
)


def first_stage_of(source: Source, announce: Say = ignore) -> FirstStage:
    """Load the first stage of a pipeline, or one alone; `announce` is told what the user should
    know. Raises ModelError."""
    folder = first_stage_folder(source)
    if folder is None:
        raise ModelError(f"{source.called} holds no {' or '.join(KINDS)} of diffusers")
    try:
        config, part = read_first_stage(source, folder, notes := list[str]())
    except (ValueError, ArithmeticError) as error:
        raise ModelError(f"{folder}: its config describes no network: {error}") from error
    with init_empty_weights(include_buffers=True):
        network = build_first_stage(config)
    transfer(network, part)
    part.source.check_all_used()
    for note in notes:
        announce(source.told(note))
    return network


def first_stage_folder(source: Source) -> Path | None:
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


def read_first_stage(
    source: Source, folder: Path, notes: list[str]
) -> tuple[FirstStageConfig, Part]:
    """Read its shape and weights. Raises ModelError that names what isn't supported."""
    settings = Settings.read(folder / "config.json").follow(FIELDS, notes)
    channels, latent = settings.get("in_channels", int), settings.get("latent_channels", int)
    before, after = (settings.flag(f"use_{one}quant_conv", True) for one in ("", "post_"))
    settings.refuse("out_channels", channels)
    if before != after:
        raise ModelError(f"{settings.where}: use_quant_conv and use_post_quant_conv differ")
    kind = settings.get("_class_name", str)
    if unscaled := kind == "VQModel" and "scaling_factor" not in settings.values:
        # Older than the field: diffusers' default would now be another scale than its latents have.
        notes.append(f"{settings.where} says no scaling_factor, so latents are taken unscaled")
    config = settings.build(
        FirstStageConfig,
        kind=kind,
        channels=channels,
        latent_channels=latent,
        down_blocks=tuple(map(str, settings.get("down_block_types", list | tuple))),
        up_blocks=tuple(map(str, settings.get("up_block_types", list | tuple))),
        widths=settings.numbers("block_out_channels", int),
        blocks=settings.get("layers_per_block", int, 1),
        groups=settings.get("norm_num_groups", int, 32),
        middle_attention=settings.flag("mid_block_add_attention", True),
        bottleneck=before,
        codes=settings.get("num_vq_embeddings", int, 256),
        code_channels=settings.get("vq_embed_dim", int, latent),
        scale=settings.get("scaling_factor", float, 1.0 if unscaled else 0.18215),
        shift=settings.get("shift_factor", float, 0.0),
    )
    tensors = tensors_in(source, folder, "encoder.conv_in.weight")
    modules = {name.rpartition(".")[0] for name in tensors.tensors}
    return config, Part("first_stage", tensors, {f"network.{one}": (one,) for one in modules})


def tensors_in(source: Source, folder: Path, mark: str) -> Tensors:
    """The tensors of a network of diffusers in a folder, under today's names. Raises ModelError."""
    path = weights_beside(folder, STEM)
    found = Tensors.around(mark, source.content(path), str(path))
    renamed = {}
    for name, value in found.tensors.items():
        parts = name.split(".")
        if "attentions" in parts and len(parts) > 1:
            parts[-2] = OLD_NAMES.get(parts[-2], parts[-2])
        renamed[".".join(parts)] = value
    found.tensors = renamed
    return found
