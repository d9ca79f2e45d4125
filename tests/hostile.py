"""Safetensors files that break the format's rules, or its spirit, by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from pdae_cli.errors import PdaeError

Z = {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}
DATA = bytes(8)


def raw(header: object, data: bytes = DATA, length: int | None = None) -> bytes:
    """A file of that header: an object, its text, or its bytes."""
    text = header if isinstance(header, str | bytes) else json.dumps(header)
    content = text.encode() if isinstance(text, str) else text
    claimed = len(content) if length is None else length
    return claimed.to_bytes(8, "little") + content + data


def z(name: str = "z", **changes: Any) -> dict[str, Any]:
    """The header of one tensor, with other values for some of its fields."""
    return {name: Z | changes}


def twice(key: str, value: object, other: object) -> str:
    """JSON with a key twice."""
    return f'{{"{key}": {json.dumps(value)}, "{key}": {json.dumps(other)}}}'


def deep(text: str = "[") -> str:
    return text * 100_000


def refused(read: Callable[[], object], kind: type[PdaeError], name: str) -> str:
    """The one line that it is refused with."""
    with pytest.raises(kind) as caught:
        read()
    line = str(caught.value)
    assert line.isprintable() and name in line and len(line) < 1000, line
    return line


MANY = {f"t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(100_000)}
SPELLED = json.dumps(dict(list(MANY.items())[:10_001])).replace("data_o", "data\\u005fo")
PART = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}

FORMAT = {
    "empty": b"",
    "seven bytes": bytes(7),
    "no header": bytes(8),
    "zeros": bytes(4096),
    "text": b"not a safetensors file, but a text that is long enough",
    "a zip": b"PK\x03\x04" + bytes(60),
    "a pickle": b"\x80\x04\x95" + bytes(60),
    "header longer than the file": raw(z(), length=10_000),
    "header of 2^40": raw(z(), length=1 << 40),
    "header of 2^63": raw(z(), length=1 << 63),
    "header of 2^64 - 1": raw(z(), length=(1 << 64) - 1),
    "header one byte short": raw(z(), length=len(json.dumps(z())) - 1),
    "header one byte long": raw(z(), length=len(json.dumps(z())) + 1),
    "header of 5 MiB": raw(json.dumps(z()) + " " * (5 << 20)),
    "brace alone": raw("{"),
    "an array": raw("[]"),
    "a number": raw("7"),
    "leading space": raw(" " + json.dumps(z())),
    "leading byte order mark": raw("\ufeff" + json.dumps(z())),
    "padded with tabs": raw(json.dumps(z()) + "\t\t"),
    "two objects": raw(json.dumps(z()) + "{}"),
    "not UTF-8": raw(b'{"\xff\xfe": 1}'),
    "UTF-16": raw(json.dumps(z()).encode("utf-16")),
    "tensor twice": raw(twice("z", Z, Z)),
    "tensor twice, of another dtype": raw(twice("z", Z, Z | {"dtype": "I32"})),
    "metadata twice": raw('{"__metadata__": {}, ' + twice("__metadata__", {}, {})[1:]),
    "metadata entry twice": raw('{"__metadata__": ' + twice("a", "b", "c") + "}", b""),
    "field twice": raw('{"z": {"dtype": "F32", ' + json.dumps(Z)[1:] + "}"),
    "deep": raw('{"z": ' + "[" * 100_000 + "]" * 100_000 + "}"),
    "deep objects": raw('{"a":' * 100_000 + "1" + "}" * 100_000),
    "NaN": raw('{"z": NaN}'),
    "Infinity": raw(json.dumps(z(shape=[float("inf")]))),
    "a number of 5,000 digits": raw('{"z": {"shape": [' + "9" * 5000 + "]}}"),
    "unknown field": raw(z(extra=1)),
    "no dtype": raw({"z": {"shape": [1, 2], "data_offsets": [0, 8]}}),
    "no shape": raw({"z": {"dtype": "F32", "data_offsets": [0, 8]}}),
    "no offsets": raw({"z": {"dtype": "F32", "shape": [1, 2]}}),
    "tensor is a list": raw({"z": [1, 2]}),
    "tensor is null": raw({"z": None}),
    "unknown dtype": raw(z(dtype="F31")),
    "dtype is a number": raw(z(dtype=32)),
    "dtype is a list": raw(z(dtype=["F32"])),
    "shape is text": raw(z(shape="12")),
    "shape is a number": raw(z(shape=2)),
    "negative dimensions": raw(z(shape=[-1, -2])),
    "fractional dimension": raw(z(shape=[1, 2.0])),
    "dimension true": raw(z(shape=[True, 2])),
    "dimension as text": raw(z(shape=["1", 2])),
    "zero times 2^60": raw(z(shape=[0, 1 << 60], data_offsets=[0, 0]), b""),
    "2^64 in all": raw(z(shape=[1 << 31, 1 << 31, 4], data_offsets=[0, 0]), b""),
    "nine dimensions": raw(z(shape=[1] * 8 + [2])),
    "a million dimensions": raw(z(shape=[1] * 1_000_000)),
    "a million lists": raw({"z": [[]] * 1_000_000}),
    "one offset": raw(z(data_offsets=[8])),
    "no offsets in the list": raw(z(data_offsets=[])),
    "three offsets": raw(z(data_offsets=[0, 4, 8])),
    "offsets as text": raw(z(data_offsets=["0", "8"])),
    "offsets turned round": raw(z(data_offsets=[8, 0])),
    "negative offsets": raw(z(data_offsets=[-8, 0])),
    "offsets beyond the file": raw(z(data_offsets=[8, 16])),
    "offsets of 2^63": raw(z(data_offsets=[1 << 63, (1 << 63) + 8])),
    "fewer bytes than the shape": raw(z(shape=[1, 3])),
    "more bytes than the shape": raw(z(shape=[1, 1])),
    "overlap": raw({"z": Z, "x_T": PART}),
    "same bytes": raw({"z": Z, "x_T": Z}),
    "gap": raw({"z": PART, "x_T": PART | {"data_offsets": [8, 12]}}, bytes(12)),
    "data left over": raw(z(), bytes(12)),
    "data cut": raw(z(), bytes(7)),
    "100,000 tensors": raw(MANY, b""),
    "10,001 tensors, spelled otherwise": raw(SPELLED, b""),
    "name of 100,000 letters": raw(z("n" * 100_000)),
    "name with an escape": raw(z("z\x1b[2J")),
    "name with a newline": raw(z("z\nerror: all is well")),
    "name turned round": raw(z("z\u202egpj")),
    "name that leads up": raw(z("../../z")),
    "absolute name": raw(z("/etc/z")),
    "Windows name": raw(z("..\\z")),
    "no name": raw(z("")),
    "metadata is a list": raw({"__metadata__": ["pdae"]} | z()),
    "metadata is null": raw({"__metadata__": None} | z()),
    "metadata of numbers": raw({"__metadata__": {"pdae": 1}} | z()),
    "nested metadata": raw({"__metadata__": {"pdae": {"a": "b"}}} | z()),
    "2 MB of metadata": raw({"__metadata__": {"a": "x" * 2_000_000}} | z()),
    "20 MB of metadata": raw({"__metadata__": {"pdae": "x" * 20_000_000}} | z()),
    "numbers that aren't finite": raw(z(), b"\0\0\xc0\x7f\0\0\x80\x7f"),
    "false seal": raw({"__metadata__": {"sha256": "0" * 64}} | z()),
    "seal that is none": raw({"__metadata__": {"sha256": "\x1b[2J"}} | z()),
}
