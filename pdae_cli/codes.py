"""Codes of pictures: z says what a picture means, x_T holds the rest. Kept as safetensors.

Codes made by a solver of two states have a second one, eps_T. It belongs to the picture as it is:
an edit drops it, and decoding then begins from x_T alone.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from .errors import InputError
from .files import write_bytes
from .noise import slerp

FORMAT = "pdae-codes-2"
MAX_BYTES = 8 << 30


@dataclass(frozen=True)
class Codes:
    """Codes of N pictures, with what is needed to decode them as they were encoded."""

    z: Tensor  # (N, D) float32
    x_T: Tensor | None = None  # (N, C, H, W) float32; None when only z was encoded
    eps_T: Tensor | None = None  # like x_T: the second state, where the solver has one
    sources: tuple[str, ...] = ()  # a name for each row
    digests: tuple[str, ...] = ()  # SHA-256 of each row's 8-bit picture: names its random numbers
    model: str = ""  # name of the model
    digest: str = ""  # SHA-256 of its weights
    sampling: dict[str, Any] = field(default_factory=dict)  # solver settings of the encoding
    converged: tuple[bool, ...] = ()  # whether each row's corrections went well; () without any

    def __len__(self) -> int:
        return len(self.z)

    def fingerprint(self, row: int) -> str:
        """SHA-256 of one row's z and states."""
        parts = [part[row].flatten() for part in self.tensors().values()]
        return hashlib.sha256(torch.cat(parts).numpy().tobytes()).hexdigest()

    def tensors(self) -> dict[str, Tensor]:
        """z, and what there is of x_T and eps_T."""
        named = {"z": self.z, "x_T": self.x_T, "eps_T": self.eps_T}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def check(self, name: str, digest: str, z_dim: int | None, shape: Sequence[int]) -> None:
        """Raise InputError unless a model of this name, digest, z and (C, H, W) can decode them."""
        if self.digest and digest and self.digest != digest:
            raise InputError(
                f"these codes are of another model ({self.model}, weights {self.digest[:12]}), "
                f"not of {name} ({digest[:12]}); pass it as --model"
            )
        if z_dim is not None and self.z.shape[1] != z_dim:
            raise InputError(f"these codes have {self.z.shape[1]} dimensions, {name} has {z_dim}")
        if self.x_T is not None and tuple(self.x_T.shape[1:]) != tuple(shape):
            theirs = tuple(self.x_T.shape[1:])
            raise InputError(f"these codes are of {theirs} pictures, {name} makes {tuple(shape)}")

    def __getitem__(self, rows: slice) -> Codes:
        return replace(
            self,
            z=self.z[rows],
            x_T=None if self.x_T is None else self.x_T[rows],
            eps_T=None if self.eps_T is None else self.eps_T[rows],
            sources=self.sources[rows],
            digests=self.digests[rows],
            converged=self.converged[rows],
        )


def stack(codes: list[Codes]) -> Codes:
    """Join codes of the same model and settings into one. Raises InputError for others."""
    names = codes[0].tensors().keys()
    if any(one.tensors().keys() != names for one in codes):
        raise InputError("some of the codes have x_T or eps_T and some don't; encode them alike")
    if any(one.sampling != codes[0].sampling for one in codes):
        raise InputError("these codes were made with different settings; encode them alike")
    joined = {name: torch.cat([one.tensors()[name] for one in codes]) for name in names}
    return replace(
        codes[0],
        z=joined["z"],
        x_T=joined.get("x_T"),
        eps_T=joined.get("eps_T"),
        sources=tuple(source for one in codes for source in one.sources),
        digests=tuple(digest for one in codes for digest in one.digests),
        converged=tuple(row for one in codes for row in one.converged),
    )


def between(ends: Codes, shares: Sequence[float]) -> Codes:
    """Codes on the way from the first of two to the second: Slerp(x_T), Lerp(z) (PDAE sec. 4.4)."""
    assert ends.x_T is not None
    share = torch.tensor(shares, dtype=torch.float32)[:, None]
    names = tuple(f"{100 * one:.6g} %" for one in shares)
    return replace(
        ends,
        z=ends.z[:1] * (1 - share) + ends.z[1:] * share,
        x_T=torch.cat([slerp(ends.x_T[:1], ends.x_T[1:], one) for one in shares]),
        eps_T=None,
        sources=names,
        digests=names,
        converged=(),
    )


def to_bytes(codes: Codes) -> bytes:
    """The content of a codes file."""
    tensors = {name: part.float().cpu().contiguous() for name, part in codes.tensors().items()}
    facts = {
        "format": FORMAT,
        "model": codes.model,
        "digest": codes.digest,
        "sampling": codes.sampling,
        "sources": list(codes.sources),
        "digests": list(codes.digests),
        "converged": list(codes.converged),
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
    z, *states = (tensors.get(key) for key in ("z", "x_T", "eps_T"))
    alike = all(
        one is None or (one.ndim == 4 and z is not None and len(one) == len(z)) for one in states
    )
    if z is None or z.ndim != 2 or not alike:
        raise InputError(f"{name}: z must be (N, D) and x_T (N, C, H, W); encode again")
    x_T, eps_T = states
    if eps_T is not None and (x_T is None or eps_T.shape != x_T.shape):
        raise InputError(f"{name}: eps_T must be like x_T; encode again")
    for key in ("z", "x_T", "eps_T"):
        value = tensors.get(key)
        if value is not None and not (value.dtype == torch.float32 and value.isfinite().all()):
            raise InputError(f"{name}: {key} must be finite float32 numbers; encode again")
    return Codes(z=z, x_T=x_T, eps_T=eps_T, **_checked(facts, len(z), name))


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
    converged = facts.get("converged")
    whole = whole and isinstance(converged, list) and len(converged) in (0, rows)
    if not whole or not isinstance(sampling, dict):
        raise InputError(f"{name}: its metadata is damaged; encode again")
    return {
        "sources": tuple(map(str, facts["sources"])),
        "digests": tuple(map(str, facts["digests"])),
        "model": str(facts.get("model", "")),
        "digest": str(facts.get("digest", "")),
        "sampling": sampling,
        "converged": tuple(map(bool, facts["converged"])),
    }
