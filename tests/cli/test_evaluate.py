"""pdae evaluate: records, tables, plots and sheets, and what is refused."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from cli_runs import files_in, records
from conftest import Command
from html_pages import assert_harmless
from labelled import labelled
from PIL import Image

from pdae_cli.cli import evaluate, pages
from pdae_cli.cli.evaluation_data import EvaluateOptions
from pdae_cli.cli.output import Output
from pdae_cli.diffusion.solvers import SOLVERS
from pdae_cli.errors import printable
from pdae_cli.evaluation.figures import Finding, Line, Plot

HOSTILE = "</style><script>alert(1)</script>\"'\x1b"
SMALL: dict[str, tuple[str, ...]] = {
    "gap": (),
    "reconstruction": ("--solvers", "dpmpp,ddim", "--steps", "2,3"),
    "stages": ("--edges", "0,500,999"),
    "attributes": ("--train", "10"),
    "samples": ("-n", "5", "--steps", "2,3", "--pictures", "12"),
    "semantics": ("--noises", "2"),
}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return labelled(tmp_path / "photos", 20, train=8)


@pytest.mark.parametrize("name", SMALL)
def test_records_table_plot_and_sheet_say_the_same(
    pdae: Command, photos: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "out"
    args = ("evaluate", name, photos, "--pictures", 4, *SMALL[name], "-o", out)
    result = pdae(*args, "--json")
    assert result.code == 0, result.err
    rows = records(result.text)
    assert all(row["experiment"] == name and row["model"] for row in rows)
    with (out / "table.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(rows) > 0
    for row, line in zip(rows, table, strict=True):
        for key, text in line.items():
            assert text == ("" if row.get(key) is None else str(row[key]))
    ElementTree.parse(out / "plot.svg")
    assert (out / "sheet.png").exists() == (name != "attributes")
    if name != "attributes":
        with Image.open(out / "sheet.png") as sheet:
            assert min(sheet.size) > 32 and f"evaluate {name}" in sheet.text["pdae"]
    assert result.err.strip().endswith("the sheet")  # the words come before
    again = pdae(*args)
    assert again.code == 3 and "--overwrite" in again.err
    if name == "gap":
        assert pdae(*args, "--overwrite").code == 0


def test_another_experiment_leaves_nothing_of_the_one_before(
    pdae: Command, photos: Path, tmp_path: Path
) -> None:
    """Where it may replace that; probes have no sheet."""
    out = tmp_path / "out"
    assert pdae("evaluate", "gap", photos, "--pictures", 4, "-o", out).code == 0
    (out / "notes.txt").write_text("mine")
    args = ("evaluate", "attributes", photos, "--pictures", 4, "--train", 10, "-o", out)
    assert pdae(*args).code == 3 and (out / "sheet.png").exists()
    assert pdae(*args, "--overwrite").code == 0
    assert files_in(out) == ["notes.txt", "plot.svg", "table.csv"]


def test_without_json_a_table_and_a_line_of_words(pdae: Command, photos: Path) -> None:
    lines = pdae("evaluate", "gap", photos, "--pictures", 3).text.splitlines()
    assert lines[0].split()[:2] == ["t", "pictures"] and len(set(map(len, lines[:-1]))) == 1
    assert "posterior mean gap" in lines[-1] and lines[-1].endswith(".")


def test_only_held_out_pictures_count_unless_all_shall(
    pdae: Command, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And how far it is shows only where someone watches."""
    for extra, count in (((), 12), (("--whole",), 20)):
        result = pdae("evaluate", "gap", photos, "--json", *extra)
        assert {row["pictures"] for row in records(result.text)} == {count}
        assert len(result.err.splitlines()) == 1
    monkeypatch.setattr(Output, "interactive", True)
    assert re.search(r"gap.*12/12", pdae("evaluate", "gap", photos).err)


def test_the_seed_decides(pdae: Command, photos: Path) -> None:
    args = ("evaluate", "gap", photos, "--pictures", 4, "--json", "--seed")
    first, again, other = (pdae(*args, seed).text for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("gap", "nowhere"), 3, "no such folder"),
        (("all", "{photos}", "-o", "page.pdf"), 2, ".html"),
        (("stages", "{photos}", "--edges", "999"), 2, "two edges or more"),
        (("samples", "{photos}", "--judge", "{photos}/labels.csv"), 4, "can't be read"),
        (("samples", "{photos}", "--judge", "{photos}"), 4, "a folder, as models are; `pdae eval"),
        (("samples", "{photos}", "--judge", "faces64"), 4, "no such file; `pdae evaluate judge`"),
        (("reconstruction", "{photos}", "--solvers", "magic"), 2, "at least one of dpmpp, ddim"),
        (("reconstruction", "{photos}", "--solvers", ","), 2, "at least one"),
        (("reconstruction", "{photos}", "--steps", "few"), 2, "whole numbers"),
        (("reconstruction", "{photos}", "--steps", ","), 2, "numbers of steps, 1 to 1000"),
        (("samples", "{photos}", "--steps", "2,5000"), 2, "numbers of steps, 1 to 1000"),
    ],
)
def test_refusals(pdae: Command, photos: Path, args: tuple[str, ...], code: int, says: str) -> None:
    result = pdae("evaluate", *(one.format(photos=photos) for one in args))
    assert result.code == code and says in result.err and len(result.err.splitlines()) == 1


@pytest.mark.parametrize(
    "args",
    [
        ("gap", "{photos}", "--fit", "squeeze"),
        ("attributes", "{photos}", "--whole"),  # measured on held-out pictures
        ("samples", "{photos}", "--whole"),
        ("judge", "{photos}", "--whole"),
        ("likelihood", "{photos}", "--solver", "ddim"),
        ("likelihood", "{photos}", "--preset", "exact"),
        ("likelihood", "{photos}", "--keep-alpha"),
    ],
)
def test_options_and_choices_that_a_command_hasnt_got(
    pdae: Command, photos: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...]
) -> None:
    """Before a model is loaded, by Typer itself, and they don't stand in --help."""
    monkeypatch.setattr(EvaluateOptions, "load", None)
    result = pdae("evaluate", *(one.format(photos=photos) for one in args))
    assert result.code == 2 and args[2] in result.err
    if args[2] != "--fit":
        assert f"{args[2]} " not in pdae("evaluate", args[0], "--help").text


def test_solvers_are_those_that_there_are() -> None:
    assert set(evaluate.SOLVERS) == set(SOLVERS)


class TestAll:
    """One page of every experiment."""

    @pytest.mark.parametrize("args", [("all",), ("gap", "-o", "out")])
    def test_without_matplotlib_it_ends_before_the_work(
        self, pdae: Command, photos: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...]
    ) -> None:
        monkeypatch.setattr("pdae_cli.evaluation.figures.find_spec", lambda name: None)
        monkeypatch.setattr(EvaluateOptions, "load", None)
        monkeypatch.chdir(photos)
        result = pdae("evaluate", *args, photos)
        assert result.code == 2 and len(result.err.splitlines()) == 1
        assert "pip install 'pdae-cli[plots]'" in result.err and not (photos / "out").exists()

    def test_the_page_loads_nothing_and_runs_nothing(self) -> None:
        plot = Plot(HOSTILE, "x", "y", [Line(HOSTILE, [1, 2], [1, 2])])
        rows = [{HOSTILE: HOSTILE, "n": 0.5, "none": None}] * 30
        sheet = torch.zeros(3, 8, 8, dtype=torch.uint8)
        finding = Finding(HOSTILE, HOSTILE, rows, plot, sheet)
        findings = [(finding, evaluate.files_of(finding))]
        text = pages.render("evaluation.html", HOSTILE, findings=findings, facts={HOSTILE: HOSTILE})
        page = assert_harmless(text, anchors=[printable(HOSTILE)])
        assert not page.named("script") and len(page.named("style")) == 1
        sources = re.findall(r'src="([^"]{0,22})', text)
        assert sources == ["data:image/svg+xml;bas", "data:image/png;base64,"]
        assert "All 30 rows" in text and page.tables[0][1][1:] == ["0.5", "—"]
