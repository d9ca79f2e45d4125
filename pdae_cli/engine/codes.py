"""Codes of pictures: z says what a picture means, x_T holds the rest. Kept as safetensors.

Codes made by a solver of two states have a second one, eps_T. It belongs to the picture as it is:
an edit drops it, and decoding then begins from x_T alone.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..diffusion.noise import slerp
from ..diffusion.sampling import Sampling
from ..errors import InputError, UsageError
from ..files import write_bytes
from .config import build
from .tensors import LARGEST_HEADER, Header, check, load, sealed, shown

FORMAT = "pdae-codes-2"
MAX_BYTES = 8 << 30
MAX_NAME = 8192  # characters of a model's or a source's name: paths can be long
DIGEST = re.compile("[0-9a-f]{0,64}")


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
            raise InputError(
                f"these codes have an x_T of {theirs}, that of {name} is {tuple(shape)}"
            )

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


def require_alike(codes: Sequence[Codes], names: Sequence[str] = ()) -> None:
    """Raise InputError unless all are of one model and, where they have x_T, of one size and one
    way of encoding. It tells two that differ by their `names`, or by their first sources."""
    seen: dict[str, tuple[int, Any]] = {}
    for row, one in enumerate(codes):
        for what, value in _kind(one).items():
            first, wanted = seen.setdefault(what, (row, value))
            if value != wanted:
                here, there = (
                    f"{_told(codes[k], k, names)} ({what} {_shown(codes[k], what)})"
                    for k in (row, first)
                )
                raise InputError(f"{here} and {there} don't go together; encode them alike")


def _kind(codes: Codes) -> dict[str, Any]:
    """What codes must have in common to be used together, as far as it is known."""
    kind: dict[str, Any] = {"z of size": codes.z.shape[1]}
    if codes.digest:
        kind["model"] = codes.digest
    if codes.x_T is not None:
        kind |= {"x_T of size": tuple(codes.x_T.shape[1:]), "settings": codes.sampling}
    return kind


def _shown(codes: Codes, what: str) -> str:
    known = {"model": f"{codes.model}, weights {codes.digest[:12]}"}
    return str((_kind(codes) | known)[what])


def _told(codes: Codes, number: int, names: Sequence[str]) -> str:
    return names[number] if names else " ".join(["codes", *codes.sources[:1]])


def stack(codes: Sequence[Codes], names: Sequence[str] = ()) -> Codes:
    """Join codes of the same model and settings into one. Raises InputError for others, by their
    `names`."""
    require_alike(codes, names)
    parts = codes[0].tensors().keys()
    if any(one.tensors().keys() != parts for one in codes):
        raise InputError("some of the codes have x_T or eps_T and some don't; encode them alike")
    joined = {name: torch.cat([one.tensors()[name] for one in codes]) for name in parts}
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
    return sealed(tensors, {"pdae": json.dumps(facts, sort_keys=True)})


def write_codes(path: Path, codes: Codes) -> None:
    """Write a codes file atomically."""
    write_bytes(path, to_bytes(codes))


def read_codes(source: Path | io.BytesIO, name: str) -> Codes:
    """Read a codes file. Raises InputError with one line that names it and says what is wrong."""
    try:
        if isinstance(source, Path) and source.stat().st_size > MAX_BYTES:
            raise InputError(f"{name}: larger than {MAX_BYTES >> 30} GiB; split it")
        data = source.read_bytes() if isinstance(source, Path) else source.getvalue()
        header = check(data, keys=("pdae",), most_metadata=LARGEST_HEADER)
        facts = _checked(header.facts(), _rows(header))
        tensors: dict[str, Any] = load(data, header)
        return Codes(**tensors, **facts)
    except FileNotFoundError as error:
        raise InputError(f"{name}: no such file") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: not a codes file of pdae: {error}; encode again") from error


def _rows(header: Header) -> int:
    """How many pictures a file has codes of. Raises ValueError unless its tensors are codes."""
    tensors = header.tensors
    if "z" not in tensors or not tensors.keys() <= {"z", "x_T", "eps_T"}:
        raise ValueError("its tensors aren't z, x_T and eps_T")
    if any(spec.dtype != "F32" for spec in tensors.values()):
        raise ValueError("its tensors aren't float32")
    shape = tensors["z"].shape
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"z is {shape}, not (N, D)")
    states = [tensors[name].shape for name in ("x_T", "eps_T") if name in tensors]
    if any(len(state) != 4 or state[0] != shape[0] or 0 in state for state in states):
        raise ValueError(f"x_T is {states[0]}, not ({shape[0]}, C, H, W)")
    if "eps_T" in tensors and ("x_T" not in tensors or states[0] != states[1]):
        raise ValueError("eps_T isn't like x_T")
    return shape[0]


def _checked(facts: dict[str, Any], rows: int) -> dict[str, Any]:
    """The metadata's facts as fields of Codes. Raises ValueError for any that can't be."""
    if facts.get("format") != FORMAT:
        raise ValueError(f"format {shown(facts.get('format'))}, this version reads {FORMAT}")
    wanted = {"format", "model", "digest", "sampling", "sources", "digests", "converged"}
    if facts.keys() != wanted:
        raise ValueError(f"its metadata need {', '.join(sorted(wanted))}, no more")
    model, sampling, converged = facts["model"], facts["sampling"], facts["converged"]
    if not isinstance(model, str) or len(model) > MAX_NAME:
        raise ValueError(f"its model is {shown(model)}, not a name")
    for key in ("sources", "digests"):
        values = facts[key]
        if not isinstance(values, list) or len(values) != rows:
            raise ValueError(f"its {key} aren't a list of {rows}")
        if not all(isinstance(one, str) and len(one) <= MAX_NAME for one in values):
            raise ValueError(f"its {key} aren't texts of up to {MAX_NAME} characters")
    for digest in (facts["digest"], *facts["digests"]):
        if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
            raise ValueError(f"{shown(digest)} is no SHA-256")
    if not isinstance(converged, list) or len(converged) not in (0, rows):
        raise ValueError(f"its list of what converged isn't of {rows}")
    if not all(isinstance(one, bool) for one in converged):
        raise ValueError("its list of what converged isn't of true and false")
    try:
        build(Sampling, sampling, "sampling")
    except UsageError as error:
        raise ValueError(f"its settings can't be: {error}") from error
    lists = {key: tuple(facts[key]) for key in ("sources", "digests", "converged")}
    return {"model": model, "digest": facts["digest"], "sampling": sampling, **lists}
