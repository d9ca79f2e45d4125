"""What a run needs, before it starts: memory, arithmetic, disk and time. Nothing is written."""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from .loop import Run
from .memory import cost

MEASURED = 3  # steps, after one that warms up


@dataclass(frozen=True)
class Memory:
    """Bytes on each process's device. The allocator's reserve, cuDNN's workspaces, what lives only
    within an operation and a first stage come on top."""

    weights: int
    gradients: int
    adam: int  # two moments
    average: int
    activations: int  # what a micro-batch keeps for the backward pass

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


def memory_of(objective: nn.Module, activations: int) -> Memory:
    """For an objective whose weights are float32, as all are in training."""
    every = sum(4 * p.numel() for p in objective.parameters())
    trained = sum(4 * p.numel() for p in objective.parameters() if p.requires_grad)
    return Memory(every, trained, 2 * trained, trained, activations)


def checkpoint_bytes(memory: Memory, dtype: torch.dtype) -> int:
    """Of the state (trained weights, average, moments) and of the model, in its stored dtype."""
    state = memory.gradients + memory.average + memory.adam
    return state + memory.weights * dtype.itemsize // 4


def estimate(run: Run, dtype: torch.dtype) -> dict[str, float | str]:
    """The record of `pdae train … --dry-run`: bytes, FLOPs of a step over all processes, seconds.

    Activations and FLOPs are measured on batches of one and two pictures, time on MEASURED steps.
    """
    steps, device, costs = run.steps - run.step, run.accelerator.device, []
    batch = next(run.batches())[0]
    parts = [part.to(device) for part in vars(batch).values() if part is not None]
    for rows in (1, 2):
        with run.autocast():
            few = (torch.cat([part, part])[:rows] for part in parts)
            costs.append(cost(run.stage.objective, *few))
    picture = costs[1].saved - costs[0].saved
    shared = costs[0].saved - picture  # weights in low precision, which all pictures share
    memory = memory_of(run.stage.objective, shared + run.micro_batch * picture)
    seconds = seconds_a_step(run)
    return {
        "stage": run.stage.name,
        "device": str(device),
        "processes": run.peers.count,
        "parameters": memory.weights // 4,
        "trained_parameters": memory.gradients // 4,
        **{f"{name}_bytes": size for name, size in asdict(memory).items()},
        "memory_bytes": memory.total,
        "flops_a_step": (costs[1].flops - costs[0].flops) * run.options.batch_size,
        "steps_left": steps,
        "checkpoint_bytes": checkpoint_bytes(memory, dtype),
        "free_bytes": free_bytes(run.folder),
        "seconds_a_step": seconds,
        "seconds_left": seconds * steps,
    }


def seconds_a_step(run: Run) -> float:
    """Over a few real steps of this process, drawing their batches included; the weights in memory
    move, so `run` is no use for training after it."""
    run.steps = max(run.steps, run.step + 1 + MEASURED)
    device, stream = run.accelerator.device, run.batches()
    begun = 0.0
    for number in range(1 + MEASURED):
        run.train_step(next(stream)).item()  # .item() waits for a GPU
        if number == 0:
            begun = time.perf_counter()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - begun) / MEASURED


def free_bytes(folder: Path) -> int:
    """On the disk of a folder that needn't exist yet."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free
