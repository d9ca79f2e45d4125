"""A page that says what a command made of its inputs: one HTML file that needs nothing else.

It loads nothing and runs no script but its own, by its Content-Security-Policy, and is read in full
without scripts. Names and values are anybody's: each is escaped, and none stands in a script, a
style or an address.
"""

from __future__ import annotations

import io
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from PIL import Image
from torch import Tensor

from ...pictures.images import to_image
from .. import pages

EXACT = 128  # longest side of pictures that are shown as they are, in PNG
LONGEST = 256  # of others, made smaller, in WebP
PICTURE_BYTES = 32 << 20  # of all pictures of a page; rows after that have none
LISTED = 5  # inputs of one failure that are seen at once
NEVER_SHARED = ("input", "output")  # columns, even where all rows say the same
LARGEST = sys.float_info.max


@dataclass(frozen=True)
class Row:
    """One input's record, dicts in it flattened, and thumbnails by their titles."""

    record: dict[str, Any]
    pictures: dict[str, bytes]

    @property
    def name(self) -> str:
        return pages.shown(self.record.get("input", ""))


@dataclass
class Report:
    """What is told of one run: records as commands emit them, with pictures."""

    title: str
    facts: dict[str, str] = field(default_factory=dict)  # of the run as a whole
    rows: list[Row] = field(default_factory=list)
    without: int = 0  # rows whose pictures had no room
    _bytes: int = 0

    def add(self, record: Mapping[str, Any], pictures: Mapping[str, Tensor] | None = None) -> None:
        """One input: its record (JSON-able; any fields) and uint8 pictures (C, H, W) by titles.

        Pictures are kept as thumbnails until PICTURE_BYTES are full; the page says of how many
        rows they are left out.
        """
        thumbnails = {}
        if pictures and self._bytes < PICTURE_BYTES:
            thumbnails = {title: thumbnail(one) for title, one in pictures.items()}
            self._bytes += sum(map(len, thumbnails.values()))
        self.without += bool(pictures) and not thumbnails
        self.rows.append(Row(dict(_flat(record)), thumbnails))

    def page(self, generated_at: datetime | None = None) -> str:
        """The page, as text that UTF-8 can say."""
        failed = [row for row in self.rows if row.record.get("status") == "failed"]
        others = [row for row in self.rows if row.record.get("status") != "failed"]
        shared = _shared(others)
        return pages.document(
            self.title,
            [
                f"<p>{_counts(self.rows)}</p>",
                _failures(failed),
                _figures(others, shared),
                _results(others, shared),
            ],
            [pages.facts({**self.facts, **shared}), self._notes(generated_at)],
            script=pages.asset("report.js"),
        )

    def _notes(self, generated_at: datetime | None) -> str:
        notes = []
        if self.without:
            notes.append(
                f"Pictures take {PICTURE_BYTES >> 20} MiB; {self.without} more rows have none."
            )
        if generated_at is not None:
            time = generated_at.isoformat(timespec="seconds")
            notes.append(f'Made <time datetime="{time}">{time}</time>.')
        return "".join(f"<p>{note}</p>" for note in notes)


def thumbnail(picture: Tensor) -> bytes:
    """A uint8 picture (C, H, W) for a page: PNG, exact, up to EXACT pixels a side, else WebP of
    at most LONGEST."""
    image, buffer = to_image(picture), io.BytesIO()
    if max(image.size) <= EXACT:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
        image.save(buffer, "WEBP", quality=85)
    return buffer.getvalue()


# --- Sections ----------------------------------------------------------------------------------


def _counts(rows: list[Row]) -> str:
    counts = Counter(pages.shown(row.record.get("status", "done")) for row in rows)
    parts = ", ".join(
        f"{count:,} {pages.escaped(status)}" for status, count in counts.most_common()
    )
    return f"{_plural(len(rows), 'result')}{': ' if parts else ''}{parts}."


def _failures(rows: list[Row]) -> str:
    """Failures by cause, the most frequent first."""
    causes = defaultdict(list)
    for row in rows:
        cause = pages.shown(row.record.get("error", "unknown")).removeprefix(f"{row.name}: ")
        causes[cause].append(row.name)
    if not causes:
        return ""
    body = []
    for cause, names in sorted(causes.items(), key=lambda one: -len(one[1])):
        listed = "<ul>" + "".join(f"<li>{pages.escaped(name)}</li>" for name in names) + "</ul>"
        if len(names) > LISTED:
            summary = _plural(len(names), "input")
            listed = f"<details><summary>{summary}</summary>{listed}</details>"
        body.append([pages.row_head(cause), pages.cell(len(names)), f"<td>{listed}</td>"])
    heads = [pages.head("cause"), pages.head("times", True), pages.head("inputs", sorts=False)]
    table = pages.table("Failures", heads, body)
    return f'<h2 class="bad">{_plural(len(rows), "failure")}</h2>{table}'


def _figures(rows: list[Row], shared: Mapping[str, str]) -> str:
    """Mean, median and range of each numeric column that varies."""
    body = []
    for name in _numeric(rows):
        if name in shared:
            continue
        values = (row.record.get(name) for row in rows)
        told = [value for value in values if pages.is_number(value) and abs(value) <= LARGEST]
        if told:
            figures = (statistics.fmean(told), statistics.median(told), min(told), max(told))
            body.append([pages.row_head(name), *map(pages.cell, (len(told), *figures))])
    if not body or len(rows) < 2:
        return ""
    heads = [pages.head(one, number=one != "figure", sorts=False)
             for one in ("figure", "count", "mean", "median", "lowest", "highest")]  # fmt: skip
    return f"<h2>Figures</h2>{pages.table('Figures', heads, body)}"


def _results(rows: list[Row], shared: Mapping[str, str]) -> str:
    if not rows:
        return ""
    titles = list(dict.fromkeys(title for row in rows for title in row.pictures))
    names = [name for name in _names(rows) if name not in shared and name != "input"]
    numeric = set(_numeric(rows))
    heads = [pages.head("input"), *(pages.head(title, sorts=False) for title in titles)]
    heads += [pages.head(name, number=name in numeric) for name in names]
    body = [
        [
            pages.row_head(row.name),
            *(_picture(row, title) for title in titles),
            *(pages.cell(row.record.get(name), name in numeric) for name in names),
        ]
        for row in rows
    ]
    return f"<h2>Results</h2>{pages.table('Results', heads, body)}"


def _picture(row: Row, title: str) -> str:
    data = row.pictures.get(title)
    if data is None:
        return f'<td class="picture">{pages.MISSING}</td>'
    kind = "png" if data.startswith(b"\x89PNG") else "webp"
    picture = pages.image(kind, data, f"{title}: {row.name}", ' decoding="async"')
    return f'<td class="picture">{picture}</td>'


def _plural(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


# --- Columns -----------------------------------------------------------------------------------


def _flat(record: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, Any]]:
    """The fields of a record; those of a dict in it as "outer inner"."""
    for key, value in record.items():
        name = f"{above} {key}" if above else str(key)
        if isinstance(value, dict):
            yield from _flat(value, name)
        else:
            yield name, value


def _names(rows: Iterable[Row]) -> list[str]:
    """Every field of any record, as they come, the output last."""
    names = dict.fromkeys(name for row in rows for name in row.record)
    return sorted(names, key=lambda name: name == "output")


def _numeric(rows: list[Row]) -> list[str]:
    """Fields with numbers and nothing else."""
    values = {name: [row.record.get(name) for row in rows] for name in _names(rows)}
    return [
        name
        for name, column in values.items()
        if all(value is None or pages.is_number(value) for value in column)
        and any(value is not None for value in column)
    ]


def _shared(rows: list[Row]) -> dict[str, str]:
    """Fields that all of several records have alike: said once, not in each row."""
    if len(rows) < 2:
        return {}
    return {
        name: pages.shown(rows[0].record.get(name))
        for name in _names(rows)
        if name not in NEVER_SHARED
        and all(row.record.get(name) == rows[0].record.get(name) for row in rows)
    }
