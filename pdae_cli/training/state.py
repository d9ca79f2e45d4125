"""What a run needs to go on: weights, their average, the optimizer's moments, the step (in
safetensors); its log, and the lock on its folder."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.tensors import SEAL, Header, TensorsError, check, load, opened, parts
from ..errors import InputError, UsageError
from ..files import replacing, unwritable, write_bytes
from .muon import Muon, moments

Named = dict[str, nn.Parameter]
FACTS = ("step", "options")  # of a state's metadata
# What a resumed run may change.
FREE_TO_CHANGE = {
    "images", "accumulate", "log_every", "save_every", "checkpoint_activations", "cooldown",
    "teacher",  # its name; teacher_sha tells which it is
    "held_out_sha", "least_share",  # names_sha tells which pictures there are
}  # fmt: skip
# What a setting that is a digest says where it is another one.
DIGESTS = {
    "frozen_sha": "frozen weights of another model", "teacher_sha": "another teacher",
    "first_stage_sha": "another first stage", "names_sha": "another list of pictures",
    "labels_sha": "other labels", "components_of": "principal components of other pictures",
}  # fmt: skip


class EMA:
    """Average parameters exponentially, with a half-life in pictures (EDM's convention)."""

    def __init__(self, parameters: Named, halflife: int) -> None:
        self.parameters, self.halflife = parameters, halflife
        self.shadow = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, images_seen: int, batch_size: int) -> None:
        """Move towards the parameters; early on, remember at most 5 % of the pictures seen."""
        halflife = max(min(self.halflife, 0.05 * images_seen), 1e-8)
        torch._foreach_lerp_(
            list(self.shadow.values()),
            list(self.parameters.values()),
            1 - 0.5 ** (batch_size / halflife),
        )

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average into the parameters, and their own values back at the end."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            kept = parameter.detach().clone()
            parameter.copy_(self.shadow[name])
            self.shadow[name].copy_(kept)


def save_state(
    path: Path, ema: EMA, optimizer: torch.optim.Optimizer, facts: dict[str, str]
) -> None:
    """Write the run's state atomically and sealed; `facts` become the file's metadata."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in ema.parameters.items():
        tensors[f"weight/{name}"] = parameter.detach()
        tensors[f"ema/{name}"] = ema.shadow[name]
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{key}/{name}"] = torch.as_tensor(value)
    with replacing(path) as file:
        file.writelines(parts(tensors, facts, seal=True))


def read_facts(path: Path) -> tuple[int, dict[str, Any]]:
    """Read the step and the options of a run's state. Raises InputError for what isn't one."""
    with _explained(path):
        return _facts(check(path, keys=FACTS))


def _facts(header: Header) -> tuple[int, dict[str, Any]]:
    if not re.fullmatch("[0-9]{1,12}", header.metadata.get("step", "")):
        raise TensorsError("its metadata lack the step")
    return int(header.metadata["step"]), header.facts("options")


@torch.no_grad()
def load_state(
    path: Path, ema: EMA, optimizer: torch.optim.Optimizer, settings: dict[str, object]
) -> int:
    """Restore what `save_state` wrote, and return its step. Raises InputError where names, shapes,
    numbers or a single byte are off; UsageError where it was written with other settings than
    these, or of networks of other sizes."""
    muon, parameters = isinstance(optimizer, Muon), ema.parameters
    kept = {name: moments(muon, p) for name, p in parameters.items()}
    shapes = {
        f"{kind}/{name}": tuple(p.shape)
        for name, p in parameters.items()
        for kind in ("weight", "ema", *kept[name])
    }
    steps = {f"step/{name}": () for name in parameters if "exp_avg_sq" in kept[name]}
    with _explained(path):
        content, header = opened(path, FACTS)
        step, written = _facts(header)
        tensors = load(content, header)  # damage may look like other options
        changed = [
            DIGESTS.get(k) or f"{k} {was} → {now}"
            for k in {**settings, **written}
            if (was := written.get(k)) != (now := settings.get(k)) and k not in FREE_TO_CHANGE
        ]
        found = {name: one.shape for name, one in header.tensors.items()}
        if SEAL in header.metadata and not changed and found != shapes | steps:
            changed = ["another --z-dim or --base-channels"]
        if not changed:
            header.require(shapes | steps)
    if changed:
        raise UsageError(
            f"{path.parent.parent} was begun with other options ({', '.join(changed)}); "
            "use those again, or begin anew: in another folder, or here without "
            f"{path.parent.name}/{path.name}"
        )
    for name, parameter in parameters.items():
        parameter.copy_(tensors[f"weight/{name}"])
        ema.shadow[name].copy_(tensors[f"ema/{name}"])
        # Fused Adam wants all of it on the parameter's device and in its memory layout.
        optimizer.state[parameter] = {
            kind: torch.empty_like(parameter).copy_(tensors[f"{kind}/{name}"])
            for kind in kept[name]
        }
        if f"step/{name}" in steps:
            optimizer.state[parameter]["step"] = tensors[f"step/{name}"].to(parameter.device)
    return step


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from training in a folder, which is made; the lock ends with this
    process. Raises UsageError, which says whose it is, InputError where it can't be written."""
    from filelock import FileLock, Timeout

    path = folder / "lock"
    lock = FileLock(path, blocking=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        path.write_text(f"process {os.getpid()} on {platform.node()}")
    except Timeout as error:
        raise UsageError(
            f"{folder.parent} is being trained in by {path.read_text() or 'another process'}; "
            "wait for it, or choose another -o"
        ) from error
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (TensorsError, OSError) as error:
        raise InputError(
            f"{path}: not this run's state: {error}; put a copy of it back, or begin anew in "
            "another folder"
        ) from error


def trim_log(path: Path, step: int) -> None:
    """Forget the lines after `step`, which a resumed run will write again, and damaged ones; begin
    a log where there is none."""

    def is_kept(line: bytes) -> bool:
        try:
            return line.endswith(b"\n") and bool(json.loads(line)["step"] <= step)
        except (ValueError, TypeError, KeyError):
            return False

    if path.exists():
        lines = path.read_bytes().splitlines(keepends=True)
        write_bytes(path, b"".join(line for line in lines if is_kept(line)))
    else:
        path.touch()  # by which the folder knows that a run was begun
