"""Diff-AE's checkpoints as folders. That the numbers are theirs is in test_golden_others.py."""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import foreign_models
import pytest
import torch
from conftest import Command, picture, unet_config
from foreign_models import latent_state, made, save, under_their_names

from pdae_cli.checkpoints import names, read_model
from pdae_cli.checkpoints.convert import read_foreign
from pdae_cli.checkpoints.source import Source
from pdae_cli.errors import ModelError, UsageError
from pdae_cli.networks.half_unet import HalfUNet, HalfUNetConfig
from pdae_cli.networks.latent import LatentConfig
from pdae_cli.networks.unet import UNet

Z, quick = 8, foreign_models.quick


class ModelCheckpoint:
    """Stands for the class that Lightning's checkpoints have as a key."""


def save_lightning(path: Path, content: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """As PyTorch Lightning 1.4 does: with a class object as a key of `callbacks`."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(name)
    module.ModelCheckpoint = ModelCheckpoint  # type: ignore[attr-defined]
    for parent in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(ModelCheckpoint, "__module__", name)
    save(path, dict(content) | {"callbacks": {ModelCheckpoint: {"monitor": None}}})


def diffae(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Path:
    """A latent autoencoder and its classifier, in the folders that Diff-AE keeps them in."""
    torch.manual_seed(6)
    cfg = unet_config(
        base_channels=32, groups=32, attention=(16,), head_channels=None, embedding_channels=64,
        z_channels=Z,
    )  # fmt: skip
    encoder = HalfUNetConfig(32, 3, 32, (1, 2, 2), 1, (16,), None, 1, 32, 1e-5, Z)
    state = under_their_names(
        made(UNet(cfg)), names.adm_unet(cfg, "time_embed.time_embed", "cond_emb_layers.1")
    )
    half = under_their_names(made(HalfUNet(encoder)), names.diffae_encoder(encoder))
    half["encoder.out.3.weight"] = half["encoder.out.3.weight"][:, :, None, None]
    latent = latent_state(LatentConfig(Z, 16, 2, 0.0, time_channels=64, embedding_channels=Z))
    state |= half
    state |= {f"latent_net.{k}": v for k, v in latent.items()}
    conds = {"conds_mean": torch.zeros(1, Z), "conds_std": torch.ones(1, Z)}
    conf: dict[str, Any] = {
        "image_size": 32, "in_channels": 3, "out_channels": 3, "model_channels": 32,
        "num_res_blocks": 1, "num_input_res_blocks": None, "embed_channels": 64, "dims": 2,
        "attention_resolutions": (16,), "time_embed_channels": None, "dropout": 0.1,
        "channel_mult": (1, 2), "input_channel_mult": None, "conv_resample": True,
        "num_classes": None, "num_heads": 1, "num_head_channels": -1, "num_heads_upsample": -1,
        "resblock_updown": True, "use_new_attention_order": False, "resnet_two_cond": True,
        "resnet_cond_channels": None, "enc_out_channels": Z, "enc_attn_resolutions": None,
        "enc_pool": "adaptivenonzero", "enc_num_res_block": 1, "enc_channel_mult": (1, 2, 2),
        "latent_net_conf": {
            "num_channels": Z, "skip_layers": [1, 2], "num_hid_channels": 16, "num_layers": 3,
            "num_time_emb_channels": 64, "use_norm": True, "condition_bias": 1, "dropout": 0,
            "num_time_layers": 2, "time_last_act": False,
        },
    }  # fmt: skip
    settings = {
        "T": 1000, "beta_scheduler": "linear", "beatgans_rescale_timesteps": False,
        "latent_beta_scheduler": "const0.008", "latent_znormalize": True,
        "model_conf": conf | changes,
    }  # fmt: skip
    state_dict = {f"ema_model.{k}": v for k, v in state.items()}
    state_dict |= {f"model.{k}": v * 2 for k, v in state.items()} | conds
    path = folder / "faces_autoenc_latent" / "last.ckpt"
    content = {"epoch": 1, "state_dict": state_dict, "hyper_parameters": settings}
    save_lightning(path, content, monkeypatch)
    weights = {"ema_classifier.weight": torch.randn(40, Z), "ema_classifier.bias": torch.zeros(40)}
    save_lightning(
        folder / "faces_autoenc_cls" / "last.ckpt",
        {"state_dict": weights | conds, "hyper_parameters": {"name": "faces_autoenc_cls"}},
        monkeypatch,
    )
    return path.parent


class TestDiffAE:
    def test_an_autoencoder_is_a_model_of_its_own(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Codes, edits and samples work; what needs a G_psi says that there is none."""
        model = read_foreign(Source(diffae(tmp_path, monkeypatch))).model
        assert model.takes_z and model.gradient_estimator is None
        assert model.attributes and model.latent_dpm and model.config.normalisation
        x = torch.rand(2, 3, 32, 32) * 2 - 1
        codes = model.encode(x, inference_steps=2)
        assert codes.z.shape == (2, Z)
        assert model.decode(model.manipulate(codes, [("smiling", 0.3)])).shape == x.shape
        assert model.interpolate(codes, 3).shape == (3, 3, 32, 32)
        assert model.sample(1, inference_steps=2)[0].isfinite().all()
        eps, gradient = model.predict(x, torch.tensor([3, 4]), codes.z)
        other, _ = model.predict(x, torch.tensor([3, 4]), codes.z.flip(0))
        assert gradient is None and not torch.allclose(eps, other)
        with pytest.raises(ModelError, match="takes z itself"):
            model.sample(1, unconditional=True)
        with pytest.raises(ModelError, match="trajectory"):
            model.interpolate(codes, 3, mode="trajectory")

    def test_it_comes_back_from_disk(
        self, pdae: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = diffae(tmp_path, monkeypatch)
        assert pdae("convert", source, "-o", tmp_path / "model").code == 0
        again, first = read_model(tmp_path / "model", "m"), read_foreign(Source(source)).model
        x = torch.rand(1, 3, 32, 32)
        assert torch.allclose(again.encode_z(x), first.encode_z(x), atol=1e-5)
        picture(1).save(tmp_path / "a.png")
        short = ("-m", tmp_path / "model", "--inference-steps", 2)
        result = pdae("reconstruct", tmp_path / "a.png", "-o", tmp_path / "b.png", *short)
        assert result.code == 0, result.err
        refused = pdae("encode", tmp_path / "a.png", "-o", tmp_path / "z.safetensors",
                       "--guidance", 2, *short)  # fmt: skip
        assert refused.code == 2 and "no G_psi" in refused.err
        train = pdae("train", "autoencoder", tmp_path, "--dpm", source, "-o", tmp_path / "run")
        assert train.code == 2 and "takes z itself" in train.err

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"enc_pool": "depthconv"}, "enc_pool"),
            ({"num_input_res_blocks": 3}, "num_input_res_blocks"),
            ({"channel_mult": (1, 3)}, "shape"),
            ({"enc_channel_mult": (1, 2)}, "doesn't account for|shape"),
            ({"model_channels": "32"}, "model_channels is '32'"),
            ({"enc_num_res_block": 10**9}, "blocks must be 1 to 64"),
            ({"num_res_blocks": 10**9}, "num_input_res|blocks must be 1 to 64"),
        ],
    )
    def test_settings_that_dont_fit(
        self, changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(ModelError, match=message):
            read_foreign(Source(diffae(tmp_path, monkeypatch, **changes)))

    def test_settings_beside_those_in_the_checkpoint_are_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other = tmp_path / "other.yml"
        other.write_text("T: 500\n")
        with pytest.raises(UsageError, match="--config can't be followed"):
            read_foreign(Source(diffae(tmp_path, monkeypatch) / "last.ckpt", other))

    def test_a_classifier_alone_points_to_its_autoencoder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = diffae(tmp_path, monkeypatch).parent / "faces_autoenc_cls"
        with pytest.raises(ModelError, match="taken along with the autoencoder"):
            read_foreign(Source(folder))
