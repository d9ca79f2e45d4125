"""Foreign tensors into our networks: each used exactly once, each of ours filled, or an error."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.tensors import shown
from ..errors import ModelError
from ..networks.layers import Attention
from .names import Table

# What torch puts into names, of networks that it compiles, shards or copies.
WRAPPERS = re.compile(
    r"(?<![^.])(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
AVERAGED = re.compile(r"(?:^|[._])(?:ema|averaged?|shadow)(?:$|[._])")


def _flat(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of nested dictionaries, by the keys that lead to them with dots between, without
    what torch puts into these, unless two would have one name."""
    found = dict(_nested(content))
    plain = {WRAPPERS.sub("", name): value for name, value in found.items()}
    return plain if len(plain) == len(found) else found


def _nested(content: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for key, value in content.items():
        if isinstance(value, Tensor):
            yield key, value
        elif isinstance(value, Mapping):
            yield from ((f"{key}.{name}", one) for name, one in _nested(value))


@dataclass
class Tensors:
    """A source's tensors by name, and which of them have been used."""

    where: str  # for messages: the file, and the key in it
    tensors: Mapping[str, Tensor]
    used: set[str] = field(default_factory=set)
    left: dict[str, int] = field(default_factory=dict)  # why → how many others of the file

    @classmethod
    def below(cls, prefix: str, content: Mapping[str, Any], where: str) -> Tensors:
        """The tensors below `prefix` of what a file holds. Raises ModelError if there is none."""
        tensors = {
            name.removeprefix(prefix): value
            for name, value in _flat(content).items()
            if name.startswith(prefix)
        }
        if not tensors:
            raise ModelError(f"{where} holds no tensors{f' below {prefix}' if prefix else ''}")
        return cls(where, tensors)

    @classmethod
    def around(cls, mark: str, content: Mapping[str, Any], where: str) -> Tensors:
        """The network's tensors of which `mark` is one, however deep in dictionaries and below
        whatever prefix; where several networks have it, the averaged one. Raises ModelError."""
        every = _flat(content)
        found = {one.removesuffix(mark) for one in every if one == mark or one.endswith(f".{mark}")}
        averaged = {one for one in found if AVERAGED.search(one)}
        chosen = averaged or found or {""}
        if len(chosen) > 1:
            names = ", ".join(map(shown, sorted(chosen)[:6]))
            raise ModelError(
                f"{where} holds several networks, below {names}; save one of them alone"
            )
        (prefix,) = chosen
        if not every:
            raise ModelError(f"{where} holds no tensors")
        below = {k.removeprefix(prefix): v for k, v in every.items() if k.startswith(prefix)}
        tensors = cls(f"{where}, {shown(prefix)[1:-1]}" if prefix else where, below)
        tensors.left[f"{where}, not below {shown(prefix)[1:-1]}"] = len(every) - len(below)
        return tensors

    def leave_out(self, pattern: str, why: str) -> None:
        """Leave out, and account for, tensors that by rule aren't needed."""
        kept = {k: v for k, v in self.tensors.items() if not re.fullmatch(pattern, k)}
        self.left[f"{self.where}, {why}"] = len(self.tensors) - len(kept)
        self.tensors = kept

    def take(self, name: str) -> Tensor:
        """Use a tensor. Raises ModelError if it's missing or was used before."""
        if name not in self.tensors:
            held = ", ".join(map(shown, sorted(self.tensors)[:3]))
            raise ModelError(f"{self.where} lacks the tensor {name}; it holds {held} …")
        if name in self.used:
            raise ModelError(f"{self.where}: the tensor {name} would be used twice")
        self.used.add(name)
        return self.tensors[name]

    def check_all_used(self) -> None:
        """Raise ModelError if something is left that nothing asked for."""
        left = sorted(set(self.tensors) - self.used)
        if left:
            more = f" and {len(left) - 3} more" if len(left) > 3 else ""
            names = ", ".join(shown(name)[1:-1] for name in left[:3])
            raise ModelError(
                f"{self.where} holds tensors that its config doesn't account for: "
                f"{names}{more}; is it the right config?"
            )


@dataclass
class Part:
    """One of our networks, and where its weights come from."""

    name: str  # of the network in our weights' file
    source: Tensors
    table: Table
    # Whether the source's qkv layers hold all queries, then all keys, then all values, instead of
    # these head by head.
    new_attention_order: bool = False


def transfer(network: nn.Module, part: Part) -> None:
    """Fill an empty network (of shapes only) with its part of the source's tensors, as float32.

    Raises ModelError for a missing tensor, a wrong shape or numbers that aren't finite.
    """
    filled, where = {}, part.source.where
    for name, wanted in network.state_dict().items():
        module, _, kind = name.rpartition(".")
        if module not in part.table:
            raise ModelError(f"nothing in {where} stands for our {name}")
        theirs = [f"{path}.{kind}" for path in part.table[module]]
        value = torch.cat([part.source.take(path).float() for path in theirs])
        # Without ones, since a 1x1 convolution is a linear layer.
        if [n for n in value.shape if n != 1] != [n for n in wanted.shape if n != 1]:
            raise ModelError(
                f"{where}: {' + '.join(theirs)} has shape {tuple(value.shape)}, "
                f"its config says {tuple(wanted.shape)}"
            )
        if not value.isfinite().all():
            raise ModelError(f"{where}: {theirs[0]} holds numbers that aren't finite")
        if len(theirs) > 1 or (part.new_attention_order and module.endswith(".qkv")):
            attention = network.get_submodule(module.rpartition(".")[0])
            assert isinstance(attention, Attention)
            value = interleaved(value, attention.heads)
        filled[name] = value.reshape(wanted.shape).contiguous()
    network.load_state_dict(filled, assign=True)


def interleaved(qkv: Tensor, heads: int) -> Tensor:
    """Reorder (3C, …) of all queries, keys, values head by head, as our attention keeps them."""
    return qkv.reshape(3, heads, -1, *qkv.shape[1:]).transpose(0, 1).reshape(qkv.shape)


def separated(qkv: Tensor, heads: int) -> Tensor:
    """Invert `interleaved`."""
    return qkv.reshape(heads, 3, -1, *qkv.shape[1:]).transpose(0, 1).reshape(qkv.shape)
