"""Diff-AE (phizaz/diffae): DDPMs as eps_theta, autoencoders as models of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from ..engine.config import ModelConfig, Normalisation
from ..errors import ModelError, UsageError
from ..networks.half_unet import HalfUNetConfig
from ..networks.unet import UNetConfig
from . import names
from .guided import NORM, adm, heads, schedule_config, time_scale
from .pdae import add_latent, celeba_attributes
from .source import Fields, Foreign, Settings, Source, vector
from .transfer import Part, Tensors

NAME = "diffae"
LICENCE = "MIT (phizaz/diffae) if these are its weights; else unknown"
CHECKPOINT = "last.ckpt"
CLASSIFIER = "ema_classifier."  # what its tensors' names begin with
LATENT_USUAL = {
    "latent_beta_scheduler": "const0.008", "latent_znormalize": True,
    "latent_rescale_timesteps": False, "latent_clip_sample": False,
}  # fmt: skip
# Of U-Net and encoder: our field, theirs.
COMMON = {"image_size": "image_size", "channels": "in_channels", "base_channels": "model_channels"}


TOP = Fields(
    "Diff-AE: hyper_parameters",
    taken="model_conf T beatgans_rescale_timesteps latent_beta_scheduler latent_znormalize "
    "latent_rescale_timesteps latent_clip_sample",
    fixed={
        "beta_scheduler": ("linear",),
        "diffusion_type": ("beatgans",),
        "net_autoenc_stochastic": (False,),
        "net_enc_use_time": (False,),
        "model_mean_type": ("eps",),
        "latent_model_mean_type": ("eps",),
        "model_var_type": ("fixed_large",),
    },
    idle={
        "of training, evaluation and data": "seed train_cond0_prob train_pred_xstart_detach "
        "train_interpolate_prob train_interpolate_img manipulate_cls manipulate_shots "
        "manipulate_znormalize manipulate_seed manipulate_mode manipulate_loss accum_batches "
        "batch_size batch_size_eval latent_infer_path data_name data_val_name dropout ema_decay "
        "eval_num_images eval_every_samples eval_ema_every_samples fid_use_torch fp16 grad_clip "
        "img_size lr weight_decay num_workers parallel postfix sample_size sample_every_samples "
        "save_every_samples total_samples warmup pretrain continue_from eval_programs eval_path "
        "base_dir use_cache_dataset data_cache_dir work_cache_dir name T_sampler optimizer "
        "loss_type model_name model_type train_mode latent_loss_type",
        "of its sampling; --inference-steps and --parity are ours": "T_eval latent_T_eval "
        "gen_type latent_gen_type latent_model_var_type",
        "which model_conf repeats": "net_* style_ch autoenc_mid_attn",
    },
)
MODEL = Fields(
    "Diff-AE: model_conf",
    taken="image_size in_channels out_channels model_channels channel_mult num_res_blocks "
    "embed_channels attention_resolutions num_heads num_heads_upsample num_head_channels "
    "resblock_updown use_new_attention_order dropout num_input_res_blocks time_embed_channels "
    "resnet_cond_channels enc_out_channels enc_num_res_block enc_channel_mult "
    "enc_attn_resolutions resnet_two_cond latent_net_conf",
    fixed={
        "dims": (2,),
        "num_classes": (),
        "conv_resample": (True,),
        "input_channel_mult": (),
        "enc_pool": ("adaptivenonzero",),
        "enc_use_time_condition": (False,),
    },
    idle={
        "of speed and memory": "use_checkpoint attn_checkpoint enc_grad_checkpoint",
        "of initial weights": "resnet_use_zero_module",
    },
)
LATENT = Fields(
    "Diff-AE: latent_net_conf",
    taken="num_channels num_hid_channels num_layers num_time_emb_channels skip_layers dropout",
    fixed={
        "use_norm": (True,),
        "condition_bias": (1,),
        "num_time_layers": (2,),
        "time_last_act": (False,),
        "activation": ("silu",),
        "last_act": ("none",),
    },
)


def recognises(source: Source) -> bool:
    """A `last.ckpt` of PyTorch Lightning with Diff-AE's settings in it, or its folder."""
    if source.path.is_dir() and not (source.path / CHECKPOINT).exists():
        return False
    content = source.content(source.path / CHECKPOINT if source.path.is_dir() else None)
    settings, state = content.get("hyper_parameters"), content.get("state_dict")
    return isinstance(state, dict) and (
        (isinstance(settings, dict) and "model_conf" in settings) or f"{CLASSIFIER}weight" in state
    )


def read(source: Source) -> Foreign:
    """An autoencoder (with latent DPM and classifier, where there are), or a DDPM. Raises
    UsageError for a config beside the one in the checkpoint."""
    path = source.path / CHECKPOINT if source.path.is_dir() else source.path
    if source.config is not None:
        raise UsageError(f"{path} has its settings in it, so --config can't be followed; omit it")
    source = replace(source, path=path)
    state = source.part(path, "state_dict")
    if not any(name.startswith("ema_model.") for name in state):
        raise ModelError(
            f"{path} holds no averaged model (ema_model); a classifier is taken along with the "
            "autoencoder beside it: convert that"
        )
    notes: list[str] = []
    settings = Settings(f"{path}, hyper_parameters", source.part(path, "hyper_parameters"))
    settings = settings.follow(TOP, notes)
    shape = settings.below("model_conf").follow(MODEL, notes)
    tensors = Tensors.below("ema_model.", state, f"{path}, ema_model")
    timesteps = settings.get("T", int)
    scale = time_scale(settings, "beatgans_rescale_timesteps", timesteps, default=False)
    unet, table = _unet(shape, scale), None
    encoder = _encoder(shape) if "enc_out_channels" in shape.values else None
    if encoder is not None:
        unet = replace(unet, z_channels=encoder.z_dim)
        table = names.adm_unet(unet, "time_embed.time_embed", "cond_emb_layers.1")
    config = ModelConfig(
        settings.build(schedule_config, "linear", timesteps),
        unet,
        encoder=encoder,
        normalisation=None if encoder is None else _statistics(source, state, encoder.z_dim),
        licence=LICENCE,
        variance="large",
        source=f"{NAME}: {source.folder_name}/{path.name}",
    )
    new_order = shape.flag("use_new_attention_order", False)
    parts = [Part("dpm", tensors, table or names.adm_unet(unet), new_order)]
    found = Foreign(config, parts, notes=notes)
    plain = [k for k, v in state.items() if k.startswith("model.") and isinstance(v, Tensor)]
    tensors.left["model (not the averaged weights)"] = len(plain)
    if encoder is not None:
        found.parts.append(Part("encoder", tensors, names.diffae_encoder(encoder), new_order))
        if isinstance(shape.values.get("latent_net_conf"), dict):
            _add_latent(settings, shape.below("latent_net_conf"), tensors, encoder.z_dim, found)
        _add_classifier(source, encoder.z_dim, found)
    return found


def _unet(shape: Settings, scale: float) -> UNetConfig:
    """The U-Net of a DDPM, or of an autoencoder without its conditioning on z."""
    given = shape.values
    shape.refuse("out_channels", given.get("in_channels"))
    shape.refuse("num_heads_upsample", -1, given.get("num_heads"))
    shape.refuse("num_input_res_blocks", None, given.get("num_res_blocks"))
    shape.refuse("time_embed_channels", None, given.get("model_channels"))
    shape.refuse("resnet_cond_channels", None, given.get("enc_out_channels"))
    return adm(
        shape,
        **shape.integers(**COMMON, blocks="num_res_blocks", embedding_channels="embed_channels"),
        multipliers=shape.numbers("channel_mult"),
        attention=shape.numbers("attention_resolutions"),
        time_scale=scale,
    )


def _encoder(shape: Settings) -> HalfUNetConfig:
    shape.refuse("resnet_two_cond", True)
    shape.refuse("resblock_updown", True)
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
    settings: Settings, net: Settings, tensors: Tensors, z_dim: int, found: Foreign
) -> None:
    for name, usual in LATENT_USUAL.items():
        settings.refuse(name, usual)
    net = net.follow(LATENT, found.notes)
    net.refuse("num_channels", z_dim)
    part = Tensors.below("latent_net.", tensors.tensors, f"{tensors.where}.latent_net")
    tensors.leave_out(r"latent_net\..*", "latent_net (accounted for on its own)")
    add_latent(found, part, net, z_dim, "num_hid_channels", "num_time_emb_channels")
    skips = range(1, net.get("num_layers", int))
    net.refuse("skip_layers", [*skips], (*skips,))


def _add_classifier(source: Source, z_dim: int, found: Foreign) -> None:
    """A classifier's checkpoint lies in a folder beside, NAME_autoenc_cls for NAME_autoenc…"""
    stem = source.folder_name.partition("_autoenc")[0]
    places = sorted(source.folder.resolve().parent.glob(f"{stem}_autoenc*cls/{CHECKPOINT}"))
    if not places:
        found.notes.append(f"no classifier ({stem}_autoenc_cls/{CHECKPOINT}) beside: no attributes")
        return
    state, where = source.part(places[0], "state_dict"), f"{places[0]}, ema_classifier"
    attributes = celeba_attributes(Tensors.below(CLASSIFIER, state, where))
    if attributes.weight.shape[1] != z_dim:
        raise ModelError(f"{where} is of another autoencoder: its z isn't of {z_dim} dimensions")
    found.attributes = attributes
    if found.config.normalisation is None and "conds_mean" in state:
        statistics = _statistics(source, state, z_dim)
        found.config = replace(found.config, normalisation=statistics)
