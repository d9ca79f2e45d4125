"""What a run needs, before it starts: memory, disk and time. Nothing is written."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .loop import Training
from .muon import moments

if sys.platform != "win32":
    import resource

MEASURED = 3  # steps, after one that warms up


@dataclass(frozen=True)
class Memory:
    """Bytes on each process's device. The allocator's reserve, cuDNN's workspaces, what lives only
    within an operation and a first stage come on top."""

    weights: int
    gradients: int
    moments: int  # of the optimizer: two, but one of a matrix with Muon
    average: int
    activations: int  # what a micro-batch keeps for the backward pass

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


def memory_of(objective: nn.Module, activations: int, muon: bool = False) -> Memory:
    """Count for an objective whose weights are float32, as all are in training."""
    every = sum(4 * p.numel() for p in objective.parameters())
    parameters = [p for p in objective.parameters() if p.requires_grad]
    trained = sum(4 * p.numel() for p in parameters)
    kept = sum(4 * p.numel() * len(moments(muon, p)) for p in parameters)
    return Memory(every, trained, kept, trained, activations)


def checkpoint_bytes(memory: Memory, dtype: torch.dtype) -> int:
    """Count the state (trained weights, average, moments) and the model, in its stored dtype."""
    state = memory.gradients + memory.average + memory.moments
    return state + memory.weights * dtype.itemsize // 4


def kept_bytes(objective: nn.Module, *batch: Tensor) -> int:
    """Count the bytes that the backward pass of objective(*batch) needs, beside weights; go through
    both passes, and leave no gradients. It may be on the meta device."""

    def storage(tensor: Tensor) -> int:
        return tensor.untyped_storage()._cdata

    weights = {storage(tensor) for tensor in objective.state_dict(keep_vars=True).values()}
    saved: dict[int, Tensor] = {}  # by storage, which is held so that its number stays its own

    def pack(tensor: Tensor) -> Tensor:
        if storage(tensor) not in weights:
            saved[storage(tensor)] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = objective(*batch)
    size = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    loss.backward()
    objective.zero_grad(set_to_none=True)
    return size


def estimate(run: Training, dtype: torch.dtype) -> dict[str, float | str | None]:
    """Return the record of `pdae train … --dry-run`: parameters, bytes counted and measured,
    seconds."""
    steps, device = max(0, run.steps - run.step), run.accelerator.device
    run.steps = max(run.steps, run.step + 1 + MEASURED)  # also of a run that is done
    batch = [part.to(device) for part in next(run.batches())[0] if part is not None]
    with run.autocast():
        kept = kept_bytes(run.stage.objective, *batch)
        memory = memory_of(run.stage.objective, kept, run.options.optimizer == "muon")
    there = next(one for one in (run.folder, *run.folder.absolute().parents) if one.exists())
    seconds = seconds_a_step(run)
    return {
        "stage": run.stage.name,
        "device": str(device),
        "processes": run.processes,
        "parameters": memory.weights // 4,
        "trained_parameters": memory.gradients // 4,
        **{f"{name}_bytes": size for name, size in asdict(memory).items()},
        "memory_bytes": memory.total,
        "peak_bytes": peak_bytes(device),
        "steps_left": steps,
        "checkpoint_bytes": checkpoint_bytes(memory, dtype),
        "free_bytes": shutil.disk_usage(there).free,
        "seconds_a_step": seconds,
        "seconds_left": seconds * steps,
    }


def told(needs: dict[str, Any]) -> tuple[str, ...]:
    """Tell the record of `estimate` to people, in lines."""
    parts = ("memory", "weights", "gradients", "moments", "average", "activations")
    sizes = {n: f"{needs[f'{n}_bytes'] / 2**20:,.1f} MiB" for n in (*parts, "checkpoint", "free")}
    peak = f"{needs['peak_bytes'] / 2**20:,.0f} MiB in all, " if needs["peak_bytes"] else ""
    return (
        f"{needs['stage']} on {needs['processes']} x {needs['device']}: "
        f"{needs['parameters']:,} parameters, {needs['trained_parameters']:,} of them trained",
        f"memory a process: {peak}training itself {sizes['memory']} "
        f"({', '.join(f'{name} {sizes[name]}' for name in parts[1:])})",
        f"disk: {sizes['checkpoint']} a checkpoint, twice that while it is replaced; "
        f"{sizes['free']} free",
        f"time: {needs['seconds_a_step']:.3g} s a step, {needs['seconds_left'] / 3600:.3g} h for "
        f"{needs['steps_left']:,} steps, without metrics and sample sheets",
    )


def peak_bytes(device: torch.device) -> int | None:
    """Measure what this process has had at most: of a GPU's memory, else of the machine's, with
    modules and pictures. None where the system doesn't tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    if sys.platform == "win32" or device.type != "cpu":
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def seconds_a_step(run: Training) -> float:
    """Measure steps of this process, of which there must be enough left, drawing their batches
    included; the weights in memory move, so `run` is no use for training after it."""
    stream = run.batches()
    run.train_step(next(stream)).item()
    begun = time.perf_counter()
    for _ in range(MEASURED):
        run.train_step(next(stream)).item()  # .item() waits for a GPU
    return (time.perf_counter() - begun) / MEASURED
