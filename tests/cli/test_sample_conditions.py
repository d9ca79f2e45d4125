"""Commands that train on labels and sample by them: labels, classifiers, a few pictures."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from cli_runs import pixels_of
from conftest import Command, picture, tiny_model
from labelled import labelled
from PIL import Image

from pdae_cli.checkpoints import write_model
from pdae_cli.cli.output import ProgressLine
from pdae_cli.engine import guidance

ARGS = ("--images", 16, "--batch-size", 8, "--z-dim", 6, "--device", "cpu")
FAST = ("--inference-steps", 2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Blue pictures and red ones, of which some are cats' and some dogs'."""
    labels = {"blue": lambda n: n % 2, "kind": lambda n: "dog" if n % 3 else "cat"}
    return labelled(tmp_path_factory.mktemp("data") / "photos", 12, 8, labels=labels)


@pytest.mark.parametrize(
    ("columns", "label", "other"), [("blue", "blue", "blue=0"), ("kind", "dog", "cat")]
)
def test_a_gradient_estimator_of_labels(
    pdae: Command, data: Path, tiny_folder: Path, tmp_path: Path, columns: str, label: str,
    other: str,
) -> None:  # fmt: skip
    run = tmp_path / "run"
    train = ("train", "autoencoder", data, "-o", run, "--condition", columns, *ARGS)
    result = pdae(*train, "--dpm", tiny_folder)
    assert result.code == 0, result.err
    assert "gap_closed_shuffled" in result.err
    assert list((run / "training").glob("autoencoder-*.png"))
    info = json.loads(pdae("info", run, "--json").text)
    assert label in info["labels"]["classes"]["names"] and info["parameters"]["labels"] > 0
    row, plain, none = (tmp_path / name for name in ("r.png", "p.png", "q.png"))
    of = ("sample", "-n", 2, *FAST, "--label", label, "--guidance", "0,1,2.5", "-o", row)
    assert pdae(*of, model=run).code == 0
    with Image.open(row) as sheet:
        assert sheet.size == (2 * 32 + 2, 3 * 32)
        top = sheet.crop((0, 0, 32, 32)).tobytes()
    one = ("sample", "-n", 1, *FAST, "-o")
    assert pdae(*one, plain, "--unconditional", model=run).code == 0
    assert pixels_of(plain) == top
    assert pdae(*one, none, "--label", other, model=run).code == 0
    assert pdae("redo", row, "--model", run).code == 0
    for unfit in (one, ("sample", "--like", data, "-o"), ("encode", data, "--no-noise", "-o")):
        refused = pdae(*unfit, tmp_path / "x.safetensors" if "encode" in unfit else none, model=run)
        assert refused.code == 4 and "G_psi takes labels, not z" in refused.err
        assert f"--label ({info['labels']['classes']['names'][0]}" in refused.err


def test_a_classifier(pdae: Command, data: Path, tiny_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = pdae(
        "train", "classifier", data, "-o", run, "--condition", "kind", "--dpm", tiny_folder,
        "--base-channels", 8, "--images", 16, "--batch-size", 8, "--device", "cpu",
    )  # fmt: skip
    assert result.code == 0 and "held_out_loss" in result.err
    assert list((run / "training").glob("classifier-*.png"))
    line = ("sample", "-n", 2, *FAST, "-o")
    of = ("--label", "dog", "--classifier", run, "--classifier-scale")
    for scale in ("0", "5", "0,5"):
        made = pdae(*line, tmp_path / f"{scale}.png", *of, scale)
        assert made.code == 0, made.err
    assert pdae(*line, tmp_path / "plain.png", "--unconditional").code == 0
    pixels = [pixels_of(tmp_path / name) for name in ("0.png", "5.png", "plain.png")]
    assert pixels[0] == pixels[2] != pixels[1]
    with Image.open(tmp_path / "0,5.png") as both:  # one strength below the other
        assert both.size == (2 * 32 + 2, 2 * 32)
        rows = [both.crop((0, top, 2 * 32 + 2, top + 32)).tobytes() for top in (0, 32)]
    assert rows == pixels[:2]
    for name in ("5.png", "0,5.png"):
        assert pdae("redo", tmp_path / name).code == 0


def test_labels_that_are_not_there(pdae: Command, data: Path, tmp_path: Path) -> None:
    command = ("train", "classifier", data, "-o", tmp_path / "x", "--condition", "shape")
    result = pdae(*command, "--dpm", "faces64")
    assert result.code == 2 and "no column shape; known: blue, kind" in result.err


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A folder with bright and dark pictures."""
    for name, colour in (("bright", (250, 240, 250)), ("dark", (10, 0, 10))):
        (tmp_path / name).mkdir()
        for seed in range(6):
            whole = Image.new("RGB", (32, 32), colour)
            mixed = Image.blend(whole, picture(seed, (32, 32)), 0.2)
            mixed.save(tmp_path / name / f"{seed}.png")
    return tmp_path


class TestLikeness:
    @pytest.fixture(autouse=True)
    def few(self, monkeypatch: pytest.MonkeyPatch, folders: Path) -> None:
        monkeypatch.setattr(guidance, "UNLABELLED", 32)
        monkeypatch.chdir(folders)

    def test_a_picture_is_the_same_whatever_others_are_made(self, pdae: Command) -> None:
        args = ("sample", "--like", "bright", "--unlike", "dark", *FAST)
        result = pdae(*args, "-n", 3, "-o", "out", "--json")
        assert result.code == 0, result.err
        assert "6 pictures, told from" in result.err and "AUROC" in result.err
        assert pdae(*args, "-n", 1, "--first", 2, "-o", "alone").code == 0
        assert pixels_of("out/00002.png") == pixels_of("alone/00002.png")

    def test_positives_alone_and_one_sheet(
        self, pdae: Command, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The bar tells how far the drawing of z is, which no evaluation moves."""
        told: list[str] = []
        monkeypatch.setattr(ProgressLine, "tell", lambda self, note: told.append(note))
        assert pdae("sample", "--like", "bright", "-n", 2, *FAST, "-o", "x.png").code == 0
        assert Path("x.png").exists() and told[-1].startswith("z 2 of 2, ")

    def test_each_scale_is_a_row(self, pdae: Command) -> None:
        """One below the other, from the same x_T; 1 is the default, 0 what the model makes."""
        args = ("sample", "--like", "bright", *FAST, "-n", 2, "--overwrite", "-o")
        assert pdae(*args, "rows", "--classifier-scale", "0,1,4").code == 0
        assert pdae(*args, "one").code == 0
        with Image.open("rows/00001.png") as rows, Image.open("one/00001.png") as one:
            assert rows.size == (32, 96)
            assert rows.crop((0, 32, 32, 64)).tobytes() == one.convert("RGB").tobytes()
        result = pdae(*args, "x.png", "--classifier-scale", "-1")
        assert result.code == 2 and "0 or more" in result.err

    def test_tables_of_codes_and_of_pictures(
        self, pdae: Command, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", Path("cache").resolve())
        assert pdae("encode", "bright", "--no-noise", "-o", "z.parquet").code == 0
        with tarfile.open("bright.tar", "w") as archive:
            archive.add("bright")
        for table in ("z.parquet", "bright.tar"):
            result = pdae("sample", "--like", table, "-n", 1, *FAST, "-o", "x.png", "--overwrite")
            assert result.code == 0 and "6 pictures, told from" in result.err, result.err

    def test_other_pictures_make_the_folder_anew(self, pdae: Command) -> None:
        args = ("sample", "--like", "bright", "-n", 1, *FAST, "-o", "out")
        assert pdae(*args).code == 0
        assert "1 unchanged" in pdae(*args).err
        Path("bright/0.png").unlink()
        assert "unchanged" not in pdae(*args).err

    def test_a_model_without_latent_dpm(self, pdae: Command) -> None:
        write_model(Path("bare"), tiny_model())
        result = pdae("sample", "--like", "bright", "-o", "x.png", model="bare")
        assert result.code == 4 and "latent DPM" in result.err
