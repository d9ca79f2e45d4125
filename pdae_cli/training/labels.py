"""Labels of a training set: from a table, `dataset.json`, or the names of folders."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from ..engine.tensors import TensorsError, strict_json
from ..errors import InputError, printable
from ..files import read_limited
from ..pictures.archives import Archive
from ..pictures.listing import is_archive, is_folder
from .delimited import MAX_BYTES, MAX_CELLS, MAX_TEXTS, Sheet, read_sheet, short
from .matching import matched, plain
from .tables import open_table

OWN = ("labels.csv", "labels.tsv", "dataset.json", "list_attr_celeba.txt", "list_attr_celeba.csv")
MAX_CLASSES = 1000  # of folders or of dataset.json
TOLD = 8  # columns or classes that a line names
UNKNOWN = ("", "nan", "na", "n/a", "null")
WORDS = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0} | dict.fromkeys(UNKNOWN, math.nan)
NUMBER = re.compile(r"[+-]?([0-9]+([.][0-9]*)?|[.][0-9]+)(e[+-]?[0-9]{1,3})?")
UNIT = re.compile(r"(.*\S)\s*[(\[]([^()\[\]]{1,20})[)\]]")  # of a column's name: age (years)
SPLITS = {  # what a `split` says: whether the picture is held out; the numbers are CelebA's
    "train": False, "training": False, "0": False, "": False, "val": True, "valid": True,
    "validation": True, "dev": True, "eval": True, "test": True, "testing": True, "1": True,
    "2": True,
}  # fmt: skip
PARTS = SPLITS.keys() - {"0", "1", "2"}  # folders that a split is in; numbers are classes
NO_NUMBER = "is no number"
SHARDS = re.compile("[0-9]{3,}")  # folders that are only there to be small


@dataclass
class Labels:
    """Labels of pictures: 1 with the attribute, 0 (or -1 where there are no 0s) without it."""

    attributes: list[str]
    rows: dict[str, list[int]]  # picture name → 1, 0 or -1 (unknown) per attribute
    held_out: set[str]  # names whose `split` or folder isn't "train"; empty where nothing says
    groups: dict[str, str]  # picture name → its `source`, where there is that column
    texts: dict[str, dict[str, str]]  # of each other column: picture name → what it says
    numbers: dict[str, dict[str, float]] = field(default_factory=dict)  # column → picture → value
    units: dict[str, str] = field(default_factory=dict)  # of such a column, where it says one
    remarks: list[str] = field(default_factory=list)  # what isn't taken, and why: lines for people
    source: str = "the labels"  # their name in messages

    def matrix(self, names: Sequence[str]) -> Tensor:
        """Return int8 (N, A); -1 is unknown."""
        unknown = [-1] * len(self.attributes)
        return torch.tensor([self.rows.get(name, unknown) for name in names], dtype=torch.int8)

    def values(self, names: Sequence[str]) -> Tensor:
        """Return what the columns of `numbers` say: float64 (N, B); NaN is unknown."""
        table = [[said.get(name, math.nan) for said in self.numbers.values()] for name in names]
        return torch.tensor(table, dtype=torch.float64).reshape(len(names), len(self.numbers))

    def of(self, names: Sequence[str], numbered: bool = False) -> Labels:
        """Give the labels to pictures, whose names may be written otherwise, unless they are
        `numbered`: rows of a data set. Raises InputError where none has a row, or one could have
        two."""
        rows, remark = matched(list(self.rows), names, self.source, numbered)

        def given(said: dict[str, Any]) -> dict[str, Any]:
            return {name: said[row] for name, row in rows.items() if row in said}

        return replace(
            self,
            rows=given(self.rows),
            held_out={name for name, row in rows.items() if row in self.held_out},
            groups=given(self.groups),
            texts={column: given(said) for column, said in self.texts.items()},
            numbers={column: given(said) for column, said in self.numbers.items()},
            remarks=[*self.remarks, *([remark] if remark else [])],
        )


def find_labels(data: Path, labels: Path | None, names: Sequence[str]) -> Labels | None:
    """Find the labels of the pictures of `data`: in the named table, else in its own: a data set's
    columns, a file of OWN in the folder or zip, or the names of its folders. Where these hold no
    picture out, folders beside train do. Raises InputError for what can't be read, or names none of
    the pictures."""
    found = _found(data, labels, names)
    if (found is None or not found.held_out) and (folders := _beside_train(names)):
        found = found or Labels([], {}, set(), {}, {}, source="the folders")
        found.held_out = set(folders)
        found.remarks.append(f"the folders say what is held out: {_counted(folders)}")
    return found


def _found(data: Path, labels: Path | None, names: Sequence[str]) -> Labels | None:
    """What a table says, or the names of folders."""
    table = open_table(data)
    if labels is not None:
        return read_labels(labels, data).of(names, numbered=table is not None)
    zipped = _archive(data)
    own = _own(data, zipped)
    if table is not None:
        columns, left = table.columns()
        left += [f"{one} isn't read, as metadata say what the folder holds" for one in own]
        rows = [str(row) for row in range(len(table))]
        lines = [row + 1 for row in range(len(table))]
        return _of_sheet(Sheet(str(data), rows, lines, columns, left))
    for place, path in enumerate(own):
        if found := _read(path, data, zipped):
            others = own[:place] + own[place + 1 :]
            found.remarks += [f"{other} isn't read, as there is {path.name}" for other in others]
            return found.of(names)
    return _of_folders(names)


def read_labels(path: Path, data: Path) -> Labels:
    """Read a table, or StyleGAN's dataset.json; with CelebA's attributes, also its partition beside
    them. `path` may name a member of a zip `data`. Raises InputError for a file that is none."""
    if found := _read(path, data, _archive(data)):
        return found
    raise InputError(f'{path}: no labels as StyleGAN has them, {{"labels": [["a.png", 3]]}}')


def _read(path: Path, data: Path, zipped: Archive | None) -> Labels | None:
    """As `read_labels`; None for JSON that has no labels."""
    path, content = _placed(path, data, zipped)
    if path.suffix.lower() == ".json":
        return _of_json(content, str(path))
    sheet = read_sheet(content, str(path))
    found = _of_sheet(sheet)
    beside = path.with_name(f"list_eval_partition{path.suffix}")
    if path.stem == "list_attr_celeba" and (beside.exists() or _member(beside, data, zipped)):
        part = _of_sheet(read_sheet(_placed(beside, data, zipped)[1], str(beside)))
        found.held_out = part.held_out
        found.remarks += [f"{beside} says what is held out", *part.remarks]
    split = any(name.casefold() in ("split", "partition") for name in sheet.columns)
    if not (found.attributes or found.texts or found.numbers or split):
        raise InputError("; ".join(found.remarks) or f"{path}: no column holds labels")
    return found


def _archive(data: Path) -> Archive | None:
    """A zip, opened once for all that is asked of it: a million names take a while to read."""
    return Archive(data) if is_archive(data) else None


def _placed(path: Path, data: Path, zipped: Archive | None) -> tuple[Path, bytes]:
    """Where a table lies that people name, and its content: a file, else a member of the zip, below
    whose own name it is then."""
    there = os.path.exists(path)  # noqa: PTH110, Path.exists raises where a folder is closed
    path = path if there or not _member(data / path, data, zipped) else data / path
    member = _member(path, data, zipped)
    if zipped is None or member is None:
        return path, read_limited(path, MAX_BYTES)
    return path, zipped.read(member, MAX_BYTES)


def _member(path: Path, data: Path, zipped: Archive | None) -> str | None:
    """The name in a zip of what lies below its own name; None for what doesn't."""
    name = path.relative_to(data).as_posix() if path.is_relative_to(data) else ""
    return name if zipped is not None and name in zipped.names() else None


def _own(data: Path, zipped: Archive | None) -> list[Path]:
    """Files of labels inside a folder or zip, there also in its one folder, as OWN has them."""
    if is_folder(data):
        files = (data / name for name in OWN)
        return [path for path in files if os.path.isfile(path)]  # noqa: PTH113, as in _placed
    names = [] if zipped is None else zipped.names()
    shallow = [PurePosixPath(name) for name in names if name.count("/") < 2]
    return [data / one for name in OWN for one in shallow if one.name == name]


def _of_sheet(sheet: Sheet) -> Labels:
    """Tell what columns mean: 1 and 0 (or 1 and -1, as CelebA has them) are attributes, more than
    two numbers are numbers, `split` (CelebA's: `partition`) and `source` are what they say, and
    others are words."""
    _refuse_twins(sheet)
    found = Labels([], {}, set(), {}, {}, remarks=list(sheet.remarks), source=sheet.source)
    marks: list[list[int]] = []
    left: list[str] = []  # columns that aren't learnt from, and why
    for column, said in sheet.columns.items():
        if _is_split(sheet, column):
            found.held_out |= _held_out(sheet, column, found.remarks)
        elif column.casefold() == "source":
            found.groups = _texts(sheet, column)
        elif isinstance(meaning := _meaning(sheet, column), str):
            left.append(f"{column} ({meaning})")
            if meaning.endswith(NO_NUMBER):
                found.texts[column] = _texts(sheet, column)
        elif {value for value in meaning.values() if value == value} <= {1, 0, -1}:
            minus = -1 if 0 in meaning.values() else 0
            marked = {-1.0: minus, 0.0: 0, 1.0: 1}
            as_mark = {cell: marked.get(value, -1) for cell, value in meaning.items()}
            found.attributes.append(column)
            marks.append([as_mark[cell] for cell in said])
        else:
            named = UNIT.fullmatch(column)
            name = named[1] if named else column
            if name in found.numbers:
                raise InputError(f"{sheet.source}: two columns are {short(name)} but for the unit")
            found.units |= {name: named[2]} if named else {}
            values = zip(sheet.names, (meaning[cell] for cell in said), strict=True)
            found.numbers[name] = {n: value for n, value in values if value == value}
    rows = zip(*marks, strict=True) if marks else ([] for _ in sheet.names)
    found.rows = {name: list(row) for name, row in zip(sheet.names, rows, strict=True)}
    if left:
        found.remarks.append(f"{sheet.source}: columns left out, no labels: {_some(left)}")
    return found


def _meaning(sheet: Sheet, column: str) -> dict[str, float] | str:
    """The number that each different cell says, NaN for nothing; or why they aren't labels."""
    said, found = sheet.columns[column], dict[str, float]()
    for cell in set(said):
        if (value := _number(cell)) is None:
            words = (number for number, one in enumerate(said) if _number(one) is None)
            line = next(words)
            return f"{short(said[line].strip())} in line {sheet.lines[line]} {NO_NUMBER}"
        found[cell] = value
    known = {value for value in found.values() if value == value}
    if not known:
        return "holds nothing"
    if len(known) == 2 and not known <= {1, 0, -1}:
        return f"holds {' and '.join(f'{one:g}' for one in sorted(known))} alone; write 1 and 0"
    if len(known) == 1 and not known <= {1, 0, -1}:
        return "is the same everywhere"
    if len(known) > 2 and [found[cell] for cell in said] in (
        list(range(len(said))), list(range(1, len(said) + 1))
    ):  # fmt: skip
        return "numbers the rows"
    return found


def _number(cell: str) -> float | None:
    """What a cell says: a number, NaN where nothing is known, None for a word."""
    text = cell.strip().casefold()
    if text in WORDS:
        return WORDS[text]
    if len(text) > 40 or not NUMBER.fullmatch(text):
        return None
    value = float(text)
    return value if math.isfinite(value) else None


def _texts(sheet: Sheet, column: str) -> dict[str, str]:
    """Picture → what a column says, if it says something."""
    said = zip(sheet.names, map(str.strip, sheet.columns[column]), strict=True)
    return {name: text for name, text in said if text.casefold() not in UNKNOWN}


def _is_split(sheet: Sheet, column: str) -> bool:
    """Whether a column says what is held out; one called `partition` may say something else."""
    name = column.casefold()
    return name == "split" or (name == "partition" and set(_parts(sheet, column)) <= SPLITS.keys())


def _parts(sheet: Sheet, column: str) -> list[str]:
    """What a split says of each row, as SPLITS has it; numbers beside a gap are written 1.0."""
    said = (cell.strip().casefold().removesuffix(".0") for cell in sheet.columns[column])
    return ["" if text in UNKNOWN else text for text in said]


def _held_out(sheet: Sheet, column: str, remarks: list[str]) -> set[str]:
    """Names of the pictures that a split holds out: all but those of training."""
    said = _parts(sheet, column)
    for number, text in enumerate(said):
        if text not in SPLITS:
            cell, line = short(sheet.columns[column][number]), sheet.lines[number]
            none = f"{column} says {cell} in line {line}, none of train, val and test"
            remarks.append(f"{sheet.source}: {none}; such pictures are held out")
            break
    if count := said.count(""):
        remarks.append(f"{sheet.source}: {count} rows have no {column}; they are trained on")
    return {name for name, text in zip(sheet.names, said, strict=True) if SPLITS.get(text, True)}


def _refuse_twins(sheet: Sheet) -> None:
    """Raise InputError for two rows of one picture."""
    seen: dict[str, int] = {}
    for path, line in zip(map(plain, sheet.names), sheet.lines, strict=True):
        if path in seen:
            what = f"lines {seen[path]} and {line} are both of {short(path)}"
            raise InputError(f"{sheet.source}: {what}; leave one out")
        seen[path] = line


def _of_json(content: bytes, source: str) -> Labels | None:
    """Read StyleGAN's dataset.json: pairs of a name and a class, or a list of numbers; None where
    it has no labels."""
    if content.count(b"[") > MAX_TEXTS or content.count(b",") > MAX_CELLS:
        raise InputError(f"{source}: more than {MAX_TEXTS:,} labels")
    try:
        pairs = strict_json(content.removeprefix(b"\xef\xbb\xbf")).get("labels")
    except TensorsError as error:
        raise InputError(f"{source}: {error}") from error
    whole = isinstance(pairs, list) and all(
        isinstance(one, list) and len(one) == 2 and isinstance(one[0], str) for one in pairs
    )
    if not pairs or not whole:
        return None
    names, said = [one[0] for one in pairs], [one[1] for one in pairs]
    lines = list(range(1, len(names) + 1))
    if all(type(one) is int for one in said):
        _refuse_twins(Sheet(source, names, lines, {}))
        return _of_classes(dict(zip(names, (f"class_{one}" for one in said), strict=True)), source)
    width = len(said[0]) if isinstance(said[0], list) else 0
    if not width or any(not isinstance(one, list) or len(one) != width for one in said):
        raise InputError(f"{source}: its labels are neither classes nor lists of equal length")
    columns = {f"label_{k}": [str(one[k]) for one in said] for k in range(width)}
    return _of_sheet(Sheet(source, names, lines, columns))


def _of_folders(names: Sequence[str]) -> Labels | None:
    """Take sub-folders for classes, or those in them where they are parts of a split; unless they
    are numbers that only keep them small."""
    classes = _folders(names)
    if _are_parts(classes.values()):
        classes = _folders(names, 1)  # of train/cat, val/cat
    folders = set(classes.values())
    small = all(SHARDS.fullmatch(one) for one in folders)
    if small or _are_parts(folders) or not 1 < len(folders) <= MAX_CLASSES:
        return None
    found = _of_classes(classes, "the folders")
    found.remarks.append(f"each folder is taken for a class: {_counted(classes)}")
    return found


def _folders(names: Sequence[str], depth: int = 0) -> dict[str, str]:
    """Picture → its sub-folder, below the folders that all pictures have in common, or that one's
    at this depth; nothing where one of them lies in none."""
    parts = [PurePosixPath(name).parts for name in names]
    while parts and all(len(one) > 1 and one[0] == parts[0][0] for one in parts):
        parts = [one[1:] for one in parts]
    if any(len(one) < 2 + depth for one in parts):
        return {}
    return {name: one[depth] for name, one in zip(names, parts, strict=True)}


def _are_parts(folders: Iterable[str]) -> bool:
    return {one.casefold() for one in folders} <= PARTS


def _beside_train(names: Sequence[str]) -> dict[str, str]:
    """Picture → its sub-folder, of those that are to be held out: in val, test and the like, where
    the others are in train."""
    folders = _folders(names)
    if not _are_parts(set(folders.values())):
        return {}
    held_out = {name: one for name, one in folders.items() if SPLITS[one.casefold()]}
    return held_out if len(held_out) < len(folders) else {}


def _of_classes(classes: dict[str, str], source: str) -> Labels:
    """Make each class an attribute, and `class` a column of words."""
    kinds = sorted(set(classes.values()), key=lambda one: (len(one), one))
    found = Labels(kinds, {}, set(), {}, {"class": classes}, source=source)
    if len(kinds) > MAX_CLASSES or len(kinds) * len(classes) > MAX_CELLS:
        found.attributes = []
        found.remarks.append(f"{source}: {len(kinds)} classes, too many to be attributes")
    places = {kind: [int(kind == one) for one in found.attributes] for kind in kinds}
    found.rows = {name: places[kind] for name, kind in classes.items()}
    return found


def _counted(folders: dict[str, str]) -> str:
    """How many pictures are in each folder, for a message."""
    counts = Counter(folders.values())
    return _some(f"{name} ({counts[name]})" for name in sorted(counts))


def _some(texts: Iterable[str]) -> str:
    """A list for a message, cut where it gets long."""
    named = list(texts)
    more = f" and {len(named) - TOLD} more" if len(named) > TOLD else ""
    return printable(", ".join(named[:TOLD])) + more
