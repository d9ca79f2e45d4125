"""How networks are run: in which precision, and what happens when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import OutOfMemory, UsageError

T = TypeVar("T")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@contextmanager
def computing(device: torch.device, dtype: str, differentiable: bool = False) -> Iterator[None]:
    """Networks in the chosen precision, without gradients unless the caller has them enabled and
    they are wanted. Raises OutOfMemory when memory runs out."""
    low = dtype != "float32"
    precision = PRECISIONS[dtype] if low else None
    gradients = differentiable and torch.is_grad_enabled()
    try:
        with torch.set_grad_enabled(gradients), torch.autocast(device.type, precision, enabled=low):
            yield
    except RuntimeError as error:
        # A CPU's allocator has no error class of its own.
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate" not in str(error):
            raise
        raise OutOfMemory(
            f"{device} has no room for this batch; choose a smaller --batch-size"
        ) from error


def check_compiler(device: torch.device) -> None:
    """Try in seconds whether torch.compile works here. Raises UsageError where torch finds no C++
    compiler, or (on a GPU) no triton."""
    try:
        torch.compile(lambda x: 2 * x + 1)(torch.zeros(1, device=device))
    except RuntimeError as error:  # what all of torch's compiler errors are
        reason = str(error).partition("\n")[0]
        raise UsageError(
            f"--compile doesn't work here ({reason}); install a C++ compiler such as g++, "
            "or leave --compile out"
        ) from error


def in_batches(
    work: Callable[[slice], T], count: int, size: int, smaller: Callable[[int], None]
) -> list[T]:
    """work(rows) over slices of at most `size` rows of `count`.

    When memory runs out the batch is halved from there on, and `smaller` is told its new size.
    A single row that doesn't fit is an OutOfMemory.
    """
    results: list[T] = []
    first = 0
    while first < count:
        rows = slice(first, min(first + size, count))
        try:
            results.append(work(rows))
            first = rows.stop
        except OutOfMemory:
            if rows.stop - first == 1:
                raise
            size = (rows.stop - first) // 2
            smaller(size)
    return results


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Batches as one, on the CPU."""
    return torch.cat([part.cpu() for part in parts])
