"""Foreign tensors into our networks: each used exactly once, each of ours filled, or an error."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..networks.blocks import Attention
from .names import Table


@dataclass
class Tensors:
    """A source's tensors by name, and which of them have been used."""

    where: str  # for messages: the file, and the key in it
    tensors: Mapping[str, Tensor]
    used: set[str] = field(default_factory=set)
    left_out: dict[str, int] = field(default_factory=dict)  # why → how many tensors

    @classmethod
    def from_content(cls, content: Mapping[str, Any], where: str, prefix: str = "") -> Tensors:
        """The tensors below `prefix` of what a file holds. Raises ModelError if there is none."""
        tensors = {
            name.removeprefix(prefix): value
            for name, value in content.items()
            if name.startswith(prefix) and isinstance(value, Tensor)
        }
        if not tensors:
            raise ModelError(f"{where} holds no tensors{f' below {prefix}' if prefix else ''}")
        return cls(where, tensors)

    def leave_out(self, pattern: str, why: str) -> None:
        """Account for tensors that, by rule, aren't needed."""
        matching = {name for name in self.tensors if re.fullmatch(pattern, name)}
        self.used |= matching
        if matching:
            self.left_out[why] = len(matching)

    def take(self, name: str) -> Tensor:
        """Use a tensor. Raises ModelError if it's missing or was used before."""
        if name not in self.tensors:
            raise ModelError(f"{self.where} lacks the tensor {name}; is the file complete?")
        if name in self.used:
            raise ModelError(f"{self.where}: the tensor {name} would be used twice")
        self.used.add(name)
        return self.tensors[name]

    def check_all_used(self) -> None:
        """Raise ModelError if something is left that nothing asked for."""
        left = sorted(set(self.tensors) - self.used)
        if left:
            more = f" and {len(left) - 3} more" if len(left) > 3 else ""
            raise ModelError(
                f"{self.where} holds tensors that its config doesn't account for: "
                f"{', '.join(left[:3])}{more}; is it the right config?"
            )


def transfer(
    network: nn.Module, table: Table, source: Tensors, new_attention_order: bool = False
) -> None:
    """Fill an empty network (of shapes only) with the source's tensors, as float32.

    `new_attention_order`: the source's qkv layers hold all queries, then all keys, then all values,
    instead of head by head. Raises ModelError for a missing tensor, a wrong shape or numbers that
    aren't finite.
    """
    filled = {}
    for name, wanted in network.state_dict().items():
        module, _, kind = name.rpartition(".")
        if module not in table:
            raise ModelError(f"nothing in {source.where} stands for our {name}")
        theirs = [f"{path}.{kind}" for path in table[module]]
        value = torch.cat([source.take(path).float() for path in theirs])
        if _without_ones(value) != _without_ones(wanted):
            raise ModelError(
                f"{source.where}: {' + '.join(theirs)} has shape {tuple(value.shape)}, "
                f"its config says {tuple(wanted.shape)}"
            )
        if not value.isfinite().all():
            raise ModelError(f"{source.where}: {theirs[0]} holds numbers that aren't finite")
        if len(theirs) > 1 or (new_attention_order and module.endswith(".qkv")):
            attention = network.get_submodule(module.rpartition(".")[0])
            assert isinstance(attention, Attention)
            value = interleaved(value, attention.heads)
        filled[name] = value.reshape(wanted.shape).contiguous()
    network.load_state_dict(filled, assign=True)


def interleaved(qkv: Tensor, heads: int) -> Tensor:
    """(3C, …) of all queries, keys, values → the same head by head, as our attention keeps it."""
    rest = qkv.shape[1:]
    return qkv.reshape(3, heads, -1, *rest).transpose(0, 1).reshape(qkv.shape)


def separated(qkv: Tensor, heads: int) -> Tensor:
    """The inverse of `interleaved`."""
    rest = qkv.shape[1:]
    return qkv.reshape(heads, 3, -1, *rest).transpose(0, 1).reshape(qkv.shape)


def _without_ones(tensor: Tensor) -> list[int]:
    """The shape without ones: a 1x1 convolution is a linear layer."""
    return [size for size in tensor.shape if size != 1]
