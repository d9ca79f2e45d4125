"""What a step keeps for its backward pass: how much that is, and how to keep less of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from ..networks.blocks import Attention, ResBlock


def checkpoint_activations(objective: nn.Module) -> None:
    """Have trained residual blocks and attention keep only their inputs and compute the rest again
    when gradients need it (Chen et al. 2016): a forward pass more for a part of the memory. The
    gradients are the same, dropout's masks included."""
    for block in objective.modules():
        trained = any(parameter.requires_grad for parameter in block.parameters())
        if isinstance(block, ResBlock | Attention) and trained:
            block.forward = _recomputed(block.forward)  # type: ignore[method-assign]


def _recomputed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(*inputs: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return forward(*inputs)
        kept: Tensor = checkpoint(forward, *inputs, use_reentrant=False)
        return kept

    return run


class Cost(NamedTuple):
    """Of forward and backward pass over one micro-batch."""

    saved: int  # bytes of tensors that the backward pass needs, beside weights
    flops: int  # of matrix products and convolutions, a multiplication and an addition as two


def cost(objective: nn.Module, *batch: Tensor) -> Cost:
    """The cost of objective(*batch), also of one on the meta device; leaves no gradients."""
    weights = {_storage(tensor) for tensor in objective.state_dict(keep_vars=True).values()}
    saved: dict[int, Tensor] = {}  # by storage, which is held so that its number stays its own

    def pack(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in weights:
            saved[_storage(tensor)] = tensor
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = objective(*batch)
        size = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
        loss.backward()
    objective.zero_grad(set_to_none=True)
    return Cost(size, counter.get_total_flops())


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
