"""Our models for diffusers: eps_theta alone as its DDPMPipeline, or of latents LDMPipeline; a whole
model, or what its blocks can't say, as a pipeline of our own (`pipeline`)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from ..engine.config import ModelConfig
from ..engine.model import Model
from ..errors import ModelError, UsageError
from ..files import check_writable, replacing, write_bytes
from ..networks.layers import Attention
from ..networks.unet import UNetConfig
from . import names, native
from .card import CARD, TERMS, hub_licence
from .diffusers import ALIKE, BETAS, PREDICTIONS, VARIANCES
from .hub import STEM
from .reading import SAFETENSORS, read_bytes, read_object
from .transfer import separated

INDEX, CODE, THEIRS = "model_index.json", "pipeline.py", STEM + SAFETENSORS
OURS = (TERMS, native.ATTRIBUTES, native.LATENT_DPM, native.WEIGHTS, native.CONFIG)
WROTE = "_pdae"  # in INDEX, what an export wrote; diffusers passes over names that begin so
# What exports consist of: nothing else is taken away, whatever an index says.
WRITTEN = (
    *(INDEX, *OURS[::-1], CARD, CODE, "scheduler/scheduler_config.json"),
    *(f"{part}/{file}" for part in ("unet", "vqvae") for file in ("config.json", THEIRS)),
)  # fmt: skip
NEEDED = "This pipeline runs on pdae: pip install -U 'pdae-cli[diffusers]'"
USAGE = """
    pipe = diffusers.DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)
    pipe(batch_size=4).images  # new pictures
    codes = pipe.encode(["face.png"])  # z and x_T, where the model has an encoder
    pipe.decode(codes).images  # the picture again
    pipe.decode(pipe.manipulate(codes, [("smiling", 0.3)])).images
    pipe.interpolate(pipe.encode(["a.png", "b.png"]), 5).images
"""
PIPELINE = f'''"""A pipeline of diffusers: beside this file lies the model, pdae is its code.
{USAGE}"""

try:
    from pdae_cli.checkpoints.pipeline import PDAEPipeline
except ImportError as error:
    raise ImportError("{NEEDED}") from error
'''


def export(model: Model, source: Path, folder: Path, whole: bool = True) -> str:
    """Write a model that was read from `source`, the `whole` or eps_theta alone: where diffusers'
    own blocks can say that by `write_diffusers`, else by `write_pipeline`. Returns the class that
    reads it. Raises UsageError."""
    if folder.exists() and folder.samefile(source):
        raise UsageError(f"{folder} is the model's own folder; choose another one")
    if not whole or model.gradient_estimator is model.encoder is model.latent_dpm is None:
        with suppress(*([UsageError] if whole else [])):
            return write_diffusers(model, folder, source)
    return write_pipeline(source, folder)


def write_pipeline(source: Path, folder: Path) -> str:
    """Write a model's folder as one that diffusers' DiffusionPipeline reads with our code: its own
    files, model_index.json and pipeline.py. Returns the class. Raises ModelError."""
    licence, needed = native.read_config(source).licence, (native.WEIGHTS, native.CONFIG)
    own = [name for name in OURS if name in needed or (source / name).exists()]
    component = [f"{__package__}.pipeline", "PDAE"]
    index = {"_class_name": ["pipeline", "PDAEPipeline"], "pdae": component}
    _begin(folder, index, [CODE, *own, CARD])
    write_bytes(folder / CODE, PIPELINE.encode())
    for path in (source / name for name in own):
        with native.guarded(path), path.open("rb") as file, replacing(folder / path.name) as to:
            shutil.copyfileobj(file, to)
    _write_card(folder, f"{NEEDED}\n{USAGE}", licence)
    return "DiffusionPipeline"


def _write_card(folder: Path, use: str, licence: str) -> None:
    fields = zip(("license", "license_name"), hub_licence(licence), strict=True)
    stated = "".join(f"{name}: {value}\n" for name, value in fields if value)
    head = f"---\nlibrary_name: diffusers\n{stated if licence != 'unknown' else ''}---\n\n"
    card = f"{head}# {folder.resolve().name}\n\n{use}\nLicence: {licence}\n"
    write_bytes(folder / CARD, card.encode())


def _begin(folder: Path, index: dict[str, Any], files: Sequence[str]) -> None:
    """Take an export before this one away, and write the index, which says what this one consists
    of: one that was killed is known for one. Raises UsageError where other things lie there,
    InputError."""
    before = _written(folder)
    if native.is_native(folder) and not before:
        raise UsageError(f"{folder} is a model, not an export of one; choose another folder")
    kept = {CARD, TERMS} - {*files}  # people's own, which are in nobody's way
    others = (one for one in WRITTEN if one not in before | kept and (folder / one).exists())
    if other := next(others, None):
        raise UsageError(
            f"{folder} holds {other}, which isn't of an export; choose another folder, or take it "
            "away yourself"
        )
    check_writable(folder)
    for name in before - {INDEX}:
        (folder / name).unlink(missing_ok=True)
    text = json.dumps(index | {WROTE: " ".join(files)}, indent=2)
    write_bytes(folder / INDEX, text.encode() + b"\n")


def _written(folder: Path) -> set[str]:
    """The files of the export that lies in a folder, as its index says; nothing of others."""
    with suppress(ModelError):
        said = read_object(folder / INDEX).get(WROTE)
        return {INDEX, *said.split()} & {*WRITTEN} if isinstance(said, str) else set()
    return set()


def write_diffusers(model: Model, folder: Path, source: Path | None = None) -> str:
    """Write eps_theta as a folder that diffusers' DDPMPipeline runs: model_index.json, unet/ and
    scheduler/, with a first stage, as vqvae/, LDMPipeline; and a card, with the licence's text that
    lies in the model's folder, the `source`. Returns the pipeline's class.

    Raises UsageError for a network that diffusers' UNet2DModel can't be.
    """
    unet, scheduler = _unet_json(model.config.unet), _scheduler_json(model.config)
    first_stage = model.first_stage
    if first_stage is not None:
        _need(first_stage.cfg.shift == 0, "latents that are shifted, in an LDMPipeline")
        _need(not model.config.unet.learn_sigma, "learned variance, in an LDMPipeline")
    pipeline = "DDPMPipeline" if first_stage is None else "LDMPipeline"
    index = {"_class_name": pipeline, "scheduler": ["diffusers", scheduler["_class_name"]]}
    texts = {"scheduler/scheduler_config.json": scheduler}
    networks = {"unet": (unet, _unet_tensors(model))}
    if first_stage is not None:
        shape = {"_class_name": first_stage.cfg.kind} | first_stage.cfg.arguments()
        networks["vqvae"] = (shape, first_stage.network.state_dict())
    for name, (shape, _) in networks.items():
        index[name] = ["diffusers", shape["_class_name"]]
        texts[f"{name}/config.json"] = shape
    papers = [CARD, *([TERMS] if source and (source / TERMS).exists() else [])]
    _begin(folder, index, [*texts, *(f"{name}/{THEIRS}" for name in networks), *papers])
    if source and TERMS in papers:  # first: weights don't lie anywhere without their terms
        write_bytes(folder / TERMS, read_bytes(source / TERMS))
    use = f"    pipe = diffusers.{pipeline}.from_pretrained(FOLDER)\n"
    _write_card(folder, use, model.config.licence)
    for name, (_, tensors) in networks.items():
        kept = {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}
        write_bytes(folder / name / THEIRS, save(kept, metadata={"format": "pt"}))
    for file, content in texts.items():
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
    _need(cfg.time_scale == 1, "scaled timesteps (rescale_timesteps)")
    _need(cfg.base_channels == cfg.widths[0], "a time embedding of another width than its input")
    _need(min(cfg.widths) >= cfg.groups, f"fewer channels than norm groups ({cfg.groups})")
    _need(bool(cfg.head_channels) or cfg.heads == 1, f"a fixed number of {cfg.heads} heads")
    residual, scale_shift = cfg.resampling == "residual", cfg.time_conditioning == "scale_shift"
    plain = "Resnet{}sampleBlock2D" if residual else "{}Block2D"
    down, up = (
        [f"Attn{way}Block2D" if size in cfg.attention else plain.format(way) for size in s]
        for way, s in (("Down", cfg.sizes), ("Up", cfg.sizes[::-1]))
    )
    return ALIKE | {
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
    # By what the network puts out: a DDPMScheduler takes twice the channels with "learned_range"
    # alone, and must have them then.
    variances["learned"] = "fixed_small"
    variance = "learned_range" if config.unet.learn_sigma else variances[config.variance]
    schedule, pictures = config.schedule, config.first_stage is None
    of_scheduler = asdict(config.scheduler)
    if pictures:
        del of_scheduler["set_alpha_to_one"]  # which a DDPMScheduler doesn't have
    _need(schedule.betas in betas, f"{schedule.betas} betas")
    return (
        ({"variance_type": variance} if pictures else {})
        | {
            "_class_name": "DDPMScheduler" if pictures else "DDIMScheduler",
            "num_train_timesteps": schedule.timesteps,
            "beta_start": schedule.beta_start,
            "beta_end": schedule.beta_end,
            "beta_schedule": betas[schedule.betas],
            "clip_sample": config.clip_sample,
            "prediction_type": predictions[config.prediction],
        }
        | of_scheduler
    )


def _need(possible: bool, what: str) -> None:
    if not possible:
        how = "`export --to diffusers` writes a pipeline that runs on pdae"
        raise UsageError(f"diffusers' UNet2DModel has no {what}; {how}")
