"""The authors' release and Diff-AE's checkpoints as folders: what belongs together is gathered, and
what is missing or doesn't fit is named. Made on the spot: our networks under their names.

That the numbers are theirs is shown in test_golden.py.
"""

from __future__ import annotations

import shutil
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Command, picture, randomise, read_pickles_here, unet_config
from torch import Tensor, nn

from pdae_cli.checkpoints import names, read_model
from pdae_cli.checkpoints.convert import FAMILIES, Source, family_of, read_foreign
from pdae_cli.checkpoints.pdae import CELEBA_ATTRIBUTES
from pdae_cli.engine.model import Model
from pdae_cli.errors import ModelError
from pdae_cli.networks.encoder import Encoder, EncoderConfig
from pdae_cli.networks.gradient import GradientEstimator
from pdae_cli.networks.half_unet import HalfUNet, HalfUNetConfig
from pdae_cli.networks.latent import LatentConfig, LatentDPM
from pdae_cli.networks.unet import UNet

Z = 8
UNET = unet_config(base_channels=32, groups=32, attention=(16,), head_channels=None, heads=2)


def under_their_names(network: nn.Module, table: names.Table) -> dict[str, Tensor]:
    """A network's tensors as the source keeps them; attention is made of 1x1 convolutions there."""
    state = {}
    for name, value in network.state_dict().items():
        module, _, kind = name.rpartition(".")
        (theirs,) = table[module]
        in_attention = theirs.endswith((".qkv", ".proj_out")) and kind == "weight"
        state[f"{theirs}.{kind}"] = value[..., None] if in_attention else value
    return state


def made(network: nn.Module) -> nn.Module:
    randomise(network, 0.05)
    return network


def latent_state(cfg: LatentConfig) -> dict[str, Tensor]:
    """The MLP's tensors; the authors keep each linear_emb a second time."""
    state = under_their_names(made(LatentDPM(cfg)), names.latent_mlp(cfg.layers))
    again = {k.replace("linear_emb", "cond_layers.1"): v for k, v in state.items()}
    return state | {k: v for k, v in again.items() if "cond_layers" in k}


def save(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(dict(content), path)


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.dump(dict(content)))


def release(root: Path, name: str = "faces128") -> Path:
    """A whole release of the authors in small; returns its root."""
    torch.manual_seed(4)
    encoder = EncoderConfig(32, 3, (32, 64, 64), attention_size=16, heads=4, z_dim=Z)
    dpm = under_their_names(made(UNet(UNET)), names.adm_unet(UNET))
    gradient = under_their_names(made(GradientEstimator(UNET, Z)), names.pdae_gradient(UNET))
    folder = root / "pre-trained-dpms" / name
    save(folder / "checkpoint.pt", {"ema_denoise_fn": dpm})
    shape = {
        "model": "AClassThatIsNotThere", "input_channel": 3, "base_channel": 32, "dims": 2,
        "channel_multiplier": [1, 2], "num_residual_blocks_of_a_block": 1, "num_heads": 2,
        "attention_resolutions": [2], "head_channel": -1, "dropout": 0.1,
        "use_new_attention_order": False,
    }  # fmt: skip
    common = {
        "diffusion_config": {"timesteps": 1000, "betas_type": "linear"},
        "train_dataset_config": {"name": "FACES", "image_size": 32, "image_channel": 3},
        "optimizer_config": {"lr": "1e-4", "adam_betas": "(0.9, 0.999)"},
    }
    write_yaml(folder / "config.yml", common | {"denoise_fn_config": shape})
    trained = root / "trained-models"
    unit = trained / "autoencoder" / name
    save(
        unit / "checkpoint.pt",
        {
            "ema_encoder": under_their_names(made(Encoder(encoder)), names.pdae_encoder(encoder)),
            "ema_decoder": dpm | gradient,
            "step": 3,
            "optimizer": {"state": {}},
        },
    )
    stated = {"trained_ddpm_config": f"./pre-trained-dpms/{name}/config.yml"}
    write_yaml(unit / "config.yml", common | stated)
    save(trained / "latents" / "faces.pt", {"mean": torch.randn(Z), "std": torch.ones(Z)})
    latent = {"input_channel": Z, "model_channel": 16, "num_layers": 3, "time_emb_channel": 64}
    write_yaml(
        trained / "latent_denoise_fn" / name / "config.yml",
        {"latent_denoise_fn_config": latent | {"use_norm": True, "dropout": 0.0}},
    )
    cfg = LatentConfig(Z, 16, 2, 0.0, time_channels=64, embedding_channels=Z)
    weights = {"ema_latent_denoise_fn": latent_state(cfg)}
    save(trained / "latent_denoise_fn" / name / "checkpoint.pt", weights)
    classifier = {"weight": torch.randn(40, Z), "bias": torch.zeros(40)}
    save(trained / "classifier" / "checkpoint.pt", {"ema_classifier": classifier})
    return root


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "pdae" not in request.fixturenames:
        read_pickles_here(monkeypatch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return release(tmp_path_factory.mktemp("release"))


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    """A release to break."""
    return Path(shutil.copytree(whole, tmp_path / "release"))


def unit_of(root: Path) -> Path:
    return root / "trained-models" / "autoencoder" / "faces128"


class TestAuthorsRelease:
    def test_one_call_gathers_what_belongs_together(self, whole: Path) -> None:
        for path in (whole, unit_of(whole), unit_of(whole) / "checkpoint.pt"):
            assert family_of(Source(path)) == "pdae"
        conversion = read_foreign(Source(whole))
        model = conversion.model
        assert model.gradient_estimator and model.encoder_network and model.latent_dpm
        assert model.attributes and model.attributes.names == list(CELEBA_ATTRIBUTES)
        assert len(CELEBA_ATTRIBUTES) == 40 and CELEBA_ATTRIBUTES[31] == "Smiling"
        assert model.config.normalisation is not None and model.schedule.timesteps == 1000
        assert "none stated" in model.config.licence
        assert any("attributes from" in note for note in conversion.notes)
        used = sum(row.used for row in conversion.rows)
        networks = (model.dpm, model.gradient_estimator, model.encoder_network, model.latent_dpm)
        assert used == sum(len(network.state_dict()) for network in networks if network)
        assert any("by its other name" in row.what and not row.used for row in conversion.rows)

    def test_a_dpm_alone(self, whole: Path) -> None:
        model = read_foreign(Source(whole / "pre-trained-dpms" / "faces128")).model
        assert model.gradient_estimator is None and model.encoder_network is None

    def test_a_trainers_checkpoint(self, root: Path, tmp_path: Path) -> None:
        """As their trainer writes it: checkpoints/latest.pt below the run, more keys inside."""
        run = root / "diffusion_output" / "run"
        (run / "checkpoints").mkdir(parents=True)
        content = torch.load(unit_of(root) / "checkpoint.pt", weights_only=True)
        more = {"encoder": content["ema_encoder"], "decoder": content["ema_decoder"]}
        torch.save(content | more | {"scaler": {}}, run / "checkpoints" / "latest.pt")
        shutil.copy(unit_of(root) / "config.yml", run)
        for path in (run, run / "checkpoints" / "latest.pt"):
            conversion = read_foreign(Source(path))
            assert conversion.model.gradient_estimator is not None
            assert any("not the averaged" in row.what for row in conversion.rows)

    @pytest.mark.parametrize(
        ("remove", "message"),
        [
            ("trained-models/autoencoder/faces128/config.yml", r"found no config\.yml"),
            ("pre-trained-dpms/faces128/config.yml", r"config of the autoencoder.s DPM; looked"),
            ("pre-trained-dpms", r"config of the autoencoder's DPM; looked for"),
            ("trained-models/autoencoder/faces128/checkpoint.pt", "no checkpoint|no known family"),
        ],
    )
    def test_what_is_missing_is_named(self, remove: str, message: str, root: Path) -> None:
        gone = root / remove
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
        with pytest.raises(ModelError, match=message):
            read_foreign(Source(unit_of(root)))

    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("base_channel", 64, "shape"),
            ("channel_multiplier", [1, 2, 2], "lacks the tensor|shape"),
            ("num_residual_blocks_of_a_block", 2, "lacks the tensor|shape"),
            ("attention_resolutions", [], "lacks the tensor|doesn't account for"),
            ("num_class", 10, "num_class"),
            ("base_channel", "wide", "base_channel is 'wide'"),
            ("input_channel", None, "input_channel"),
        ],
    )
    def test_a_config_that_doesnt_fit(
        self, field: str, value: Any, message: str, root: Path
    ) -> None:
        path = root / "pre-trained-dpms" / "faces128" / "config.yml"
        config = yaml.safe_load(path.read_text())
        config["denoise_fn_config"][field] = value
        path.write_text(yaml.dump(config))
        with pytest.raises(ModelError, match=message):
            read_foreign(Source(unit_of(root)))

    @pytest.mark.parametrize(
        "diffusion",
        [
            {"timesteps": 10**12, "betas_type": "linear"},
            {"timesteps": 0, "betas_type": "linear"},
            {"timesteps": 1000, "betas_type": "sqrt"},
            {"timesteps": "many", "betas_type": "linear"},
        ],
    )
    def test_a_schedule_that_cant_be(self, diffusion: dict[str, Any], root: Path) -> None:
        """Nor may a config make us allocate what it likes."""
        path = root / "pre-trained-dpms" / "faces128" / "config.yml"
        config = yaml.safe_load(path.read_text()) | {"diffusion_config": diffusion}
        path.write_text(yaml.dump(config))
        with pytest.raises(ModelError, match=r"timesteps|betas"):
            read_foreign(Source(unit_of(root)))

    def test_yaml_that_would_run_something_is_refused(self, root: Path) -> None:
        path = unit_of(root) / "config.yml"
        path.write_text("trained_ddpm_config: !!python/object/apply:os.system ['true']\n")
        with pytest.raises(ModelError, match="can't be read as a config"):
            read_foreign(Source(unit_of(root)))

    def test_another_dpm_beside_is_noticed(self, root: Path) -> None:
        path = root / "pre-trained-dpms" / "faces128" / "checkpoint.pt"
        content = torch.load(path, weights_only=True)
        content["ema_denoise_fn"]["out.2.bias"] += 1
        torch.save(content, path)
        with pytest.raises(ModelError, match=r"isn't the DPM .* out\.2\.bias differs"):
            read_foreign(Source(unit_of(root)))

    def test_numbers_that_arent_finite(self, root: Path) -> None:
        path = unit_of(root) / "checkpoint.pt"
        content = torch.load(path, weights_only=True)
        content["ema_encoder"]["encoder.0.bias"][0] = float("nan")
        torch.save(content, path)
        with pytest.raises(ModelError, match=r"encoder\.0\.bias .* aren't finite"):
            read_foreign(Source(unit_of(root)))

    def test_of_several_models_one_must_be_named(self, root: Path) -> None:
        shutil.copytree(unit_of(root), unit_of(root).parent / "horses128")
        with pytest.raises(ModelError, match=r"several models; name one of .*horses128"):
            read_foreign(Source(root))

    def test_a_latent_dpm_is_no_model(self, whole: Path) -> None:
        path = whole / "trained-models" / "latent_denoise_fn" / "faces128"
        with pytest.raises(ModelError, match="convert its autoencoder"):
            read_foreign(Source(path))


# --- Diff-AE --------------------------------------------------------------------------------------


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
    half["out.3.weight"] = half["out.3.weight"][:, :, None, None]
    latent = latent_state(LatentConfig(Z, 16, 2, 0.0, time_channels=64, embedding_channels=Z))
    state |= {f"encoder.{k}": v for k, v in half.items()}
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
        assert torch.allclose(again.encoder(x), first.encoder(x), atol=1e-5)
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
            ({"enc_num_res_block": 10**9}, "levels of 1000000000 blocks"),
            ({"num_res_blocks": 10**9}, "num_input_res|levels of 1000000000 blocks"),
        ],
    )
    def test_settings_that_dont_fit(
        self,
        changes: dict[str, Any],
        message: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        with pytest.raises(ModelError, match=message):
            read_foreign(Source(diffae(tmp_path, monkeypatch, **changes)))

    def test_a_classifier_alone_points_to_its_autoencoder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = diffae(tmp_path, monkeypatch).parent / "faces_autoenc_cls"
        with pytest.raises(ModelError, match="taken along with the autoencoder"):
            read_foreign(Source(folder))


# --- The reference checkpoints, by the commands alone ---------------------------------------------

CHECKPOINTS = {
    "pdae_A_celeba64": "pdae",
    "pdae_B_ffhq128/trained-models/autoencoder/ffhq128": "pdae",
    "pdae_A_celeba64/pre-trained-dpms/celeba64": "pdae",
    "diffae_autoenc64/checkpoints/tiny64_autoenc_latent": "diffae",
    "diffae_ddpm64/checkpoints/tiny64_ddpm/last.ckpt": "diffae",
    "guided_uncond64_learnsigma": "guided-diffusion",
    "guided_uncond64_fixedsigma": "guided-diffusion",
    "diffusers_ddpm/pipeline": "diffusers",
    "diffusers_ddpm/legacy_root_layout": "diffusers",
    "diffusers_adm/pipeline": "diffusers",
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of diffusers
@pytest.mark.parametrize("path", CHECKPOINTS)
def test_commands_on_reference_checkpoints(
    path: str, shared: Path, pdae: Command, tmp_path: Path
) -> None:
    source, model = shared / "golden" / path, tmp_path / "model"
    assert family_of(Source(source)) == CHECKPOINTS[path] and CHECKPOINTS[path] in FAMILIES
    result = pdae("convert", source, "-o", model)
    assert result.code == 0, result.err
    assert f"source: {CHECKPOINTS[path]}" in pdae("info", model).text
    picture(2, (64, 64)).save(tmp_path / "a.png")
    steps = ("-m", model, "--inference-steps", 2)
    codes, back = tmp_path / "z.safetensors", tmp_path / "back.png"
    encoded = pdae("encode", tmp_path / "a.png", "-o", codes, *steps)
    if read_model(model, "m").encoder_network is None:
        assert encoded.code == 4 and "lacks an encoder" in encoded.err
        plain = pdae("sample", "--unconditional", "-n", 1, "-o", back, *steps)
        assert plain.code == 0, plain.err
        data = tmp_path / "data"
        data.mkdir()
        for seed in range(6):
            picture(seed, (64, 64)).save(data / f"{seed}.png")
        short = ("--z-dim", 4, "--images", 2, "--batch-size", 1, "--save-every", 2)
        trained = pdae("train", "autoencoder", data, "--dpm", source, "-o", tmp_path / "r", *short)
        assert trained.code == 0, trained.err
        same_dpm(read_model(tmp_path / "r", "r"), read_model(model, "m"))
        return
    assert encoded.code == 0, encoded.err
    for command in (("decode", codes), ("reconstruct", tmp_path / "a.png")):
        done = pdae(*command, "-o", back, "--overwrite", *steps)
        assert done.code == 0, done.err


def same_dpm(a: Model, b: Model) -> None:
    """eps_theta is the same to the bit: frozen stays frozen."""
    weights = b.dpm.state_dict()
    for name, value in a.dpm.state_dict().items():
        assert torch.equal(value, weights[name]), name
