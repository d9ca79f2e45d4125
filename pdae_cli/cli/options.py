"""Options that several commands share, and how their values are read."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import UsageError

Device = Annotated[
    str, typer.Option(envvar="PDAE_DEVICE", help="auto, cpu, cuda, cuda:1, mps …")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but failures.")]


def numbers(text: str) -> list[int]:
    """"1,2,3" → [1, 2, 3]; an empty text is an empty list."""
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise UsageError(f"{text!r} isn't a list of whole numbers like 1,2,3") from error
