"""Where results go: a file, a folder of files, or standard output."""

from __future__ import annotations

import sys
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from ...errors import UsageError

PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif"}
CODES_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Destination:
    """`-` is standard output, else a file or a folder of files."""

    target: str
    suffix: str  # of the files
    folder: bool
    stream: bool = False  # to standard output one after the other, as many as there are

    @classmethod
    def parse(
        cls,
        target: str,
        default_suffix: str,
        allowed: Set[str] = PICTURE_SUFFIXES,
        stream: str | None = None,
    ) -> Destination:
        """A folder is what ends in / or has no suffix or is one; a suffix names the format."""
        path = Path(target)
        if target == "-":
            if stream and default_suffix != f".{stream}":
                raise UsageError(f"--stream {stream} writes {stream}, not {default_suffix[1:]}")
            return cls(target, default_suffix, folder=False, stream=bool(stream))
        if target.endswith(("/", "\\")) or path.is_dir() or not path.suffix:
            return cls(target, default_suffix, folder=True)
        suffix = path.suffix.lower()
        if suffix not in allowed:
            known = ", ".join(sorted(allowed))
            raise UsageError(f"-o {target}: can't write {suffix} here; known: {known}")
        return cls(target, suffix, folder=False)

    @property
    def stdout(self) -> bool:
        return self.target == "-"

    def path(self, place: Path) -> Path:
        """The file for an input's place."""
        if not self.folder:
            return Path(self.target)
        return Path(self.target) / place.with_name(place.name + self.suffix)

    def write(self, place: Path, data: bytes) -> None:
        """Write one result. Raises InputError, StorageError."""
        from ...files import write_bytes

        if self.stdout:
            write_stdout(data)
        else:
            write_bytes(self.path(place), data, claimed=self.folder)


def write_stdout(data: bytes) -> None:
    """Binary to standard output, but never to a terminal."""
    if sys.stdout.isatty():
        raise UsageError("won't write binary data to a terminal; redirect it or use -o FILE")
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def picture_suffix(format: str) -> str:
    """ "png" → ".png". Raises UsageError for a format that can't be written."""
    suffix = "." + format.lower().lstrip(".")
    if suffix not in PICTURE_SUFFIXES:
        raise UsageError(f"unknown --format {format!r}; known: png, jpg, webp, gif")
    return suffix
