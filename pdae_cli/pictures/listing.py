"""Which files of a folder or zip are pictures: one answer for every command.

Nothing is decoded here: a file's suffix says what it is, and where that is unknown, its first
bytes.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from ..errors import InputError
from ..files import read_limited
from .archives import Archive

SUFFIXES = {
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".avif",
}  # fmt: skip
HEIC_SUFFIXES = {".heic", ".heif", ".hif"}
CODES = ".safetensors"
OTHERS = {  # suffixes of what isn't opened to see what it is; raw photos begin as TIFFs do
    ".txt", ".md", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".html", ".htm", ".css", ".js",
    ".yaml", ".yml", ".toml", ".ini", ".log", ".pdf", ".svg", ".py", ".sh", ".db", ".sqlite",
    ".safetensors", ".npy", ".npz", ".pt", ".pth", ".ckpt", ".bin", ".pkl", ".h5", ".mat",
    ".parquet", ".arrow", ".tar", ".zip", ".gz", ".tgz", ".xz", ".bz2", ".7z", ".rar",
    ".mp4", ".mov", ".avi", ".mkv", ".webm", ".mp3", ".wav", ".aae", ".xmp", ".psd", ".ai",
    ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".tmp", ".part", ".lock",
}  # fmt: skip
TABLES = {  # of labels: not pictures, and no more left out than read
    "labels.csv", "labels.tsv", "metadata.csv", "metadata.jsonl", "metadata.parquet",
    "dataset.json", "list_attr_celeba.txt", "list_attr_celeba.csv", "list_eval_partition.txt",
    "list_eval_partition.csv",
}  # fmt: skip
SYSTEM = {"__MACOSX", "@eaDir"}
MANIFEST = ".pdae"  # what knows an output folder's files; no more than its owner's business
MAX_PICTURE = 512 << 20  # bytes of a picture file
HEAD = 64  # bytes that tell what a file is

HIDDEN = "hidden or of the system"
OURS = "made by pdae here"
ROUND = "links to folders that are here already"
OTHER = "no pictures"
NO_HEIC = "HEIC, which `pip install 'pdae-cli[heic]'` reads"


def kind_of(head: bytes) -> str:
    """Tell a picture's format from its first HEAD bytes; nothing for what is none that we know."""
    for kind, beginning in (
        ("PNG", rb"\x89PNG\r\n\x1a\n"), ("JPEG", rb"\xff\xd8\xff"), ("GIF", rb"GIF8"),
        ("TIFF", rb"II[*+]\0|MM\0[*+]"), ("WEBP", rb"RIFF.{4}WEBP"), ("BMP", rb"BM.{4}\0{4}"),
        ("PPM", rb"P[1-6Ff]\s"),
    ):  # fmt: skip
        if re.match(beginning, head, re.DOTALL):
            return kind
    if head[4:8] == b"ftyp":
        brands = {head[at : at + 4] for at in range(8, HEAD - 3, 4)}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        if brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}:
            return "HEIC"
    return ""


def reads_heic() -> bool:
    """Whether the package that decodes HEIC is installed."""
    return find_spec("pillow_heif") is not None


def natural(name: str) -> list[tuple[int, str]]:
    """Sort a2 before a10: numbers by how many digits they have, however many, and then by those."""
    parts = re.split(r"([0-9]+)", Path(name).as_posix().casefold())
    numbers = {part: part.lstrip("0") for part in parts[1::2]}
    return [(len(numbers[one]), numbers[one]) if one in numbers else (-1, one) for one in parts]


@dataclass
class Listing:
    """What a folder or zip holds: `names` are "/"-separated and below `root`, in natural order."""

    root: Path
    names: list[str] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)  # name, reason
    closed: dict[str, str] = field(default_factory=dict)  # folders that can't be opened: why
    archive: Archive | None = None

    def read(self, name: str, limit: int = MAX_PICTURE, head: int | None = None) -> bytes:
        """Return a file's content, or its first `head` bytes. Raises InputError, also for more than
        `limit` bytes."""
        if self.archive is not None:
            return self.archive.read(name, limit, head)
        return read_limited(self.root / name, limit, head)

    def told(self) -> str:
        """Say what is left out, by reason; nothing where nothing is."""
        parts = []
        for reason, count in Counter(reason for _, reason in self.left_out).items():
            suffixes = {PurePosixPath(n).suffix.lower() for n, why in self.left_out if why == OTHER}
            some = sorted(suffixes - {""})[:5] if reason == OTHER else []
            parts.append(f"{count} {reason}" + (f" ({', '.join(some)})" if some else ""))
        return f"{self.root}: left out: {'; '.join(parts)}" if parts else ""

    def here(self) -> Listing:
        """Return the same of the folder alone, without those in it."""
        names = [name for name in self.names if "/" not in name]
        left_out = [one for one in self.left_out if "/" not in one[0]]
        return Listing(self.root, names, left_out)

    def _take(self, name: str, also: Collection[str]) -> None:
        """Take a file as a picture, or leave it out."""
        if PurePosixPath(name).name in TABLES:
            return
        reason = _reason(name, lambda: self.read(name, head=HEAD), also)
        if reason:
            self.left_out.append((name, reason))
        else:
            self.names.append(name)


def _reason(name: str, head: Callable[[], bytes], also: Collection[str]) -> str:
    """Why a file isn't taken; nothing where it is."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in SUFFIXES or suffix in also:
        return ""
    if suffix in OTHERS:
        return OTHER
    try:
        kind = "HEIC" if suffix in HEIC_SUFFIXES else kind_of(head())
    except InputError:  # no file, or one that can't be opened
        return OTHER
    if kind == "HEIC" and not reads_heic():
        return NO_HEIC
    return "" if kind else OTHER


def is_folder(path: Path) -> bool:
    """Whether a name is that of a folder."""
    return os.path.isdir(path)  # noqa: PTH112, Path.is_dir raises on names that are too long


def is_archive(path: Path) -> bool:
    """Whether a name is that of a zip: by suffix, or where that says nothing, by first bytes."""
    if not os.path.isfile(path):  # noqa: PTH113
        return False
    suffix = path.suffix.lower()
    if suffix == ".zip" or suffix in SUFFIXES | HEIC_SUFFIXES | OTHERS:
        return suffix == ".zip"
    try:
        return read_limited(path, 1 << 62, 4) == b"PK\3\4"
    except InputError:
        return False


def list_pictures(root: Path, also: Collection[str] = (), without: Collection[str] = ()) -> Listing:
    """List a folder or zip: its pictures, files of the suffixes `also`, and what is left out.

    `without` are real paths of files and folders of this command's own output. Folders that are
    linked to are followed, each folder once. Raises InputError for one that can't be read.
    """
    listing = Listing(root)
    if is_folder(root):
        _walk(listing, also, without)
    else:
        listing.archive = Archive(root)
        names, folders = listing.archive.names(), defaultdict[str, set[str]](set)
        for name in names:
            folders[str(PurePosixPath(name).parent)].add(PurePosixPath(name).name)
        for name in names:
            parent = str(PurePosixPath(name).parent)
            if any(map(_hidden, name.split("/"))):
                listing.left_out.append((name, HIDDEN))
            elif _of_a_run(parent, folders[parent]):
                listing.left_out.append((name, OURS))
            else:
                listing._take(name, also)
    listing.names.sort(key=natural)
    return listing


def _hidden(part: str) -> bool:
    return part in SYSTEM or (part.startswith(".") and part not in (".", ".."))


def _walk(listing: Listing, also: Collection[str], without: Collection[str]) -> None:
    """Go through a folder and all below it; links to folders last, so that a folder which is there
    under its own name has that name."""
    root = Path(os.path.realpath(listing.root))
    seen = {_identity(one) for one in root.parents}
    folders, links = [""], list[str]()
    while folders or links:
        below = folders.pop() if folders else links.pop(0)
        folder = root / below
        try:
            identity = _identity(folder)
            if identity in seen:
                listing.left_out.append((below, ROUND))
                continue
            seen.add(identity)
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda one: one.name)
            names = {one.name for one in entries}
        except OSError as error:
            listing.closed[below] = error.strerror or str(error)
            continue
        if _of_a_run(below, names):
            listing.left_out += [(f"{below}/{name}", OURS) for name in sorted(names)]
            continue
        place = os.path.realpath(folder)
        for entry in entries:
            name = f"{below}/{entry.name}".lstrip("/")
            if _hidden(entry.name):
                listing.left_out += [(name, HIDDEN)] if entry.name != MANIFEST else []
            elif os.path.join(place, entry.name) in without:  # noqa: PTH118
                listing.left_out.append((name, OURS))
            elif entry.is_dir(follow_symlinks=False):
                folders.append(name)
            elif entry.is_symlink() and os.path.isdir(entry.path):  # noqa: PTH112, of any link
                links.append(name)
            else:
                listing._take(name, also)
    if reason := listing.closed.get(""):
        raise InputError(f"{listing.root}: can't be opened: {reason}")


def _identity(folder: Path) -> tuple[int, int]:
    facts = folder.stat()
    return facts.st_dev, facts.st_ino


def _of_a_run(folder: str, names: set[str]) -> bool:
    """Whether a folder is a training run's, by a stage's log and its state in it."""
    return PurePosixPath(folder).name == "training" and any(
        f"{one.removesuffix('.jsonl')}{CODES}" in names for one in names if one.endswith(".jsonl")
    )
