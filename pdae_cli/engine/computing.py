"""How networks are run: in which precision, and what happens when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import OutOfMemory, UsageError

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Say = Callable[[str], None]  # told a line for people


def ran_out(error: RuntimeError) -> bool:
    """Whether memory ran out: a CPU's allocator has no error class of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate" in str(error)


@contextmanager
def within_memory(full: str = "out of memory; choose a smaller --batch-size") -> Iterator[None]:
    """Raise OutOfMemory, which says `full`, where memory runs out."""
    try:
        yield
    except RuntimeError as error:
        if not ran_out(error):
            raise
        raise OutOfMemory(full) from error


@dataclass
class Attempt:
    """Some rows of a batch, and whether memory ran out over them."""

    rows: slice
    failed: bool = False

    @contextmanager
    def tried(self) -> Iterator[slice]:
        """Swallow that memory runs out, where fewer rows may fit. Raises OutOfMemory for one."""
        try:
            with within_memory():
                yield self.rows
        except OutOfMemory:
            self.failed = self.rows.stop - self.rows.start > 1
            if not self.failed:
                raise


class Batching:
    """What computes rows on its device, so many at once as fit."""

    device: torch.device
    batch_size: int
    notify: Say

    def parts(self, count: int) -> Iterator[Attempt]:
        """Yield `batch_size` of `count` rows at a time: `with part.tried() as rows`. Where memory
        runs out, it is halved for good; a single row that doesn't fit is an OutOfMemory."""
        first = 0
        while first < count:
            size = max(1, min(self.batch_size, count - first))
            yield (part := Attempt(slice(first, first + size)))
            if part.failed:
                self.batch_size = size // 2
                self.notify(f"{self.device} is out of memory; going on with {size // 2} at once")
            else:
                first += size

    def by_rows(self, count: int, make: Callable[[slice], Tensor]) -> Tensor:
        """Join what `make` makes of some rows at a time, (rows, …), cut as by `parts`, of all
        `count`: on the CPU, where each part goes at once, so that the device holds one alone."""
        made = list[Tensor]()
        for part in self.parts(count):
            with part.tried() as rows:
                made.append(make(rows).cpu())
        return torch.cat(made)


@contextmanager
def computing(device: torch.device, dtype: str, differentiable: bool = False) -> Iterator[None]:
    """Run networks in the chosen precision, without gradients unless the caller has them enabled
    and they are wanted. Raises OutOfMemory when memory runs out."""
    gradients = differentiable and torch.is_grad_enabled()
    precision = None if dtype == "float32" else PRECISIONS[dtype]
    low = torch.autocast(device.type, precision, enabled=precision is not None)
    full = f"{device} has no room for this batch; choose a smaller --batch-size"
    with within_memory(full), torch.set_grad_enabled(gradients), low:
        yield


def ignore(told: object) -> None:
    """Do nothing with what is told."""


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
