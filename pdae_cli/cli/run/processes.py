"""Sharing the inputs out among processes: ours by --num-processes, or those of a launcher."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from ...errors import UsageError

OPTION = "--num-processes"


def parse_share(text: str) -> tuple[int, int]:
    """ "2/8" → (1, 8): the second of eight shares. Raises UsageError."""
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UsageError(f"--share {text!r} isn't like 2/8, the second of eight shares")
    return int(number) - 1, int(count)


def launched() -> tuple[int, int]:
    """This process's number and how many there are, as `accelerate launch` says; (0, 1) alone."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def run_shares(arguments: Sequence[str], count: int) -> int:
    """Run `pdae ARGUMENTS` in `count` processes, a share each; the worst of their exit codes.

    A process that dies leaves the others at work; what it left undone, the same command does.
    """
    own = _without_option(arguments)
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "pdae_cli", *own, "--share", f"{number + 1}/{count}"],
            env=environment,
        )
        for number in range(count)
    ]
    try:
        codes = [process.wait() for process in processes]
    except KeyboardInterrupt:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
        raise
    from ..output import Output

    for number, code in enumerate(codes, start=1):
        if code < 0:
            Output().error(
                f"process {number} of {count} was killed by signal {-code}; "
                "the same command does what it left"
            )
    return 1 if min(codes) < 0 else max(codes)


def _without_option(arguments: Sequence[str]) -> list[str]:
    """The arguments without --num-processes and its value."""
    kept, rest = [], iter(arguments)
    for argument in rest:
        if argument == OPTION:
            next(rest, None)
        elif not argument.startswith(f"{OPTION}="):
            kept.append(argument)
    return kept


def device_of_share(device: str, number: int) -> str:
    """`auto` for one of several processes of a machine: GPUs are taken in turn."""
    import torch

    if device != "auto" or not torch.cuda.is_available():
        return device
    return f"cuda:{number % torch.cuda.device_count()}"


def wait_for_others() -> None:
    """Until every process of a launcher is through: one that ends badly makes it end the others."""
    from accelerate import PartialState

    try:
        PartialState().wait_for_everyone()
    except RuntimeError:
        return  # another one died: there is nothing to wait for


def join_launcher() -> None:
    """Join the launcher's other processes, for as long as the slowest needs."""
    from datetime import timedelta

    from accelerate import PartialState

    PartialState(timeout=timedelta(days=30))
