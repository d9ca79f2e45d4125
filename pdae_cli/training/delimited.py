"""Tables of text as people have them: split at commas, semicolons, tabs or blanks, with or without
what spreadsheets and CelebA put before the header. Limits come before parsing."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePath, PurePosixPath

from ..errors import InputError, printable
from ..pictures.listing import SUFFIXES

MAX_BYTES = 64 << 20  # of a table: CelebA's attributes take 26 MB
MAX_CELLS = 12_000_000  # CelebA's are 8.3 million
MAX_TEXTS = 2_000_000  # cells that differ
MAX_COLUMNS = 1_000
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", " ": "blanks", "|": "bars"}
DECIMAL = re.compile("[+-]?[0-9]+,[0-9]+")  # in much of Europe
THOUSANDS = re.compile("[+-]?[1-9][0-9]{0,2},[0-9]{3}")  # or so in English
KEYS = ("file", "file_name", "filename", "image", "image_id", "path")  # columns that name pictures


@dataclass(frozen=True)
class Sheet:
    """Rows of texts: a picture's name, and what each column says of it."""

    source: str  # the table's name, for messages
    names: list[str]
    lines: list[int]  # where each row ends
    columns: dict[str, list[str]]
    remarks: list[str] = field(default_factory=list)


def short(text: str) -> str:
    """A cell, fit for a message."""
    text = printable(text)
    return repr(text if len(text) <= 40 else f"{text[:39]}…")


def read_sheet(content: bytes, source: str) -> Sheet:
    """Read a table of pictures' names and labels. Raises InputError, with the line, for what isn't
    text, has no header or no rows, is too large, or whose rows differ in length."""
    text, first, count, given = _preamble(_decoded(content, source))
    head, _, rest = text.partition("\n")
    delimiter = given or _delimiter(head, rest)
    rows = _rows(text, delimiter, source, first)
    line, header = next(rows, (first, []))
    while header and not header[-1]:
        header.pop()
    if len(header) > MAX_COLUMNS:
        raise InputError(f"{source}: {len(header)} columns, more than {MAX_COLUMNS}")
    if any(is_picture(cell) for cell in header):
        header = _headless(header, source)
        rows = _rows(text, delimiter, source, first)
    lines: list[int] = []
    cells: list[list[str]] = []
    width = len(header)
    texts: dict[str, str] = {}  # each different cell once: most are alike
    for line, row in rows:
        if not cells and delimiter == " " and len(row) == width + 1:
            header, width = ["file", *header], width + 1  # CelebA's doesn't name the names
        while len(row) > width and not row[-1].strip():
            row.pop()  # a comma too many at the end
        if len(row) != width:
            lacking = f", none for {', '.join(map(short, header[len(row) :][:3]))}"
            raise InputError(
                f"{source}, line {line}: {len(row)} cells, where the header has {width} "
                f"(split at {DELIMITERS[delimiter]}){lacking if len(row) < width else ''}"
            )
        lines.append(line)
        cells.append([texts.setdefault(cell, cell) for cell in row])
        if len(cells) * width > MAX_CELLS:
            raise InputError(f"{source}: more than {MAX_CELLS:,} cells")
        if len(texts) > MAX_TEXTS:
            raise InputError(f"{source}: more than {MAX_TEXTS:,} cells that differ")
    if not cells:
        raise InputError(f"{source}: holds no rows")
    remarks = []
    if count is not None and count != len(cells):
        remarks.append(f"{source}: its first line says {count} rows, and {len(cells)} follow")
    sheet = _named(source, header, lines, cells, remarks)
    for name in [*sheet.columns] if delimiter != "," else ():
        _give_points(sheet, name)
    return sheet


def _give_points(sheet: Sheet, name: str) -> None:
    """Give a column's numbers decimal points, or leave it out where its commas may be those of
    thousands."""
    column = sheet.columns[name]
    if not (commas := {cell for cell in set(column) if DECIMAL.fullmatch(cell)}):
        return
    if all(map(THOUSANDS.fullmatch, commas)):
        cell = next(cell for cell in column if cell in commas)
        either = f"{cell} may be {cell.replace(',', '')} or {cell.replace(',', '.')}"
        told = f"{sheet.source}: not taken: {short(name)}, as {either}; write it without commas"
        sheet.remarks.append(told)
        del sheet.columns[name]
        return
    pointed = {cell: cell.replace(",", ".") for cell in commas}
    sheet.columns[name] = [pointed.get(cell, cell) for cell in column]


def _named(
    source: str, header: list[str], lines: list[int], cells: list[list[str]], remarks: list[str]
) -> Sheet:
    """Find the column of names, and name the others."""
    plain = [name.casefold() for name in header]
    twice = [name for name in header if name and header.count(name) > 1]
    if twice:
        raise InputError(f"{source}: two columns are called {short(twice[0])}")
    keys = [plain.index(key) for key in KEYS if key in plain]
    keys += [number for number, cell in enumerate(cells[0]) if is_picture(cell)]
    key = keys[0] if keys else 0
    if empty := [number + 1 for number, name in enumerate(header) if not name and number != key]:
        remarks.append(f"{source}: not taken, as it has no name: column {empty[0]}")
    columns = [list(column) for column in zip(*cells, strict=True)]
    names = [name.strip() for name in columns[key]]
    if "" in names:
        raise InputError(f"{source}, line {lines[names.index('')]}: names no picture")
    named = {
        name: column
        for number, (name, column) in enumerate(zip(header, columns, strict=True))
        if name and number != key
    }
    return Sheet(source, names, lines, named, remarks)


def is_picture(cell: str) -> bool:
    """Whether a cell looks like a picture's name."""
    return PurePosixPath(cell.strip()).suffix.lower() in SUFFIXES


def _decoded(content: bytes, source: str) -> str:
    """The text, with \\n between lines. UTF-16 is what Excel calls Unicode."""
    try:
        wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(f"{source}, line {line}: not UTF-8; save it as CSV in UTF-8") from error
    if "\0" in text:
        raise InputError(f"{source}: holds NUL bytes, so it is no table of text; save it as CSV")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _preamble(text: str) -> tuple[str, int, int | None, str | None]:
    """Take off what may stand before the header: empty lines, Excel's sep=;, CelebA's number of
    rows. Returns the rest, its first line's number, that number of rows, and the delimiter."""
    first, count, delimiter = 1, None, None
    while True:
        line, more, rest = text.partition("\n")
        told = line.strip()
        if found := re.fullmatch(r'"?sep=([,;|\t ])"?[,;|\t ]*', line, re.IGNORECASE):
            delimiter = found[1]
        elif re.fullmatch("[0-9]{1,9}", told) and rest and count is None:
            count = int(told)
        elif told or not more:
            return text, first, count, delimiter
        text, first = rest, first + 1


def _delimiter(head: str, rest: str) -> str:
    """What the header is split at, and the row below it: blanks only where those have nothing else.
    Names of columns may have commas of their own."""
    counts = {one: head.count(one) for one in (",", ";", "\t")}
    row = re.sub(r'"[^"]*("|$)', "", rest.lstrip("\n").partition("\n")[0])
    if any(counts.values()):
        return max(counts, key=lambda one: (0 < counts[one] == row.count(one), counts[one]))
    one_column = len(row.split()) < 2 or any(one in row for one in counts)
    return "," if one_column else " "


def _rows(text: str, delimiter: str, source: str, first: int) -> Iterator[tuple[int, list[str]]]:
    """Yield each row that says something: the line that it ends in, and its cells."""
    lines: Iterable[str] = io.StringIO(text)
    blanks = delimiter == " "
    if blanks:
        lines = ("\t".join(line.split()) for line in lines)
    reader = csv.reader(
        lines, delimiter="\t" if blanks else delimiter, skipinitialspace=not blanks, strict=True
    )
    begun = False
    try:
        for row in reader:
            if any(map(str.strip, row)):
                yield reader.line_num + first - 1, row if begun else [c.strip() for c in row]
                begun = True
    except csv.Error as error:
        line = reader.line_num + first - 1
        raise InputError(f"{source}, line {line}: can't be read as a table: {error}") from error


def _headless(row: list[str], source: str) -> list[str]:
    """Name the columns of a table without a header: CelebA's list_eval_partition.txt."""
    if "partition" in PurePath(source).stem and len(row) == 2:
        return ["file", "split"]
    raise InputError(
        f"{source}: its first line names a picture, {short(row[0])}, and not the columns; begin it "
        "with a line like file,Smiling,Hat"
    )
