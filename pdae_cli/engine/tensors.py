"""Safetensors files: a header is checked before any tensor is made, as the library takes a name
twice, a dimension of 2^60 and any metadata; both are read of one mapping, as a file may be replaced
meanwhile. They are sealed when we write them. A seal is the SHA-256 of the whole file but for its
own digits: it tells damage and careless edits, not malice. Files without one are read too.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from ..files import mistaken_for

# Parsed, a header can take 20 times as much memory; it may be as long as the tensors' bytes. What
# names many rows of few numbers is longer, but has one value in so many bytes at most.
MAX_HEADER = 4 << 20
BYTES_A_VALUE, BEFORE_VALUES = 16, (b",", b"[", b"{")
LARGEST_HEADER = 100_000_000  # the library's own limit
MAX_METADATA = 1 << 20  # characters, where the caller doesn't expect a name a row
MAX_TENSORS = 10_000
MAX_NAME = 512
MAX_DIMENSIONS, MAX_DIMENSION = 8, 1 << 31
DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "U16": torch.uint16, "I16": torch.int16, "F16": torch.float16,
    "BF16": torch.bfloat16, "U32": torch.uint32, "I32": torch.int32, "F32": torch.float32,
    "U64": torch.uint64, "I64": torch.int64, "F64": torch.float64, "C64": torch.complex64,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
FLOATS = frozenset({"F16", "BF16", "F32", "F64"})
METADATA, SEAL, BLANK = "__metadata__", "sha256", "0" * 64
Source = Path | bytes | memoryview
LARGEST = (1 << 63) - 1  # of whole numbers: what others read as 64 bits


class TensorsError(ValueError):
    """What is wrong with a file, as the end of a sentence that begins with its name."""


class Spec(NamedTuple):
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """A checked header."""

    tensors: dict[str, Spec]  # in the order of their bytes
    metadata: dict[str, str]

    def facts(self, key: str = "pdae") -> dict[str, Any]:
        """The JSON object that the metadata hold under a key. Raises TensorsError."""
        if key not in self.metadata:
            raise TensorsError(f"its metadata lack {key!r}, so it is none that this program wrote")
        return strict_json(self.metadata[key])

    def require(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise TensorsError unless the tensors are these, of floating point numbers."""
        for name in sorted(shapes.keys() | self.tensors.keys()):
            found, shape = self.tensors.get(name), shapes.get(name)
            if found is None or found.shape != shape:
                has = f"tensor {shown(name)} has shape {found and found.shape}"
                raise TensorsError(f"{has}, where {shape} is needed")
            if found.dtype not in FLOATS:
                raise TensorsError(f"tensor {shown(name)} is {found.dtype}, not floating point")


def opened(path: Path, keys: Collection[str] | None = None) -> tuple[memoryview, Header]:
    """Map a file and check its header (`check`): what is read of the two is of one file, even where
    another takes its name meanwhile."""
    content = _content(path)
    return content, check(content, keys)


def check(
    source: Source, keys: Collection[str] | None = None, most_metadata: int = MAX_METADATA
) -> Header:
    """Check the header of a file or of its content, without reading a tensor. `keys`: the metadata
    that it may have (None: any). `most_metadata`: characters. Raises TensorsError for what breaks
    the format's rules or these limits, OSError."""
    content = _content(source)
    if (other := mistaken_for(bytes(content[:200]))) is not None:
        raise TensorsError(f"it is {other}")
    begin = 8 + int.from_bytes(content[:8], "little")  # of the tensors' bytes
    size = len(content) - begin
    text = bytes(content[8 : min(begin, LARGEST_HEADER)]).rstrip(b" ")
    most = max(MAX_HEADER, size)
    if most < begin <= most_metadata:
        values = sum(map(text.count, BEFORE_VALUES))
        most = begin if values <= begin // BYTES_A_VALUE else most
    if begin > min(LARGEST_HEADER, most):
        raise TensorsError(f"its header of {begin >> 20} MiB is too large")
    if size < 0 or not (text.startswith(b"{") and text.endswith(b"}")):
        raise TensorsError("it is cut short, damaged or no safetensors file")
    many = text.count(b'"data_offsets"') > MAX_TENSORS  # before the time that parsing takes
    header = {} if many else strict_json(text)
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise TensorsError("its metadata aren't texts by name")
    if sum(len(key) + len(text) for key, text in metadata.items()) > most_metadata:
        raise TensorsError(f"its metadata are longer than {most_metadata >> 20} MiB")
    if keys is not None and (unknown := metadata.keys() - set(keys) - {SEAL}):
        raise TensorsError(f"its metadata have the unknown entry {shown(min(unknown))}")
    if many or len(header) > MAX_TENSORS:
        raise TensorsError(f"it has more than {MAX_TENSORS} tensors")
    for name, entry in header.items():
        _check_entry(name, entry)
    reached, ordered = 0, sorted(header.items(), key=lambda one: one[1]["data_offsets"])
    for name, entry in ordered:
        if entry["data_offsets"][0] != reached:
            raise TensorsError(f"tensor {shown(name)} overlaps another, or leaves a gap")
        reached = entry["data_offsets"][1]
    if reached != size:
        raise TensorsError(f"its tensors take {reached} bytes, and {size} follow the header")
    specs = {name: Spec(one["dtype"], tuple(one["shape"])) for name, one in ordered}
    return Header(specs, metadata)


def load(source: Source, header: Header) -> dict[str, Tensor]:
    """Read the tensors of what was checked, onto the CPU; those of a file stay in it until they are
    used. Raises TensorsError where its seal is broken or numbers aren't finite, OSError."""
    content = _content(source)
    begin = 8 + int.from_bytes(content[:8], "little")
    if (seal := header.metadata.get(SEAL)) is not None:
        sha = hashlib.sha256(_resealed(bytes(content[:begin]), seal, BLANK))
        sha.update(content[begin:])
        if (found := sha.hexdigest()) != seal:
            written = f"is not what was written ({shown(seal)[1:13]}); it was damaged or edited"
            raise TensorsError(f"its content (SHA-256 {found[:12]}) {written}")
    tensors, at = dict[str, Tensor](), begin
    for name, (kind, shape) in header.tensors.items():
        part = torch.empty(0, dtype=DTYPES[kind])  # as a buffer of no bytes can't be
        if size := math.prod(shape) * part.itemsize:
            data = content[at : at + size]  # of bytes copied, since what is read may be changed
            part = torch.frombuffer(bytearray(data) if data.readonly else data, dtype=part.dtype)
        if kind in FLOATS and not part.isfinite().all():
            raise TensorsError(f"tensor {shown(name)} holds numbers that aren't finite")
        tensors[name], at = part.reshape(shape), at + size
    return tensors


def sealed(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Make a sealed file's content: the same for the same tensors and metadata."""
    return b"".join(parts(tensors, metadata, seal=True))


def parts(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], seal: bool = False
) -> Iterator[bytes | memoryview]:
    """Yield a file's content piece by piece, as the library orders it and without copying what lies
    on the CPU; the metadata are ordered, so that equal content is equal bytes."""
    order = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    kept = [tensors[name].detach().cpu().contiguous() for name in order]
    body = [one.reshape(-1).view(torch.uint8).numpy().data for one in kept]
    header: dict[str, Any] = {METADATA: dict(sorted(metadata.items()))}
    if seal:
        header[METADATA][SEAL] = BLANK
    end = 0
    for name, tensor in zip(order, kept, strict=True):
        begin, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=seal).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    if seal:
        sha = hashlib.sha256(head)
        for piece in body:
            sha.update(piece)
        head = _resealed(head, BLANK, sha.hexdigest())
    yield head
    yield from body


def strict_json(text: str | bytes, infinities: bool = False) -> dict[str, Any]:
    """Parse a JSON object: no key twice, not deep, whole numbers of 63 bits, others finite; with
    `infinities` also Python's names of what isn't. Raises TensorsError."""
    constant = float if infinities else _refuse_number
    hooks: dict[str, Any] = {"parse_int": _whole, "parse_float": _finite}
    try:
        text = text if isinstance(text, str) else text.decode("utf-8-sig")
        value = json.loads(text, object_pairs_hook=_distinct, parse_constant=constant, **hooks)
    except RecursionError as error:
        raise TensorsError("its JSON is nested too deep") from error
    except TensorsError:
        raise
    except ValueError as error:
        raise TensorsError(f"it is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise TensorsError(f"its JSON is a {type(value).__name__}, not an object")
    return value


def shown(name: object) -> str:
    """A name out of a file, fit for a message."""
    text = ascii(name)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _content(source: Source) -> memoryview:
    """A file's content, without reading it; what is changed in memory stays there."""
    if not isinstance(source, Path):
        return memoryview(source)
    if source.exists() and not source.is_file():
        raise TensorsError("it is not a regular file")
    with source.open("rb") as file:
        empty = os.fstat(file.fileno()).st_size == 0  # nothing to map then
        return memoryview(b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise TensorsError(f"its JSON has {shown(key)} twice")
        found[key] = value
    return found


def _refuse_number(text: str) -> NoReturn:
    raise TensorsError(f"its JSON has the number {shown(text)[1:-1]}")


def _whole(text: str) -> int:
    if len(text) > 20 or abs(int(text)) > LARGEST:
        _refuse_number(text)
    return int(text)


def _finite(text: str) -> float:
    return value if math.isfinite(value := float(text)) else _refuse_number(text)


def _check_entry(name: str, entry: Any) -> None:
    """Raise TensorsError unless the header's entry can be a tensor, of as many bytes as it says."""
    elsewhere = {"", ".", ".."} & set(name.split("/")) or "\\" in name
    if len(name) > MAX_NAME or not name.isprintable() or elsewhere:
        raise TensorsError(f"the tensor name {shown(name)} is too long, unprintable or a path")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise TensorsError(f"tensor {shown(name)} needs dtype, shape and offsets, no more")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise TensorsError(f"tensor {shown(name)} has the unknown dtype {shown(dtype)}")
    possible = _are_numbers(shape, MAX_DIMENSION) and len(shape) <= MAX_DIMENSIONS
    if not possible or math.prod(one or 1 for one in shape) > LARGEST:  # one of 0 hides the others
        raise TensorsError(f"tensor {shown(name)} has the impossible shape {shown(shape)}")
    size = math.prod(shape) * DTYPES[dtype].itemsize  # Python's integers don't overflow
    two = _are_numbers(offsets, 1 << 62) and len(offsets) == 2
    if not two or offsets[1] - offsets[0] != size:
        raise TensorsError(f"tensor {shown(name)} of {size} bytes isn't at {shown(offsets)}")


def _are_numbers(values: Any, most: int) -> bool:
    """Whether it is a list of whole numbers, 0 … most."""
    whole = isinstance(values, list) and all(type(value) is int for value in values)
    return whole and all(0 <= value <= most for value in values)


def _resealed(head: bytes, old: str, new: str) -> bytes:
    old, new = (f'"{SEAL}":"{seal}"' for seal in (old, new))  # quotes within strings are escaped
    return head.replace(old.encode(), new.encode(), 1)


def networks_sha(*networks: nn.Module) -> str:
    """Return the first 12 digits of the SHA-256 of networks' weights, by which they are known
    again; in 16 bits, as a model that is trained in place may be stored."""
    found = hashlib.sha256()
    for network in networks:
        for name, value in network.state_dict().items():
            value = value.half() if value.is_floating_point() else value
            found.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:12]


def exact_dtype(*networks: nn.Module) -> torch.dtype:
    """Find the smallest dtype in which all numbers of networks are what they are."""
    tensors = [one.float() for part in networks for one in part.state_dict().values()]
    for dtype in (torch.float16, torch.bfloat16):
        if all(torch.equal(one, one.to(dtype).float()) for one in tensors):
            return dtype
    return torch.float32
