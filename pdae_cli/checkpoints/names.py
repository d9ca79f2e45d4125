"""Which of a source's modules each of ours comes from: the tables that conversions are made of.

A table maps the path of one of our modules to the paths of its counterparts. There are several
where we keep in one layer what the source keeps in three (queries, keys and values). A table may
name modules that a network lacks: attention at every layer, both ways to resample.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..networks.encoder import EncoderConfig
from ..networks.half_unet import HalfUNetConfig
from ..networks.unet import UNetConfig

Table = dict[str, tuple[str, ...]]


# Of a residual block of ours.
BLOCK = ("norm_in", "conv_in", "time", "norm_out", "conv_out", "skip")
ADM_BLOCK = dict(zip(BLOCK, (
    "in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection",
), strict=True))  # fmt: skip
ADM_ATTENTION = {"norm": "norm", "qkv": "qkv", "out": "proj_out"}
ADM_TIME = {"0": "0", "2": "2"}
DIFFUSERS_BLOCK = {"conv": "conv"} | dict(zip(BLOCK, (
    "norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut",
), strict=True))  # fmt: skip


def _leaves(ours: str, theirs: str, names: Mapping[str, str]) -> Table:
    return {f"{ours}.{mine}": (f"{theirs}.{other}",) for mine, other in names.items()}


# --- The ADM layout: guided-diffusion, Diff-AE, PDAE --------------------------------------------


def adm_unet(cfg: UNetConfig, time: str = "time_embed", z: str = "") -> Table:
    """A whole U-Net; `z`: where its blocks keep their layer for z."""
    table = _leaves("time", time, ADM_TIME) | {"input.conv": ("input_blocks.0.0",)}
    for index in range(len(cfg.widths) * (cfg.blocks + 1) - 1):
        ours, theirs = f"input.layers.{index}", f"input_blocks.{index + 1}"
        table |= _adm_layer(ours, theirs, z) | {f"{ours}.block.conv": (f"{theirs}.0.op",)}
    table |= _adm_output(cfg, z, "middle_block", "output_blocks")
    return table | {"output.norm": ("out.0",), "output.conv": ("out.2",)}


def pdae_gradient(cfg: UNetConfig) -> Table:
    """G_psi of the authors' ShiftUNet."""
    table = _adm_output(cfg, "emb_z_layers.1", "shift_middle_block", "shift_output_blocks")
    table |= {"output.norm": ("shift_out.0",), "output.conv": ("shift_out.2",)}
    return table | {"z": ("label_emb",)}


def pdae_encoder(cfg: EncoderConfig) -> Table:
    """E_phi of the authors: one list of layers, activations counted."""
    table: Table = {}
    index, size = 0, cfg.image_size
    for level in range(len(cfg.widths)):
        size //= 2
        table[f"convs.{level}"] = (f"encoder.{index}",)
        if size == cfg.attention_size:
            index += 1
            table |= _leaves("attention", f"encoder.{index}", ADM_ATTENTION)
        table[f"norms.{level}"] = (f"encoder.{index + 1}",)
        index += 3
    return table | {"out": (f"encoder.{index + 1}",)}


def diffae_encoder(cfg: HalfUNetConfig) -> Table:
    """E_phi of Diff-AE."""
    table: Table = {"conv": ("encoder.input_blocks.0.0",)}
    for index in range(len(cfg.widths) * (cfg.blocks + 1) - 1):
        table |= _adm_layer(f"layers.{index}", f"encoder.input_blocks.{index + 1}", "")
    table |= _adm_middle("middle", "encoder.middle_block", "")
    return table | {"norm": ("encoder.out.0",), "out": ("encoder.out.3",)}


def latent_mlp(layers: int) -> Table:
    """The MLP with skips that Diff-AE and PDAE share."""
    table = _leaves("time", "time_embed", ADM_TIME)
    for index in range(layers):
        names = {"linear": "linear", "time": "linear_emb", "norm": "norm"}
        table |= _leaves(f"layers.{index}", f"layers.{index}", names)
    return table | {"out": (f"layers.{layers}.linear",)}


def _adm_output(cfg: UNetConfig, z: str, middle: str, output: str) -> Table:
    """Middle and output half of a U-Net, without its last norm and convolution."""
    table = _adm_middle("output.middle", middle, z)
    for index in range(len(cfg.widths) * (cfg.blocks + 1)):
        theirs = f"{output}.{index}"
        table |= _adm_layer(f"output.layers.{index}", theirs, z)
        # What doubles a feature map follows the layer's attention, where it has one.
        size = cfg.sizes[len(cfg.widths) - 1 - index // (cfg.blocks + 1)]
        ours, place = f"output.upsamplers.{index}.block", 2 if size in cfg.attention else 1
        table |= _adm_block(ours, f"{theirs}.{place}", z)
        table |= {f"{ours}.conv": (f"{theirs}.{place}.conv",)}
    return table


def _adm_middle(ours: str, theirs: str, z: str) -> Table:
    return _adm_layer(f"{ours}.0", theirs, z) | _adm_block(f"{ours}.1.block", f"{theirs}.2", z)


def _adm_layer(ours: str, theirs: str, z: str) -> Table:
    attention = _leaves(f"{ours}.attention", f"{theirs}.1", ADM_ATTENTION)
    return _adm_block(f"{ours}.block", f"{theirs}.0", z) | attention


def _adm_block(ours: str, theirs: str, z: str) -> Table:
    return _leaves(ours, theirs, ADM_BLOCK | ({"z": z} if z else {}))


# --- The diffusers layout -----------------------------------------------------------------------


def diffusers_unet(cfg: UNetConfig) -> Table:
    """A UNet2DModel."""
    table = _leaves("time", "time_embedding", {"0": "linear_1", "2": "linear_2"})
    for index in range(len(cfg.widths) * (cfg.blocks + 1)):
        level, block = divmod(index, cfg.blocks + 1)
        down, up = f"down_blocks.{level}", f"up_blocks.{level}"
        ours, ups = f"input.layers.{index}", f"output.upsamplers.{index}.block"
        table |= _diffusers_layer(f"output.layers.{index}", up, block)
        if block < cfg.blocks:
            table |= _diffusers_layer(ours, down, block)
        else:
            table |= _leaves(f"{ours}.block", f"{down}.downsamplers.0", DIFFUSERS_BLOCK)
            table |= _leaves(ups, f"{up}.upsamplers.0", DIFFUSERS_BLOCK)
    table |= _diffusers_layer("output.middle.0", "mid_block", 0)
    table |= _leaves("output.middle.1.block", "mid_block.resnets.1", DIFFUSERS_BLOCK)
    ends = {"input.conv": "conv_in", "output.norm": "conv_norm_out", "output.conv": "conv_out"}
    return table | {ours: (theirs,) for ours, theirs in ends.items()}


def _diffusers_layer(ours: str, theirs: str, block: int) -> Table:
    attention = f"{theirs}.attentions.{block}"
    return _leaves(f"{ours}.block", f"{theirs}.resnets.{block}", DIFFUSERS_BLOCK) | {
        f"{ours}.attention.norm": (f"{attention}.group_norm",),
        f"{ours}.attention.qkv": tuple(f"{attention}.to_{part}" for part in "qkv"),
        f"{ours}.attention.out": (f"{attention}.to_out.0",),
    }
