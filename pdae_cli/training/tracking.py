"""TensorBoard, for those who want curves beside the log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import UsageError


@contextmanager
def tensorboard(folder: Path, step: int) -> Iterator[Callable[[dict[str, object]], None]]:
    """Yield a function that takes the log's records and writes each number but the counters
    by step. A run that resumes at `step` hides what an earlier one wrote after it.

    Raises UsageError where tensorboard isn't installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError(
            "--tensorboard needs a package: pip install 'pdae-cli[tensorboard]'"
        ) from error
    with SummaryWriter(str(folder), purge_step=step + 1) as writer:  # type: ignore[no-untyped-call]

        def write(record: dict[str, object]) -> None:
            at = int(str(record["step"]))
            for name, value in record.items():
                if isinstance(value, float):
                    writer.add_scalar(name, value, at)  # type: ignore[no-untyped-call]
            writer.flush()  # type: ignore[no-untyped-call]

        yield write
