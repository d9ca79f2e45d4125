"""Codes for other programs: as CSV, NumPy's arrays, and columns of an Arrow table, a row a picture.
Each of its rows says all that its codes need: other programs may filter, join and shuffle rows."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import InputError, UsageError
from .arguments import check_codes
from .codes import TENSORS, Codes, facts_of, from_bytes, one_file

if TYPE_CHECKING:
    from pyarrow import Table

ALIKE = ("model", "weights_sha", "sampling")  # in all rows of one Codes; `dtype` may differ
WRITING = {"use_dictionary": [*ALIKE, "dtype"]}  # numbers in one would only take more room


def to_csv(codes: Codes) -> bytes:
    """Write a line a picture: source, z0, z1 …; nine digits, which give every float32 back."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["source", *(f"z{column}" for column in range(codes.z.shape[1]))])
    for source, z in zip(codes.sources, codes.z.tolist(), strict=True):
        table.writerow([source, *(f"{value:.9g}" for value in z)])
    return text.getvalue().encode("utf-8", "backslashreplace")


def to_npy(codes: Codes) -> bytes:
    """Write z as a NumPy array file, (N, D) float32."""
    import numpy

    numpy.save(buffer := io.BytesIO(), codes.z.numpy(), allow_pickle=False)
    return buffer.getvalue()


def to_npz(codes: Codes) -> bytes:
    """Write z, what there is of x_T and residual_T, and the sources as a NumPy archive."""
    import numpy

    arrays: dict[str, Any] = {name: x.numpy() for name, x in codes.tensors().items()}
    numpy.savez(buffer := io.BytesIO(), **arrays, sources=numpy.array(codes.sources, dtype=str))
    return buffer.getvalue()


def arrow() -> Any:
    """Import pyarrow. Raises UsageError where it isn't installed."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UsageError("Parquet needs pyarrow: pip install 'pdae-cli[data]'") from error
    return pyarrow


def to_table(codes: Codes) -> Table:
    """Lay codes out as an Arrow table: `name`, `picture_sha`, `z` (D,), what there is of `x_T` and
    `residual_T` (C, H, W) and `converged`, then `model`, `weights_sha`, `sampling`, which is JSON,
    and `dtype`. Raises UsageError without pyarrow, or where not every row has a name and SHA."""
    check_codes(codes)
    pa, facts = arrow(), facts_of(codes)
    names = [one.encode("utf-8", "backslashreplace").decode() for one in facts.sources]
    columns = {"name": pa.array(names, pa.string())}
    columns["picture_sha"] = pa.array(codes.picture_shas, pa.string())
    for name, tensor in codes.tensors().items():
        array = pa.array(tensor.flatten().numpy())
        for size in reversed(tensor.shape[1:]):
            array = pa.FixedSizeListArray.from_arrays(array, size)
        columns[name] = array
    if codes.converged:
        columns["converged"] = pa.array(codes.converged, pa.bool_())
    texts = codes.model, codes.weights_sha, json.dumps(codes.sampling, sort_keys=True), codes.dtype
    named = zip((*ALIKE, "dtype"), texts, strict=True)
    columns |= {name: pa.repeat(text, len(codes)) for name, text in named}
    return pa.table(columns)


def to_parquet(codes: Codes) -> bytes:
    """Write codes as a Parquet file. Raises UsageError without pyarrow."""
    arrow().parquet.write_table(to_table(codes), buffer := io.BytesIO(), **WRITING)
    return buffer.getvalue()


def from_table(table: Table, name: str = "table") -> Codes:
    """Read codes from an Arrow table with the columns of `to_table`, and whatever others. Raises
    InputError, which begins with its name, for what isn't so, of several models or settings, or
    more than a codes file holds."""
    try:
        found = {one: table[one].combine_chunks() for one in table.column_names}
        texts = [found[one].unique().to_pylist() for one in ALIKE]
        if [len(one) for one in texts] != [1, 1, 1]:
            raise ValueError("its rows aren't of one model and one way of encoding")
        model, sha, sampling = (one[0] for one in texts)
        tensors = [_tensor(found[one], one) if one in found else None for one in TENSORS]
        rows = [tuple(found[one].to_pylist()) for one in ("name", "picture_sha")]
        converged = tuple(found["converged"].to_pylist()) if "converged" in found else ()
        dtypes = found["dtype"].unique().to_pylist() if "dtype" in found else []
        dtype = dtypes[0] if len(dtypes) == 1 else ""
        facts: Any = *tensors, *rows, model, sha, json.loads(sampling), converged, dtype
        return from_bytes(one_file(Codes(*facts)), name)  # which checks all of it
    except UsageError as error:
        raise InputError(f"{name}: {error}") from error
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{name}: not a table of codes of pdae: {error}; encode again") from error


def _tensor(array: Any, name: str) -> Tensor:
    """A column of lists, nested or not, as a tensor (N, …). Raises ValueError."""
    pa, shape = arrow(), [len(array)]
    while isinstance(array, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        if array.null_count or len(array.value_lengths().unique()) > 1:
            raise ValueError(f"{name} isn't a list of one length in each row")
        array, above = array.flatten(), len(array)
        shape.append(len(array) // max(above, 1))
    if array.type != pa.float32() or array.null_count:
        raise ValueError(f"{name} is {array.type}, not float32 in each place")
    return torch.from_numpy(array.to_numpy(zero_copy_only=False).copy()).reshape(shape)
