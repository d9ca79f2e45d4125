"""Zips as users bring them: damaged, encrypted, unpacking to more than they say."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError

CHUNK = 1 << 14  # bytes read at once: LZMA and bzip2 unpack whatever they are given, 7000-fold


class Archive:
    """A zip's members by name, read by several threads at once."""

    def __init__(self, path: Path) -> None:
        """Read the table of members. Raises InputError for a zip whose table is damaged."""
        self.path = path
        with _naming(str(path), "can't be read as a zip"):
            self._zip = zipfile.ZipFile(path)

    def names(self) -> list[str]:
        """List the files among the members; a name that stands twice is there once."""
        return list(dict.fromkeys(n for n in self._zip.namelist() if n and not n.endswith("/")))

    def read(self, name: str, limit: int, head: int | None = None) -> bytes:
        """Unpack a member, or its first `head` bytes.

        Raises InputError for one that is missing, damaged, encrypted, packed in a way that isn't
        known, or larger than `limit`.
        """
        label = f"{self.path}/{name}"
        with _naming(label, "can't be unpacked"):
            size = self._zip.getinfo(name).file_size
            if size > limit:
                raise InputError(f"{label}: unpacks to more than {limit >> 20} MiB")
            with self._zip.open(name) as member:
                if head is not None:
                    return member.read(head)
                buffer = io.BytesIO()
                while part := member.read(CHUNK):
                    buffer.write(part)
                return buffer.getvalue()


@contextmanager
def _naming(label: str, what: str) -> Iterator[None]:
    """Turn what zipfile and its decompressors raise, which have no exception in common, into an
    InputError."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except KeyError as error:
        raise InputError(f"{label}: isn't in the zip") from error
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(f"{label}: {what}: {' '.join(str(reason).split())}") from error
