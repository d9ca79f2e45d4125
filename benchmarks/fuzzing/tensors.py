"""Codes, attributes and weights: safetensors files with JSON in their headers."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

from .mutations import BYTES, Pairs, flip, node_changed, parsed, tree, written
from .using import FAST, MODEL, Kind, Kinds, by_commands, model_folder, pdae

IT, GOOD = "it.safetensors", "states.safetensors"
OF_CODES = [
    f"decode {IT} {MODEL} -o out/ {FAST}",
    f"decode {IT} {MODEL} -o out/ --random-noise {FAST}",
    f"manipulate {IT} {MODEL} --attr smiling=0.3 -o moved.png {FAST}",
    f"interpolate {IT} {GOOD} {MODEL} --steps 3 -o way/ {FAST}",
    f"codes merge {IT} {GOOD} -o all.safetensors",
    f"codes split {IT} -o rows/",
    f"codes average {IT} -o mean.safetensors",
    f"codes nearest {GOOD} {IT}",
    f"codes mix {IT}=0.5 {GOOD}=0.5 -o sum.safetensors",
    f"codes export {IT} -o z.csv",
    f"codes export {IT} -o z.npz",
    f"attributes discover {IT} {MODEL} -k 1",
    f"info --json {IT}",
]
OF_MODELS = [
    f"attributes list {MODEL}",
    f"attributes list {MODEL} --json",
    f"attributes rename {MODEL} smiling grin",
    f"attributes remove {MODEL} smiling",
    f"manipulate --list {MODEL}",
    f"manipulate a.png {MODEL} --attr smiling=1sd --keep blond -o b.png {FAST}",
    f"sample -n 1 {MODEL} -o new.png {FAST}",
    "info m --json",
]

SEAL = re.compile(rb'"sha256":"([0-9a-f]{64})"')
FLOATS = [struct.pack("<f", one) for one in (float("nan"), float("inf"), 3e38, -3e38, 1e-45, 0.0)]


def tensors(data: bytearray, chance: random.Random) -> None:
    """A safetensors file: its header, a JSON text in its metadata, or numbers; sealed again for the
    most part."""
    begin = 8 + int.from_bytes(data[:8], "little")
    try:
        root = [parsed(data[8:begin].decode())]
        head, body = _changed(root, data[begin:], chance)
    except (ValueError, RecursionError):  # of an earlier mutation
        return flip(data, chance)
    if chance.random() < 0.15:
        return chance.choice(BYTES)(data, chance)
    head += b" " * (-len(head) % 8)
    if chance.random() < 0.85:
        head = _sealed(head, bytes(body))
    data[:] = len(head).to_bytes(8, "little") + head + body


def _changed(root: list[Any], body: bytearray, chance: random.Random) -> tuple[bytes, bytearray]:
    """Header and numbers after one change."""
    metadata = dict(root[0]).get("__metadata__") if isinstance(root[0], Pairs) else None
    action = chance.choice(("header", "text", "text", "text", "numbers"))
    if action == "numbers":
        place = 4 * chance.randrange(max(1, len(body) // 4))
        body[place : place + 4] = chance.choice(FLOATS) * chance.choice((1, 1, 100))
    elif action == "text" and isinstance(metadata, Pairs) and metadata:
        row = chance.randrange(len(metadata))
        text = bytearray(str(metadata[row][1]).encode() or b"{}")
        tree(text, chance)
        metadata[row] = (metadata[row][0], text.decode("utf-8", "replace"))
    else:
        node_changed(root, chance)
    return "".join(map(written, root)).encode("utf-8", "surrogatepass"), body


def _sealed(head: bytes, body: bytes) -> bytes:
    """With the SHA-256 of the file but for its own digits, where there is one."""
    found = SEAL.search(head)
    if not found:
        return head
    begin, end = found.span(1)
    blank = head[:begin] + b"0" * 64 + head[end:]
    sha = hashlib.sha256(len(blank).to_bytes(8, "little") + blank + body).hexdigest()
    return head[:begin] + sha.encode() + head[end:]


def kinds(root: Path) -> Kinds:
    """Codes files, attributes, latent DPMs and weights."""
    from conftest import picture

    folder, found = model_folder(root / "codes"), Kinds()
    os.chdir(folder)
    for name in ("a", "b"):
        picture(len(name), (32, 32)).save(f"{name}.png")
    for name, how in (
        ("states", f"a.png b.png {FAST}"),
        ("z", "a.png --no-noise"),
        ("pairs", f"a.png --preset archival {FAST}"),
    ):
        pdae(f"encode {how} {MODEL} -o {name}.safetensors")
    for name in ("states", "z", "pairs"):
        data = (folder / f"{name}.safetensors").read_bytes()
        use = by_commands(folder, IT, [f"info {IT}"], OF_CODES)
        found[f"codes, {name}"] = Kind(data, tensors, use)
    for name in ("attributes", "latent_dpm", "model"):
        data = (folder / "m" / f"{name}.safetensors").read_bytes()
        use = by_commands(folder, f"m/{name}.safetensors", ["info m"], OF_MODELS)
        found[name] = Kind(data, tensors, use)
    config, use = folder / "m" / "config.json", found["model"].use
    facts = json.loads(config.read_text())

    def recorded(data: bytes, chance: random.Random) -> str:
        """Have the config know these weights beside its own: damage is to be met behind that."""
        shas = [*facts["weights_sha256"], hashlib.sha256(data).hexdigest()]
        config.write_text(json.dumps(facts | {"weights_sha256": shas}))
        return use(data, chance)

    found["model"] = replace(found["model"], use=recorded)
    return found
