"""CompVis' latent-diffusion: unconditional models, a `.ckpt` of PyTorch Lightning with its YAML."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..engine.config import ModelConfig, ScheduleConfig
from ..engine.tensors import shown
from ..errors import ModelError
from ..networks.first_stage import FirstStageConfig
from ..networks.unet import UNetConfig
from . import names
from .guided import MARK, adm, attention_sizes
from .source import Fields, Foreign, Settings, Source
from .transfer import Part, Tensors

NAME = "latent-diffusion"
LICENCE = "MIT (CompVis/latent-diffusion) if these are its weights; else unknown"
CHECKPOINTS = ("model.ckpt", "last.ckpt", "checkpoints/last.ckpt")
NETWORK, AVERAGED, STAGE = "model.diffusion_model.", "model_ema.", "first_stage_model."
UNCONDITIONAL = "__is_unconditional__"
CONDITIONS = ("cond_stage_model.", "conditioner.")  # networks that read texts, of Stable Diffusion
# Their word → ours; their linear betas are linear in their root.
BETAS = {"linear": "scaled_linear", "sqrt_linear": "linear"}
PREDICTIONS = {"eps": "eps", "x0": "x_0", "v": "v"}
STAGES = {"VQModelInterface": "VQModel", "VQModel": "VQModel", "AutoencoderKL": "AutoencoderKL"}
MODEL = Fields(
    "latent-diffusion: model.params",
    taken="linear_start linear_end beta_schedule timesteps parameterization image_size channels "
    "unet_config first_stage_config scale_factor scale_by_std cond_stage_config use_ema",
    fixed={"concat_mode": (True, False), "v_posterior": (0,), "given_betas": ()},
    idle={
        "of its DDPM's samples; DDIM's, and ours, aren't clamped": "clip_denoised",
        "of training": "base_learning_rate num_timesteps_cond log_every_t first_stage_key "
        "cond_stage_key cond_stage_trainable monitor loss_type ckpt_path ignore_keys "
        "load_only_unet scheduler_config l_simple_weight original_elbo_weight "
        "conditioning_key learn_logvar logvar_init use_positional_encodings",
    },
)  # fmt: skip
UNET = Fields(
    "latent-diffusion: unet_config.params",
    taken="image_size in_channels out_channels model_channels channel_mult num_res_blocks "
    "attention_resolutions num_heads num_head_channels use_scale_shift_norm resblock_updown "
    "use_new_attention_order dropout",
    fixed={
        "dims": (2,), "num_classes": (), "conv_resample": (True,), "context_dim": (),
        "use_spatial_transformer": (False,), "num_heads_upsample": (-1,), "n_embed": (),
    },
    idle={
        "of speed and memory": "use_checkpoint use_fp16",
        "of transformers, which are refused": "transformer_depth legacy",
    },
)  # fmt: skip
FIRST_STAGE = Fields(
    "latent-diffusion: first_stage_config.params",
    taken="embed_dim n_embed ddconfig",
    fixed={"remap": (), "sane_index_shape": (False,)},
    idle={"of training": "lossconfig monitor ckpt_path image_key colorize_nlabels ignore_keys "
          "batch_resize_range scheduler_config lr_g_factor use_ema"},
)  # fmt: skip
CODER = Fields(
    "latent-diffusion: ddconfig",
    taken="z_channels double_z in_channels out_ch ch ch_mult num_res_blocks attn_resolutions "
    "resolution",
    fixed={
        "dropout": (0,),
        "resamp_with_conv": (True,),
        "attn_type": ("vanilla",),
        "use_linear_attn": (False,),
        "tanh_out": (False,),
        "give_pre_end": (False,),
    },
    idle={"of speed and memory": "use_checkpoint"},
)


def recognises(source: Source) -> bool:
    """A checkpoint that holds a diffusion model of theirs, or its folder."""
    path = _checkpoint(source)
    return path is not None and f"{NETWORK}{MARK}" in _state(source.content(path))


def _state(content: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint holds as its state_dict, or a file of nothing else as its tensors."""
    state = content.get("state_dict", content)
    return state if isinstance(state, dict) else {}


def _checkpoint(source: Source) -> Path | None:
    if not source.path.is_dir():
        return source.path
    places = (source.path / name for name in CHECKPOINTS)
    return next((place for place in places if os.path.lexists(place)), None)


def read(source: Source) -> Foreign:
    """eps_theta of latents, and their first stage. Raises ModelError for conditional models."""
    path = _checkpoint(source)
    if path is None:
        raise ModelError(f"{source.path}: found none of {', '.join(CHECKPOINTS)}")
    source, notes = replace(source, path=path), list[str]()
    state = _state(source.content())
    refused = "a conditional model; only unconditional ones are taken"
    if any(name.startswith(CONDITIONS) for name in state):
        raise ModelError(f"{path}: {refused}")
    params = Settings.read(_config(source)).below("model").below("params").follow(MODEL, notes)
    if params.values.get("cond_stage_config", UNCONDITIONAL) != UNCONDITIONAL:
        raise ModelError(f"{params.where}: {refused}")
    net = params.below("unet_config").below("params").follow(UNET, notes)
    unet = _unet(net, params.get("image_size", int, 0))
    stage, part = _first_stage(params, state, str(path), notes)
    betas = params.word("beta_schedule", BETAS, "linear")
    ends = params.get("linear_start", float, 1e-4), params.get("linear_end", float, 0.02)
    config = ModelConfig(
        params.build(ScheduleConfig, betas, params.get("timesteps", int, 1000), *ends),
        unet,
        prediction=params.word("parameterization", PREDICTIONS, "eps"),
        licence=LICENCE,
        source=f"{NAME}: {source.folder_name}/{path.name}",
        first_stage=stage,
    )
    dpm = _network(state, params.flag("use_ema", True), f"{path}, {NETWORK}", notes)
    new_order = net.flag("use_new_attention_order", False)
    parts = [Part("dpm", dpm, names.adm_unet(unet), new_order), part]
    left = [k for k, v in state.items() if isinstance(v, Tensor) and not k.startswith(STAGE)]
    dpm.left["averages and buffers beside the networks"] = len(left) - len(dpm.tensors)
    return Foreign(config, parts, notes=notes)


def _config(source: Source) -> Path:
    """The YAML that a checkpoint belongs to: beside it, or what their trainer wrote."""
    if source.config is not None:
        return source.config
    folder = source.folder.resolve()
    projects = sorted(folder.parent.glob("configs/*-project.yaml"))
    if len(projects) > 1:
        raise ModelError(f"{folder.parent}/configs holds several projects; pass one as --config")
    places = [folder / "config.yaml", folder / "config.yml", *projects]
    return source.first("config.yaml of the model (pass it as --config)", places)


def _network(state: Mapping[str, Any], averaged: bool, where: str, notes: list[str]) -> Tensors:
    """The network's tensors: of the average, whose names lack their dots, where there is one."""
    plain = Tensors.below(NETWORK, state, where)
    flat = {name: AVERAGED + f"diffusion_model.{name}".replace(".", "") for name in plain.tensors}
    if averaged and all(isinstance(state.get(one), Tensor) for one in flat.values()):
        return Tensors(where, {name: state[one] for name, one in flat.items()})
    notes.append("the weights are taken as they are: the checkpoint holds no average of them")
    return plain


def _unet(net: Settings, size: int) -> UNetConfig:
    channels = net.get("in_channels", int)
    net.refuse("out_channels", channels)
    size = size or net.get("image_size", int)
    return adm(
        net,
        usual=False,
        image_size=size,
        channels=channels,
        **net.integers(base_channels="model_channels", blocks="num_res_blocks"),
        multipliers=net.numbers("channel_mult"),
        attention=attention_sizes(net, size),
    )


def _first_stage(
    model: Settings, state: Mapping[str, Any], path: str, notes: list[str]
) -> tuple[FirstStageConfig, Part]:
    given = model.below("first_stage_config")
    kind = STAGES.get(given.get("target", str).rpartition(".")[2])
    if kind is None:
        raise ModelError(f"{given.where}: {shown(given.values['target'])} isn't supported")
    params = given.below("params").follow(FIRST_STAGE, notes)
    coder = params.below("ddconfig").follow(CODER, notes)
    coder.refuse("double_z", kind == "AutoencoderKL")
    channels, latent = coder.get("in_channels", int), coder.get("z_channels", int)
    coder.refuse("out_ch", channels)
    embedded = params.get("embed_dim", int)
    if kind == "AutoencoderKL" and embedded != latent:
        raise ModelError(f"{params.where}: embed_dim {embedded} of z_channels {latent}")
    multipliers, side = coder.numbers("ch_mult", int), coder.get("resolution", int)
    sizes = [side // 2**level for level in range(len(multipliers))]
    attention = set(coder.numbers("attn_resolutions", int))
    if not attention <= set(sizes):
        said = f"attn_resolutions {shown(sorted(attention))} of levels of {shown(sizes)} pixels"
        raise ModelError(f"{coder.where}: {said}")
    marks = ["Attn" * (size in attention) for size in sizes]
    scale = state.get("scale_factor") if model.flag("scale_by_std", False) else None
    config = params.build(
        FirstStageConfig,
        kind=kind,
        channels=channels,
        latent_channels=latent,
        down_blocks=tuple(f"{mark}DownEncoderBlock2D" for mark in marks),
        up_blocks=tuple(f"{mark}UpDecoderBlock2D" for mark in marks[::-1]),
        widths=tuple(coder.get("ch", int) * one for one in multipliers),
        blocks=coder.get("num_res_blocks", int),
        groups=32,
        middle_attention=True,
        bottleneck=True,
        codes=params.get("n_embed", int, 1),
        code_channels=embedded,
        scale=scale.item() if isinstance(scale, Tensor) else model.get("scale_factor", float, 1.0),
        shift=0.0,
    )
    tensors = Tensors.below(STAGE, state, f"{path}, {STAGE}")
    tensors.leave_out(r"loss\..*", "first_stage_model.loss (of its training)")
    tensors.leave_out(r"model_ema\..*", "first_stage_model.model_ema (not what samples see)")
    modules = {one.rpartition(".")[0] for one in tensors.tensors}
    levels = len(multipliers)
    table: names.Table = {f"network.{_today(one, levels)}": (one,) for one in modules}
    return config, Part("first_stage", tensors, table)


def _today(module: str, levels: int) -> str:
    """diffusers' name of a module of their autoencoders."""

    def level(match: re.Match[str]) -> str:
        way, number = match[1], int(match[2])
        return f"{way}_blocks.{number if way == 'down' else levels - 1 - number}"

    name = re.sub(r"\b(down|up)\.(\d+)", level, module)
    for theirs, todays in STAGE_NAMES:
        name = re.sub(theirs, todays, name)
    return name


STAGE_NAMES = (
    (r"(down|up)sample\.conv$", r"\1samplers.0.conv"),
    (r"\bblock\.(\d+)", r"resnets.\1"),
    (r"mid\.block_1\b", "mid_block.resnets.0"),
    (r"mid\.block_2\b", "mid_block.resnets.1"),
    (r"mid\.attn_1\b", "mid_block.attentions.0"),
    (r"\battn\.(\d+)", r"attentions.\1"),
    (r"nin_shortcut$", "conv_shortcut"),
    (r"(attentions\.\d+)\.norm$", r"\1.group_norm"),
    (r"(attentions\.\d+)\.([qkv])$", r"\1.to_\2"),
    (r"(attentions\.\d+)\.proj_out$", r"\1.to_out.0"),
    (r"^((?:en|de)coder)\.norm_out$", r"\1.conv_norm_out"),
)
