"""`pdae evaluate all --quick` from end to end: a tiny model, a zip of pictures, one page."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from cli_runs import records
from conftest import Command, tiny_model
from html_pages import Page, assert_harmless
from labelled import labelled
from PIL import Image

from pdae_cli.checkpoints.native import write_whole
from pdae_cli.cli.evaluation_data import Material, every
from pdae_cli.errors import InputError, OutOfMemory, PdaeError, StorageError, UsageError
from pdae_cli.evaluation.figures import Finding
from pdae_cli.evaluation.judge import Judge, write_judge

EXPERIMENTS = ["gap", "reconstruction", "stages", "attributes", "samples", "semantics"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model of 16-pixel pictures with random weights."""
    folder, model = tmp_path_factory.mktemp("small") / "small", tiny_model(image_size=16)
    write_whole(folder, model, torch.float32, {})
    return folder


def zipped(folder: Path, count: int, labels: bool, train: int | None = None) -> Path:
    """A zip of generated pictures, a third of them held out, or all but so many."""
    train = 2 * count // 3 if train is None else train
    path = folder / "faces.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in labelled(folder / "faces", count, train=train, size=16).iterdir():
            if labels or file.suffix == ".png":
                archive.write(file, file.name)
    return path


def headings(page: Page) -> list[str]:
    return [text for tag, text in page.texts if tag == "h2"]


def test_reconstruction_needs_no_judge() -> None:
    """Where labels tell no pictures apart there is none, and it is measured all the same."""

    def judge(*args: object) -> None:
        raise UsageError("no label tells pictures apart")

    material: Any = SimpleNamespace(labels=True, judge=judge, reconstruction=lambda by, **how: by)
    for name in ("gap", "stages", "attributes", "samples", "semantics"):
        setattr(material, name, None)
    assert every(material, None, quick=True)["reconstruction"]() is None


def test_with_labels_every_experiment_is_on_the_page(
    pdae: Command, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pdae_cli.evaluation.stages.EDGES", (0, 500, 999))  # not fifteen stages
    out, data = tmp_path / "page.html", zipped(tmp_path, 48, labels=True)
    args = ("--quick", "--whole", "-o", out, "--json")  # probes and samples stay with held-out ones
    result = pdae("evaluate", "all", data, *args, model=small)
    assert result.code == 0, result.err
    rows = records(result.text)
    assert list(dict.fromkeys(row["experiment"] for row in rows)) == EXPERIMENTS
    judged = {row["features"] for row in rows if "features" in row}
    assert len(judged) == 1, "reconstruction and samples are measured by one judge"
    assert {row["pictures"] for row in rows if row["experiment"] == "gap"} == {8}
    assert "left out" not in result.err
    again = pdae("evaluate", "all", data, "-o", out, model=small)
    assert again.code == 3 and "--overwrite" in again.err

    page = assert_harmless(out.read_text(), anchors=EXPERIMENTS)
    assert headings(page) == EXPERIMENTS
    svgs, pngs = page.images("svg+xml"), page.images("png")
    assert len(svgs) == 6 and len(pngs) == 5  # probes show no pictures
    drawn = (element for svg in svgs for element in ElementTree.fromstring(svg).iter())
    links = [value for one in drawn for key, value in one.items() if "href" in key]
    assert all(value.startswith("#") for value in links)
    for png in pngs:
        Image.open(io.BytesIO(png)).verify()
    assert len(page.tables) == 6


def test_without_labels_it_says_what_it_leaves_out(
    pdae: Command, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pdae_cli.evaluation.stages.EDGES", (0, 999))  # one stage, not fifteen
    out, data = tmp_path / "page.html", zipped(tmp_path, 120, labels=False)
    result = pdae("evaluate", "all", "--quick", data, "-o", out, model=small)
    assert result.code == 0, result.err
    said = [line for line in result.err.splitlines() if "left out" in line]
    assert [line.split()[1] for line in said] == ["attributes", "samples"]
    assert "no labels.csv; pass --labels CSV" in said[0]
    assert "pass --labels CSV, or a judge" in said[1]
    page = Page(out.read_text())
    assert headings(page) == EXPERIMENTS and len(page.tables) == 4
    assert out.read_text().count("Left out: ") == 4  # above and in the section
    assert "LPIPS is left out" in result.text  # without labels there is no judge


@pytest.mark.parametrize(
    ("error", "code"),
    [(InputError, 3), (OutOfMemory, 5), (UsageError, 0), (StorageError, None),
     (torch.OutOfMemoryError, 5)],
)  # fmt: skip
def test_an_experiment_that_fails_costs_itself_alone(
    pdae: Command, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    error: type[Exception], code: int | None,
) -> None:  # fmt: skip
    """Of a full disk or a server that fails, all."""

    def failing(*args: object, **options: object) -> None:
        raise error("it fails")

    for name in set(EXPERIMENTS) - {"gap"}:
        monkeypatch.setattr(Material, name, failing)
    told = "it fails" if issubclass(error, PdaeError) else "out of memory; choose a smaller"
    out, data = tmp_path / "page.html", zipped(tmp_path, 12, labels=False)
    result = pdae("evaluate", "all", "--quick", "--whole", data, "-o", out, model=small)
    if code is None:
        assert result.code == 3 and not out.exists()
        return
    assert result.code == code and result.err.count(f"is left out: {told}") == 5
    page = Page(out.read_text())
    assert headings(page) == EXPERIMENTS and len(page.tables) == 1


def test_where_labels_hold_out_all_what_learns_nothing_is_measured(
    pdae: Command, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On all of the data; what is held out alone has no other part, which is said at once."""
    for name in set(EXPERIMENTS) - {"gap", "attributes"}:
        monkeypatch.setattr(Material, name, lambda *_, **__: Finding("it", "It is."))
    out, data = tmp_path / "page.html", zipped(tmp_path, 12, labels=True, train=0)
    result = pdae("evaluate", "all", "--quick", "--whole", data, "-o", out, model=small)
    assert result.code == 0, result.err
    assert "attributes is left out: " in result.err and "all held out by its labels" in result.err
    assert "0 pictures to learn from, 12 to measure on" in out.read_text()
    out.unlink()
    judge = tmp_path / "judge.safetensors"
    write_judge(judge, Judge(["bright"], size=16), {"bright": 0.9})
    args = ("--quick", "--whole", "--judge", judge, "-o", out)
    assert pdae("evaluate", "all", data, *args, model=small).code == 0
    out.unlink()
    result = pdae("evaluate", "all", "--quick", data, "-o", out, model=small)
    assert result.code == 2 and len(result.err.splitlines()) == 1 and not out.exists()


def test_a_judge_that_is_none_ends_it_before_all_work(
    pdae: Command, small: Path, tmp_path: Path
) -> None:
    out, data = tmp_path / "page.html", zipped(tmp_path, 12, labels=True)
    result = pdae("evaluate", "all", data, "-o", out, "--judge", data, model=small)
    assert result.code == 4 and len(result.err.splitlines()) == 1 and not out.exists()
