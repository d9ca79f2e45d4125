"""Labels of a training set: from a CSV, or a table's columns."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import InputError
from .tables import open_table

LABELS = "labels.csv"


@dataclass
class Labels:
    """Labels of pictures: 1 with the attribute, 0 (or -1 where there are no 0s) without it."""

    attributes: list[str]
    rows: dict[str, list[int]]  # picture name → 1, 0 or -1 (unknown) per attribute
    held_out: set[str]  # names whose `split` isn't "train"; empty without that column
    groups: dict[str, str]  # picture name → its `source`, where there is that column
    texts: dict[str, dict[str, str]]  # of each other column: picture name → what it says

    def matrix(self, names: Sequence[str]) -> Tensor:
        """Return int8 (N, A); -1 is unknown."""
        unknown = [-1] * len(self.attributes)
        return torch.tensor([self.rows.get(name, unknown) for name in names], dtype=torch.int8)


def _from_columns(names: Sequence[str], columns: dict[str, list[str]]) -> Labels:
    """Read columns of 1, 0 and -1 as attributes (also CelebA's 1 / -1), others as texts."""
    values = {column: set(said) for column, said in columns.items()}
    attributes = [c for c in values if values[c] <= {"1", "0", "-1"} and "1" in values[c]]
    meaning = [{"1": 1, "0": 0, "-1": -1 if "0" in values[c] else 0} for c in attributes]
    rows = [
        [of[said] for of, said in zip(meaning, row, strict=True)]
        for row in zip(*(columns[c] for c in attributes), strict=True)
    ] or [[] for _ in names]
    named = {c: dict(zip(names, said, strict=True)) for c, said in columns.items()}
    return Labels(
        attributes=attributes,
        rows=dict(zip(names, rows, strict=True)),
        held_out={name for name, said in named.get("split", {}).items() if said != "train"},
        groups={name: said for name, said in named.get("source", {}).items() if said},
        texts={
            c: {name: said for name, said in named[c].items() if said}
            for c in columns
            if c not in (*attributes, "split", "source")
        },
    )


def read_labels(path: Path, data: Path) -> Labels:
    """Read a CSV whose first column (or `file`) names pictures of `data`. `path` may name a member
    of a zip `data`. Raises InputError for a file that isn't such a CSV."""
    try:
        if not path.exists() and zipfile.is_zipfile(data):
            with zipfile.ZipFile(data) as archive:
                text = archive.read(path.name).decode("utf-8-sig")
        else:
            text = path.read_text(encoding="utf-8-sig")
        table = list(csv.DictReader(io.StringIO(text)))
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: can't be read as a CSV of labels: {error}") from error
    if not table:
        raise InputError(f"{path}: holds no rows")
    columns = {column: [row[column] for row in table] for column in table[0]}
    key = "file" if "file" in columns else next(iter(columns))
    labels = _from_columns(columns.pop(key), columns)
    if not labels.attributes and not labels.texts:
        raise InputError(f"{path}: no column holds labels")
    return labels


def find_labels(data: Path, labels: Path | None) -> Labels | None:
    """Find the labels that go with `data`: the named CSV, else its own: a table's columns, or a
    `labels.csv` in a folder or zip."""
    if labels is not None:
        return read_labels(labels, data)
    if table := open_table(data):
        columns = table.columns()
        return _from_columns([str(row) for row in range(len(table))], columns) if columns else None
    if data.is_dir() and (data / LABELS).is_file():
        return read_labels(data / LABELS, data)
    if data.is_file() and zipfile.is_zipfile(data):
        with zipfile.ZipFile(data) as archive:
            if LABELS in archive.namelist():
                return read_labels(Path(LABELS), data)
    return None
