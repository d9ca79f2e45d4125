"""Where everything that a command says goes: results to stdout, all else to stderr."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)  # fmt: skip

from ..errors import printable

WIDE = 70  # characters that a whole progress line needs
LONGEST = 1500  # characters of a message
SCHEMA = 1  # version of the records, see record.schema.json


def plain(value: Any) -> Any:
    """The value with None for what JSON has no number for: infinities and NaN."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _lines(record: dict[str, Any], indent: str = "") -> Iterator[str]:
    """For people: a line for each fact, those of a fact that has parts indented below it."""
    for key, value in record.items():
        if isinstance(value, dict) and value:
            yield f"{indent}{key}:"
            yield from _lines(value, indent + "  ")
        else:
            shown = value if isinstance(value, str) else json.dumps(value)
            yield f"{indent}{key}: {'none' if value is None else shown}"


class Output:
    """Human, `--json` (a line for each result) or `--quiet` (failures only)."""

    def __init__(self, json: bool = False, quiet: bool = False) -> None:
        self.json, self.quiet = json, quiet
        self.console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)

    def result(self, record: dict[str, Any], text: str) -> None:
        """One result: the record as a JSON line, or the text."""
        if self.json:
            print(json.dumps({"schema": SCHEMA, **plain(record)}, allow_nan=False), flush=True)
        elif text and not self.quiet:
            print(printable(text), flush=True)

    def facts(self, record: dict[str, Any]) -> None:
        """What is known of something: one JSON line, or a line for each fact."""
        for line in [""] if self.json else _lines(record):
            self.result(record, line)

    def say(self, text: str) -> None:
        """A message for people."""
        if not self.quiet:
            self._write(text)

    def warn(self, text: str) -> None:
        self._write(f"warning: {text}")

    def error(self, text: str) -> None:
        self._write(f"error: {text}")

    def _write(self, text: str) -> None:
        text = printable(" ".join(text.split()))
        if len(text) > LONGEST:  # of a stranger's file, which isn't to flood the terminal
            text = f"{text[: LONGEST - 300]} … {text[-300:]}"
        self.console.print(text, markup=False)

    @property
    def interactive(self) -> bool:
        """Someone watches stderr."""
        return sys.stderr.isatty() and not self.quiet and not self.json

    @contextmanager
    def progress(self, what: str, total: int | None, nfe: int = 0) -> Iterator[ProgressLine]:
        """A progress bar on stderr while someone watches: of `total` pictures, or of as many as
        come, with `nfe` network evaluations each where that is known."""
        name, left = TextColumn("{task.description}"), TimeRemainingColumn()
        count, note = TextColumn("{task.fields[pictures]}"), TextColumn("{task.fields[note]}")
        columns: tuple[ProgressColumn, ...] = (name, count, left)
        if self.console.width >= WIDE:
            columns = (name, BarColumn(), count, note, TimeElapsedColumn(), left)
        bar = Progress(
            *columns,
            console=self.console,
            disable=not self.interactive,
            redirect_stdout=sys.stdout.isatty(),  # else results in a file or pipe would go astray
        )
        with bar:
            yield ProgressLine(bar, what, total, nfe)


class ProgressLine:
    """One bar of a `Progress`: it counts pictures, and moves with every network evaluation."""

    def __init__(self, bar: Progress, what: str, total: int | None, nfe: int = 0) -> None:
        self.total, self.nfe = total, max(nfe, 1)
        self.pictures = self.evaluations = 0
        self.begun = time.perf_counter()
        steps = None if total is None else total * self.nfe
        self._bar = bar
        self._task = bar.add_task(what, total=steps, pictures=self._count(), note="")

    def expect(self, total: int, nfe: int | None = None) -> None:
        """So many pictures are to come, with so many evaluations each."""
        self.total, self.nfe = total, max(self.nfe if nfe is None else nfe, 1)
        self._bar.update(self._task, total=total * self.nfe, pictures=self._count())

    def _count(self) -> str:
        return f"{self.pictures}/{'?' if self.total is None else self.total}"

    def tell(self, note: str) -> None:
        """What is done before the networks are evaluated."""
        self._bar.update(self._task, note=note)

    def advance(self, pictures: int) -> None:
        """So many more pictures are through."""
        self.advance_to(self.pictures + pictures, self._rate())

    def advance_to(self, pictures: int, note: str = "") -> None:
        """So many pictures are through."""
        self.pictures = pictures
        self._bar.update(
            self._task, completed=pictures * self.nfe, pictures=self._count(), note=note
        )

    def evaluated(self, rows: int) -> None:
        """The networks were evaluated for so many pictures of the batch."""
        self.evaluations += rows
        if self.nfe > 1:  # else the bar counts pictures
            self._bar.update(self._task, advance=rows, note=self._rate())

    def _rate(self) -> str:
        seconds = time.perf_counter() - self.begun
        return f"{self.evaluations / seconds:.0f} evaluations/s" if self.evaluations else ""
