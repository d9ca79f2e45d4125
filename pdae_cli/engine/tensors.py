"""Safetensors files: checked before the library reads them, sealed when we write them.

The library takes more than we do: a name twice, a dimension of 2^60, any number of tensors and any
metadata. A seal is the SHA-256 of the whole file but for the seal's own digits; it tells damage and
careless edits, not malice. Files without one, older or of other programs, are read too.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import safetensors.torch
from torch import Tensor

# Three times what MAX_TENSORS of usual names need; parsed, it can take 20 times as much memory.
# Where there are more bytes of tensors, there may be as many: codes of 100,000 pictures name each.
MAX_HEADER = 4 << 20
LARGEST_HEADER = 100_000_000  # the library's own limit
MAX_METADATA = 1 << 20  # characters, where the caller doesn't expect a name a row
MAX_TENSORS = 10_000
MAX_NAME = 512
MAX_DIMENSIONS = 8
MAX_DIMENSION = 1 << 31
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2,
    "BF16": 2, "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
FLOATS = frozenset({"F16", "BF16", "F32", "F64"})
METADATA, SEAL = "__metadata__", "sha256"
BLANK = "0" * 64
SEALED = re.compile(rb'"sha256":"([0-9a-f]{64})"')  # quotes inside JSON's strings are escaped


class TensorsError(ValueError):
    """What is wrong with a file, as the end of a sentence that begins with its name."""


@dataclass(frozen=True)
class Spec:
    """A tensor as the header describes it."""

    dtype: str
    shape: tuple[int, ...]
    begin: int  # of its bytes, counted from the header's end
    end: int


@dataclass(frozen=True)
class Header:
    """A checked header."""

    tensors: dict[str, Spec]
    metadata: dict[str, str]

    def facts(self, key: str = "pdae") -> dict[str, Any]:
        """The JSON object that the metadata hold under a key. Raises TensorsError."""
        if key not in self.metadata:
            raise TensorsError(f"its metadata lack {key!r}, so it is none that this program wrote")
        return strict_json(self.metadata[key])

    def require(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise TensorsError unless the tensors are these, of floating point numbers."""
        for name in sorted(shapes.keys() | self.tensors.keys()):
            found = self.tensors.get(name)
            if found is None or found.shape != shapes.get(name):
                raise TensorsError(
                    f"tensor {shown(name)} has shape {found and found.shape}, "
                    f"where {shapes.get(name)} is needed"
                )
            if found.dtype not in FLOATS:
                raise TensorsError(f"tensor {shown(name)} is {found.dtype}, not floating point")


def check(
    source: Path | bytes, keys: Collection[str] | None = None, most_metadata: int = MAX_METADATA
) -> Header:
    """The header of a file or of its content, without reading a tensor.

    `keys`: the metadata that a file of ours may have (None: any). `most_metadata`: characters.
    Raises TensorsError for what breaks the format's rules or these limits, OSError.
    """
    with _opened(source) as file:
        text, size = _header_text(file)
    if text.count(b'"data_offsets"') > MAX_TENSORS:  # before the time that parsing takes
        raise TensorsError(f"it has more than {MAX_TENSORS} tensors")
    try:
        header = strict_json(text.decode())
    except UnicodeDecodeError as error:
        raise TensorsError("its header isn't UTF-8") from error
    metadata = _checked_metadata(header.pop(METADATA, {}), keys, most_metadata)
    if len(header) > MAX_TENSORS:
        raise TensorsError(f"it has more than {MAX_TENSORS} tensors")
    tensors = {name: _spec(name, value) for name, value in header.items()}
    _check_layout(tensors, size)
    return Header(tensors, metadata)


def load(source: Path | bytes, header: Header) -> dict[str, Tensor]:
    """The tensors of a checked file, on the CPU. Raises TensorsError where its seal is broken or
    numbers aren't finite."""
    if SEAL in header.metadata:
        _check_seal(source, header.metadata[SEAL])
    try:
        if isinstance(source, Path):
            tensors = safetensors.torch.load_file(source)
        else:
            tensors = safetensors.torch.load(source)
    except safetensors.SafetensorError as error:
        raise TensorsError(str(error)) from error
    for name, tensor in tensors.items():
        if header.tensors[name].dtype in FLOATS and not tensor.isfinite().all():
            raise TensorsError(f"tensor {shown(name)} holds numbers that aren't finite")
    return tensors


def sealed(tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A sealed file's content: the same for the same tensors and metadata."""
    plain = memoryview(safetensors.torch.save(tensors))
    length = int.from_bytes(plain[:8], "little")
    # The library writes metadata in an order that changes from run to run.
    described = dict(sorted(metadata.items())) | {SEAL: BLANK}
    header = {METADATA: described} | json.loads(bytes(plain[8 : 8 + length]))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head, body = len(text).to_bytes(8, "little") + text, plain[8 + length :]
    digest = hashlib.sha256(head)
    digest.update(body)
    return b"".join((_resealed(head, digest.hexdigest()), body))


def strict_json(text: str | bytes) -> dict[str, Any]:
    """The JSON object in a text: no key twice, no NaN, not deep. Raises TensorsError."""
    try:
        value = json.loads(text, object_pairs_hook=_distinct, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise TensorsError("its JSON is nested too deep") from error
    except ValueError as error:
        reason = str(error).partition("\n")[0]
        raise TensorsError(
            reason if isinstance(error, TensorsError) else f"it is no JSON: {reason}"
        ) from error
    if not isinstance(value, dict):
        raise TensorsError(f"its JSON is a {type(value).__name__}, not an object")
    return value


def shown(name: object) -> str:
    """A name out of a file, fit for a message."""
    text = ascii(name)
    return text if len(text) <= 80 else f"{text[:79]}…"


# --- The header ----------------------------------------------------------------------------------


def _opened(source: Path | bytes) -> AbstractContextManager[BinaryIO]:
    if isinstance(source, bytes):
        return nullcontext(io.BytesIO(source))
    if source.exists() and not source.is_file():
        raise TensorsError("it is not a regular file")
    return source.open("rb")


def _header_text(file: BinaryIO) -> tuple[bytes, int]:
    """The header's bytes, without padding, and how many bytes of tensors follow it."""
    total = file.seek(0, io.SEEK_END)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    size = total - 8 - length
    if total < 8 or size < 0:
        raise TensorsError("it is cut short, or no safetensors file")
    if length > min(LARGEST_HEADER, max(MAX_HEADER, size)):
        raise TensorsError(f"its header of {length >> 20} MiB is too large")
    text = file.read(length).rstrip(b" ")
    if not (text.startswith(b"{") and text.endswith(b"}")):
        raise TensorsError("its header is no JSON object: it is no safetensors file, or damaged")
    return text, size


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise TensorsError(f"its JSON has {shown(twice)} twice")
    return found


def _refuse_constant(text: str) -> NoReturn:
    raise TensorsError(f"its JSON has the number {text}")


def _checked_metadata(value: Any, keys: Collection[str] | None, most: int) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(one, str) for one in value.values()):
        raise TensorsError("its metadata aren't texts by name")
    if sum(len(key) + len(text) for key, text in value.items()) > most:
        raise TensorsError(f"its metadata are longer than {most >> 20} MiB")
    unknown = set() if keys is None else value.keys() - set(keys) - {SEAL}
    if unknown:
        raise TensorsError(f"its metadata have the unknown entry {shown(min(unknown))}")
    return value


def _spec(name: str, value: Any) -> Spec:
    """One entry of the header. Raises TensorsError."""
    if len(name) > MAX_NAME or not name.isprintable() or "\\" in name:
        raise TensorsError(f"the tensor name {shown(name)} is too long or not printable")
    if any(part in ("", ".", "..") for part in name.split("/")):
        raise TensorsError(f"the tensor name {shown(name)} is a path that leads elsewhere")
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise TensorsError(f"tensor {shown(name)} needs dtype, shape and offsets, no more")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise TensorsError(f"tensor {shown(name)} has the unknown dtype {shown(dtype)}")
    if not _whole_numbers(shape, MAX_DIMENSION) or len(shape) > MAX_DIMENSIONS:
        raise TensorsError(f"tensor {shown(name)} has the impossible shape {shown(shape)}")
    if not _whole_numbers(offsets, 1 << 62) or len(offsets) != 2:
        raise TensorsError(f"tensor {shown(name)} has the impossible offsets {shown(offsets)}")
    begin, end = offsets
    if end - begin != math.prod(shape) * ITEM_BYTES[dtype]:  # Python's integers don't overflow
        raise TensorsError(f"tensor {shown(name)} has other bytes than its shape needs")
    return Spec(dtype, tuple(shape), begin, end)


def _whole_numbers(values: Any, most: int) -> bool:
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value <= most for value in values
    )


def _check_layout(tensors: Mapping[str, Spec], size: int) -> None:
    """Raise TensorsError unless the tensors cover the bytes that follow the header exactly once."""
    reached = 0
    for name, spec in sorted(tensors.items(), key=lambda one: (one[1].begin, one[1].end)):
        if spec.begin != reached:
            raise TensorsError(f"tensor {shown(name)} overlaps another, or leaves a gap")
        reached = spec.end
    if reached != size:
        raise TensorsError(f"its tensors take {reached} bytes, and {size} follow the header")


# --- The seal ------------------------------------------------------------------------------------


def _resealed(head: bytes, seal: str) -> bytes:
    """A header with other digits in its seal."""
    return SEALED.sub(f'"{SEAL}":"{seal}"'.encode(), head, count=1)


def _check_seal(source: Path | bytes, seal: str) -> None:
    with _opened(source) as file:
        length = file.read(8)
        head = length + file.read(int.from_bytes(length, "little"))
        digest = hashlib.sha256(_resealed(head, BLANK))
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != seal:
        raise TensorsError(
            f"its content (SHA-256 {digest.hexdigest()[:12]}) is not what was written "
            f"({shown(seal)[1:13]}); it was damaged or edited"
        )
