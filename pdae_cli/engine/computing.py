"""How networks are run: in which precision, and what happens when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

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


class Batching:
    """What computes rows on its device, so many at once as fit."""

    device: torch.device
    batch_size: int
    notify: Say
    again = False  # whether memory ran out over the rows at hand

    def parts(self, count: int) -> Iterator[slice]:
        """Yield `batch_size` of `count` rows at a time, for what runs them `within` memory; those
        of a batch that was halved meanwhile come again."""
        first = 0
        while first < count:
            size = max(1, min(self.batch_size, count - first))
            self.again = False
            yield slice(first, first + size)
            first += 0 if self.again else size

    @contextmanager
    def within(self, rows: slice) -> Iterator[None]:
        """Halve the batch size for good where memory runs out over these rows, and swallow that. A
        single row that doesn't fit is an OutOfMemory."""
        try:
            with within_memory():
                yield
        except OutOfMemory:
            if (size := rows.stop - rows.start) == 1:
                raise
            self.again, self.batch_size = True, size // 2
            self.notify(f"{self.device} is out of memory; going on with {size // 2} at once")

    def by_rows(self, count: int, make: Callable[[slice], Tensor]) -> Tensor:
        """Join what `make` makes of some rows at a time, (rows, …), cut as by `parts`, of all
        `count`: on the CPU, where each part goes at once, so that the device holds one alone."""
        made = list[Tensor]()
        for rows in self.parts(count):
            with self.within(rows):
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
