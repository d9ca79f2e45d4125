"""Every experiment on other kinds of model: it works, or says in one line why it can't."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_runs import records
from conftest import Command, randomise, tiny_model
from labelled import labelled

from pdae_cli.checkpoints import write_latent_dpm, write_model
from pdae_cli.engine.config import Normalisation
from pdae_cli.engine.model import Model
from pdae_cli.networks.classifier import Classes
from pdae_cli.networks.latent import LatentConfig, LatentDPM
from pdae_cli.training.conditional import with_labels
from pdae_cli.training.diffae import new_diffae

OPTIONS: dict[str, tuple[object, ...]] = {
    "gap": ("--pictures", 3),
    "reconstruction": ("--pictures", 2, "--solvers", "ddim", "--steps", "2"),
    "stages": ("--pictures", 2, "--edges", "0,999"),
    "attributes": ("--train", 20, "--pictures", 10),
    "samples": ("-n", 5, "--steps", "2", "--pictures", 10),
    "semantics": ("--pictures", 2, "--noises", 2),
}
NO_GAP = "has no G_psi, so there is no gap that it could close"
NO_STAGES = "has no G_psi to guide with"
LACKS = "lacks an encoder; `pdae train` makes one"
TAKES_LABELS = "lacks an encoder; G_psi takes labels, not z"
# What each gives on each kind of model: a number of rows, or what it says with exit code 4.
EXPECTED: dict[str, dict[str, int | str]] = {
    "diffae": {
        "gap": NO_GAP,
        "reconstruction": 2,  # eps_theta alone makes nothing without z
        "stages": NO_STAGES,
        "attributes": 18,  # three representations: two labels, their mean, three numbers of labels
        "samples": "has no latent DPM, and its eps_theta makes nothing without z",
        "semantics": 6,  # and no attributes
    },
    "diffae-latent": {"samples": 2},
    "dpm": {
        "gap": NO_GAP,
        "stages": NO_STAGES,
        **dict.fromkeys(("reconstruction", "attributes", "semantics"), LACKS),
        "samples": 2,
    },
    "labelled": dict.fromkeys(OPTIONS, TAKES_LABELS) | {"samples": 2},  # of eps_theta alone
}
CASES = [(kind, name) for kind, row in EXPECTED.items() for name in row]


def diffae(latent: bool = False, image_size: int = 32) -> Model:
    """A Diff-AE with random weights."""
    model = new_diffae(
        3, "linear", "eps", 6, dropout=0.0, image_size=image_size, channels=3, patch=1,
        base_channels=8, multipliers=(1, 2), blocks=1, attention=(16,), head_channels=8,
    )  # fmt: skip
    assert model.encoder is not None
    for part in (model.dpm, model.encoder):
        randomise(part, 0.03)
    if latent:
        model.config = model.config.__class__(
            **vars(model.config) | {"normalisation": Normalisation((0.0,) * 6, (1.0,) * 6)}
        )
        model.latent_dpm = LatentDPM(LatentConfig(6, width=16, layers=3, dropout=0.0))
    return model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> dict[str, Path]:
    """A folder for each kind of model."""
    base = tmp_path_factory.mktemp("kinds")
    tiny = tiny_model()
    made = {
        "diffae": diffae(),
        "diffae-latent": diffae(latent=True),
        "diffae-16": diffae(image_size=16),
        "dpm": Model(type(tiny.config)(tiny.config.schedule, tiny.config.unet, "eps"), tiny.dpm),
    }
    made["labelled"] = with_labels(tiny_model(), Classes(("red", "odd"), False), 6, seed=0)
    folders = {"pdae": tiny_folder}
    for kind, model in made.items():
        folders[kind] = base / kind
        write_model(folders[kind], model)
        if model.latent_dpm is not None:
            write_latent_dpm(folders[kind], model.latent_dpm, {})
    return folders


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty labelled pictures, half of them held out."""
    return labelled(tmp_path_factory.mktemp("data") / "photos", 40, train=20)


@pytest.mark.parametrize(("kind", "name"), CASES, ids=[f"{a}-{b}" for a, b in CASES])
def test_each_works_or_says_why_not(
    pdae: Command, models: dict[str, Path], photos: Path, kind: str, name: str
) -> None:
    expected = EXPECTED[kind][name]
    result = pdae("evaluate", name, photos, *OPTIONS[name], "--json", model=models[kind])
    if isinstance(expected, str):
        last = result.err.splitlines()[-1]
        assert result.code == 4 and last.startswith("error: ") and expected in last
        assert models[kind].name in last and result.text == ""
    else:
        assert result.code == 0, result.err
        rows = records(result.text)
        assert len(rows) == expected and all(row["model"] for row in rows)


class TestBeside:
    """`evaluate attributes --beside`: the z of other models in the same table."""

    def test_models_of_any_kind_and_size_that_have_z(
        self, pdae: Command, models: dict[str, Path], photos: Path
    ) -> None:
        """A model beside itself says the same twice."""
        names = ("diffae", "diffae-16", "diffae-latent", "pdae")
        beside = [one for name in names for one in ("--beside", models[name])]
        args = ("evaluate", "attributes", photos, *OPTIONS["attributes"], *beside, "--json")
        result = pdae(*args)
        assert result.code == 0, result.err
        found: dict[object, list[object]] = {}
        for row in records(result.text):
            found.setdefault(row.pop("representation"), []).append(row)
        expected = ["z of tiny", *(f"z of {name}" for name in names[:3]), "z of tiny, model 5"]
        assert list(found) == [*expected, "pixels", "PCA of 6"]
        assert found["z of tiny"] == found["z of tiny, model 5"] != found["pixels"]

    @pytest.mark.parametrize(
        ("other", "says"), [("dpm", LACKS), ("nowhere", "neither a folder nor bundled")]
    )
    def test_others_are_refused(
        self, pdae: Command, models: dict[str, Path], photos: Path, other: str, says: str
    ) -> None:
        args = ("evaluate", "attributes", photos, *OPTIONS["attributes"], "--json")
        result = pdae(*args, "--beside", models.get(other, other))
        assert result.code == 4 and result.text == ""
        assert len(result.err.splitlines()) == 1 and says in result.err


def test_samples_are_refused_before_a_judge_is_trained(
    pdae: Command, models: dict[str, Path], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(*args: object, **kwargs: object) -> None:
        raise AssertionError("a judge is trained")

    monkeypatch.setattr("pdae_cli.training.judge.train_judge", trained)
    assert pdae("evaluate", "samples", photos, model=models["diffae"]).code == 4
    assert pdae("evaluate", "samples", photos, model=models["pdae"]).code == 1
