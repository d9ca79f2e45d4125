"""Zips as users bring them: damaged, encrypted, unpacking to more than they say."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import InputError

MAX_DICTIONARY = 64 << 20  # bytes that a member packed by LZMA may ask for; 7-Zip's most is that
UNIX = 3  # the system that made a member (APPNOTE 4.4.2), where a name may have a backslash
CHUNK = 1 << 14  # bytes read at once: LZMA and bzip2 unpack whatever they are given, 7000-fold


class Archive:
    """A zip's members by name, read by several threads at once."""

    def __init__(self, path: Path) -> None:
        """Read the table of members. Raises InputError for a zip whose table is damaged."""
        self.path = path
        with _naming(str(path), "can't be read as a zip"):
            self._zip = zipfile.ZipFile(path)
            self._members = {_name_of(one): one for one in self._zip.infolist()}

    def names(self) -> list[str]:
        """List the files among the members; a name that stands twice is there once."""
        return [name for name in self._members if name and not name.endswith("/")]

    def read(self, name: str, limit: int, head: int | None = None) -> bytes:
        """Unpack a member, or its first `head` bytes.

        Raises InputError for one that is missing, damaged, encrypted, packed in a way that isn't
        known, or larger than `limit`.
        """
        label = f"{self.path}/{name}"
        with _naming(label, "can't be unpacked"):
            info = self._members[name]
            if info.file_size > limit:
                raise InputError(f"{label}: unpacks to more than {limit >> 20} MiB")
            if info.compress_type == zipfile.ZIP_LZMA and self._dictionary(info) > MAX_DICTIONARY:
                most = f"{MAX_DICTIONARY >> 20} MiB"
                raise InputError(f"{label}: needs more than {most} to be unpacked; pack it anew")
            with self._zip.open(info) as member:
                if head is not None:
                    return member.read(head)
                buffer = io.BytesIO()
                while part := member.read(CHUNK):
                    buffer.write(part)
                return buffer.getvalue()

    def _dictionary(self, info: zipfile.ZipInfo) -> int:
        """Bytes that LZMA is to set aside, as the member's beginning says (APPNOTE 5.8.8)."""
        with self.path.open("rb") as file:
            file.seek(info.header_offset + 26)
            name, extra = struct.unpack("<HH", file.read(4))
            file.seek(name + extra + 5, io.SEEK_CUR)
            (size,) = struct.unpack("<I", file.read(4))
        return int(size)


def _name_of(member: zipfile.ZipInfo) -> str:
    """A member's name as it was meant: UTF-8 also where no flag says so, as macOS writes it, and
    "/" for the backslashes that .NET wrote."""
    name = member.filename
    if not member.flag_bits & 0x800:  # APPNOTE 4.4.4: UTF-8; zipfile takes others for cp437
        with suppress(UnicodeError):
            name = name.encode("cp437").decode()
    return name if member.create_system == UNIX else name.replace("\\", "/")


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
