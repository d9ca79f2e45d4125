"""What the processes of a run say to each other beside gradients: whether to go on, and losses.

It goes over gloo on the CPU, so that no GPU is waited for, and before each step's gradients, so
that none waits for those of a process that has failed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import Accelerator

from ..errors import PdaeError

PATIENCE = timedelta(hours=6)  # with the process that measures and saves


class PeerLost(PdaeError):
    """Another process has ended without a word: killed, or its machine is gone."""


class PeerFailed(SystemExit):
    """Another process has failed, and says why itself."""


@contextmanager
def reaching() -> Iterator[None]:
    """Around what needs the other processes. Raises PeerLost where one of them is gone."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistBackendError) and "gloo" not in str(error):
            raise
        raise PeerLost("another process of this run has ended; the same command resumes") from error


class Peers:
    """The processes of one run. Alone, nothing here costs anything."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.rank, self.count = accelerator.process_index, accelerator.num_processes
        self.group = dist.new_group(backend="gloo", timeout=PATIENCE) if self.count > 1 else None

    def _reduced(self, value: float, how: dist.ReduceOp.RedOpType) -> float:
        if self.group is None:
            return value
        shared = torch.tensor(value, dtype=torch.float64)
        with reaching():
            dist.all_reduce(shared, how, group=self.group)
        return shared.item()

    def mean(self, value: float) -> float:
        """Over all processes, which call this together."""
        return self._reduced(value, dist.ReduceOp.SUM) / self.count

    def agree(self, stop: bool) -> bool:
        """Whether any process wants to stop; all call this before each step and after the last.

        Raises PeerFailed where one has called `fail` instead.
        """
        worst = self._reduced(1 if stop else 0, dist.ReduceOp.MAX)
        if worst > 1:
            raise PeerFailed(1)
        return worst == 1

    def fail(self) -> None:
        """Called where the others call `agree`: end them. Of several that fail the first speaks,
        the others raise PeerFailed."""
        own = 2 + self.count - self.rank
        if self._reduced(own, dist.ReduceOp.MAX) != own:
            raise PeerFailed(1)

    def same(self, number: int) -> bool:
        """Whether all have the same number; all call this together."""
        highest = self._reduced(number, dist.ReduceOp.MAX)
        return highest == self._reduced(number, dist.ReduceOp.MIN)
