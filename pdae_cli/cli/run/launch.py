"""Processes that accelerate launch or torchrun started together: inputs shared out by rank. What
else a launcher puts into the environment is followed, said or refused.
"""

from __future__ import annotations

import atexit
import os
import signal
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ...errors import STOPPING, UsageError

if TYPE_CHECKING:
    from accelerate import PartialState

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
TASKS = {  # how many Slurm, MPI or a script started, and the number of each
    "WORLD_SIZE": "RANK",  # without the rest of NAMES
    "SLURM_NTASKS": "SLURM_PROCID",
    "OMPI_COMM_WORLD_SIZE": "OMPI_COMM_WORLD_RANK",
    "PMI_SIZE": "PMI_RANK",
    "MV2_COMM_WORLD_SIZE": "MV2_COMM_WORLD_RANK",
}
ENGINES = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG")  # of accelerate's launcher
YES = ("1", "true", "yes", "on", "y", "t")
OFF = ("", "no")


def launched() -> tuple[int, int]:
    """Return this process's number among those launched together, and how many; (0, 1) alone.

    Launchers set all of NAMES; what an old shell or a pod's environment left of them is none.
    """
    rank, size, local, *rest = (os.environ.get(name, "") for name in NAMES)
    numbers = all(map(str.isdecimal, (rank, size, local)))
    if not all(rest) or not numbers or int(rank) >= int(size):
        return 0, 1
    return int(rank), int(size)


def on_its_machine() -> int:
    """Return this process's number among those of its machine, by which accelerate places it."""
    return int(os.environ["LOCAL_RANK"]) if launched()[1] > 1 else 0


def asked(name: str) -> str:
    """Return what accelerate's launcher asks for by this variable; "no" for nothing."""
    value = os.environ.get(f"ACCELERATE_{name}", "").lower()
    return "no" if value in OFF else value


def join(share: str | None, dtype: str, say: Callable[[str], None]) -> None:
    """Meet the launcher's other processes, for as long as the slowest needs; `say` what processes
    do that nobody tells apart, and what isn't followed."""
    if (precision := asked("MIXED_PRECISION")) != "no" and dtype == "float32":
        say(f"the launcher's mixed precision {precision} is set aside; --dtype chooses one")
    for count, size, number in strangers() if share is None else ():
        say(f"{count} is {size}: each of these tasks does all inputs; --share ${number}/{size}")
    if launched()[1] > 1:
        from datetime import timedelta

        import torch

        # Without a GPU and unless told so accelerate takes each process to be alone.
        us = meet(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=30))
        atexit.register(us.destroy_process_group)  # whose threads may abort a process that ends


def meet(cpu: bool, **more: Any) -> PartialState:
    """Wait for the launcher's other processes, where signals end this one at once: torch, which
    waits, heeds no handler. Raises UsageError where they can't meet."""
    from accelerate import PartialState
    from torch.distributed import DistError

    heard = {s: signal.signal(s, signal.SIG_DFL) for s in STOPPING
             if signal.getsignal(s) != signal.SIG_IGN}  # fmt: skip
    try:
        return PartialState(cpu=cpu, **more)
    except (DistError, ValueError) as error:
        where = ", ".join(f"{name} {os.environ.get(name)}" for name in NAMES[-2:])
        why = str(error).partition("\n")[0]
        hint = "; choose others, or unset them where this one is alone"
        raise UsageError(f"launched processes can't meet at {where}: {why}{hint}") from error
    finally:
        for number, handler in heard.items():
            signal.signal(number, handler)


def strangers() -> Iterator[tuple[str, int, str]]:
    """Yield the variable that holds the number of tasks of Slurm, MPI or a script, where no
    launcher introduced them to one another, that number, and the variable that numbers them."""
    introduced = all(map(os.environ.get, NAMES))
    for count, number in TASKS.items():
        size = os.environ.get(count, "")
        # What salloc's shell or an old one has of these is none of them.
        ours = number in os.environ or count not in ("SLURM_NTASKS", "WORLD_SIZE")
        if not introduced and ours and size.isdecimal() and int(size) > 1:
            yield count, int(size), number


def forget_leftovers() -> None:
    """Forget what is left of a launcher that didn't start this process, which accelerate would wait
    for."""
    if launched() == (0, 1):
        for name in NAMES:
            os.environ.pop(name, None)


def check_training() -> None:
    """Raise UsageError for an engine that training doesn't use, and for tasks that know nothing of
    one another; forget what a launcher left."""
    for engine in ENGINES:
        if asked(f"USE_{engine}") in YES:
            raise UsageError(f"the launcher asks for {engine}, which isn't used; launch it without")
    for count, size, _ in strangers():
        raise UsageError(
            f"{count} is {size}, and each of these tasks would train alone: start one a node, with "
            f"torchrun … -m pdae_cli train … or accelerate launch in it; where it is alone, unset "
            f"{count}"
        )
    forget_leftovers()


def set_aside(accumulate: int, compiled: bool) -> Iterator[str]:
    """Say what accelerate's launcher asks for that training takes from its own options alone."""
    steps, backend = asked("GRADIENT_ACCUMULATION_STEPS"), asked("DYNAMO_BACKEND")
    if steps not in ("no", "1", str(accumulate)):
        yield (
            f"the launcher's gradient accumulation of {steps} is set aside: --batch-size is of the "
            "whole step, and --accumulate cuts it"
        )
    if backend != "no" and not compiled:
        yield f"the launcher's compiler {backend} is set aside: --compile compiles"


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
