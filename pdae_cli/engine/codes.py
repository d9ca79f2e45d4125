"""Codes of pictures: z says what a picture means, x_T holds the rest. Kept as safetensors."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..diffusion.noise import slerp
from ..diffusion.trajectory import Sampling
from ..errors import InputError, UsageError, check_known
from .computing import PRECISIONS
from .config import build
from .tensors import LARGEST_HEADER, Header, TensorsError, check, load, sealed, shown

FORMAT = "pdae-codes-2"
TENSORS = ("z", "x_T", "residual_T")
KEYS = ("pdae", "recipe")  # of its metadata
MAX_BYTES = 8 << 30
MAX_NAME = 8192  # characters of a model's or a source's name: paths can be long
SHA = re.compile("[0-9a-f]{0,64}")
Z_ALONE = "these codes hold z alone, as `pdae encode --no-noise` makes them"
NOISES = ("sphere", "plain", "first", "none")
METRICS = ("cosine", "euclidean")
TOO_MANY = (
    "codes of {:,} pictures are more than can be read at once, 8 GiB and 100 MB of names; have "
    "`pdae encode` write a folder (-o codes/), with --format parquet of larger parts"
)
LONGEST = 1000  # characters of a sum's name
CHUNK = 1 << 24  # distances in memory at once


@dataclass(frozen=True)
class Codes:
    """Codes of N pictures, with what is needed to decode them as they were encoded. Tensors of any
    dtype or device are taken, and held as float32 on the CPU."""

    z: Tensor  # (N, D) float32
    x_T: Tensor | None = None  # (N, C, H, W) float32; None when only z was encoded
    residual_T: Tensor | None = None  # like x_T: a second state's, see Trajectory.to_noise
    sources: tuple[str, ...] = ()  # a name for each row
    picture_shas: tuple[str, ...] = ()  # SHA-256 of each 8-bit picture: names its random numbers
    model: str = ""  # name of the model
    weights_sha: str = ""  # SHA-256 of its weights
    sampling: dict[str, Any] = field(default_factory=dict)  # solver settings of the encoding
    converged: tuple[bool, ...] = ()  # whether each row's corrections went well; () without any
    dtype: str = ""  # in which networks encoded them; "": not known, or of several

    def __post_init__(self) -> None:
        for name in TENSORS:
            if isinstance(given := vars(self)[name], Tensor):
                given = given.detach() if given.requires_grad else given
                object.__setattr__(self, name, given.float().cpu())

    def __len__(self) -> int:
        return len(self.z)

    def __getitem__(self, rows: slice) -> Codes:
        if not isinstance(rows, slice):  # else a loop over rows would end before the first
            raise UsageError(f"rows of codes are taken by a slice: codes[{rows}:{rows} + 1]")
        names = (*self.tensors(), "sources", "picture_shas", "converged")
        return replace(self, **{name: vars(self)[name][rows] for name in names})

    def tensors(self) -> dict[str, Tensor]:
        """z, and what there is of x_T and residual_T."""
        named = dict(zip(TENSORS, (self.z, self.x_T, self.residual_T), strict=True))
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def residual_of(self, sampling: Sampling) -> Tensor | None:
        """residual_T, which means something on the way that made it and nowhere else."""
        same = sampling.same_way(Sampling().changed(self.sampling))
        return self.residual_T if same else None

    def names(self) -> Sequence[str]:
        """What names each row's random numbers: its picture's SHA-256, else its own."""
        return self.picture_shas or [self.row_sha(row) for row in range(len(self))]

    def row_sha(self, row: int) -> str:
        """SHA-256 of one row's z and states."""
        parts = [part[row].flatten() for part in self.tensors().values()]
        return hashlib.sha256(torch.cat(parts).numpy().tobytes()).hexdigest()


def require_alike(codes: Sequence[Codes], names: Sequence[str] = ()) -> None:
    """Raise InputError, by their `names` or first sources, unless all are of one model and, where
    they have x_T, of one size and one way of encoding."""
    seen: dict[str, tuple[Any, str]] = {}
    for row, one in enumerate(codes):
        name = names[row] if names else " ".join(["codes", *one.sources[:1]])
        facts: dict[str, Any] = {"z of size": one.z.shape[1]}
        if one.weights_sha:
            facts["model"] = one.weights_sha
        if one.x_T is not None:
            way = Sampling().changed(one.sampling).record()
            facts |= {"x_T of size": tuple(one.x_T.shape[1:]), **way}
        for what, value in facts.items():
            weights = f"{one.model}, weights {one.weights_sha[:12]}"
            here = f"{name} ({what} {weights if what == 'model' else value})"
            wanted, there = seen.setdefault(what, (value, here))
            if value != wanted:
                raise InputError(f"{here} and {there} don't go together; encode them alike")


def require_joinable(codes: Sequence[Codes], names: Sequence[str] = ()) -> None:
    """Raise InputError unless `stack` joins them: all are alike, and have x_T or haven't."""
    require_alike(codes, names)
    if len({one.x_T is None for one in codes}) > 1:
        raise InputError("some of the codes have x_T and some don't; encode them alike")


def stack(codes: Sequence[Codes], names: Sequence[str] = ()) -> Codes:
    """Join codes into one; where only some have residual_T, the others' is 0, which is none. Raises
    InputError where `require_joinable` does."""
    require_joinable(codes, names)
    parts = [one.tensors() for one in codes]
    if any("residual_T" in part for part in parts):
        parts = [{"residual_T": torch.zeros_like(part["x_T"])} | part for part in parts]
    joined: dict[str, Any] = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return replace(
        codes[0],
        **joined,
        sources=tuple(source for one in codes for source in one.sources),
        picture_shas=tuple(sha for one in codes for sha in one.picture_shas),
        # Sums have none; of a part of the rows it would say nothing.
        converged=tuple(row for one in codes for row in one.converged)
        if all(len(one.converged) == len(one) for one in codes)
        else (),
        dtype=_dtype_of(codes),
    )


def _dtype_of(codes: Sequence[Codes]) -> str:
    """In which all of them were encoded; "" where they weren't in one."""
    return codes[0].dtype if len({one.dtype for one in codes}) == 1 else ""


@dataclass(frozen=True)
class CodesFacts:
    """What a codes file says of its tensors."""

    format: str
    model: str
    digest: str  # weights_sha
    sampling: dict[str, Any]
    sources: tuple[str, ...]
    digests: tuple[str, ...]  # picture_shas
    converged: tuple[bool, ...]
    dtype: str = ""  # older files don't say it


def facts_of(codes: Codes) -> CodesFacts:
    """What a file says of codes. Raises UsageError where they don't say it of each row."""
    most = codes.model, codes.weights_sha, codes.sampling, codes.sources, codes.picture_shas
    facts = CodesFacts(FORMAT, *most, codes.converged, codes.dtype)
    if wrong := _wrong(facts, len(codes)):
        raise UsageError(f"codes are kept with a source and a picture_sha for each row: {wrong}")
    return facts


def to_bytes(codes: Codes, recipe: dict[str, Any] | None = None) -> bytes:
    """Make the content of a codes file; its `recipe` says how it was made."""
    metadata = {"pdae": json.dumps(asdict(facts_of(codes)), sort_keys=True)}
    if recipe is not None:
        metadata["recipe"] = json.dumps(recipe, sort_keys=True, default=str)
    return sealed(codes.tensors(), metadata)


def one_file(codes: Codes, recipe: dict[str, Any] | None = None) -> bytes:
    """Make the content of a file of many codes. Raises UsageError for more than can be read."""
    data = to_bytes(codes, recipe)
    try:
        check(data, KEYS, LARGEST_HEADER)
    except TensorsError as error:
        raise UsageError(TOO_MANY.format(len(codes))) from error
    if len(data) > MAX_BYTES:
        raise UsageError(TOO_MANY.format(len(codes)))
    return data


def require_room(codes: Codes, rows: int, told: int) -> None:
    """Raise UsageError where a file of so many rows, each as large as these, would be more than can
    be read. `told`: how often the file names each."""
    names = len(json.dumps(json.dumps([codes.sources, codes.picture_shas]))) * told
    size = sum(part.nbytes for part in codes.tensors().values())
    if size * rows > MAX_BYTES * len(codes) or names * rows > LARGEST_HEADER * len(codes):
        raise UsageError(TOO_MANY.format(rows))


def from_bytes(data: bytes, name: str) -> Codes:
    """Read the content of a codes file. Raises InputError, one line that begins with its name."""
    try:
        facts = _checked(header := check(data, KEYS, LARGEST_HEADER))
        tensors: dict[str, Any] = load(data, header)
    except (ValueError, UsageError) as error:
        raise InputError(f"{name}: not a codes file of pdae: {error}; see `pdae encode`") from error
    of_rows = facts.sources, facts.digests, facts.model, facts.digest, facts.sampling
    x_T, residual_T = tensors.get("x_T"), tensors.get("residual_T")
    return Codes(tensors["z"], x_T, residual_T, *of_rows, facts.converged, facts.dtype)


def read_recipe(data: bytes) -> dict[str, Any] | None:
    """Read how a codes file says that it was made; None where it doesn't, or can't be read."""
    from ..pictures.metadata import parse_recipe  # loads Pillow, which codes don't need

    try:
        return parse_recipe(check(data, KEYS, LARGEST_HEADER).metadata.get("recipe"))
    except ValueError:
        return None


def _checked(header: Header) -> CodesFacts:
    """The facts of a file of codes. Raises ValueError where they or its tensors can't be that."""
    facts = header.facts()
    if facts.get("format") != FORMAT:
        raise ValueError(f"format {shown(facts.get('format'))}, this version reads {FORMAT}")
    read: CodesFacts = build(CodesFacts, facts, "its metadata")
    sampling = build(Sampling, read.sampling, "sampling")  # 7 of a file is 7.0 of guidance
    read = replace(read, sampling={name: vars(sampling)[name] for name in read.sampling})
    shapes = {name: spec.shape for name, spec in header.tensors.items()}
    z, x_T, residual_T = (shapes.get(name) for name in TENSORS)
    if z is None or shapes.keys() - set(TENSORS):
        raise ValueError("its tensors aren't z, x_T and residual_T")
    if any(spec.dtype != "F32" for spec in header.tensors.values()):
        raise ValueError("its tensors aren't float32")
    if len(z) != 2 or 0 in z:
        raise ValueError(f"z is {z}, not (N, D)")
    if x_T is not None and (len(x_T) != 4 or x_T[0] != z[0] or 0 in x_T):
        raise ValueError(f"x_T is {x_T}, not ({z[0]}, C, H, W)")
    if residual_T not in (None, x_T):
        raise ValueError("residual_T isn't like x_T")
    if wrong := _wrong(read, z[0]):
        raise ValueError(wrong)
    return read


def _wrong(facts: CodesFacts, rows: int) -> str:
    """Why these can't be the facts of so many rows; nothing where they can."""
    lengths = {len(facts.sources), len(facts.digests), len(facts.converged or facts.sources)}
    if lengths != {rows or None}:  # no rows are no codes
        return f"its sources, digests and what converged aren't lists of {rows or 'any row'}"
    if any(len(one) > MAX_NAME for one in (facts.model, *facts.sources)):
        return f"a name is longer than {MAX_NAME} characters"
    if facts.dtype not in ("", *PRECISIONS):
        return f"its dtype {shown(facts.dtype)} isn't known"
    shas = (facts.digest, *facts.digests)
    return next((f"{shown(one)} is no SHA-256" for one in shas if not SHA.fullmatch(one)), "")


def between(ends: Codes, shares: Sequence[float]) -> Codes:
    """Codes from one to the other of two: Slerp(x_T), Lerp(z, residual_T) (PDAE sec. 4.4)."""
    assert ends.x_T is not None
    share = torch.tensor(shares, dtype=torch.float32)[:, None]
    names = tuple(f"{100 * one:.6g} %" for one in shares)
    z = ends.z[:1] * (1 - share) + ends.z[1:] * share
    x_T = torch.cat([slerp(ends.x_T[:1], ends.x_T[1:], one) for one in shares])
    keys = [":".join((*ends.names(), name)) for name in names]
    shas = tuple(hashlib.sha256(key.encode()).hexdigest() for key in keys)
    of_rows: dict[str, Any] = {"sources": names, "picture_shas": shas, "converged": ()}
    if (residual_T := ends.residual_T) is not None:
        residual_T = torch.lerp(residual_T[:1], residual_T[1:], share[..., None, None])
    return replace(ends, z=z, x_T=x_T, residual_T=residual_T, **of_rows)


def combine(
    terms: Sequence[tuple[float, Codes]], noise: str = "sphere", names: Sequence[str] = ()
) -> Codes:
    """Sum codes with weights, row by row; a term of a single row serves for every row.

    z is summed. What becomes of x_T, `noise` says (NOISES):
    - `sphere`: it is summed and brought to the mean length of its terms, so that it stays N(0, I):
      a sum of two halves alone would have std 0.7. Terms without x_T add to z alone, and where the
      others' weights cancel, the sum is a direction and has no x_T.
    - `plain`: it is summed as z is. Means of many have little noise: they decode to a smooth one.
    - `first`: the first term's stays, as in an edit. `none`: it is left out.
    What there is of residual_T goes with it, by the same weights.

    Rows keep the SHA, which names their random numbers, of the first term that has all rows.
    Raises InputError where `require_alike` does, and for unlike rows.
    """
    check_known("noise", noise, NOISES, UsageError)
    codes = [one for _, one in terms]
    require_alike(codes, names)
    rows = max(map(len, codes))
    if any(len(one) not in (1, rows) for one in codes):
        counts = " and ".join(str(count) for count in sorted({len(one) for one in codes}))
        raise InputError(f"codes of {counts} pictures can't be summed row by row; split them")
    whole = next(one for one in codes if len(one) == rows)
    noisy = [(weight, one.tensors()) for weight, one in terms if one.x_T is not None]
    z = _sum([(weight, one.z) for weight, one in terms], rows).float()
    x_T, residual_T = _states(noisy, noise, rows) if noisy else (None, None)
    if not all(part.isfinite().all() for part in (z, x_T, residual_T) if part is not None):
        raise InputError("the sum is too large a number; choose smaller weights")
    sources = tuple(_formula(terms, row) for row in range(rows))
    sampling = next((one for one in codes if one.x_T is not None), whole).sampling
    facts: dict[str, Any] = {"sources": sources, "sampling": sampling, "converged": ()}
    return replace(whole, z=z, x_T=x_T, residual_T=residual_T, dtype=_dtype_of(codes), **facts)


def _sum(terms: Sequence[tuple[float, Tensor]], rows: int) -> Tensor:
    """sum w x in float64, (rows, …); a single row counts for all."""
    total = torch.zeros(rows, *terms[0][1].shape[1:], dtype=torch.float64)
    for weight, x in terms:
        total += weight * x.double()
    return total


def _states(
    terms: Sequence[tuple[float, dict[str, Tensor]]], noise: str, rows: int
) -> tuple[Tensor | None, Tensor | None]:
    """x_T and residual_T (rows, C, H, W) of a sum of terms that have the former, or None."""
    if noise == "none":
        return None, None
    terms = [(1.0, terms[0][1])] if noise == "first" else terms
    share, scale = sum(abs(weight) for weight, _ in terms), torch.ones(rows, dtype=torch.float64)
    if noise == "sphere":
        if abs(sum(weight for weight, _ in terms)) <= 1e-6 * share:
            return None, None
        x_T = [(weight, one["x_T"]) for weight, one in terms]
        *lengths, own = (
            x.double().flatten(1).norm(dim=1) for x in (*(x for _, x in x_T), _sum(x_T, rows))
        )
        length = sum(abs(w) * one for (w, _), one in zip(terms, lengths, strict=True)) / share
        scale = length / own.clamp(min=1e-12)
    states = []
    for name in ("x_T", "residual_T"):
        parts = [(weight, one[name]) for weight, one in terms if name in one]
        total = scale[:, None, None, None] * _sum(parts, rows) if parts else None
        states.append(None if total is None else total.float())
    return states[0], states[1]


def _formula(terms: Sequence[tuple[float, Codes]], row: int) -> str:
    """A name for a row of a sum, e.g. "a.png + 0.3 b.png"."""
    text = ""
    for weight, one in terms:
        sign = " - " if weight < 0 else " + "
        text += sign if text else sign.strip(" +")
        text += f"{abs(weight):.6g} " if abs(weight) != 1 else ""
        text += one.sources[row if len(one) > 1 else 0]
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def mean(codes: Codes, noise: str = "plain") -> Codes:
    """Average all rows into one, whatever their order. `noise` is as in `combine`."""
    order = sorted(range(len(codes)), key=codes.row_sha if noise != "first" else None)
    rows = [codes[row : row + 1] for row in order]
    summed = combine([(1 / len(rows), row) for row in rows], noise)
    sha = hashlib.sha256("".join(sorted(codes.picture_shas)).encode()).hexdigest()
    source = codes.sources[0] if len(rows) == 1 else f"mean of {len(rows)}"
    return replace(summed, sources=(source,), picture_shas=(sha,))


def nearest(
    query: Tensor, library: Tensor, count: int, metric: str = "cosine"
) -> tuple[Tensor, Tensor]:
    """Find the `count` nearest rows of a library (M, D) to each of a query (N, D), nearest first.

    Returns distances (N, count) float64 and row numbers (N, count); a row is at 0 from itself.
    `cosine`: 1 - cos of the angle between the two z, 0 … 2. `euclidean`: root mean square
    difference of z, in each dimension's standard deviations over the library, where it has any.
    """
    check_known("metric", metric, METRICS, UsageError)
    query, targets, found = query.double(), library.double(), []
    if metric == "cosine":
        query, targets = F.normalize(query, dim=1), F.normalize(targets, dim=1)
    else:
        spread = targets.std(dim=0, correction=0)
        spread = torch.where(spread > 0, spread, 1.0)
        query, targets = query / spread, targets / spread
    for some in query.split(max(1, CHUNK // len(library))):
        # Not by matrix products, whose rounding would put a row away from itself.
        distances = torch.cdist(some, targets, compute_mode="donot_use_mm_for_euclid_dist")
        root = library.shape[1] ** 0.5  # |u - v|^2 / 2 of unit vectors is 1 - cos
        distances = distances.square() / 2 if metric == "cosine" else distances / root
        found.append(distances.topk(min(count, len(library)), largest=False))
    return torch.cat([one.values for one in found]), torch.cat([one.indices for one in found])
