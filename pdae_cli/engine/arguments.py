"""What a caller from Python hands to a model, checked: of what can't be meant, a UsageError says in
one line what is taken."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from ..errors import InputError, UsageError
from .attributes import Scale
from .codes import Codes
from .config import ModelConfig


def kind_of(value: object) -> str:
    """What something is, as a message says it."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"Tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"


def check_codes(codes: object) -> None:
    """Raise UsageError unless these are codes, as many rows of all tensors."""
    if not isinstance(codes, Codes):
        raise UsageError(f"codes are what Model.encode returns, not {kind_of(codes)}")
    parts: dict[str, Any] = {**codes.tensors()}
    tensors = all(isinstance(one, Tensor) for one in parts.values())
    rows = {len(one) for one in parts.values()} if tensors else set()
    if len(rows) != 1 or codes.z.ndim != 2:
        found = ", ".join(f"{name} a {kind_of(one)}" for name, one in parts.items())
        raise UsageError(f"codes hold tensors, z (N, D) and x_T (N, C, H, W); here is {found}")


def check_fit(codes: Codes, config: ModelConfig, name: str, weights_sha: str) -> None:
    """Raise InputError unless a model of this config, name and weights can decode the codes."""
    if not len(codes):
        raise InputError("these codes hold no rows; encode at least one picture")
    if weights_sha and codes.weights_sha and weights_sha != codes.weights_sha:
        theirs = f"{codes.model}, weights {codes.weights_sha[:12]}"
        other = f"these codes are of another model ({theirs}), not of {name} ({weights_sha[:12]})"
        raise InputError(f"{other}; pass it as --model")
    if config.z_dim not in (None, size := codes.z.shape[1]):
        raise InputError(f"these codes have {size} dimensions, {name} has {config.z_dim}")
    needed = config.state_shape
    if codes.x_T is not None and (shape := tuple(codes.x_T.shape[1:])) != needed:
        raise InputError(f"these codes have an x_T of {shape}, that of {name} is {needed}")


def check_z(z: object, z_dim: int | None) -> None:
    """Raise UsageError unless it is a tensor (…, z_dim), or of any size where that isn't known."""
    if not isinstance(z, Tensor) or z.ndim == 0 or z_dim not in (None, z.shape[-1]):
        raise UsageError(f"z is a tensor (N, {z_dim or 'D'}), not {kind_of(z)}")


def check_states(x_t: object, t: object, z: object, channels: int) -> None:
    """Raise UsageError unless x_t is a tensor (N, channels, H, W) of floats, N not 0, t (N,) of
    whole numbers, and z, where there is one, (N, D); 1 of t or z is for all."""
    shaped = isinstance(x_t, Tensor) and x_t.ndim == 4 and x_t.shape[1] == channels
    if not (isinstance(x_t, Tensor) and shaped and len(x_t) and x_t.is_floating_point()):
        raise UsageError(f"x_t is a tensor (N, {channels}, H, W) of floats, not {kind_of(x_t)}")
    whole = isinstance(t, Tensor) and not (t.is_floating_point() or t.dtype == torch.bool)
    if not (isinstance(t, Tensor) and whole and t.ndim == 1 and len(t) in (1, len(x_t))):
        raise UsageError(f"t is a tensor (N,) of whole numbers, N = {len(x_t)}, not {kind_of(t)}")
    if isinstance(z, Tensor) and (z.ndim != 2 or len(z) not in (1, len(x_t))):
        raise UsageError(f"z is a tensor (N, D), N = {len(x_t)}, not {kind_of(z)}")


def check_mask(mask: object, count: int, size: int) -> None:
    """Raise UsageError unless it is a mask of `count` pictures, or one for all of them."""
    sizes = [(rows, 1, size, size) for rows in (1, count)]
    if not isinstance(mask, Tensor) or tuple(mask.shape) not in sizes:
        told = f"a mask is a tensor (N or 1, 1, {size}, {size}), N = {count}"
        raise UsageError(f"{told}, not {kind_of(mask)}")


def check_rows(count: int, generators: Sequence[Generator], z: Tensor | None = None) -> None:
    """Raise UsageError unless there is a generator and, of any z, a row for each picture."""
    if len(generators) != count:
        raise UsageError(f"{count} pictures take a generator each, not {len(generators)}")
    if z is not None and len(z) != count:
        raise UsageError(f"{count} pictures take a row of z each, not {len(z)}")


def check_timesteps(timesteps: Iterable[int], count: int) -> None:
    """Raise UsageError for one that isn't of the `count` that a schedule has."""
    if wrong := [t for t in timesteps if not 0 <= t < count]:
        raise UsageError(f"timesteps are 0 … {count - 1}, not {wrong[0]}")


def pairs_of(changes: object, keep: object = ()) -> list[tuple[str, Scale | float]]:
    """The edits that pairs of a name and a scale mean. Raises UsageError for what are none, and for
    one name where names to `keep` are wanted."""
    if isinstance(keep, str):
        raise UsageError(f"keep is a list of names: [{keep!r}]")
    try:
        if isinstance(changes, str | Mapping) or not isinstance(changes, Iterable):
            raise TypeError
        pairs = [(name, one if isinstance(one, Scale) else float(one)) for name, one in changes]
        if not all(isinstance(name, str) for name, _ in pairs):
            raise TypeError
    except (TypeError, ValueError) as error:
        pair = 'a list of pairs of name and scale, [("smiling", 0.3)]'
        more = "scales are numbers, or of engine.attributes.Scale"
        raise UsageError(f"changes are {pair}, not {repr(changes)[:80]}; {more}") from error
    return pairs


def numbers_of(count: Any) -> list[int]:
    """The numbers of so many samples, or those given. Raises UsageError for what are none."""
    try:
        given = count if isinstance(count, Iterable) else range(operator.index(count))
        numbers = [operator.index(one) for one in given]
    except TypeError as error:
        raise UsageError(f"count is a whole number, or a list of them, not {count!r}") from error
    if not numbers:
        raise UsageError("no pictures to make; ask for at least one")
    return numbers


def shares_of(count: Any) -> list[float]:
    """Shares of a way, 0 … 1: `count` of them, evenly, or those given. Raises UsageError for others
    and for none."""
    if isinstance(count, str) or not isinstance(count, Iterable):
        return torch.linspace(0, 1, len(numbers_of(count))).tolist()
    try:
        shares = [float(share) for share in count]
    except (TypeError, ValueError) as error:
        raise UsageError(f"shares of the way are numbers, not {count!r}") from error
    if not shares:
        raise UsageError("no pictures to make; ask for at least one")
    if outside := [share for share in shares if not 0 <= share <= 1]:
        raise UsageError(f"shares of the way are from 0 to 1, not {outside[0]}")
    return shares
