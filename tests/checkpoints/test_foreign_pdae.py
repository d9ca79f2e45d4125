"""The authors' release: what belongs together is gathered; what is missing or doesn't fit is named.

That the numbers are theirs is shown in test_golden_pdae.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import foreign_models
import pytest
import torch
import yaml
from conftest import unet_config
from foreign_models import latent_state, made, save, under_their_names

from pdae_cli.checkpoints import names
from pdae_cli.checkpoints.convert import family_of, read_foreign
from pdae_cli.checkpoints.pdae import CELEBA_ATTRIBUTES
from pdae_cli.checkpoints.source import Source
from pdae_cli.errors import ModelError
from pdae_cli.networks.encoder import Encoder, EncoderConfig
from pdae_cli.networks.gradient import GradientEstimator
from pdae_cli.networks.latent import LatentConfig
from pdae_cli.networks.unet import UNet

Z, quick = 8, foreign_models.quick
UNET = unet_config(base_channels=32, groups=32, attention=(16,), head_channels=None, heads=2)


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
    def test_also_from_where_it_lies(self, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """`cd …/autoencoder/NAME; pdae convert .`: the neighbours are of the folder's own name."""
        named = read_foreign(Source(unit_of(whole)))
        monkeypatch.chdir(unit_of(whole))
        for path in (Path(), Path("checkpoint.pt")):
            here = read_foreign(Source(path))
            assert here.model.latent_dpm and here.model.config == named.model.config
            assert here.notes == named.notes

    def test_one_call_gathers_what_belongs_together(self, whole: Path) -> None:
        for path in (whole, unit_of(whole), unit_of(whole) / "checkpoint.pt"):
            assert family_of(Source(path)) == "pdae"
        conversion = read_foreign(Source(whole))
        model = conversion.model
        assert model.gradient_estimator and model.encoder and model.latent_dpm
        assert model.attributes and model.attributes.names == list(CELEBA_ATTRIBUTES)
        assert len(CELEBA_ATTRIBUTES) == 40 and CELEBA_ATTRIBUTES[31] == "Smiling"
        assert model.config.normalisation is not None and model.schedule.timesteps == 1000
        assert "none stated" in model.config.licence
        assert any("attributes from" in note for note in conversion.notes)
        used = sum(row.used for row in conversion.rows)
        networks = (model.dpm, model.gradient_estimator, model.encoder, model.latent_dpm)
        assert used == sum(len(network.state_dict()) for network in networks if network)
        assert any("by its other name" in row.what and not row.used for row in conversion.rows)

    def test_a_dpm_alone(self, whole: Path) -> None:
        model = read_foreign(Source(whole / "pre-trained-dpms" / "faces128")).model
        assert model.gradient_estimator is None and model.encoder is None

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
        ("section", "field", "value", "message"),
        [
            ("denoise_fn", "base_channel", 64, "shape"),
            ("denoise_fn", "channel_multiplier", [1, 2, 2], "lacks the tensor|shape"),
            ("denoise_fn", "num_residual_blocks_of_a_block", 2, "lacks the tensor|shape"),
            ("denoise_fn", "attention_resolutions", [], "lacks the tensor|doesn't account for"),
            ("denoise_fn", "num_class", 10, "num_class"),
            ("denoise_fn", "base_channel", "wide", "base_channel is 'wide'"),
            ("denoise_fn", "input_channel", None, "input_channel"),
            ("diffusion", "timesteps", 10**12, "timesteps"),  # nor is memory for them taken
            ("diffusion", "timesteps", 0, "timesteps"),
            ("diffusion", "timesteps", "many", "timesteps"),
            ("diffusion", "betas_type", "sqrt", "betas"),
        ],
    )
    def test_a_config_that_doesnt_fit(
        self, section: str, field: str, value: Any, message: str, root: Path
    ) -> None:
        path = root / "pre-trained-dpms" / "faces128" / "config.yml"
        config = yaml.safe_load(path.read_text())
        config[f"{section}_config"][field] = value
        path.write_text(yaml.dump(config))
        with pytest.raises(ModelError, match=message):
            read_foreign(Source(unit_of(root)))

    def test_yaml_that_would_run_something_is_refused(self, root: Path) -> None:
        path = unit_of(root) / "config.yml"
        path.write_text("trained_ddpm_config: !!python/object/apply:os.system ['true']\n")
        with pytest.raises(ModelError, match="can't be read as a config"):
            read_foreign(Source(unit_of(root)))

    @pytest.mark.parametrize(
        ("folder", "key", "name", "change", "message"),
        [
            ("pre-trained-dpms", "denoise_fn", "out.2.bias", 1, r"isn't the DPM .*bias differs"),
            ("trained-models/autoencoder", "encoder", "encoder.0.bias", torch.nan, "aren't finite"),
        ],
    )
    def test_other_numbers(
        self, folder: str, key: str, name: str, change: float, message: str, root: Path
    ) -> None:
        path = root / folder / "faces128" / "checkpoint.pt"
        content = torch.load(path, weights_only=True)
        content[f"ema_{key}"][name] += change
        torch.save(content, path)
        with pytest.raises(ModelError, match=message):
            read_foreign(Source(unit_of(root)))

    def test_of_several_models_one_must_be_named(self, root: Path) -> None:
        shutil.copytree(unit_of(root), unit_of(root).parent / "horses128")
        with pytest.raises(ModelError, match=r"several models; name one of .*horses128"):
            read_foreign(Source(root))

    def test_a_latent_dpm_is_no_model(self, whole: Path) -> None:
        path = whole / "trained-models" / "latent_denoise_fn" / "faces128"
        with pytest.raises(ModelError, match="convert its autoencoder"):
            read_foreign(Source(path))
