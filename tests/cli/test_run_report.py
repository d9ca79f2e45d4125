"""The page about a run: complete, harmless whatever names hold, and alive in a real browser."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import torch
from html_pages import Page, assert_harmless, column
from PIL import Image

from pdae_cli.cli.run.report import Report, thumbnail
from pdae_cli.errors import printable

HOSTILE = (
    "<script>document.title='owned'</script>.png",
    '"><img src=x onerror="document.title=\'owned\'">.png',
    "</style><script>document.title='owned'</script>",
    "--><svg onload=alert(1)>.png",
    "\x1b[31mred\u202egnp.exe",
    "&lt;b&gt;&amp;.png",
    "\udcff.png",
    "'; DROP TABLE x; --",
)
SCORES = (0.5, 0.25, 1e-05, 3.0, float("inf"), 0.125, 20.0, 1.5)


def grey(value: int = 128, size: int = 16) -> torch.Tensor:
    return torch.full((1, size, size), value, dtype=torch.uint8)


def full(title: str = "pdae reconstruct") -> Report:
    """A run with all there is: hostile names, pictures, failures, odd fields."""
    made = Report(title, {"version": "1.2.3"})
    for number, (name, score) in enumerate(zip(HOSTILE, SCORES, strict=True)):
        record = {
            "status": "done", "input": name, "output": f"out/{number}.png", "mse": score,
            "model": "tiny", "attributes": {"Smiling": {"before": -number}}, name: name,
        }  # fmt: skip
        made.add(record, {"source": grey(), "result": grey(number), "difference x4": grey(0)})
    made.add({"input": "z", "status": "failed", "error": HOSTILE[0]})
    for name in HOSTILE:
        made.add({"input": name, "status": "failed", "error": f"{name}: not a picture"})
    return made


class TestContent:
    def test_every_field_is_a_column_and_every_value_a_cell(self) -> None:
        made = Report("t")
        made.add({"input": "a", "new": {"deep": [1, "x"]}, "flag": True, "none": None})
        made.add({"input": "b", "new": {"deep": [2]}, "other": 12345.678})
        results = Page(made.page()).tables[-1]
        assert results[0] == ["input", "new deep", "flag", "other"]  # none says nothing
        assert column(results, "new deep") == ["1, x", "2"]
        assert column(results, "flag") == ["true", "—"]
        assert column(results, "other") == ["—", "1.235e+04"]

    def test_what_all_records_share_is_said_once(self) -> None:
        page = full().page()
        assert "model" not in Page(page).tables[-1][0]
        assert re.search("<dt>model</dt><dd>tiny</dd>", page)
        alone = Report("t")
        alone.add({"input": "a", "model": "tiny"})
        assert column(Page(alone.page()).tables[-1], "model") == ["tiny"]

    def test_figures_are_of_finite_numbers(self) -> None:
        figures = Page(full().page()).tables[1]
        row = next(row for row in figures if row[0] == "mse")
        told = sorted(score for score in SCORES if score != float("inf"))
        assert row[1] == str(len(told))
        mean, median = sum(told) / len(told), told[len(told) // 2]
        assert [float(one) for one in row[2:]] == pytest.approx(
            [mean, median, told[0], told[-1]], rel=1e-3
        )

    def test_failures_come_first_by_cause_the_most_frequent_on_top(self) -> None:
        failures = Page(full().page()).tables[0]
        assert column(failures, "cause")[0] == "not a picture"
        assert column(failures, "times") == [str(len(HOSTILE)), "1"]
        assert all(printable(name) in failures[1][2] for name in HOSTILE)

    def test_counts_and_times_only_where_there_are_any(self) -> None:
        assert "17 results: 9 failed, 8 done." in full().page()
        assert "<time" not in full().page() == full().page()  # the same page again
        page = full().page(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
        assert '<time datetime="2026-01-02T03:04:05+00:00">' in page

    @pytest.mark.parametrize("rows", [0, 1])
    def test_nothing_and_one_are_pages_too(self, rows: int) -> None:
        made = Report("t")
        for _ in range(rows):
            made.add({"input": "a", "status": "done", "mse": 1.0})
        page = Page(made.page())
        assert len(page.tables) == rows and page.named("title")


class TestPictures:
    def test_small_ones_are_exact_and_large_ones_made_smaller(self) -> None:
        pixels = torch.randint(0, 256, (3, 100, 128), dtype=torch.uint8)
        image = Image.open(io.BytesIO(thumbnail(pixels)))
        assert image.format == "PNG"
        assert image.tobytes() == bytes(pixels.permute(1, 2, 0).flatten().tolist())
        image = Image.open(io.BytesIO(thumbnail(torch.zeros(3, 1000, 500, dtype=torch.uint8))))
        assert (image.format, image.size) == ("WEBP", (128, 256))

    def test_they_end_where_their_room_does_and_the_page_says_so(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        size = len(thumbnail(grey()))
        monkeypatch.setattr("pdae_cli.cli.run.report.PICTURE_BYTES", 4 * size)
        made = Report("t")
        for name in "abcde":
            made.add({"input": name}, {"source": grey(), "result": grey()})
        page = made.page()
        assert len(Page(page).named("img")) == 4 and "3 more rows have none" in page
        assert len(Page(page).tables[-1]) == 6

    def test_each_has_a_text_in_its_place(self) -> None:
        page = Page(full().page())
        images = page.named("img")
        assert len(images) == 3 * len(HOSTILE)
        assert [one["alt"] for one in images[:3]] == [
            f"{title}: {HOSTILE[0]}" for title in ("source", "result", "difference x4")
        ]
        assert Image.open(io.BytesIO(page.images("png")[0])).size == (16, 16)


class TestHarmless:
    def test_no_tag_and_no_attribute_is_a_names(self) -> None:
        page = Page(full(HOSTILE[0]).page())
        assert {tag for tag, _ in page.tags} <= {
            "html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "p", "div",
            "table", "thead", "tbody", "tr", "th", "td", "img", "ul", "li", "details", "summary",
            "footer", "dl", "dt", "dd", "script",
        }  # fmt: skip
        assert len(page.named("script")) == 1 and len(page.named("style")) == 1
        assert {name for _, attributes in page.tags for name in attributes} <= {
            "lang", "charset", "http-equiv", "content", "name", "class", "role", "aria-label",
            "tabindex", "scope", "data-name", "data-value", "alt", "decoding", "src",
        }  # fmt: skip

    def test_names_are_readable_text_and_all_of_it_is(self) -> None:
        text = full(HOSTILE[4]).page().encode().decode()  # which UTF-8 can say
        assert all(c.isprintable() or c == "\n" for c in text)
        cells = column(Page(text).tables[-1], "input")
        assert cells == [printable(name) for name in HOSTILE]
        assert cells[4] == "\\x1b[31mred\\u202egnp.exe" and cells[6] == "\\udcff.png"

    def test_nothing_is_loaded_and_only_its_own_script_and_style_may_act(self) -> None:
        page = assert_harmless(full().page())
        assert len(page.named("script")) == len(page.named("style")) == 1

    def test_it_says_its_language_its_size_and_what_its_headers_are_of(self) -> None:
        page = Page(full().page())
        assert page.named("html") == [{"lang": "en"}]
        assert any(one.get("name") == "viewport" for one in page.named("meta"))
        assert all(one.get("scope") in ("col", "row") for one in page.named("th"))


def test_any_value_of_any_type_is_taken() -> None:
    values: list[Any] = [None, True, 0, -1.5, float("nan"), float("-inf"), "", "x" * 10_000, [],
                         [1, [2, {"a": 3}]], {}, {"a": {}}, {"": 1}, 10**400]  # fmt: skip
    made = Report("t")
    for number, value in enumerate(values):
        made.add({"input": str(number), "value": value, "status": value, "error": value})
    assert len(Page(made.page()).tables[-1]) == len(values) + 1
    made = Report("t")
    for number in (10**400, 1, float("nan")):
        made.add({"number": number})
    assert Page(made.page()).tables[0][1] == ["number", "1", "1", "1", "1", "1"]


# --- In a browser ------------------------------------------------------------------------------

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on PATH")


def browse(page: Path, folder: Path, *options: str, **address: str) -> tuple[str, str]:
    """What a browser without a network makes of a page: the document, and the console's lines."""
    assert BROWSER is not None
    done = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
            "--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=127.0.0.1:9",
            f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=2000", *options,
            "--dump-dom", f"{page.as_uri()}#{urlencode(address)}",
        ],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    console = [line for line in done.stderr.decode().splitlines() if "CONSOLE" in line]
    return done.stdout.decode(), "\n".join(console)


def written(made: Report, folder: Path) -> Path:
    path = folder / "report.html"
    path.write_text(made.page(), encoding="utf-8")
    return path


@needs_browser
class TestInABrowser:
    @pytest.mark.parametrize("order", ["ascending", "descending"])
    def test_rows_are_sorted_as_the_address_says(self, order: str, tmp_path: Path) -> None:
        dom, console = browse(written(full(), tmp_path), tmp_path, sort="mse", order=order)
        assert console == ""
        results = Page(dom).tables[-1]
        values = [float(one.replace("∞", "inf")) for one in column(results, "mse")]
        assert values == sorted(SCORES, reverse=order == "descending")
        assert sorted(column(results, "input")) == sorted(map(printable, HOSTILE))
        heads = [one for one in Page(dom).named("th") if "aria-sort" in one]
        assert [(one["data-name"], one["aria-sort"]) for one in heads] == [("mse", order)]

    def test_without_an_address_rows_stay_and_hostile_names_stay_text(self, tmp_path: Path) -> None:
        dom, console = browse(written(full(), tmp_path), tmp_path)
        assert console == "" and "<title>pdae reconstruct</title>" in dom
        page = Page(dom)
        assert column(page.tables[-1], "input") == [printable(name) for name in HOSTILE]
        assert len(page.named("script")) == 1 and not page.named("svg")
        sortable = [one for one in page.named("th") if "data-name" in one]
        assert len(page.named("button")) == len(sortable) > 0

    def test_text_sorts_naturally_and_what_is_missing_stays_below(self, tmp_path: Path) -> None:
        made = Report("t")
        for name, extra in (("a10", None), ("a9", 2.0), ("a1", 10.0), ("a2", None), ("a3", 1.0)):
            made.add({"input": name, "extra": extra})
        path = written(made, tmp_path)
        dom, _ = browse(path, tmp_path, sort="input")
        assert column(Page(dom).tables[-1], "input") == ["a1", "a2", "a3", "a9", "a10"]
        dom, _ = browse(path, tmp_path, sort="extra", order="descending")
        assert column(Page(dom).tables[-1], "extra") == ["10", "2", "1", "—", "—"]

    def test_a_click_and_a_key_sort(self, tmp_path: Path) -> None:
        """A page of ours in which another script, which the policy doesn't know, acts as a person:
        that one is let in here, and only here."""
        acts = (
            "const b = document.querySelector('th[data-name=mse] button');"
            "b.focus(); if (document.activeElement !== b) throw Error('no focus'); b.click();"
            "setTimeout(() => b.click(), 100)"
        )
        digest = base64.b64encode(hashlib.sha256(acts.encode()).digest()).decode()
        text = full().page().replace("script-src ", f"script-src 'sha256-{digest}' ")
        path = tmp_path / "acted.html"
        path.write_text(text.replace("</body>", f"<script>{acts}</script></body>"), "utf-8")
        dom, console = browse(path, tmp_path)
        assert console == ""
        values = [float(one.replace("∞", "inf")) for one in column(Page(dom).tables[-1], "mse")]
        assert values == sorted(SCORES, reverse=True)

    def test_the_policy_stops_a_script_that_got_in(self, tmp_path: Path) -> None:
        path = tmp_path / "broken.html"
        inlet = "<script>document.title = 'owned'</script><img src=x onerror='alert(1)'>"
        path.write_text(full().page().replace("</main>", inlet + "</main>"), "utf-8")
        dom, console = browse(path, tmp_path)
        assert "<title>owned" not in dom and "Content Security Policy" in html.unescape(console)
