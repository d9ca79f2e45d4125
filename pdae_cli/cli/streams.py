"""Standard streams that are closed, full, or left by their reader."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, BinaryIO

from ..errors import InputError, StorageError


class Messages(io.FileIO):
    """Standard error: what nobody can hear isn't said, and the work goes on."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


class ReaderLeft(KeyboardInterrupt):
    """Who reads standard output has left, and the work ends as by Ctrl-C: training saves."""


class Results(io.FileIO):
    """Standard output: what can't be written is StorageError, once, whatever comes after it, and
    where its reader left ReaderLeft."""

    failed = False

    def write(self, data: Any, /) -> int:
        try:
            return memoryview(data).nbytes if self.failed else super().write(data)
        except OSError as error:
            self.failed = True  # what is still buffered
            if isinstance(error, BrokenPipeError) and sys.platform != "win32":
                raise ReaderLeft from error
            why = f"{error.strerror or error}; make room, or send it elsewhere, and run it again"
            raise StorageError(f"can't write standard output: {why}") from error


def results() -> BinaryIO:
    """Return standard output for bytes. Raises InputError where it was closed before we began."""
    if getattr(sys.stdout, "name", "") == os.devnull:
        raise InputError("standard output is closed; name a file with -o")
    return sys.stdout.buffer


@contextmanager
def standard_streams() -> Iterator[None]:
    """Have print and the rest write through Results and Messages; a stream that is closed is
    os.devnull, also for what other libraries write to its number."""
    for number in range(3):  # a parent's event loop may have set them so: no data is then an end
        with suppress(AttributeError, OSError):  # Windows has none before Python 3.12
            os.set_blocking(number, True)
    if sys.stdin is None:
        sys.stdin = open(os.devnull)  # noqa: SIM115, PTH123
    with (
        redirect_stdout(_through(Results, sys.stdout)),
        redirect_stderr(_through(Messages, sys.stderr)),
    ):
        yield


def _through(kind: type[io.FileIO], stream: Any) -> Any:
    """A text stream for what `stream` writes to; consoles that know few characters get others."""
    if sys.platform == "win32" and stream is not None and stream.isatty():
        return stream  # Windows writes to its consoles in another way
    try:
        raw = kind(os.devnull, "w") if stream is None else kind(stream.fileno(), "w", closefd=False)
    except (OSError, ValueError):
        return stream  # none of the system's
    buffer, encoding = io.BufferedWriter(raw), getattr(stream, "encoding", None)
    lines = kind is Messages or raw.isatty()
    return io.TextIOWrapper(buffer, encoding, "replace", line_buffering=lines)
