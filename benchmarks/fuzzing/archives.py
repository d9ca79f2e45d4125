"""Zips of pictures with their labels, and of codes: their records, and other members."""

from __future__ import annotations

import io
import os
import random
import re
import struct
import zipfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from .mutations import BYTES, EXTREMES, put
from .using import FAST, LOOP, MODEL, SHAPE, Kind, Kinds, by_commands, model_folder, pdae

IT = "it.zip"
OF_PICTURES = [
    f"data check {IT}",
    f"attributes fit {IT} {MODEL}",
    f"attributes fit {IT} {MODEL} --labels labels.csv",
    f"train dpm {IT} -o run {SHAPE} {LOOP} --dry-run",
    f"encode {IT} {MODEL} -o z.safetensors --no-noise",
    f"reconstruct {IT} {MODEL} -o back/ {FAST} --keep-exif -r",
]
OF_CODES = [
    f"codes merge {IT} -o all.safetensors",
    f"codes split {IT} -o rows/",
    f"manipulate {IT} {MODEL} --attr smiling=1 -o moved/",
]
METHODS_BY_NAME = {"stored": 0, "deflated": 8, "bzip2": 12, "lzma": 14}

# Record → its fields: where, and what kind of number.
ZIP: dict[bytes, tuple[tuple[int, str], ...]] = {
    b"PK\3\4": ((4, "<H"), (6, "<H"), (8, "<H"), (14, "<I"), (18, "<I"), (22, "<I"), (26, "<H"),
                (28, "<H")),
    b"PK\1\2": ((6, "<H"), (8, "<H"), (10, "<H"), (12, "<H"), (14, "<H"), (16, "<I"), (20, "<I"),
                (24, "<I"), (28, "<H"), (30, "<H"), (32, "<H"), (34, "<H"), (38, "<I"), (42, "<I")),
    b"PK\5\6": ((4, "<H"), (6, "<H"), (8, "<H"), (10, "<H"), (12, "<I"), (16, "<I"), (20, "<H")),
}  # fmt: skip
METHODS = (0, 1, 6, 8, 9, 12, 14, 20, 93, 95, 96, 97, 98, 99)
FLAGS = (1, 2, 8, 0x20, 0x40, 0x41, 0x800, 0x2000)
HEADS = {b"PK\3\4": (6, 8, 26, 30), b"PK\1\2": (8, 10, 28, 46)}  # flags, method, length, name
NAMES = (
    b"/", b"\\", b"../", b"\0", b"\x1b[2J", b"\n", b"\xff\xfe", b"C:\\", b".", b"", b"labels.csv",
    "\u202e".encode(), b"a" * 300,
)  # fmt: skip


def records(data: bytearray, chance: random.Random) -> None:
    """A zip's records: a field of one, flags or method in both places, or a member's name."""
    found = [one.start() for one in re.finditer(rb"PK(\x03\x04|\x01\x02|\x05\x06)", data)]
    if not found or chance.random() < 0.2:
        return chance.choice(BYTES)(data, chance)
    action, place = (
        chance.choice(("field", "field", "method", "flags", "name")),
        chance.choice(found),
    )
    if action == "field":
        part, kind = chance.choice(ZIP[bytes(data[place : place + 4])])
        old = int.from_bytes(data[place + part : place + part + struct.calcsize(kind)], "little")
        values = (*EXTREMES, old + 1, old - 1, old * 2, old // 2, *METHODS)
        return put(data, place + part, kind, chance.choice(values))
    value = chance.choice(METHODS if action == "method" else FLAGS)
    which = chance.randrange(len(NAMES))
    for kind, (flags, method, length, name) in HEADS.items():  # of the same member
        records = [one for one in found if data[one : one + 4] == kind]
        if not records:
            continue
        one = records[which % len(records)]
        if action == "name":
            size = int.from_bytes(data[one + length : one + length + 2], "little")
            new = NAMES[which] + bytes(data[one + name : one + name + size])
            data[one + name : one + name + size] = new[:size]
        else:
            put(data, one + (method if action == "method" else flags), "<H", value)


def kinds(root: Path) -> Kinds:
    """Of every method of compression, of codes, and of other members."""
    from labelled import labelled

    folder, found = model_folder(root / "archives"), Kinds()
    shown = labelled(root / "shown", 12, 8)
    os.chdir(folder)
    pdae(f"encode {shown} {MODEL} --no-noise -o {root / 'codes'}/")
    of_pictures = by_commands(folder, IT, [f"encode {IT} {MODEL} -o out/ --no-noise"], OF_PICTURES)
    of_codes = by_commands(folder, IT, [f"codes average {IT} -o mean.safetensors"], OF_CODES)
    files = {path.name: path.read_bytes() for path in sorted(shown.iterdir())}
    for name, method in METHODS_BY_NAME.items():
        found[name] = Kind(zipped(files.items(), method), records, of_pictures)
    files = {path.name: path.read_bytes() for path in (root / "codes").glob("*.safetensors")}
    found["of codes"] = Kind(zipped(files.items(), zipfile.ZIP_DEFLATED), records, of_codes)
    found["built"] = Kind(found["stored"].data, built, of_pictures)
    return found


def zipped(members: Iterable[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip of these members; the same at any time."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return buffer.getvalue()


@cache
def _zeros(mebibytes: int) -> bytes:
    """A bomb: a zip of one member of so many MiB of zeros."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compresslevel=1) as archive:
        member = zipfile.ZipInfo("labels.csv")
        member.compress_type = zipfile.ZIP_DEFLATED
        with archive.open(member, "w", force_zip64=True) as file:
            for _ in range(mebibytes):
                file.write(bytes(1 << 20))
    return buffer.getvalue()


def built(data: bytearray, chance: random.Random) -> None:
    """A zip of other members: bombs, nested, doubled, many, oddly named; then its records."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            if len(names) > 100 or max(one.file_size for one in archive.infolist()) > 1 << 20:
                return records(data, chance)  # a bomb by now
            members = [(one, archive.read(one)) for one in names]
    except Exception:  # damaged by now
        return records(data, chance)
    action = chance.choice(("bomb", "nested", "double", "many", "names", "kinds"))
    if action == "bomb":
        name = chance.choice((b"labels.csv", b"000000.png"))
        data[:] = _zeros(chance.choice((20, 700))).replace(b"labels.csv", name)
    elif action == "many":
        data[:] = zipped((f"{n}.png", b"") for n in range(chance.choice((500, 3000))))
    else:
        name, content = chance.choice(members)
        new = {
            "nested": [("a.zip", bytes(data)), ("a.png", bytes(data))],
            "double": [(name, content), (name.upper(), content), (f"./{name}", content)],
            "names": [(one, content) for one in ("../a.png", "/a.png", "a.png/", "C:\\a.png",
                      "a\x1b[2J.png", "\u202ea.png", "con.png", "a" * 300 + ".png", "a/b/../c.png",
                      ".pdae/manifest.jsonl", "-o.png", " .png", "a\nb.png", "d/" * 300 + "a.png")],
            "kinds": [("a.gif", content), ("b.safetensors", content), ("c.png", b"")],
        }[action]  # fmt: skip
        more = chance.sample(new, chance.randrange(1, len(new) + 1))
        data[:] = zipped([*members, *more], zipfile.ZIP_DEFLATED)
    if chance.random() < 0.2:
        records(data, chance)
