"""Tar shards behind URLs, a range of bytes at a time, by fsspec: https, s3, gs, hf and others.

Of a web server's answer nothing is taken on trust: not that it is the range that was asked for, not
that the file is still the one that was indexed, not that it ends. Object stores' modules do their
own part of that.
"""

from __future__ import annotations

import io
import re
import tarfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ..errors import StorageError, UsageError
from ..files import hash_name

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

WAITS = (1.0, 4.0, 16.0)  # seconds before each further try
SECONDS = 120  # that a request may take; with all tries less than what other processes wait
PASSING = (408, 425, 429)  # of HTTP's 4xx those that another try may change
TAGS = ("ETag", "etag", "blob_id", "xet_hash", "mtime", "created")  # of s3, gs, hf, disks, memory
BLOCK = 1 << 20  # bytes of headers, and what lies between them, that are read at once
HEADER = tarfile.BLOCKSIZE
LONGEST = 1 << 20  # bytes that a header's own records may have: long names

T = TypeVar("T")


class Store(Protocol):
    """A file somewhere. Both raise StorageError, and what the library raises."""

    def facts(self) -> tuple[int, str]:
        """Size in bytes, and what else changes when the file does."""
        ...

    def fetch(self, start: int, stop: int) -> bytes:
        """Bytes start … stop-1, or what there is of them."""
        ...


class WebFile:
    """Of a web server: read as a stream, for one that ignores the range sends the whole file."""

    def __init__(self, fs: AbstractFileSystem, url: str) -> None:
        self.fs, self.url = fs, url
        self.known: tuple[int, str] | None = None

    def facts(self) -> tuple[int, str]:
        """Size, and ETag or time."""
        self.known = self._range(0, 1)[1]
        return self.known

    def fetch(self, start: int, stop: int) -> bytes:
        """Raises StorageError also for a file whose facts are other ones than they were."""
        data, facts = self._range(start, stop)
        if self.known not in (None, facts):
            raise changed(shown(self.url))
        return data

    def _range(self, start: int, stop: int) -> tuple[bytes, tuple[int, str]]:
        """What the server sends of a range, and the facts that come with it."""
        from aiohttp import ClientTimeout

        asked = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        how: dict[str, Any] = {"headers": asked, "timeout": ClientTimeout(total=SECONDS)}
        # A size is given because the library would ask for it, and block_size=0 is a stream.
        with closing(self.fs.open(self.url, "rb", block_size=0, size=1, **how)) as stream:
            headers, parts, missing = stream.r.headers, [], stop - start
            said = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("Content-Range", ""))
            if stream.r.status != 206 or said is None or int(said[1]) != start:
                raise StorageError(
                    f"{shown(self.url)}: the server gives no parts of files; fetch the shards, and "
                    "name the copies"
                )
            while missing and (part := stream.read(missing)):
                parts.append(part)
                missing -= len(part)
        tag = headers.get("ETag") or headers.get("Last-Modified") or ""
        return b"".join(parts), (int(said[2]), tag)


class StoredFile:
    """Of an object store, or whatever else the library knows."""

    def __init__(self, fs: AbstractFileSystem, path: str) -> None:
        self.fs, self.path = fs, path

    def facts(self) -> tuple[int, str]:
        """Size, and the first of TAGS that the store has. (The library's own `ukey` is another one
        after a listing than without.)"""
        info = self.fs.info(self.path)
        tag = next((str(info[name]) for name in TAGS if info.get(name)), "")
        return int(info["size"]), tag.strip('"')

    def fetch(self, start: int, stop: int) -> bytes:
        """One request; without async_impl, `cat_file` would read megabytes ahead."""
        if self.fs.async_impl:
            return bytes(self.fs.cat_file(self.path, start=start, end=stop))
        with self.fs.open(self.path, "rb", cache_type="none") as file:
            file.seek(start)
            return bytes(file.read(stop - start))


class RemoteShard:
    """A tar archive behind a URL. Its index is kept in a cache folder, by its URL."""

    def __init__(self, url: str, cache: Path | None) -> None:
        """Raises UsageError where the library can't read such URLs."""
        fs, path = file_system(url)
        self.url = url
        self.store: Store = WebFile(fs, url) if is_web(url) else StoredFile(fs, path)
        self.label = shown(url)
        self.name = self.label.rpartition("/")[2]
        self.kept = None if cache is None else cache / f"{hash_name(self.label)}.index.json"
        self.size = 0

    def stamp(self) -> list[object]:
        """Its size and tag. Raises StorageError."""
        self.size, tag = self._tried(self.store.facts)
        return [self.size, tag]

    def open(self) -> Blocks:
        """For tarfile, once its stamp was asked for."""
        return Blocks(self._fetch, self.size)

    def read(self, name: str, offset: int, size: int) -> bytes:
        """A member's content. Its header is read with it: where that is another, the shard was
        changed. Raises StorageError, since no other picture must take this one's place."""
        data = self._fetch(offset - HEADER, offset + size)
        if not is_header(data[:HEADER], name, size):
            raise changed(self.label)
        return data[HEADER:]

    def _fetch(self, start: int, stop: int) -> bytes:
        def whole() -> bytes:
            data = self.store.fetch(start, stop)
            if len(data) != stop - start:
                raise OSError(f"{len(data)} bytes came of {stop - start}")
            return data

        return self._tried(whole)

    def _tried(self, ask: Callable[[], T]) -> T:
        """What the store answers, sooner or later. Raises StorageError for whatever keeps it from
        that: the modules of fsspec have no exception in common."""
        for wait in (*WAITS, None):
            try:
                return ask()
            except StorageError:
                raise
            except Exception as error:
                if wait is None or lasting(error):
                    raise StorageError(self._explained(error)) from error
            time.sleep(wait)
        raise AssertionError("the last try returns or raises")

    def _explained(self, error: Exception) -> str:
        if isinstance(error, FileNotFoundError):
            return f"{self.label}: no such shard"
        status = getattr(error, "status", None)
        reason = f"HTTP {status}" if status else " ".join(str(error).split()) or "no answer in time"
        tries = "" if lasting(error) else f" in {len(WAITS) + 1} tries"
        return (
            f"{self.label}: can't be read{tries}: {reason.replace(self.url, self.label)}; once it "
            "can, run the same command: training goes on from its last checkpoint"
        )


def changed(label: str) -> StorageError:
    """The failure of a shard that isn't what it was."""
    return StorageError(
        f"{label}: changed since it was indexed, and shards must stay as they are; the same "
        "command indexes it anew"
    )


def shown(url: str) -> str:
    """A URL without what may be secret in it: a password, and a signature behind the "?"."""
    return re.sub(r"//[^/@]*@", "//", url.partition("?")[0])


def lasting(error: Exception) -> bool:
    """Whether another try would fail alike."""
    status = getattr(error, "status", None)
    if isinstance(status, int) and 400 <= status < 500:
        return status not in PASSING
    return isinstance(error, FileNotFoundError | PermissionError | ValueError | TypeError)


class Blocks(io.RawIOBase):
    """What tarfile needs of a file, read in blocks: a request for each header would take longer."""

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        self.fetch, self.size = fetch, size
        self.at, self.first, self.block = 0, 0, b""

    def tell(self) -> int:
        return self.at

    def seek(self, at: int, whence: int = io.SEEK_SET) -> int:
        """To a place from the beginning; tarfile knows no other."""
        self.at = at
        return at

    def read(self, count: int = -1) -> bytes:
        """Fewer at the end. Raises tarfile.ReadError for more than headers have."""
        if not 0 <= count <= LONGEST:
            raise tarfile.ReadError(f"a header of {count} bytes")
        stop = min(self.at + count, self.size)
        if not self.first <= self.at <= stop <= self.first + len(self.block):
            end = min(self.at + max(count, BLOCK), self.size)
            self.first, self.block = self.at, self.fetch(self.at, end) if self.at < end else b""
        data = self.block[self.at - self.first : max(stop - self.first, 0)]
        self.at += len(data)
        return data


def is_header(block: bytes, name: str, size: int) -> bool:
    """Whether a block of 512 bytes is the tar header of this file; of a name that is too long for
    it, or isn't ASCII, which stands in other records, only the size counts."""
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    plain = name.isascii() and len(name) <= tarfile.LENGTH_NAME
    return header.size == size and (header.name == name or not plain)


def as_url(data: Path) -> str | None:
    """The URL that a path was made of, which leaves one slash of two; None where it was none."""
    found = re.fullmatch(r"([a-z][a-z0-9+.-]+):/+(.*)", data.as_posix())
    return None if found is None else f"{found[1]}://{found[2]}"


def is_web(url: str) -> bool:
    """Whether a web server gives it."""
    return url.startswith(("http://", "https://"))


def file_system(url: str) -> tuple[AbstractFileSystem, str]:
    """The library's file system for a URL, and what the file is called there. Raises UsageError
    where there is none, or its package isn't installed."""
    import fsspec

    scheme = url.partition("://")[0]
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}.get(scheme)
        package = "'pdae-cli[remote]'" if is_web(url) else package
        advice = f"pip install {package}" if package else " ".join(str(error).split())
        raise UsageError(f"{scheme}:// needs a package that isn't installed: {advice}") from error
    except ValueError as error:
        raise UsageError(f"{scheme}:// is no kind of URL that fsspec knows") from error


def found_by(pattern: str) -> list[str]:
    """The URLs that a pattern with * stands for, sorted. Raises UsageError for a web server's."""
    if "*" not in pattern:
        return [pattern]
    if is_web(pattern):
        raise UsageError(
            f"{pattern}: a web server doesn't say what it holds; count them: {{000..099}}"
        )
    fs, path = file_system(pattern)
    return sorted(fs.unstrip_protocol(one) for one in fs.glob(path))
