"""Diff-AE (phizaz/diffae): DDPMs as eps_theta, autoencoders as models of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from ..engine.config import ModelConfig, Normalisation
from ..errors import ModelError
from ..networks.half_unet import HalfUNetConfig
from ..networks.unet import UNetConfig
from . import names
from .guided import ADM, NORM, heads, schedule_config
from .pdae import add_latent, celeba_attributes
from .source import Found, Settings, Source, vector
from .transfer import Part, Tensors

NAME = "diffae"
LICENCE = "MIT (phizaz/diffae) if these are its weights; else unknown"
CHECKPOINT = "last.ckpt"
# Of U-Net and encoder: our field, theirs.
COMMON = {"image_size": "image_size", "channels": "in_channels", "base_channels": "model_channels"}


def recognises(source: Source) -> bool:
    """A `last.ckpt` of PyTorch Lightning with Diff-AE's settings in it, or its folder."""
    if source.path.is_dir():
        return (source.path / CHECKPOINT).exists()
    content = source.content()
    return isinstance(content.get("state_dict"), dict) and "hyper_parameters" in content


def read(source: Source) -> Found:
    """An autoencoder (with latent DPM and classifier, where there are), or a DDPM."""
    path = source.path / CHECKPOINT if source.path.is_dir() else source.path
    source = replace(source, path=path)
    state = source.part(path, "state_dict")
    if not any(name.startswith("ema_model.") for name in state):
        raise ModelError(
            f"{path} holds no averaged model (ema_model); a classifier is taken along with the "
            "autoencoder beside it: convert that"
        )
    settings = Settings(f"{path}, hyper_parameters", source.part(path, "hyper_parameters"))
    shape = settings.below("model_conf")
    tensors = Tensors.below("ema_model.", state, f"{path}, ema_model")
    unet, table = _unet(shape), None
    encoder = _encoder(shape) if "enc_out_channels" in shape.values else None
    if encoder is not None:
        unet = replace(unet, z_channels=encoder.z_dim)
        table = names.adm_unet(unet, "time_embed.time_embed", "cond_emb_layers.1")
    settings.expect(beta_scheduler="linear", beatgans_rescale_timesteps=False)
    config = ModelConfig(
        settings.build(schedule_config, "linear", settings.get("T", int)),
        unet,
        encoder=encoder,
        normalisation=None if encoder is None else _statistics(source, state, encoder.z_dim),
        licence=LICENCE,
        variance="large",
        source=f"{NAME}: {path.parent.name}/{path.name}",
    )
    new_order = bool(shape.get("use_new_attention_order", bool, False))
    found = Found(config, [Part("dpm", tensors, table or names.adm_unet(unet), new_order)])
    plain = [k for k, v in state.items() if k.startswith("model.") and isinstance(v, Tensor)]
    found.ignored = {"model (not the averaged weights)": len(plain)}
    if encoder is not None:
        found.parts.append(Part("encoder", tensors, names.diffae_encoder(encoder), new_order))
        if isinstance(shape.values.get("latent_net_conf"), dict):
            _add_latent(settings, shape.below("latent_net_conf"), tensors, encoder.z_dim, found)
        _add_classifier(source, encoder.z_dim, found)
    return found


def _unet(shape: Settings) -> UNetConfig:
    """The U-Net of a DDPM, or of an autoencoder without its conditioning on z."""
    given = shape.values
    shape.expect(dims=2, num_classes=None, conv_resample=True, input_channel_mult=None)
    shape.expect(out_channels=given.get("in_channels"))
    shape.refuse("num_heads_upsample", -1, given.get("num_heads"))
    shape.refuse("num_input_res_blocks", None, given.get("num_res_blocks"))
    shape.refuse("time_embed_channels", None, given.get("model_channels"))
    shape.refuse("resnet_cond_channels", None, given.get("enc_out_channels"))
    residual = shape.get("resblock_updown", bool, True)
    return shape.build(
        UNetConfig,
        **shape.integers(**COMMON, blocks="num_res_blocks", embedding_channels="embed_channels"),
        multipliers=shape.numbers("channel_mult"),
        attention=shape.numbers("attention_resolutions"),
        **heads(shape),
        learn_sigma=False,
        dropout=shape.get("dropout", float, 0.0),
        **ADM | {"resampling": "residual" if residual else "convolution"},
    )


def _encoder(shape: Settings) -> HalfUNetConfig:
    shape.expect(enc_pool="adaptivenonzero", resnet_two_cond=True, resblock_updown=True)
    attention = shape.values.get("enc_attn_resolutions")
    multipliers = shape.values.get("enc_channel_mult")
    return shape.build(
        HalfUNetConfig,
        **shape.integers(**COMMON, blocks="enc_num_res_block", z_dim="enc_out_channels"),
        multipliers=shape.numbers("enc_channel_mult" if multipliers else "channel_mult"),
        attention=shape.numbers("enc_attn_resolutions" if attention else "attention_resolutions"),
        **heads(shape),
        **NORM,
    )


def _statistics(source: Source, state: dict[str, Any], z_dim: int) -> Normalisation | None:
    """z's mean and deviation: in a latent model's checkpoint, or in latent.pkl beside any."""
    where, latents = source.path, source.folder / "latent.pkl"
    if "conds_mean" not in state and latents.exists():
        where, state = latents, source.content(latents)
    if "conds_mean" not in state:
        return None
    keys = ("conds_mean", "conds_std")
    mean, std = (vector(state.get(key), f"{where}, {key}", z_dim) for key in keys)
    return Normalisation(mean, std)


def _add_latent(
    settings: Settings, net: Settings, tensors: Tensors, z_dim: int, found: Found
) -> None:
    settings.expect(latent_beta_scheduler="const0.008", latent_znormalize=True)
    net.expect(use_norm=True, condition_bias=1, num_channels=z_dim)
    net.expect(num_time_layers=2, time_last_act=False)
    part = Tensors.below("latent_net.", tensors.tensors, f"{tensors.where}.latent_net")
    tensors.leave_out(r"latent_net\..*", "latent_net (accounted for on its own)")
    add_latent(found, part, net, z_dim, "num_hid_channels", "num_time_emb_channels")
    skips = range(1, net.get("num_layers", int))
    net.refuse("skip_layers", [*skips], (*skips,))


def _add_classifier(source: Source, z_dim: int, found: Found) -> None:
    """A classifier's checkpoint lies in a folder beside, NAME_autoenc_cls for NAME_autoenc…"""
    stem = source.folder.name.partition("_autoenc")[0]
    places = sorted(source.folder.resolve().parent.glob(f"{stem}_autoenc*cls/{CHECKPOINT}"))
    if not places:
        found.notes.append(f"no classifier ({stem}_autoenc_cls/{CHECKPOINT}) beside: no attributes")
        return
    state, where = source.part(places[0], "state_dict"), f"{places[0]}, ema_classifier"
    attributes = celeba_attributes(Tensors.below("ema_classifier.", state, where))
    if attributes.weight.shape[1] != z_dim:
        raise ModelError(f"{where} is of another autoencoder: its z isn't of {z_dim} dimensions")
    found.attributes = attributes
    if found.config.normalisation is None and "conds_mean" in state:
        statistics = _statistics(source, state, z_dim)
        found.config = replace(found.config, normalisation=statistics)
