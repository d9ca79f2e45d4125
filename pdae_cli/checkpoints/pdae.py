"""The authors' PDAE (ckczzj/PDAE): its release as published, and checkpoints of its trainers."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..engine.attributes import Attributes
from ..engine.config import ModelConfig, Normalisation, ScheduleConfig
from ..errors import ModelError
from ..networks.blocks import UNetConfig
from ..networks.encoder import EncoderConfig
from ..networks.latent import LatentConfig
from . import names
from .foreign import Found, Part, Settings, impossible, read_settings, vector
from .source import Source
from .transfer import Tensors

NAME = "pdae"
LICENCE = "none stated by the authors of the weights (ckczzj/PDAE)"
KINDS = ("ema_decoder", "ema_denoise_fn", "ema_latent_denoise_fn", "ema_classifier")
ENCODER_HEADS = 4  # of E_phi's attention: fixed in the authors' code

CELEBA_ATTRIBUTES = tuple(
    """
    5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose
    Black_Hair Blond_Hair Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee
    Gray_Hair Heavy_Makeup High_Cheekbones Male Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard
    Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks Sideburns Smiling Straight_Hair
    Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace Wearing_Necktie Young
    """.split()  # noqa: SIM905
)


def recognises(source: Source) -> bool:
    """A release's root, a folder with a checkpoint under their name, or a file with their keys."""
    if source.path.is_dir():
        parts = ("trained-models", "pre-trained-dpms", "autoencoder")
        known = any((source.path / part).is_dir() for part in parts)
        return known or _checkpoint_in(source.path) is not None
    return any(kind in source.own_content() for kind in KINDS)


def read(source: Source) -> Found:
    """An autoencoder with all that belongs to it, or a diffusion model alone."""
    checkpoint = _checkpoint(source)
    place = source.at(checkpoint)
    content = place.own_content()
    if "ema_decoder" in content:
        return _read_autoencoder(place, content)
    if "ema_denoise_fn" in content:
        return _read_dpm(place, content)
    raise ModelError(
        f"{checkpoint} holds no diffusion model and no autoencoder (it holds "
        f"{', '.join(list(content)[:6])}); convert its autoencoder, which takes it along"
    )


def _checkpoint_in(folder: Path) -> Path | None:
    places = (folder / "checkpoint.pt", folder / "latest.pt", folder / "checkpoints" / "latest.pt")
    return next((place for place in places if place.exists()), None)


def _checkpoint(source: Source) -> Path:
    """The one checkpoint that the user means. Raises ModelError if there are none or several."""
    if not source.path.is_dir():
        return source.path
    own = _checkpoint_in(source.path)
    if own is not None:
        return own
    for folder in ("trained-models/autoencoder", "autoencoder", "pre-trained-dpms"):
        units = sorted(path for path in (source.path / folder).glob("*") if path.is_dir())
        found = [one for one in map(_checkpoint_in, units) if one is not None]
        if len(found) > 1:
            choices = ", ".join(str(one.parent) for one in found)
            raise ModelError(f"{source.path} holds several models; name one of {choices}")
        if found:
            return found[0]
    raise ModelError(
        f"{source.path}: found no checkpoint.pt; looked for it here, in "
        "trained-models/autoencoder/* and in pre-trained-dpms/*"
    )


# --- A diffusion model --------------------------------------------------------------------------


def _read_dpm(source: Source, content: dict[str, Any]) -> Found:
    path = _config_beside(source)
    tensors = _tensors(source.path, content, "ema_denoise_fn")
    unet, schedule, new_order = _networks(path, tensors)
    config = ModelConfig(schedule, unet, licence=LICENCE, source=_told(source))
    return Found(
        NAME,
        config,
        [Part("dpm", tensors, names.adm_unet(unet), new_order)],
        ignored=_others(content, {"ema_denoise_fn"}),
    )


def _networks(
    path: Path, tensors: Tensors, image_size: int | None = None
) -> tuple[UNetConfig, ScheduleConfig, bool]:
    """eps_theta's shape, its schedule, and whether its attention is in the new order."""
    settings = Settings(str(path), read_settings(path))
    if image_size is None:
        image_size = settings.below("train_dataset_config").get("image_size", int)
    shape, diffusion = settings.below("denoise_fn_config"), settings.below("diffusion_config")
    shape.refuse("dims", 2)
    shape.refuse("num_class", None)
    channels = shape.get("input_channel", int)
    head_channel = shape.get("head_channel", int, -1)
    output = tensors.tensors.get("out.2.weight")
    try:
        unet = UNetConfig(
            image_size=image_size,
            channels=channels,
            patch=1,
            base_channels=shape.get("base_channel", int),
            multipliers=shape.numbers("channel_multiplier"),
            blocks=shape.get("num_residual_blocks_of_a_block", int),
            attention=tuple(
                image_size // int(rate) for rate in shape.numbers("attention_resolutions")
            ),
            head_channels=head_channel if head_channel > 0 else None,
            heads=shape.get("num_heads", int, 1),
            time_conditioning="scale_shift",
            resampling="residual",
            learn_sigma=output is not None and len(output) == 2 * channels,
            groups=32,
            norm_eps=1e-5,
            dropout=float(shape.get("dropout", (int, float), 0.0)),
        )
    except (ValueError, ZeroDivisionError) as error:
        raise impossible(shape.where, error) from error
    return unet, _schedule(diffusion), bool(shape.get("use_new_attention_order", bool, False))


def _schedule(diffusion: Settings) -> ScheduleConfig:
    diffusion.refuse("betas_type", "linear", "cosine")
    timesteps = diffusion.get("timesteps", int)
    scale = 1000 / max(1, timesteps)
    return ScheduleConfig(diffusion.get("betas_type", str), timesteps, 1e-4 * scale, 0.02 * scale)


# --- An autoencoder -----------------------------------------------------------------------------


def _read_autoencoder(source: Source, content: dict[str, Any]) -> Found:
    path = _config_beside(source)
    settings = Settings(str(path), read_settings(path))
    name = source.folder.name
    decoder = _tensors(source.path, content, "ema_decoder")
    encoder_tensors = _tensors(source.path, content, "ema_encoder")
    encoder = _encoder(encoder_tensors)
    stated = str(settings.get("trained_ddpm_config", str, f"pre-trained-dpms/{name}/config.yml"))
    dpm_config = source.first("config of the autoencoder's DPM", source.upwards(stated))
    unet, schedule, new_order = _networks(dpm_config, decoder, encoder.image_size)
    found = Found(
        NAME,
        ModelConfig(schedule, unet, encoder=encoder, licence=LICENCE, source=_told(source)),
        [
            Part("dpm", decoder, names.adm_unet(unet), new_order),
            Part("gradient", decoder, names.pdae_gradient(unet), new_order),
            Part("encoder", encoder_tensors, names.pdae_encoder(encoder)),  # always the old order
        ],
        ignored=_others(content, {"ema_decoder", "ema_encoder"}),
    )
    _check_dpm(source, dpm_config.parent / "checkpoint.pt", decoder, found)
    _add_neighbours(source, name, encoder.z_dim, found)
    return found


def _encoder(tensors: Tensors) -> EncoderConfig:
    """E_phi's shape, from its tensors."""
    shapes = {name: tuple(value.shape) for name, value in tensors.tensors.items()}
    weights = sorted(
        (int(match[1]), name)
        for name in shapes
        if (match := re.fullmatch(r"encoder\.(\d+)\.weight", name))
    )
    convs = [shapes[name] for _, name in weights if len(shapes[name]) == 4]
    linears = [shapes[name] for _, name in weights if len(shapes[name]) == 2]
    before = [
        sum(index < int(match[1]) and len(shapes[name]) == 4 for index, name in weights)
        for attention in shapes
        if (match := re.fullmatch(r"encoder\.(\d+)\.qkv\.weight", attention))
    ]
    if not convs or len(linears) != 1 or len(before) != 1:
        raise ModelError(f"{tensors.where} isn't an encoder of PDAE: its layers are others")
    image_size = 4 * 2 ** len(convs)
    try:
        return EncoderConfig(
            image_size=image_size,
            channels=convs[0][1],
            widths=tuple(shape[0] for shape in convs),
            attention_size=image_size // 2 ** before[0],
            heads=ENCODER_HEADS,
            z_dim=linears[0][0],
        )
    except ValueError as error:
        raise impossible(tensors.where, error) from error


def _check_dpm(source: Source, path: Path, decoder: Tensors, found: Found) -> None:
    """The autoencoder's own copy of eps_theta must be that of the DPM it was trained on."""
    if not path.exists():
        found.notes.append(f"{path} is missing; eps_theta is the copy inside the autoencoder")
        return
    for name, value in _tensors(path, source.content(path), "ema_denoise_fn").tensors.items():
        ours = decoder.tensors.get(name)
        if ours is None or ours.shape != value.shape or not torch.equal(ours, value):
            raise ModelError(
                f"{path} isn't the DPM that {source.path} was trained on: {name} differs"
            )


def _add_neighbours(source: Source, name: str, z_dim: int, found: Found) -> None:
    """z's statistics, the latent DPM and the classifier, where the release has them."""
    short = name.removesuffix("128")
    places = [f"trained-models/latents/{one}.pt" for one in dict.fromkeys((name, short))]
    statistics = _existing(source, *places)
    if statistics is None:
        found.notes.append("no statistics of z (trained-models/latents): attributes need them")
    else:
        values = source.content(statistics)
        mean, std = (vector(values.get(k), f"{statistics}, {k}", z_dim) for k in ("mean", "std"))
        found.config = replace(found.config, normalisation=Normalisation(mean, std))
    latent = _existing(source, f"trained-models/latent_denoise_fn/{name}/checkpoint.pt")
    if latent is not None:
        found.latent = _latent(source, latent, z_dim)
    classifier = _existing(source, "trained-models/classifier/checkpoint.pt")
    if classifier is not None:
        _add_classifier(source, classifier, z_dim, found)


def _latent(source: Source, path: Path, z_dim: int) -> tuple[LatentConfig, Part]:
    settings = Settings(
        str(path.parent / "config.yml"), read_settings(path.parent / "config.yml")
    ).below("latent_denoise_fn_config")
    settings.refuse("use_norm", True)
    settings.refuse("input_channel", z_dim)
    tensors = _tensors(path, source.content(path), "ema_latent_denoise_fn")
    return latent_part(
        tensors,
        z_dim,
        width=settings.get("model_channel", int),
        layers=settings.get("num_layers", int),
        time_channels=settings.get("time_emb_channel", int),
        dropout=float(settings.get("dropout", (int, float), 0.0)),
    )


def latent_part(
    tensors: Tensors, z_dim: int, width: int, layers: int, time_channels: int, dropout: float
) -> tuple[LatentConfig, Part]:
    """The MLP with skips of `layers` layers, the last of which is a plain linear one."""
    try:
        cfg = LatentConfig(
            z_dim, width, layers - 1, dropout, time_channels, embedding_channels=z_dim
        )
    except ValueError as error:
        raise impossible(tensors.where, error) from error
    again = r"layers\.\d+\.cond_layers\.1\.(weight|bias)"
    tensors.leave_out(again, "cond_layers.1 (linear_emb by its other name)")
    return cfg, Part("latent_dpm", tensors, names.latent_mlp(cfg.layers))


def _add_classifier(source: Source, path: Path, z_dim: int, found: Found) -> None:
    tensors = _tensors(path, source.content(path), "ema_classifier")
    attributes = celeba_attributes(tensors)
    if attributes.weight.shape[1] != z_dim:
        found.notes.append(f"{path} is of another autoencoder: its z has other dimensions")
        return
    found.attributes = attributes
    found.notes.append(
        f"attributes from {path}; the release doesn't say whose z they were fitted on"
    )


def celeba_attributes(tensors: Tensors) -> Attributes:
    """A linear classifier of CelebA's forty attributes. Raises ModelError for another."""
    weight, bias = tensors.take("weight").float(), tensors.take("bias").float()
    if weight.ndim != 2 or len(weight) != len(CELEBA_ATTRIBUTES) or bias.shape != weight.shape[:1]:
        raise ModelError(f"{tensors.where} isn't a classifier of CelebA's 40 attributes")
    return Attributes(list(CELEBA_ATTRIBUTES), weight, bias)


# --- Helpers ------------------------------------------------------------------------------------


def _config_beside(source: Source) -> Path:
    folder = source.folder
    places = [source.config] if source.config else [folder / "config.yml"]
    if folder.name == "checkpoints" and not source.config:
        places.append(folder.parent / "config.yml")
    return source.first("config.yml (pass it as --config)", places)


def _existing(source: Source, *places: str) -> Path | None:
    return next((p for one in places for p in source.upwards(one) if p.exists()), None)


def _tensors(path: Path, content: dict[str, Any], key: str) -> Tensors:
    part = content.get(key)
    if not isinstance(part, dict):
        raise ModelError(f"{path} lacks {key}; it holds {', '.join(list(content)[:6])}")
    return Tensors.from_content(part, f"{path}, {key}")


def _others(content: dict[str, Any], taken: set[str]) -> dict[str, int]:
    """Tensors under keys that aren't taken: the weights before averaging."""
    left = {k: v for k, v in content.items() if k not in taken and isinstance(v, dict)}
    counts = {k: sum(isinstance(t, Tensor) for t in v.values()) for k, v in left.items()}
    return {f"{key} (not the averaged weights)": n for key, n in counts.items() if n}


def _told(source: Source) -> str:
    return f"{NAME}: {source.folder.name}/{source.path.name}"
