"""A page that says what a command made of its inputs: one HTML file that needs nothing else, and is
read in full without scripts."""

from __future__ import annotations

import io
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from PIL import Image
from torch import Tensor

from ...errors import counted
from ...pictures.images import to_image
from .. import pages

EXACT = 128  # longest side of pictures that are shown as they are, in PNG
LONGEST = 256  # of others, made smaller, in WebP
PICTURE_BYTES = 32 << 20  # of all pictures of a page; rows after that have none


@dataclass(frozen=True)
class ReportRow:
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
    rows: list[ReportRow] = field(default_factory=list)
    without: int = 0  # rows whose pictures had no room
    _bytes: int = 0

    def add(self, record: Mapping[str, Any], pictures: Mapping[str, Tensor] | None = None) -> None:
        """Add one input: its record (JSON-able; any fields) and uint8 pictures (C, H, W) by titles.

        Pictures are kept as thumbnails until PICTURE_BYTES are full; the page says of how many
        rows they are left out.
        """
        thumbnails = {}
        if pictures and self._bytes < PICTURE_BYTES:
            thumbnails = {title: thumbnail(one) for title, one in pictures.items()}
            self._bytes += sum(map(len, thumbnails.values()))
        self.without += bool(pictures) and not thumbnails
        self.rows.append(ReportRow(dict(_flat(record)), thumbnails))

    def page(self, generated_at: datetime | None = None) -> str:
        """Render the page, as text that UTF-8 can say."""
        failed = [row for row in self.rows if row.record.get("status") == "failed"]
        rows = [row for row in self.rows if row.record.get("status") != "failed"]
        several = len(rows) > 1
        columns = pages.columns(row.record for row in rows)
        said = {name: [row.record.get(name) for row in rows] for name in columns}
        # What several records all say alike is told once, not in each row.
        shared = {
            name: pages.shown(values[0])
            for name, values in said.items()
            if several and name not in ("input", "output") and all(v == values[0] for v in values)
        }
        names = [name for name in columns if name not in (*shared, "input", "output")]
        names += ["output"] if "output" in columns else []
        figures = {name: _figures(said[name]) for name in names if several and columns[name]}
        causes = defaultdict(list)
        for row in failed:
            cause = pages.shown(row.record.get("error", "unknown")).removeprefix(f"{row.name}: ")
            causes[cause].append(row.name)
        counts = Counter(pages.shown(row.record.get("status", "done")) for row in self.rows)
        told = ", ".join(f"{count:,} {status}" for status, count in counts.most_common())
        room = f"Pictures take {PICTURE_BYTES >> 20} MiB; {self.without} more rows have none."
        return pages.render(
            "report.html",
            self.title,
            script="report.js",
            summary=f"{counted(len(self.rows), 'result')}{': ' if told else ''}{told}.",
            failed=len(failed),
            causes=sorted(causes.items(), key=lambda one: -len(one[1])),  # the most frequent first
            figures={name: figure for name, figure in figures.items() if figure},
            rows=rows,
            titles=list(dict.fromkeys(title for row in rows for title in row.pictures)),
            columns={name: columns[name] for name in names},
            facts=self.facts | shared,
            room=room if self.without else "",
            time=generated_at and generated_at.isoformat(timespec="seconds"),
        )


def thumbnail(picture: Tensor) -> bytes:
    """Encode a uint8 picture (C, H, W) for a page: PNG, exact, up to EXACT pixels a side, else WebP
    of at most LONGEST."""
    image, buffer = to_image(picture), io.BytesIO()
    if max(image.size) <= EXACT:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
        image.save(buffer, "WEBP", quality=85)
    return buffer.getvalue()


def _flat(record: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The fields of a record; those of a dict in it as "outer inner"."""
    for key, value in record.items():
        name = f"{above} {key}" if above else str(key)
        if isinstance(value, dict):
            yield from _flat(value, name)
        else:
            yield name, value


def _figures(values: Iterable[Any]) -> tuple[float, ...]:
    """Count, mean, median and range of the finite numbers among values, if there are any."""
    told = [v for v in values if pages.is_number(v) and abs(v) <= sys.float_info.max]
    if not told:
        return ()
    return len(told), statistics.fmean(told), statistics.median(told), min(told), max(told)
