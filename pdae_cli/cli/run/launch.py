"""Processes that accelerate launch or torchrun started together; inputs are shared out by rank."""

from __future__ import annotations

import os

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def launched() -> tuple[int, int]:
    """Return this process's number among those launched together, and how many; (0, 1) alone.

    Launchers set all of NAMES; what an old shell or a pod's environment left of them is none.
    """
    if not all(os.environ.get(name) for name in NAMES):
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def join() -> None:
    """Meet the launcher's other processes, for as long as the slowest needs."""
    if launched()[1] > 1:
        from datetime import timedelta

        from accelerate import PartialState

        PartialState(timeout=timedelta(days=30))


def any_of_us(failed: bool) -> bool:
    """Wait for the launcher's other processes, and return whether one of us failed: they all end
    with one exit code, because a launcher kills the others where one ends badly."""
    if launched()[1] == 1:
        return failed
    from accelerate.utils import gather_object

    try:
        return any(gather_object([failed]))
    except RuntimeError:
        return True  # another one died


def device_of(device: str, number: int) -> str:
    """Return the device of one of several processes of a machine: GPUs are taken in turn."""
    import torch

    if device != "auto" or not torch.cuda.is_available():
        return device
    return f"cuda:{number % torch.cuda.device_count()}"
