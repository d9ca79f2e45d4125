"""Codes of pictures: z says what a picture means, x_T holds the rest. Kept as safetensors."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from .errors import InputError
from .files import write_bytes

FORMAT = "pdae-codes-1"
MAX_BYTES = 8 << 30


@dataclass(frozen=True)
class Codes:
    """Codes of N pictures, with what is needed to decode them as they were encoded."""

    z: Tensor  # (N, D) float32
    x_T: Tensor | None = None  # (N, C, H, W) float32; None when only z was encoded
    sources: tuple[str, ...] = ()  # a name for each row
    digests: tuple[str, ...] = ()  # SHA-256 of each row's 8-bit picture: names its random numbers
    model: str = ""  # name of the model
    digest: str = ""  # SHA-256 of its weights
    sampling: dict[str, Any] = field(default_factory=dict)  # solver settings of the encoding

    def __len__(self) -> int:
        return len(self.z)

    def fingerprint(self, row: int) -> str:
        """SHA-256 of one row's z and x_T."""
        parts = [self.z[row]] if self.x_T is None else [self.z[row], self.x_T[row].flatten()]
        return hashlib.sha256(torch.cat(parts).numpy().tobytes()).hexdigest()

    def __getitem__(self, rows: slice) -> Codes:
        x_T = None if self.x_T is None else self.x_T[rows]
        return replace(
            self,
            z=self.z[rows],
            x_T=x_T,
            sources=self.sources[rows],
            digests=self.digests[rows],
        )


def stack(codes: list[Codes]) -> Codes:
    """Join codes of the same model and settings into one."""
    noise = [one.x_T for one in codes if one.x_T is not None]
    if noise and len(noise) != len(codes):
        raise InputError("some of the codes have x_T and some don't; encode them alike")
    return replace(
        codes[0],
        z=torch.cat([one.z for one in codes]),
        x_T=torch.cat(noise) if noise else None,
        sources=tuple(source for one in codes for source in one.sources),
        digests=tuple(digest for one in codes for digest in one.digests),
    )


def to_bytes(codes: Codes) -> bytes:
    """The content of a codes file."""
    tensors = {"z": codes.z.float().cpu().contiguous()}
    if codes.x_T is not None:
        tensors["x_T"] = codes.x_T.float().cpu().contiguous()
    facts = {
        "format": FORMAT,
        "model": codes.model,
        "digest": codes.digest,
        "sampling": codes.sampling,
        "sources": list(codes.sources),
        "digests": list(codes.digests),
    }
    return save(tensors, metadata={"pdae": json.dumps(facts, sort_keys=True)})


def write_codes(path: Path, codes: Codes) -> None:
    """Write a codes file atomically."""
    write_bytes(path, to_bytes(codes))


def read_codes(source: Path | io.BytesIO, name: str) -> Codes:
    """Read a codes file. Raises InputError with one line that names it and says what is wrong."""
    try:
        if isinstance(source, Path) and source.stat().st_size > MAX_BYTES:
            raise InputError(f"{name}: larger than {MAX_BYTES >> 30} GiB; split it")
        data = source.read_bytes() if isinstance(source, Path) else source.getvalue()
        facts = _facts(data)
        tensors = load(data)
    except FileNotFoundError as error:
        raise InputError(f"{name}: no such file") from error
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{name}: not a codes file of pdae: {error}") from error
    z, x_T = tensors.get("z"), tensors.get("x_T")
    if z is None or z.ndim != 2 or (x_T is not None and (x_T.ndim != 4 or len(x_T) != len(z))):
        raise InputError(f"{name}: z must be (N, D) and x_T (N, C, H, W); encode again")
    for key, value in (("z", z), ("x_T", x_T)):
        if value is not None and not (value.dtype == torch.float32 and value.isfinite().all()):
            raise InputError(f"{name}: {key} must be finite float32 numbers; encode again")
    return Codes(z=z, x_T=x_T, **_checked(facts, len(z), name))


def _facts(data: bytes) -> dict[str, Any]:
    """The JSON in a safetensors header's metadata (the format's own layout: length, then JSON)."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length]) if 8 + length <= len(data) else {}
    facts: dict[str, Any] = json.loads(header["__metadata__"]["pdae"])
    return facts


def _checked(facts: dict[str, Any], rows: int, name: str) -> dict[str, Any]:
    if facts.get("format") != FORMAT:
        raise InputError(f"{name}: format {facts.get('format')!r}, this version reads {FORMAT}")
    sampling, lists = facts.get("sampling"), [facts.get("sources"), facts.get("digests")]
    whole = all(isinstance(one, list) and len(one) == rows for one in lists)
    if not whole or not isinstance(sampling, dict):
        raise InputError(f"{name}: its metadata is damaged; encode again")
    return {
        "sources": tuple(map(str, facts["sources"])),
        "digests": tuple(map(str, facts["digests"])),
        "model": str(facts.get("model", "")),
        "digest": str(facts.get("digest", "")),
        "sampling": sampling,
    }
