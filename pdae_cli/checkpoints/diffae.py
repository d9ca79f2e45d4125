"""Diff-AE (phizaz/diffae): DDPMs as eps_theta, autoencoders as models of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..engine.config import ModelConfig, Normalisation, ScheduleConfig
from ..errors import ModelError
from ..networks.blocks import UNetConfig
from ..networks.half_unet import HalfUNetConfig
from . import names
from .foreign import Found, Part, Settings, impossible, vector
from .pdae import celeba_attributes, latent_part
from .source import Source
from .transfer import Tensors

NAME = "diffae"
LICENCE = "MIT (phizaz/diffae) if these are its weights; else unknown"
CHECKPOINT = "last.ckpt"


def recognises(source: Source) -> bool:
    """A `last.ckpt` of PyTorch Lightning with Diff-AE's settings in it, or its folder."""
    if source.path.is_dir():
        return (source.path / CHECKPOINT).exists()
    content = source.own_content()
    return isinstance(content.get("state_dict"), dict) and "hyper_parameters" in content


def read(source: Source) -> Found:
    """An autoencoder (with latent DPM and classifier, where there are), or a DDPM."""
    path = source.path / CHECKPOINT if source.path.is_dir() else source.path
    content = source.content(path)
    state = content.get("state_dict")
    if not isinstance(state, dict):
        raise ModelError(f"{path} lacks state_dict; is it a checkpoint of Diff-AE?")
    if not any(name.startswith("ema_model.") for name in state):
        raise ModelError(
            f"{path} holds no averaged model (ema_model); a classifier is taken along with the "
            "autoencoder beside it: convert that"
        )
    settings = Settings(f"{path}, hyper_parameters", _hyper_parameters(content, path))
    tensors = Tensors.from_content(state, f"{path}, ema_model", "ema_model.")
    shape = settings.below("model_conf")
    source = source.at(path)
    ignored = {"model (not the averaged weights)": _count(state, "model.")}
    found = (
        _autoencoder(source, settings, shape, tensors, state)
        if "enc_out_channels" in shape.values
        else _ddpm(source, settings, shape, tensors)
    )
    return replace(found, ignored=ignored)


def _hyper_parameters(content: dict[str, Any], path: Path) -> dict[str, Any]:
    values = content.get("hyper_parameters")
    if not isinstance(values, dict) or not isinstance(values.get("model_conf"), dict):
        raise ModelError(
            f"{path} lacks hyper_parameters.model_conf; it says how networks are built"
        )
    return values


def _ddpm(source: Source, settings: Settings, shape: Settings, tensors: Tensors) -> Found:
    unet = _unet(shape)
    config = ModelConfig(
        _schedule(settings), unet, licence=LICENCE, variance="large", source=_told(source)
    )
    return Found(NAME, config, [Part("dpm", tensors, names.adm_unet(unet), _new_order(shape))])


def _autoencoder(
    source: Source,
    settings: Settings,
    shape: Settings,
    tensors: Tensors,
    state: dict[str, Any],
) -> Found:
    encoder = _encoder(shape)
    unet = replace(_unet(shape), z_channels=encoder.z_dim)
    table = names.adm_unet(unet, "time_embed.time_embed", "cond_emb_layers.1")
    encoder_table = {
        ours: tuple(f"encoder.{path}" for path in theirs)
        for ours, theirs in names.diffae_encoder(encoder).items()
    }
    found = Found(
        NAME,
        ModelConfig(
            _schedule(settings),
            unet,
            encoder=encoder,
            normalisation=_statistics(source, state, encoder.z_dim),
            licence=LICENCE,
            variance="large",
            source=_told(source),
        ),
        [
            Part("dpm", tensors, table, _new_order(shape)),
            Part("encoder", tensors, encoder_table, _new_order(shape)),
        ],
    )
    _add_latent(settings, shape, tensors, encoder.z_dim, found)
    _add_classifier(source, encoder.z_dim, found)
    return found


def _new_order(shape: Settings) -> bool:
    return bool(shape.get("use_new_attention_order", bool, False))


def _unet(shape: Settings) -> UNetConfig:
    """The U-Net of a DDPM, or of an autoencoder without its conditioning on z."""
    shape.refuse("dims", 2)
    shape.refuse("num_classes", None)
    shape.refuse("conv_resample", True)
    shape.refuse("num_heads_upsample", -1, shape.values.get("num_heads"))
    shape.refuse("num_input_res_blocks", None, shape.values.get("num_res_blocks"))
    shape.refuse("input_channel_mult", None)
    shape.refuse("time_embed_channels", None, shape.values.get("model_channels"))
    shape.refuse("resnet_cond_channels", None, shape.values.get("enc_out_channels"))
    shape.refuse("out_channels", shape.values.get("in_channels"))
    head_channels = shape.get("num_head_channels", int, -1)
    try:
        return UNetConfig(
            image_size=shape.get("image_size", int),
            channels=shape.get("in_channels", int),
            patch=1,
            base_channels=shape.get("model_channels", int),
            multipliers=shape.numbers("channel_mult"),
            blocks=shape.get("num_res_blocks", int),
            attention=shape.numbers("attention_resolutions"),
            head_channels=head_channels if head_channels > 0 else None,
            heads=shape.get("num_heads", int, 1),
            time_conditioning="scale_shift",
            resampling="residual" if shape.get("resblock_updown", bool, True) else "convolution",
            learn_sigma=False,
            groups=32,
            norm_eps=1e-5,
            dropout=float(shape.get("dropout", (int, float), 0.0)),
            embedding_channels=shape.get("embed_channels", int),
        )
    except ValueError as error:
        raise impossible(shape.where, error) from error


def _encoder(shape: Settings) -> HalfUNetConfig:
    shape.refuse("enc_pool", "adaptivenonzero")
    shape.refuse("resnet_two_cond", True)
    shape.refuse("resblock_updown", True)
    attention = shape.values.get("enc_attn_resolutions")
    multipliers = shape.values.get("enc_channel_mult")
    head_channels = shape.get("num_head_channels", int, -1)
    return HalfUNetConfig(
        image_size=shape.get("image_size", int),
        channels=shape.get("in_channels", int),
        base_channels=shape.get("model_channels", int),
        multipliers=shape.numbers("enc_channel_mult" if multipliers else "channel_mult"),
        blocks=shape.get("enc_num_res_block", int),
        attention=shape.numbers("enc_attn_resolutions" if attention else "attention_resolutions"),
        head_channels=head_channels if head_channels > 0 else None,
        heads=shape.get("num_heads", int, 1),
        groups=32,
        norm_eps=1e-5,
        z_dim=shape.get("enc_out_channels", int),
    )


def _schedule(settings: Settings) -> ScheduleConfig:
    settings.refuse("beta_scheduler", "linear")
    settings.refuse("beatgans_rescale_timesteps", False)
    timesteps = settings.get("T", int)
    scale = 1000 / max(1, timesteps)
    return ScheduleConfig("linear", timesteps, 1e-4 * scale, 0.02 * scale)


def _statistics(source: Source, state: dict[str, Any], z_dim: int) -> Normalisation | None:
    """z's mean and deviation: in a latent model's checkpoint, or in latent.pkl beside any."""
    where, values = source.path, state
    latents = source.folder / "latent.pkl"
    if "conds_mean" not in state and latents.exists():
        where, values = latents, source.content(latents)
    if "conds_mean" not in values:
        return None
    mean, std = (
        vector(values.get(key), f"{where}, {key}", z_dim) for key in ("conds_mean", "conds_std")
    )
    return Normalisation(mean, std)


def _add_latent(
    settings: Settings, shape: Settings, tensors: Tensors, z_dim: int, found: Found
) -> None:
    if not isinstance(shape.values.get("latent_net_conf"), dict):
        return
    net = shape.below("latent_net_conf")
    settings.refuse("latent_beta_scheduler", "const0.008")
    settings.refuse("latent_znormalize", True)
    net.refuse("use_norm", True)
    net.refuse("condition_bias", 1)
    net.refuse("num_channels", z_dim)
    net.refuse("num_time_layers", 2)
    net.refuse("time_last_act", False)
    layers = net.get("num_layers", int)
    net.refuse("skip_layers", [*range(1, layers)], tuple(range(1, layers)))
    part = Tensors(
        tensors.where + ".latent_net",
        {
            name.removeprefix("latent_net."): value
            for name, value in tensors.tensors.items()
            if name.startswith("latent_net.")
        },
    )
    tensors.leave_out(r"latent_net\..*", "latent_net (accounted for on its own)")
    found.latent = latent_part(
        part,
        z_dim,
        width=net.get("num_hid_channels", int),
        layers=layers,
        time_channels=net.get("num_time_emb_channels", int),
        dropout=float(net.get("dropout", (int, float), 0.0)),
    )


def _add_classifier(source: Source, z_dim: int, found: Found) -> None:
    """A classifier's checkpoint lies in a folder beside, NAME_autoenc_cls for NAME_autoenc…"""
    stem = source.folder.name.partition("_autoenc")[0]
    places = sorted(source.folder.resolve().parent.glob(f"{stem}_autoenc*cls/{CHECKPOINT}"))
    if not places:
        found.notes.append(f"no classifier ({stem}_autoenc_cls/{CHECKPOINT}) beside: no attributes")
        return
    state = source.content(places[0]).get("state_dict")
    if not isinstance(state, dict):
        raise ModelError(f"{places[0]} lacks state_dict; is it a checkpoint of Diff-AE?")
    where = f"{places[0]}, ema_classifier"
    attributes = celeba_attributes(Tensors.from_content(state, where, "ema_classifier."))
    if attributes.weight.shape[1] != z_dim:
        raise ModelError(f"{where} is of another autoencoder: its z isn't of {z_dim} dimensions")
    found.attributes = attributes
    if found.config.normalisation is None and "conds_mean" in state:
        statistics = _statistics(source, state, z_dim)
        found.config = replace(found.config, normalisation=statistics)


def _count(state: dict[str, Any], prefix: str) -> int:
    return sum(name.startswith(prefix) and isinstance(v, Tensor) for name, v in state.items())


def _told(source: Source) -> str:
    return f"{NAME}: {source.folder.name}/{source.path.name}"
