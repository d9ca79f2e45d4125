"""How files are damaged: their bytes, and the structure of those that have one.

A mutation changes a file's bytes in place, by the random numbers that it is given. Those of a
structure keep the rest right, checksums and seals included, so that a reader is tried behind them.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any

Mutation = Callable[[bytearray, random.Random], None]

EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)

# --- Bytes ---------------------------------------------------------------------------------------


def flip(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 1, 4, 32))):
        data[chance.randrange(len(data))] ^= chance.randrange(1, 256)


def cut(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def drop(data: bytearray, chance: random.Random) -> None:
    begin = chance.randrange(len(data))
    del data[begin : begin + chance.randrange(1, 64)]


def insert(data: bytearray, chance: random.Random) -> None:
    place = chance.randrange(len(data))
    data[place:place] = chance.randbytes(chance.randrange(1, 64))


def repeat(data: bytearray, chance: random.Random) -> None:
    begin = chance.randrange(len(data))
    part = data[begin : begin + chance.choice((8, 64, 512))]
    data[begin:begin] = part * chance.choice((1, 1, 50))


def number(data: bytearray, chance: random.Random) -> None:
    """An extreme value where headers keep theirs."""
    place = chance.randrange(max(1, min(len(data), chance.choice((64, 512))) - 4))
    put(data, place, chance.choice((">H", "<H", ">I", "<I")), chance.choice(EXTREMES))


def recode(data: bytearray, chance: random.Random) -> None:
    """A text in another encoding, with other ends of lines, or with what no text has."""
    text = data.decode("utf-8", "replace")
    data[:] = chance.choice(
        (
            b"\xef\xbb\xbf" + text.encode(), text.encode("utf-16"), text.encode("utf-32"),
            text.replace("\n", "\r\n").encode(), text.replace("\n", "\r").encode(),
            text.encode() + b"\0", text.encode() * 2, b"\0" * chance.choice((1, 1 << 20)),
            text.replace("e", "\u202e").encode(), text.replace("a", "\x1b[2J").encode(),
        )
    )  # fmt: skip


BYTES: tuple[Mutation, ...] = (flip, cut, drop, insert, repeat, number, number)
TEXT: tuple[Mutation, ...] = (flip, cut, drop, insert, repeat, recode)


def put(data: bytearray, place: int, kind: str, value: int) -> None:
    """A number of this kind, as much of it as fits, over what is there."""
    size = struct.calcsize(kind)
    data[place : place + size] = struct.pack(kind, value & ((1 << 8 * size) - 1))


# --- JSON, and YAML that is written as JSON ------------------------------------------------------


class Raw(str):
    """What stands in the text as it is."""


class Pairs(list[tuple[str, Any]]):
    """An object, in which a key can stand twice."""


NUMBERS = (
    0, 1, -1, 2, 3, 5, 7, 8, 16, 31, 33, 63, 64, 100, 128, 1000, 1001, 65_537, -(2**31), 2**31 - 1,
    2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**30, -0.0, 0.5, 1e-9,
    1e-45, 5e-324, 1e9, 1e18, 3.5e38, 1.7e308, -1e-3, -1e300, float("nan"), float("inf"),
    float("-inf"), Raw("1e999"), Raw("-1e999"), Raw("9" * 5000), Raw("0." + "0" * 5000 + "1"),
)  # fmt: skip
WORDS = (
    None, True, False, "", "0", "8", "-1", "1e3", "none", "NaN", "linear", "large", "/dev/zero",
    "../../etc/passwd", "a" * 100_000, "\x1b[2J\x07", "\u202egpj", "\0", "a\nb", "{}{0}%s%n",
    Raw('"\\ud800"'), "\U0001f600", Raw("[]"), Raw("{}"), Raw("[[]]"), Raw('{"a": 1}'), Raw("[1]"),
)  # fmt: skip
YAML = (
    "*nobody", "&a [*a]", "!!python/object/apply:os.system ['true']", "!!python/name:os.system",
    ".nan", ".inf", "2001-01-01", "2001-13-45", "0x7fffffff", "1:30:00", "1_0", "~", "!!binary a",
    "!!binary aGk=", "!!set {a, b}", "!!float x", "!!int ''", "{? [a, b] : c}", "{<<: [1]}",
    "{? {a: b} : c}", "{1: 2, null: 3, 1.5: 4}", "'", "%", "@", "- - -", "|\n  x", "!<tag:x> y",
    "{a: &x [1,1,1,1,1,1,1,1], b: &y [*x,*x,*x,*x,*x,*x,*x,*x], c: [*y,*y,*y,*y,*y,*y,*y,*y]}",
)  # fmt: skip


def parsed(text: str) -> Any:
    """JSON as lists, Pairs and scalars. Raises ValueError."""
    return json.loads(text, object_pairs_hook=Pairs)


def written(node: Any) -> str:
    """The text of what `parsed` and mutations made."""
    if isinstance(node, Raw):
        return node
    if isinstance(node, Pairs):
        return "{" + ",".join(f"{json.dumps(key)}:{written(one)}" for key, one in node) + "}"
    if isinstance(node, list):
        return "[" + ",".join(map(written, node)) + "]"
    return json.dumps(node)


def places(node: Any) -> list[tuple[list[Any], int]]:
    """Where something stands below a list or an object: which one, and the how manieth in it."""
    found = []
    for index, one in enumerate(node if isinstance(node, list) else ()):
        found += [(node, index), *places(one[1] if isinstance(node, Pairs) else one)]
    return found


def node_changed(root: list[Any], chance: random.Random, words: tuple[Any, ...] = WORDS) -> None:
    """Change what stands at one place below `root`; every second time it is a number."""
    every = places(root)
    numbers = [one for one in every if type(_at(*one)) in (int, float)]
    where, index = chance.choice(numbers if numbers and chance.random() < 0.5 else every)
    value = _at(where, index)
    action = chance.choice(("number", "number", "near", "word", "word", "structure", "structure"))
    if action == "near" and type(value) in (int, float):
        value = chance.choice((value + 1, value - 1, value * 2, value // 2, -value, float(value)))
    elif action == "word":
        value = chance.choice((*words, written(value)))
    elif action == "structure":
        return _restructured(where, index, every, chance)
    else:
        value = chance.choice(NUMBERS)
    _set(where, index, value)


def _restructured(where: list[Any], index: int, every: Any, chance: random.Random) -> None:
    """Dropped, doubled, swapped, nested, repeated, or called otherwise."""
    action = chance.choice(("drop", "double", "swap", "wrap", "deepen", "repeat", "rename"))
    value = _at(where, index)
    if action == "drop":
        del where[index]
    elif action == "double":
        where.insert(index, where[index])
    elif action == "swap":
        other = chance.choice(every)
        texts = Raw(written(value)), Raw(written(_at(*other)))  # none below itself
        _set(*other, texts[0])
        _set(where, index, texts[1])
    elif action == "repeat":
        times = chance.choice((2, 10, 1000, 50_000))
        often = ",".join([written(value)] * min(times, 1 + (1 << 20) // (1 + len(written(value)))))
        _set(where, index, Raw(f"[{often}]"))
    elif action == "rename" and isinstance(where, Pairs):
        names = ("", "x" * 100_000, "__class__", "\x1b[2J", "a\nb", chance.choice(where)[0])
        where[index] = (chance.choice((*names, where[index][0] + "s")), value)
    else:
        depth = 1 if action == "wrap" else chance.choice((20, 900, 100_000))
        begin, end = chance.choice((("[", "]"), ('{"a":', "}")))
        _set(where, index, Raw(begin * depth + written(value) + end * depth))


def _at(where: list[Any], index: int) -> Any:
    return where[index][1] if isinstance(where, Pairs) else where[index]


def _set(where: list[Any], index: int, value: Any) -> None:
    if index < len(where):
        where[index] = (where[index][0], value) if isinstance(where, Pairs) else value


def tree(data: bytearray, chance: random.Random, words: tuple[Any, ...] = WORDS) -> None:
    """A text of JSON: what is at one place; or, where it is none (any more), its bytes."""
    try:
        root = [parsed(data.decode())] if chance.random() < 0.9 else []
        if root:
            node_changed(root, chance, words)
            data[:] = "".join(map(written, root)).encode("utf-8", "surrogatepass")
            return
    except (ValueError, RecursionError):
        pass
    chance.choice(TEXT)(data, chance)


def yaml_tree(data: bytearray, chance: random.Random) -> None:
    """The same, with what YAML has beyond JSON."""
    tree(data, chance, (*WORDS, *map(Raw, YAML)))


# --- Lines ---------------------------------------------------------------------------------------


def lines(data: bytearray, chance: random.Random) -> None:
    """A text's lines: dropped, doubled, moved, indented, or with a word or number of the above."""
    rows = data.decode("utf-8", "replace").split("\n")
    action = chance.choice(("row", "move", "indent", "word", "text"))
    row = chance.randrange(len(rows))
    if action == "row":
        rows[row : row + 1] = rows[row : row + 1] * chance.choice((0, 2, 2000))
    elif action == "move":
        rows.insert(chance.randrange(len(rows)), rows.pop(row))
    elif action == "indent":
        rows[row] = chance.choice(("  ", "\t", "- ", "? ", "#")) + rows[row]
    elif action == "word":
        words = rows[row].split(" ")
        value = chance.choice((*NUMBERS, *WORDS, *map(Raw, YAML)))
        words[chance.randrange(len(words))] = value if isinstance(value, str) else written(value)
        rows[row] = " ".join(words)
    else:
        return chance.choice(TEXT)(data, chance)
    data[:] = "\n".join(rows).encode("utf-8", "surrogatepass")
