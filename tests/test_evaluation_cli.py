"""pdae evaluate: records, tables, plots and sheets, and what is refused."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from conftest import Command, picture
from PIL import Image

from pdae_cli.cli.evaluate import every
from pdae_cli.cli.evaluating import EvaluateOptions
from pdae_cli.cli.findings import Section, page
from pdae_cli.errors import UsageError
from pdae_cli.evaluation.plots import Line, Plot

HOSTILE = "</style><script>alert(1)</script>\"'\x1b"

QUICK: dict[str, tuple[str, ...]] = {
    "gap": (),
    "reconstruction": ("--solvers", "dpmpp,ddim", "--steps", "2,3"),
    "stages": ("--edges", "0,500,999"),
    "attributes": ("--train", "10"),
    "samples": ("-n", "5", "--steps", "2,3", "--pictures", "12"),
    "semantics": ("--noises", "2"),
}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twenty labelled pictures, the last twelve held out; a label says whether they are red."""
    folder = tmp_path / "photos"
    folder.mkdir()
    lines = ["file,split,red,odd"]
    for number in range(20):
        red = number % 2 == 0
        plain = Image.new("RGB", (32, 32), "red" if red else "blue")
        Image.blend(picture(number, (32, 32)), plain, 0.7).save(folder / f"{number:02d}.png")
        split = "train" if number < 8 else "val"
        lines.append(f"{number:02d}.png,{split},{int(red)},{int(number % 4 == 1)}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("name", QUICK)
def test_records_table_plot_and_sheet_say_the_same(
    pdae: Command, photos: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "out"
    args = ("evaluate", name, photos, "--pictures", 4, *QUICK[name], "-o", out)
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
    if (out / "sheet.png").exists():
        with Image.open(out / "sheet.png") as sheet:
            assert min(sheet.size) > 32 and f"evaluate {name}" in sheet.text["pdae"]
    assert result.err.strip().endswith("the sheet")  # the words come before
    again = pdae(*args)
    assert again.code == 3 and "--overwrite" in again.err
    assert pdae(*args, "--overwrite").code == 0


def test_without_json_a_table_and_a_line_of_words(pdae: Command, photos: Path) -> None:
    result = pdae("evaluate", "gap", photos, "--pictures", 3)
    lines = result.text.splitlines()
    assert result.code == 0 and lines[0].split()[:2] == ["t", "pictures"]
    assert len({len(line) for line in lines[:-1]}) == 1
    assert "posterior mean gap" in lines[-1] and lines[-1].endswith(".")


def test_only_held_out_pictures_count_unless_all_shall(pdae: Command, photos: Path) -> None:
    for extra, count in (((), 12), (("--whole",), 20)):
        result = pdae("evaluate", "gap", photos, "--json", *extra)
        assert {row["pictures"] for row in records(result.text)} == {count}


def test_the_seed_decides(pdae: Command, photos: Path) -> None:
    runs = [
        pdae("evaluate", "gap", photos, "--pictures", 4, "--json", "--seed", seed).text
        for seed in (0, 0, 1)
    ]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("gap", "nowhere"), 3, "no such folder"),
        (("gap", "{photos}", "--fit", "squeeze"), 2, "crop, pad, stretch"),
        (("gap", "{photos}", "--pictures", "1"), 2, "at least 2"),
        (("attributes", "{photos}", "--whole"), 2, "held-out"),
        (("samples", "{photos}", "--whole"), 2, "held-out"),
        (("stages", "{photos}", "--edges", "999"), 2, "two edges or more"),
        (("samples", "{photos}", "--judge", "{photos}/labels.csv"), 4, "can't be read"),
        (("reconstruction", "{photos}", "--solvers", "magic"), 2, "unknown solver"),
        (("reconstruction", "{photos}", "--solvers", ","), 2, "at least one"),
        (("reconstruction", "{photos}", "--steps", "few"), 2, "whole numbers"),
    ],
)
def test_refusals(pdae: Command, photos: Path, args: tuple[str, ...], code: int, says: str) -> None:
    result = pdae("evaluate", *(one.format(photos=photos) for one in args))
    assert result.code == code and says in result.err and len(result.err.splitlines()) == 1


class TestAll:
    """One page of every experiment."""

    def test_a_page_of_what_could_be_measured(
        self, pdae: Command, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from pdae_cli.cli import evaluate

        def few(m: Any, judge: Path | None, quick: bool) -> dict[str, Any]:
            from pdae_cli.evaluation.gap import gap

            assert quick and judge is None

            def refused() -> Any:
                raise UsageError("too <few> pictures")

            return {"gap": lambda: gap(m.model, m.measured("gap")), "samples": refused}

        monkeypatch.setattr(evaluate, "every", few)
        page = tmp_path / "page.html"
        args = ("evaluate", "all", "--quick", photos, "-o", page)
        result = pdae(*args, "--json")
        assert result.code == 0, result.err
        assert {row["experiment"] for row in records(result.text)} == {"gap"}
        assert "samples is left out" in result.err
        text = page.read_text()
        assert "Left out: too &lt;few&gt; pictures." in text and "data:image/svg+xml" in text
        assert text.count("<h2") == 2 and "posterior mean gap" in text
        assert pdae(*args).code == 3 and pdae(*args, "--overwrite").code == 0

    def test_the_page_is_an_html_file(self, pdae: Command, photos: Path, tmp_path: Path) -> None:
        result = pdae("evaluate", "all", photos, "-o", tmp_path / "page.pdf")
        assert result.code == 2 and ".html" in result.err

    def test_every_experiment_is_there(self, tiny_folder: Path, photos: Path) -> None:
        options = EvaluateOptions(model=str(tiny_folder), device="cpu")
        named = every(options.material(photos), None, quick=True)
        assert set(named) == set(QUICK)
        assert {row["pictures"] for row in named["gap"]().rows} == {8}


class TestPage:
    def test_it_loads_nothing_and_runs_nothing(self) -> None:
        plot = Plot(HOSTILE, "x", "y", [Line(HOSTILE, [1, 2], [1, 2])])
        sheet = torch.zeros(3, 8, 8, dtype=torch.uint8)
        rows = [{HOSTILE: HOSTILE, "n": 0.5, "none": None}] * 30
        text = page(HOSTILE, [Section(HOSTILE, HOSTILE, rows, plot, sheet)], {HOSTILE: HOSTILE})
        assert "<script" not in text and "http://" not in text
        policy = re.findall(r"sha256-([^']+)'", text)
        style = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(style[0].encode()).digest()).decode()
        assert policy == [digest] and "default-src 'none'" in text
        sources = re.findall(r'src="([^"]{0,22})', text)
        assert sources == ["data:image/svg+xml;bas", "data:image/png;base64,"]
        assert "All 30 rows" in text and "0.5" in text
