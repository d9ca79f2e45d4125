"""The authors' PDAE (ckczzj/PDAE): its release as published, and checkpoints of its trainers."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..engine.attributes import Attributes
from ..engine.config import ModelConfig, Normalisation, ScheduleConfig
from ..engine.tensors import shown
from ..errors import ModelError
from ..networks.encoder import EncoderConfig
from ..networks.latent import LatentConfig
from . import names
from .guided import adm, attention_sizes, heads, schedule_config
from .source import Fields, Foreign, Settings, Source, vector
from .transfer import Part, Tensors

NAME = "pdae"
LICENCE = "none stated by the authors of the weights (ckczzj/PDAE)"
KINDS = ("ema_decoder", "ema_denoise_fn", "ema_latent_denoise_fn", "ema_classifier")
ENCODER_HEADS = 4  # of E_phi's attention: fixed in the authors' code

SECTIONS = Fields(
    "PDAE: config.yml",
    taken="denoise_fn_config diffusion_config train_dataset_config latent_denoise_fn_config "
    "trained_ddpm_config",
    idle={
        "of training and its data": "dataloader_config eval_dataset_config optimizer_config "
        "runner_config inferred_latents trained_ddpm_checkpoint "
        "trained_representation_learning_checkpoint trained_representation_learning_config",
        "of networks whose tensors say how they are built": "encoder_config decoder_config",
    },
)
SCHEDULE = Fields("PDAE: diffusion_config", taken="betas_type timesteps")
DPM = Fields(
    "PDAE: denoise_fn_config",
    taken="input_channel base_channel channel_multiplier num_residual_blocks_of_a_block "
    "attention_resolutions num_heads head_channel use_new_attention_order dropout",
    fixed={"dims": (2,), "num_class": ()},
    idle={"the name of a class": "model", "of speed and memory": "use_checkpoint"},
)
LATENT = Fields(
    "PDAE: latent_denoise_fn_config",
    taken="input_channel model_channel num_layers time_emb_channel dropout",
    fixed={"use_norm": (True,)},
    idle={"the name of a class": "model"},
)

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
    return any(kind in source.content() for kind in KINDS)


def read(source: Source) -> Foreign:
    """An autoencoder with all that belongs to it, or a diffusion model alone."""
    source = replace(source, path=_checkpoint(source))
    path, folder, content = source.path, source.folder, source.content()
    places = [source.config] if source.config else [folder / "config.yml"]
    if source.folder_name == "checkpoints" and not source.config:
        places.append(folder / ".." / "config.yml")
    if "ema_decoder" not in content and "ema_denoise_fn" not in content:
        raise ModelError(
            f"{path} holds no diffusion model and no autoencoder (it holds "
            f"{', '.join(map(shown, [*content][:6]))}); convert its autoencoder, which takes it "
            "along"
        )
    notes: list[str] = []
    place = source.first("config.yml (pass it as --config)", places)
    settings = Settings.read(place).follow(SECTIONS, notes)
    if "ema_decoder" not in content:
        image_size = settings.below("train_dataset_config").get("image_size", int)
        tensors = source.tensors(path, "ema_denoise_fn")
        return _read_dpm(source, settings, tensors, image_size, notes)
    decoder = source.tensors(path, "ema_decoder")
    encoder_tensors = source.tensors(path, "ema_encoder")
    encoder = _encoder(encoder_tensors)
    default = f"pre-trained-dpms/{source.folder_name}/config.yml"
    stated = source.upwards(str(settings.get("trained_ddpm_config", str, default)))
    config = source.first("config of the autoencoder's DPM", stated)
    of_dpm = Settings.read(config).follow(SECTIONS, notes)
    found = _read_dpm(source, of_dpm, decoder, encoder.image_size, notes)
    found.config = replace(found.config, encoder=encoder)
    gradient = names.pdae_gradient(found.config.unet)
    found.parts += [
        replace(found.parts[0], name="gradient", table=gradient),
        Part("encoder", encoder_tensors, names.pdae_encoder(encoder)),  # always the old order
    ]
    dpm = config.parent / "checkpoint.pt"  # the autoencoder has a copy of it
    if dpm.exists():
        originals = source.tensors(dpm, "ema_denoise_fn").tensors
    else:
        originals = {}
        found.notes.append(f"{dpm} is missing; eps_theta is the copy inside the autoencoder")
    for name, value in originals.items():
        ours = decoder.tensors.get(name)
        if ours is None or ours.shape != value.shape or not torch.equal(ours, value):
            raise ModelError(f"{dpm} isn't the DPM that {path} is of: {name} differs")
    _add_neighbours(source, encoder.z_dim, found)
    return found


def _checkpoint_in(folder: Path) -> Path | None:
    places = (folder / "checkpoint.pt", folder / "latest.pt", folder / "checkpoints" / "latest.pt")
    return next((place for place in places if place.exists()), None)


def _checkpoint(source: Source) -> Path:
    """The one checkpoint that the user means. Raises ModelError if there are none or several."""
    if not source.path.is_dir():
        return source.path
    parts = ("trained-models/autoencoder/*", "autoencoder/*", "pre-trained-dpms/*")
    for units in ([source.path], *(sorted(source.path.glob(part)) for part in parts)):
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


def _read_dpm(
    source: Source, settings: Settings, tensors: Tensors, image_size: int, notes: list[str]
) -> Foreign:
    """eps_theta, as its DPM's config describes it."""
    shape = settings.below("denoise_fn_config").follow(DPM, notes)
    diffusion = settings.below("diffusion_config").follow(SCHEDULE, notes)
    diffusion.refuse("betas_type", "linear", "cosine")
    channels = shape.get("input_channel", int)
    output = tensors.tensors.get("out.2.weight")
    unet = adm(
        shape,
        image_size=image_size,
        channels=channels,
        **shape.integers(base_channels="base_channel", blocks="num_residual_blocks_of_a_block"),
        multipliers=shape.numbers("channel_multiplier"),
        attention=attention_sizes(shape, image_size),
        **heads(shape, "head_channel"),
        learn_sigma=output is not None and len(output) == 2 * channels,
    )
    betas, timesteps = diffusion.get("betas_type", str), diffusion.get("timesteps", int)
    schedule: ScheduleConfig = diffusion.build(schedule_config, betas, timesteps)
    told = f"{NAME}: {source.folder_name}/{source.path.name}"
    config = ModelConfig(schedule, unet, licence=LICENCE, source=told)
    new_order = shape.flag("use_new_attention_order", False)
    found = Foreign(config, [Part("dpm", tensors, names.adm_unet(unet), new_order)], notes=notes)
    content = source.content()
    taken = {"ema_decoder", "ema_encoder"} if "ema_decoder" in content else {"ema_denoise_fn"}
    for key, value in content.items():
        left = value.values() if isinstance(value, dict) and key not in taken else ()
        count = sum(isinstance(one, Tensor) for one in left)
        tensors.left[f"{key} (not the averaged weights)"] = count
    return found


def _encoder(tensors: Tensors) -> EncoderConfig:
    """E_phi's shape, from its tensors."""
    layers = sorted(
        (int(match[1]), tuple(value.shape), match[2])
        for name, value in tensors.tensors.items()
        if (match := re.fullmatch(r"encoder\.(\d+)\.(qkv\.)?weight", name))
    )
    convs = [(index, shape) for index, shape, qkv in layers if len(shape) == 4 and not qkv]
    linears = [shape for _, shape, qkv in layers if len(shape) == 2 and not qkv]
    before = [sum(one < index for one, _ in convs) for index, _, qkv in layers if qkv]
    if not 1 <= len(convs) <= 10 or len(linears) != 1 or len(before) != 1:
        raise ModelError(f"{tensors.where} isn't an encoder of PDAE: its layers are others")
    image_size = 4 * 2 ** len(convs)
    return Settings(tensors.where, {}).build(
        EncoderConfig,
        image_size=image_size,
        channels=convs[0][1][1],
        widths=tuple(shape[0] for _, shape in convs),
        attention_size=image_size // 2 ** before[0],
        heads=ENCODER_HEADS,
        z_dim=linears[0][0],
    )


def _add_neighbours(source: Source, z_dim: int, found: Foreign) -> None:
    """Add z's statistics, the latent DPM and the classifier, where the release has them."""
    name, notes = source.folder_name, found.notes

    def neighbour(*places: str) -> Path | None:
        every = (path for one in places for path in source.upwards(f"trained-models/{one}"))
        return next((path for path in every if path.exists()), None)

    statistics = neighbour(f"latents/{name}.pt", f"latents/{name.removesuffix('128')}.pt")
    if statistics is None:
        notes.append("no statistics of z (trained-models/latents): attributes need them")
    else:
        values = source.content(statistics)
        mean, std = (vector(values.get(k), f"{statistics}, {k}", z_dim) for k in ("mean", "std"))
        found.config = replace(found.config, normalisation=Normalisation(mean, std))
    latent = neighbour(f"latent_denoise_fn/{name}/checkpoint.pt")
    if latent is not None:
        settings = Settings.read(latent.parent / "config.yml").follow(SECTIONS, notes)
        shape = settings.below("latent_denoise_fn_config").follow(LATENT, notes)
        shape.refuse("input_channel", z_dim)
        tensors = source.tensors(latent, "ema_latent_denoise_fn")
        add_latent(found, tensors, shape, z_dim, "model_channel", "time_emb_channel")
    path = neighbour("classifier/checkpoint.pt")
    if path is None:
        return
    attributes = celeba_attributes(source.tensors(path, "ema_classifier"))
    if attributes.weight.shape[1] != z_dim:
        notes.append(f"{path} is of another autoencoder: its z has other dimensions")
        return
    found.attributes = attributes
    notes.append(f"attributes from {path}; the release doesn't say whose z they are of")


def add_latent(
    found: Foreign, tensors: Tensors, shape: Settings, z_dim: int, width: str, time_channels: str
) -> None:
    """Add the MLP with skips, the last of whose layers is a plain linear one; `width` and
    `time_channels` are its config's names for them."""
    found.latent = shape.build(
        LatentConfig,
        z_dim=z_dim,
        **shape.integers(width=width, time_channels=time_channels),
        layers=shape.get("num_layers", int) - 1,
        dropout=shape.get("dropout", float, 0.0),
        embedding_channels=z_dim,
    )
    again = r"layers\.\d+\.cond_layers\.1\.(weight|bias)"
    tensors.leave_out(again, "cond_layers.1 (linear_emb by its other name)")
    found.parts.append(Part("latent_dpm", tensors, names.latent_mlp(found.latent.layers)))


def celeba_attributes(tensors: Tensors) -> Attributes:
    """A linear classifier of CelebA's forty attributes. Raises ModelError for another."""
    weight, bias = tensors.take("weight").float(), tensors.take("bias").float()
    if weight.ndim != 2 or len(weight) != len(CELEBA_ATTRIBUTES) or bias.shape != weight.shape[:1]:
        raise ModelError(f"{tensors.where} isn't a classifier of CelebA's 40 attributes")
    return Attributes(list(CELEBA_ATTRIBUTES), weight, bias)
