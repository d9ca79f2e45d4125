"""Which of a source's modules each of ours comes from: the tables that conversions are made of.

A table maps the path of one of our modules to the paths of its counterparts. There are several
where we keep in one layer what the source keeps in three (queries, keys and values).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..networks.blocks import UNetConfig
from ..networks.encoder import EncoderConfig
from ..networks.half_unet import HalfUNetConfig

Table = dict[str, tuple[str, ...]]

# --- The ADM layout: guided-diffusion, Diff-AE, PDAE --------------------------------------------

ADM_BLOCK = {
    "norm_in": "in_layers.0",
    "conv_in": "in_layers.2",
    "time": "emb_layers.1",
    "norm_out": "out_layers.0",
    "conv_out": "out_layers.3",
    "skip": "skip_connection",
}
ADM_ATTENTION = {"norm": "norm", "qkv": "qkv", "out": "proj_out"}


def adm_input(cfg: UNetConfig, z: str = "") -> Table:
    """Time embedding and input half of a U-Net; `z`: where its blocks keep their layer for z."""
    table: Table = {"input.conv": ("input_blocks.0.0",)}
    for index, halves in enumerate(_halving_layers(cfg.blocks, len(cfg.widths))):
        ours, theirs = f"input.layers.{index}", f"input_blocks.{index + 1}"
        convolution = halves and cfg.resampling != "residual"
        table |= _adm_layer(ours, theirs, "op" if convolution else None, z)
    return table


def adm_output(
    cfg: UNetConfig, z: str = "", middle: str = "middle_block", output: str = "output_blocks"
) -> Table:
    """Middle and output half of a U-Net, without its last norm and convolution."""
    table = _adm_middle(middle, z)
    for level in reversed(range(len(cfg.widths))):
        for block in range(cfg.blocks + 1):
            index = (len(cfg.widths) - 1 - level) * (cfg.blocks + 1) + block
            table |= _adm_layer(f"layers.{index}", f"{output}.{index}", None, z)
            if block == cfg.blocks and level > 0:
                place = 2 if cfg.sizes[level] in cfg.attention else 1
                ours, theirs = f"upsamplers.{index}.block", f"{output}.{index}.{place}"
                convolution = cfg.resampling != "residual"
                table |= {f"{ours}.conv": (f"{theirs}.conv",)} if convolution else {}
                table |= {} if convolution else _adm_block(ours, theirs, z)
    return table


def adm_unet(cfg: UNetConfig, time: str = "time_embed", z: str = "") -> Table:
    """A whole U-Net."""
    table = {"time.0": (f"{time}.0",), "time.2": (f"{time}.2",)} | adm_input(cfg, z)
    table |= under("output", adm_output(cfg, z))
    return table | {"output.norm": ("out.0",), "output.conv": ("out.2",)}


def pdae_gradient(cfg: UNetConfig) -> Table:
    """G_psi of the authors' ShiftUNet."""
    output = adm_output(cfg, "emb_z_layers.1", "shift_middle_block", "shift_output_blocks")
    output |= {"norm": ("shift_out.0",), "conv": ("shift_out.2",)}
    return {"z": ("label_emb",)} | under("output", output)


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
    """E_phi of Diff-AE, below `encoder.`."""
    table: Table = {"conv": ("input_blocks.0.0",), "norm": ("out.0",), "out": ("out.3",)}
    for index, _ in enumerate(_halving_layers(cfg.blocks, len(cfg.widths))):
        table |= _adm_layer(f"layers.{index}", f"input_blocks.{index + 1}", None, "")
    return table | _adm_middle("middle_block", "")


def latent_mlp(layers: int) -> Table:
    """The MLP with skips that Diff-AE and PDAE share."""
    table: Table = {"time.0": ("time_embed.0",), "time.2": ("time_embed.2",)}
    for index in range(layers):
        names = {"linear": "linear", "time": "linear_emb", "norm": "norm"}
        table |= _leaves(f"layers.{index}", f"layers.{index}", names)
    return table | {"out": (f"layers.{layers}.linear",)}


def _halving_layers(blocks: int, levels: int) -> list[bool]:
    """For each layer of an input half: whether it halves the feature maps."""
    return (([False] * blocks + [True]) * levels)[:-1]


def _adm_layer(ours: str, theirs: str, resample: str | None, z: str) -> Table:
    if resample:
        return {f"{ours}.block.conv": (f"{theirs}.0.{resample}",)}
    attention = _leaves(f"{ours}.attention", f"{theirs}.1", ADM_ATTENTION)
    return _adm_block(f"{ours}.block", f"{theirs}.0", z) | attention


def _adm_middle(theirs: str, z: str) -> Table:
    table = _adm_block("middle.0.block", f"{theirs}.0", z)
    table |= _leaves("middle.0.attention", f"{theirs}.1", ADM_ATTENTION)
    return table | _adm_block("middle.1.block", f"{theirs}.2", z)


def _adm_block(ours: str, theirs: str, z: str) -> Table:
    return _leaves(ours, theirs, ADM_BLOCK | ({"z": z} if z else {}))


# --- The diffusers layout -----------------------------------------------------------------------

DIFFUSERS_BLOCK = {
    "norm_in": "norm1",
    "conv_in": "conv1",
    "time": "time_emb_proj",
    "norm_out": "norm2",
    "conv_out": "conv2",
    "skip": "conv_shortcut",
}


def diffusers_unet(cfg: UNetConfig) -> Table:
    """A UNet2DModel."""
    table: Table = {
        "time.0": ("time_embedding.linear_1",),
        "time.2": ("time_embedding.linear_2",),
        "input.conv": ("conv_in",),
        "output.norm": ("conv_norm_out",),
        "output.conv": ("conv_out",),
    }
    for index, halves in enumerate(_halving_layers(cfg.blocks, len(cfg.widths))):
        level, block = divmod(index, cfg.blocks + 1)
        ours, theirs = f"input.layers.{index}", f"down_blocks.{level}"
        if halves:
            table |= _diffusers_resampling(cfg, f"{ours}.block", f"{theirs}.downsamplers.0")
        else:
            table |= _diffusers_layer(ours, theirs, block)
    for index in range((cfg.blocks + 1) * len(cfg.widths)):
        level, block = divmod(index, cfg.blocks + 1)
        table |= _diffusers_layer(f"output.layers.{index}", f"up_blocks.{level}", block)
        if block == cfg.blocks:
            ours, theirs = f"output.upsamplers.{index}.block", f"up_blocks.{level}.upsamplers.0"
            table |= _diffusers_resampling(cfg, ours, theirs)
    table |= _diffusers_layer("output.middle.0", "mid_block", 0)
    return table | _leaves("output.middle.1.block", "mid_block.resnets.1", DIFFUSERS_BLOCK)


def _diffusers_resampling(cfg: UNetConfig, ours: str, theirs: str) -> Table:
    if cfg.resampling == "residual":
        return _leaves(ours, theirs, DIFFUSERS_BLOCK)
    return {f"{ours}.conv": (f"{theirs}.conv",)}


def _diffusers_layer(ours: str, theirs: str, block: int) -> Table:
    attention = f"{theirs}.attentions.{block}"
    return _leaves(f"{ours}.block", f"{theirs}.resnets.{block}", DIFFUSERS_BLOCK) | {
        f"{ours}.attention.norm": (f"{attention}.group_norm",),
        f"{ours}.attention.qkv": tuple(f"{attention}.to_{part}" for part in "qkv"),
        f"{ours}.attention.out": (f"{attention}.to_out.0",),
    }


# Attention before diffusers 0.12.
DIFFUSERS_OLD_NAMES = {
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}


# --- Helpers ------------------------------------------------------------------------------------


def _leaves(ours: str, theirs: str, names: Mapping[str, str]) -> Table:
    return {f"{ours}.{mine}": (f"{theirs}.{other}",) for mine, other in names.items()}


def under(prefix: str, table: Table) -> Table:
    """The table with `prefix.` before our paths."""
    return {f"{prefix}.{ours}": theirs for ours, theirs in table.items()}
