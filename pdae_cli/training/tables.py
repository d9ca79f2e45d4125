"""Pictures in tables, by Hugging Face's `datasets`: Parquet, WebDataset's tar shards, folders with
metadata, data sets of the Hub. They are converted once into Arrow files, which are mapped into
memory and read by row number: a stream has an order of its own, and a step's batch must be a
function of (seed, step, row)."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ..checkpoints.hub import is_hub_id, reason_of, without_passwords
from ..errors import InputError, UsageError
from ..files import read_limited
from ..pictures.listing import MAX_PICTURE, is_folder

if TYPE_CHECKING:
    from datasets import Dataset

LOADERS = {".parquet": "parquet", ".tar": "webdataset"}
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
HUB = re.compile(r"(?P<path>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?(:(?P<split>[\w.-]+))?")
SPAN = re.compile(r"([0-9]{1,9})\.\.([0-9]{1,9})")
PICTURE = ("image", "png", "jpg", "jpeg", "webp")  # columns that hold one, whatever their type
KEY = "__key__"  # a column of tars alone: what a row's files are called before the first dot
NAMES = ("name", "file_name", "filename", KEY, "key", "id")  # columns that name a picture
TEXTS = ("split", "partition", "source")  # columns of texts that are read
UNPACK = "unpack it, and name the folder"
ONE_ROW = f"and WebDataset takes those for one row that are alike up to a dot; {UNPACK}"
MOST = 100_000  # files that a pattern may name


class Table:
    """A data set's pictures and labels, by row number."""

    def __init__(self, data: Path, rows: Dataset) -> None:
        """Find the column of pictures: the first, in tars one by a suffix alone, as `datasets`
        splits names there at their first dot. Raises UsageError where there is none."""
        from datasets import Image

        typed = [name for name, feature in rows.features.items() if isinstance(feature, Image)]
        found = typed or [name for name in PICTURE if name in rows.features]
        if not found:
            raise UsageError(f"{data}: no column holds pictures; it has {', '.join(rows.features)}")
        if KEY in rows.features:
            found.sort(key=lambda name: "." in name)
            if re.match(r"\d+\.", found[0]):  # a number within a name, as of frames
                raise UsageError(f"{data}: its files are named like NAME.{found[0]}, {ONE_ROW}")
        self.data, self.rows, self.column, *self.others = data, rows, *found
        self._files = rows.select_columns(self.column)
        if typed:
            self._files = self._files.cast_column(self.column, Image(decode=False))
        names = next((rows.data[one] for one in NAMES if one in rows.features), None)
        self._names, self._paths = names, rows.data[self.column] if typed else None

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, row: int) -> bytes:
        """Return a picture's file. Raises InputError for a row without one."""
        cell = self._files[row][self.column]
        data, path = (
            (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
        )
        if data is None and path:
            return read_limited(Path(path), MAX_PICTURE)  # of a folder
        if not isinstance(data, bytes):
            raise InputError(f"row {row}: no picture")
        return data

    def name(self, row: int) -> str:
        """Return what a row calls its picture: a column of NAMES, the picture's own file, or else
        the row's number."""
        value = None
        if self._names is not None:
            value = self._names[row].as_py()
        elif self._paths is not None and (cell := self._paths[row]).is_valid:
            value = PurePosixPath(cell["path"].as_py() or "").name  # and its bytes aren't read
        return str(row) if value in (None, "") else str(value)

    def told(self) -> str:
        """Say which columns of pictures are left out; nothing where there is one."""
        others = f"{self.data}: left out: pictures of {', '.join(self.others)}"
        return f"{others}; {self.column}'s are taken" if self.others else ""

    def columns(self) -> tuple[dict[str, list[str]], list[str]]:
        """Return the labels as a table of text says them: truths, numbers and nothing (unknown),
        classes by their names, and the texts of TEXTS; and a line for other columns."""
        from datasets import ClassLabel

        found: dict[str, list[str]] = {}
        left = []
        for name, feature in self.rows.features.items():
            kind = str(getattr(feature, "dtype", ""))  # a struct has none
            if isinstance(feature, ClassLabel):
                known = dict(enumerate(feature.names))  # a number may be of none
                found[name] = [known.get(number, "") for number in self.rows[name][:]]
            elif kind == "bool" or kind.startswith(("int", "uint", "float")):
                found[name] = ["" if one is None else str(one) for one in self.rows[name][:]]
            elif name.casefold() in TEXTS and kind in ("string", "large_string"):
                found[name] = [one or "" for one in self.rows[name][:]]
            elif name not in (self.column, *self.others):
                left.append(f"{name} ({kind or 'a structure'})")
        return found, [f"columns that hold no labels: {', '.join(left)}"] if left else []


def source_of(data: Path) -> dict[str, Any] | None:
    """Say how `datasets` is to load what a user named, and which split; None for folders and zips.
    Raises UsageError for a pattern of too many files."""
    if is_folder(data):
        # Path.is_file raises where a folder is closed, of which listing it tells.
        described = any(os.path.isfile(data / name) for name in METADATA)  # noqa: PTH113
        return {"path": "imagefolder", "data_dir": str(data)} if described else None
    # A path has left one slash of a URL's two.
    text = re.sub(r"^([a-z][a-z0-9+.-]+):/+", r"\1://", data.as_posix())
    if kind := LOADERS.get(PurePosixPath(text).suffix):
        return {"path": kind, "data_files": braces(text)}
    hub = HUB.fullmatch(text)
    if hub is None or not is_hub_id(hub["path"]) or os.path.exists(data):  # noqa: PTH110
        return None
    slip = is_folder(data.parent) and hub["revision"] is None  # a name in a folder that is here
    return None if slip else hub.groupdict()


@lru_cache(maxsize=2)  # pictures and labels are asked for one after the other
def open_table(data: Path) -> Table | None:
    """Load what a user named, if it is a table (see `source_of`). Raises UsageError where there is
    no such split, or no `datasets`; InputError for what that can't load."""
    source = source_of(data)
    if source is None:
        return None
    split, revision = source.pop("split", None), source.get("revision")
    try:
        import datasets
    except ImportError as error:
        missing = "is no folder or zip here; to read data sets" if "revision" in source else "needs"
        raise UsageError(f"{data} {missing}: pip install 'pdae-cli[data]'") from error
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what goes wrong is raised as well
    try:
        found = datasets.load_dataset(**source, keep_in_memory=False)
    except Exception as error:  # of many libraries, which have no exception in common
        first = error.__cause__ or error
        reason = without_passwords(" ".join(str(first).split()))
        if "same prefix" in reason:
            reason = f"{reason.rstrip('.')}; {UNPACK}"
        told = f"can't be loaded as a data set: {reason}"
        if "revision" in source:
            reason = reason_of(first, "check the name and the network")
            told = f"no folder here, and the Hub didn't give it: {reason}"
        raise InputError(f"{data}: {told}") from error
    split = split or ("train" if "train" in found else next(iter(found)))
    if split not in found:
        raise UsageError(f"{data}: no split {split}; it has {', '.join(found)}")
    if revision and datasets.config.HF_HUB_OFFLINE:  # where any revision does for it
        cached = Path(found[split].cache_files[0]["filename"])
        if revision not in cached.parts:
            raise InputError(f"{data}: offline, and the cache holds another revision than this")
    return Table(data, found[split])


def braces(pattern: str) -> list[str]:
    """Return all texts that {000..009} (with the first number's zeros) and {a,b} stand for."""
    texts = [""]
    for number, part in enumerate(re.split(r"\{([^{}]*)\}", pattern)):
        choices = part.split(",") if number % 2 else [part]
        if number % 2 and (span := SPAN.fullmatch(part)):
            first, last = int(span[1]), int(span[2])
            numbers = range(first, min(last, first + MOST) + 1)
            choices = [f"{one:0{len(span[1])}d}" for one in numbers]
        if not 0 < len(texts) * len(choices) <= MOST:
            raise UsageError(f"{pattern} names no file, or more than {MOST}")
        texts = [text + one for text in texts for one in choices]
    return texts
