"""Where results go: a file, a folder of files, standard output, or nowhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import InputError, UsageError
from ...files import check_writable, write_bytes
from ..streams import results
from .inputs import Item

PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif"}
HOLDING = {"keep_alpha": (".png", ".webp"), "keep_exif": (".png", ".jpg", ".jpeg", ".webp")}


@dataclass(frozen=True)
class Destination:
    """`-` is standard output, nothing is nowhere; else a file or a folder of files."""

    target: str
    suffix: str = ""  # of the files
    folder: bool = False
    stream: bool = False  # to standard output one after the other, as many as there are
    named: bool = False  # by us, because the user didn't: nothing is ever replaced

    @classmethod
    def parse(
        cls,
        target: str | None,
        suffix: str,
        allowed: Set[str] = PICTURE_SUFFIXES,
        *,
        stream: str | None = None,
        stream_out: str | None = None,
        stem: str = "out",
    ) -> Destination:
        """Understand -o: a folder (see `is_folder`), or a file whose suffix names the format, else
        it is `suffix`. Without -o results go to standard output, or where that is a terminal to a
        file here whose name begins with `stem`. --stream is `stream_out` where it says nothing of
        inputs, so that it needs standard output.

        Raises UsageError for a format that can't be written, and for a terminal as -o -;
        InputError, StorageError where nothing can be written.
        """
        if stream_out and not (target == "-" or (target is None and not sys.stdout.isatty())):
            raise UsageError(f"--stream {stream_out} is for -o -; leave it out, or write there")
        stream = stream or stream_out
        if target is None and sys.stdout.isatty():
            return cls(writable(stem + suffix), suffix, named=True)
        if target in (None, "-"):
            if sys.stdout.isatty():
                raise UsageError("won't write binary data to a terminal; leave -o out or name it")
            if stream and suffix != f".{stream}":
                raise UsageError(f"--stream {stream} writes {stream}, not {suffix[1:]}")
            results()
            return cls("-", suffix, stream=bool(stream))
        path = Path(str(target))
        if is_folder(str(target)):
            return cls(writable(target), suffix, folder=True)
        if path.suffix.lower() not in allowed:
            known = ", ".join(sorted(allowed))
            hint = "; for films pipe --stream png into ffmpeg" if path.suffix == ".mp4" else ""
            raise UsageError(f"-o {target}: can't write {path.suffix} here; known: {known}{hint}")
        if suffix in PICTURE_SUFFIXES - {".png"}:  # which isn't told from the default
            agreed(suffix, path)
        return cls(writable(target), path.suffix.lower())

    @property
    def stdout(self) -> bool:
        return self.target == "-"

    @property
    def file(self) -> bool:
        """Whether it is one file."""
        return bool(self.target) and not (self.folder or self.stdout)

    def path(self, place: Path) -> Path:
        """The file for an input's place."""
        if not self.folder:
            return Path(self.target)
        return Path(self.target) / place.with_name(place.name + self.suffix)

    def candidates(self) -> Iterator[Path]:
        """The names that the one file may have: where we chose it, with a number behind."""
        path = Path(self.target)
        yield path
        for number in range(2, 10_000 if self.named else 2):
            yield path.with_name(f"{path.stem}-{number}{path.suffix}")

    def at(self, path: Path) -> Destination:
        """The same one file under another name."""
        return replace(self, target=str(path))

    def write(self, place: Path, data: bytes) -> None:
        """Write one result. Raises InputError, StorageError."""
        if self.stdout:
            results().write(data)
            results().flush()
        elif self.target:
            write_bytes(self.path(place), data)


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise InputError for a file that is there and isn't to be replaced."""
    if os.path.lexists(path) and not overwrite:
        raise InputError(f"{path} exists; pass --overwrite")


def agreed(suffix: str, path: Path) -> None:
    """Raise UsageError where --format isn't what a file's name says."""
    alike = [".jpg" if one == ".jpeg" else one for one in (suffix, path.suffix.lower())]
    if len(set(alike)) > 1:
        raise UsageError(f"-o {path} and --format contradict each other; leave --format out")


def is_folder(target: str) -> bool:
    """Whether a name is that of a folder: it ends in /, has no suffix, or is one."""
    path = Path(target)
    return target.endswith(("/", "\\")) or path.is_dir() or not path.suffix


def writable(target: Any) -> Any:
    """Return the name of an output, also as its option's callback, once it is sure that it can be
    written: before anything is loaded for it. Raises InputError, StorageError."""
    if target is not None:
        name, path = str(target), Path(target)
        check_writable(path if is_folder(name) else path.parent)
    return target


def stem_of(items: Iterable[Item], behind: str = "") -> str:
    """The name, without suffix, of what is made of one input here; "out" of several."""
    one = items[0].place.name if isinstance(items, Sequence) and len(items) == 1 else "out"
    return f"{one}{behind}"
