"""A data set looked through before it is used: what can't be read, what stands twice, what there
is."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock

from ..errors import InputError
from .decoding import normalised, open_picture, turn


@dataclass
class Checked:
    """What was found; `duplicates` are groups of names whose pictures are the same to the pixel."""

    unreadable: dict[str, str] = field(default_factory=dict)  # name → why
    formats: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)  # upright, "640x480"
    duplicates: list[list[str]] = field(default_factory=list)


def check(
    names: Sequence[str],
    read: Callable[[str], bytes],
    label: str = "",
    progress: Callable[[int], None] = lambda count: None,
) -> Checked:
    """Decode every picture whole, whose bytes `read` gives; `label` stands before a name where it
    is said."""
    found, alike, large = Checked(), defaultdict[bytes, list[str]](list), Lock()

    def facts(name: str) -> tuple[str, str, str, bytes] | str:
        try:
            data = read(name)
            with turn(large, data):
                image = open_picture(data, label + name)
                plain = normalised(image)
                digest = hashlib.sha256(f"{plain.mode} {plain.size}".encode())
                digest.update(plain.tobytes())
        except InputError as error:
            return str(error)
        width, height = plain.size
        return str(image.format), image.mode, f"{width}x{height}", digest.digest()

    with ThreadPoolExecutor() as pool:
        for name, one in zip(names, pool.map(facts, names), strict=True):
            progress(1)
            if isinstance(one, str):
                found.unreadable[name] = one
                continue
            format, mode, size, digest = one
            found.formats[format] += 1
            found.modes[mode] += 1
            found.sizes[size] += 1
            alike[digest].append(name)
    found.duplicates = [group for group in alike.values() if len(group) > 1]
    return found
