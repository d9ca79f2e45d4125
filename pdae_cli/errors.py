"""Every failure a user can cause, with its exit code; and what numbers out of files may be.

A message is one line: what failed, why, and what to do. Commands let these pass; `cli` turns them
into a line on stderr and the exit code.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from signal import Signals
from typing import Any, NamedTuple, get_args, get_type_hints

STOPPED = 130  # the exit code of what one of these ended: Ctrl-C, schedulers, closed terminals
STOPPING = [one for one in Signals if one.name in ("SIGINT", "SIGTERM", "SIGHUP")]


class PdaeError(Exception):
    """Base of all expected failures."""

    exit_code = 1


class UsageError(PdaeError):
    """The arguments contradict each other or name something that doesn't exist."""

    exit_code = 2


class InputError(PdaeError):
    """One input can't be read, or its output can't be written; the others go on."""

    exit_code = 3


class StorageError(PdaeError):
    """There is no room for outputs, or a server of inputs or of outputs fails; going on would be
    for nothing."""

    exit_code = 3


class ModelError(PdaeError):
    """The model can't be had, can't be read, or lacks the part that is asked for."""

    exit_code = 4


class OutOfMemory(PdaeError):
    """The device has no room for the work."""

    exit_code = 5


class Range(NamedTuple):
    """What a number may be, both ends included: `steps: Annotated[int, Range(1, 1000)]`."""

    least: float
    most: float


def check_ranges(config: Any, kind: type[Exception] = ValueError) -> None:
    """Raise an error of that kind, which names the field, where a number of a dataclass lies
    outside of the range that its annotation gives it."""
    own: Any = type(config)
    for name, (least, most) in ranges(own).items():
        value = vars(config)[name]
        for number in value if isinstance(value, tuple) else (value,):
            if number is None:
                continue
            if not isinstance(number, int | float):
                raise kind(f"{name.replace('_', ' ')} must be a number, not {number!r}")
            if not least <= number <= most:
                large = isinstance(number, int) and number.bit_length() > 64
                told = "so large a number" if large else number
                raise kind(f"{name.replace('_', ' ')} must be {least} to {most}, not {told}")


def check_known(
    what: str, value: object, known: Collection[str], kind: type[Exception] = ValueError
) -> None:
    """Raise an error of that kind, which names the known ones, for a value that isn't of them."""
    if value not in known:
        raise kind(f"unknown {what} {value!r}; known: {', '.join(known)}")


@cache
def ranges(kind: Any) -> dict[str, Range]:
    """Find the ranges that a dataclass's annotations give: by field, of all numbers in it."""
    found = {name: _range(hint) for name, hint in get_type_hints(kind, None, None, True).items()}
    return {name: one for name, one in found.items() if one is not None}


def _range(hint: Any) -> Range | None:
    inner = (*getattr(hint, "__metadata__", ()), *map(_range, get_args(hint)))
    return next((one for one in inner if isinstance(one, Range)), None)


def printable(text: str) -> str:
    """Text without control characters, so that a file's name can't steer what shows it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def counted(count: int, what: str) -> str:
    """ "1 result", "1,000 results"."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"
