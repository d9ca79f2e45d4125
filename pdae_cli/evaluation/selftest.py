"""Whether a model computes here as it should: the same twice and in every batch, and what it
computed where its values were made, which lie with its weights (`selftest.safetensors`)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..checkpoints.native import ATTRIBUTES, CONFIG, LATENT_DPM, WEIGHTS, guarded
from ..diffusion.trajectory import Sampling
from ..engine import tensors as safe
from ..engine.config import build
from ..engine.model import Model
from ..errors import ModelError
from ..files import sha256
from ..pictures.images import to_float
from .metrics import equal_share

VALUES = "selftest.safetensors"
# Said in full, because values that lie with weights are of them whatever the defaults become.
SETTINGS = Sampling(inference_steps=20, solver="dpmpp", spacing="asinh")
# Of any value: on CPUs some ten times what instruction sets differ by, elsewhere what TF32 may.
# docs/trust.md has both.
TOLERANCE, ELSEWHERE = 1e-4, 0.05
FEWER = 0.01  # of the 8-bit values, may come back than where the values were made


class Check(NamedTuple):
    """What was looked at, what came of it; whether that is right, None where nothing can be said;
    and by how much any value differs."""

    check: str
    verdict: str
    passed: bool | None = None
    largest: float | None = None


@dataclass(frozen=True)
class SelftestFacts:
    """What a file of values says of them."""

    of: dict[str, str]  # SHA-256 of each of the model's files
    equal: float  # share of the 8-bit values that came back


Values = tuple[SelftestFacts, dict[str, Tensor]]


def drawn(size: int, channels: int) -> Tensor:
    """Draw three faces, by whole numbers and so everywhere the same: (3, channels, size, size)
    float32 in [-1, 1]."""
    y, x = torch.meshgrid(*[torch.arange(size) * 128 // size - 64] * 2, indexing="ij")
    pictures = []
    for wide in (0, 4, 8):
        face = x**2 * 9 + (y - 8) ** 2 * (5 + wide) < 22000, (220, 170 + wide, 140)
        eyes = (x.abs() - 22) ** 2 + (y + 8) ** 2 * 3 < 60, (40, 30, 30)
        mouth = x**2 + (y - 40) ** 2 * (20 - 2 * wide) < 300 + 40 * wide, (170, 60, 70)
        picture = torch.stack([90 + y, 140 + x // 2 - 8 * wide, 160 - y // 2])
        for where, colour in (face, eyes, mouth):
            picture = torch.where(where, torch.tensor(colour)[:, None, None] - x // 4, picture)
        pictures.append(picture.clamp(0, 255).to(torch.uint8))
    return to_float(torch.stack(pictures)[:, [channel % 3 for channel in range(channels)]])


def computed(model: Model, pictures: Tensor) -> dict[str, Tensor]:
    """Compute what the model can: codes of pictures (N, C, H, W), the way back, an edit, samples;
    each (N, …) float32 on the CPU. Raises ModelError where that is nothing."""
    found, latent = dict[str, Tensor](), model.latent_dpm is not None
    if model.encoder is not None:
        codes = model.encode(pictures, SETTINGS)
        found = codes.tensors() | {"decoded": model.decode(codes)}
        attributes = model.attributes
        if attributes is not None and attributes.names and model.config.normalisation is not None:
            edit = [(attributes.names[0], 0.3)]
            found["edited"] = model.decode(model.manipulate(codes, edit))
    if latent or not model.takes_z:
        rows = range(len(pictures))
        found["sampled"], _ = model.sample(rows, SETTINGS, unconditional=not latent)
    if not found:
        raise ModelError(f"{model.name} neither encodes nor samples, so there is nothing to test")
    return {name: one.cpu().contiguous() for name, one in found.items()}


def checks(model: Model, stored: Values | None) -> Iterator[Check]:
    """Compute a picture twice and among three, and yield what is found. Raises ModelError."""
    pictures = drawn(model.config.image_size, model.config.channels)
    on_cpu = model.device.type == "cpu"
    bits = on_cpu and torch.backends.mkldnn.is_available()
    most = TOLERANCE if on_cpu else ELSEWHERE
    one = computed(model, pictures[:1])
    yield Check("computed", f"{', '.join(one)}, on {model.device}")
    yield alike("twice", one, computed(model, pictures[:1]), 0 if bits else most)
    three = computed(model, pictures)
    rows = {name: tensor[:1] for name, tensor in three.items()}
    yield alike("alone and among three", one, rows, 0 if bits else most)
    if "decoded" in three:
        share = equal_share(three["decoded"], pictures).mean().item()
        came = f"{share:.2%} of the 8-bit values come back"
        told = "" if stored is None else f", {stored[0].equal:.2%} where the values were made"
        right = None if stored is None else share >= stored[0].equal - FEWER
        yield Check("round trip", came + told, right)
    if stored is None:
        yield Check("stored values", "there are none for these weights")
    else:
        yield alike("stored values", one, stored[1], most)


def alike(
    name: str, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], most: float
) -> Check:
    """Compare values by name; no two may differ by more than `most`."""
    shapes = [{key: tuple(one.shape) for key, one in values.items()} for values in (ours, theirs)]
    if shapes[0] != shapes[1]:
        return Check(name, f"differs: {shapes[0]} here, {shapes[1]} there", False)
    if all(torch.equal(one, theirs[key]) for key, one in ours.items()):
        return Check(name, "equal to the bit", True, 0.0)
    gaps = {key: (one - theirs[key]).abs().nan_to_num(math.inf).max() for key, one in ours.items()}
    largest, where = max((gap.item(), key) for key, gap in gaps.items())
    if largest <= most:
        return Check(name, f"equal within {most:g}, as expected on this device", True, largest)
    return Check(name, f"differs: by {largest:.3g} in {where}, by {most:g} it may", False, largest)


def made_of(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a model that says what it computes."""
    names = (CONFIG, WEIGHTS, ATTRIBUTES, LATENT_DPM)
    return {name: sha256(folder / name) for name in names if (folder / name).exists()}


def read_values(folder: Path) -> Values | None:
    """Read a model's values; None where there are none, or they are of other weights. Raises
    ModelError where the file is damaged."""
    path = folder / VALUES
    if not path.exists():
        return None
    with guarded(path):
        content, header = safe.opened(path, keys=("pdae",))
        facts: SelftestFacts = build(SelftestFacts, header.facts(), "its metadata")
        return (facts, safe.load(content, header)) if facts.of == made_of(folder) else None
