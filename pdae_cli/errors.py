"""Every failure a user can cause, with its exit code.

A message is one line: what failed, why, and what to do. Commands let these pass; `cli` turns them
into a line on stderr and the exit code.
"""

from __future__ import annotations

STOPPED = 130  # the exit code of what Ctrl-C or SIGTERM ended


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
    """There is no room for outputs, or a server of inputs fails; going on would be for nothing."""

    exit_code = 3


class ModelError(PdaeError):
    """The model can't be had, can't be read, or lacks the part that is asked for."""

    exit_code = 4


class OutOfMemory(PdaeError):
    """The device has no room for the work."""

    exit_code = 5


def printable(text: str) -> str:
    """Text without control characters, so that a file's name can't steer what shows it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def counted(count: int, what: str) -> str:
    """ "1 result", "1,000 results"."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"
