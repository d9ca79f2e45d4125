"""Files of codes in Parquet, read and written a group of rows at a time."""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, cast

from ...errors import InputError, UsageError
from ...files import replacing

if TYPE_CHECKING:
    from pyarrow import Table

    from ...engine.codes import Codes

TABLE = ".parquet"
PART_NAME = re.compile(r"part-[0-9]{5,}-of-([0-9]{5,})\.parquet")
GROUP_BYTES = 32 << 20


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a Parquet file. Raises InputError for what is none, UsageError without pyarrow."""
    from ...engine.columns import arrow

    pa = arrow()
    if not os.path.isfile(path):  # noqa: PTH113, Path.is_file raises on names that are too long
        raise InputError(f"{path}: no such file, or not a regular one")
    try:
        with pa.parquet.ParquetFile(path) as file:
            yield file
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: can't be read as Parquet: {reason}") from error


class CodesTable:
    """A Parquet file of codes by row number; two of its groups of rows are in memory."""

    def __init__(self, path: Path) -> None:
        """Raises InputError for what is no such file, UsageError without pyarrow."""
        with opened(path) as file:
            if not {"z", "picture_sha", "weights_sha"} <= set(file.schema_arrow.names):
                raise InputError(f"{path}: holds no codes; `pdae encode` makes them of pictures")
            groups = range(file.num_row_groups)
            self._ends = list(accumulate(file.metadata.row_group(n).num_rows for n in groups))
        self.path, self._lock, self._group = path, Lock(), lru_cache(maxsize=2)(self._read_group)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _read_group(self, number: int) -> Table:
        with opened(self.path) as file:
            return file.read_row_group(number)

    def read(self, row: int | None = None) -> bytes:
        """Make the content of a codes file of one row, or of all. Raises InputError."""
        from ...engine.codes import to_bytes
        from ...engine.columns import from_table

        if row is None:
            with opened(self.path) as file:
                return to_bytes(from_table(file.read(), str(self.path)))
        group = bisect_right(self._ends, row)
        with self._lock:
            rows = self._group(group)
        one = rows.slice(len(rows) + row - self._ends[group], 1)
        return to_bytes(from_table(one, f"{self.path}:{row}"))


def open_codes(path: Path) -> CodesTable | None:
    """Open a Parquet file of codes; None for what is none, or where Parquet can't be read."""
    try:
        return CodesTable(path) if path.suffix.lower() == TABLE else None
    except (InputError, UsageError):
        return None


class CodesWriter(ExitStack):
    """A Parquet file of codes that grows by groups of rows and takes its name when it is whole."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.count = path, 0
        self._rows, self._file = list[Any](), cast("Any", None)

    def add(self, codes: Codes) -> None:
        """Add a row a picture. Raises InputError for codes unlike those before, or that can't be
        written, StorageError where there is no room."""
        from ...engine.columns import WRITING, arrow, to_table

        rows, writer = to_table(codes), arrow().parquet.ParquetWriter
        if self._file is None:
            file = self.enter_context(replacing(self.path))
            self._file = self.enter_context(writer(file, rows.schema, **WRITING))
        if rows.schema != self._file.schema:
            raise InputError(
                "codes with and without x_T or residual_T don't go into one file; encode them alike"
            )
        self.count += len(rows)
        self._rows.append(rows)
        if sum(one.nbytes for one in self._rows) >= GROUP_BYTES:
            self._write()

    def _write(self) -> None:
        from ...engine.columns import arrow

        self._file.write_table(arrow().concat_tables(self._rows).combine_chunks())
        self._rows = []

    def finish(self, metadata: dict[str, str]) -> None:
        """Write what is left, and what is to be said of the whole."""
        if self._rows:
            self._write()
        self._file.add_key_value_metadata(metadata)
