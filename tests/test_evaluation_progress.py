"""How far an experiment is: told part by part, shown only where someone watches."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest
import torch
from conftest import Command, picture
from torch import Tensor

from pdae_cli.cli.output import Output
from pdae_cli.diffusion.noise import generator
from pdae_cli.diffusion.sampling import Sampling
from pdae_cli.engine.model import Model
from pdae_cli.evaluation.finding import Finding, Part, Track
from pdae_cli.evaluation.gap import gap
from pdae_cli.evaluation.judge import Judge
from pdae_cli.evaluation.probes import attributes
from pdae_cli.evaluation.reconstruction import reconstruction
from pdae_cli.evaluation.samples import samples
from pdae_cli.evaluation.semantics import semantics
from pdae_cli.evaluation.stages import stages

FAST = Sampling(inference_steps=2, solver="ddim")
JUDGE = Judge(["a"], 32).eval().requires_grad_(False)


def faces(count: int) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=generator(0, "faces")).tanh()


def labelled() -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor]:
    z = torch.randn(20, 3, generator=generator(1))
    return {"z": (z, z), "other": (z, z)}, (z > 0).to(torch.int8)


def probed(track: Track) -> Finding:
    found, labels = labelled()
    return attributes(["a", "b", "c"], found, labels, labels, track=track)


EXPERIMENTS: dict[str, tuple[int, Callable[[Model, Track], Finding]]] = {
    "gap": (2, lambda m, track: gap(m, faces(2), timesteps=(5, 90), track=track)),
    "reconstruction": (
        3,  # numbers of steps
        lambda m, track: reconstruction(
            m, faces(2), solvers=("ddim",), steps=(1, 2, 3), track=track
        ),
    ),
    "stages": (
        4,  # never, and three pairs
        lambda m, track: stages(m, faces(2), edges=(0, 500, 999), sampling=FAST, track=track),
    ),
    "attributes": (2, lambda m, track: probed(track)),
    "samples": (
        4,  # two kinds by two numbers of steps
        lambda m, track: samples(
            m, JUDGE, faces(10), count=5, steps=(1, 2), sampling=FAST,
            track=track,
        ),
    ),
    "semantics": (
        3,  # z
        lambda m, track: semantics(m, faces(3), noises=2, sampling=FAST, track=track),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_hands_on_all_of_its_parts(model: Model, name: str) -> None:
    """Once, as many as are said, and whoever watches changes nothing of what is found."""
    count, measure = EXPERIMENTS[name]
    begun: list[int] = []
    done: list[object] = []

    def track(parts: Sequence[Part]) -> Iterable[Part]:
        begun.append(len(parts))
        for part in parts:
            yield part
            done.append(part)

    watched = measure(model, track)
    assert begun == [count] and len(done) == count
    assert str(watched.rows) == str(measure(model, list).rows)


def test_nothing_is_shown_where_nobody_watches(
    pdae: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        picture(number, (32, 32)).save(tmp_path / f"{number}.png")
    args = ("evaluate", "gap", tmp_path, "--whole")
    assert pdae(*args).err == ""
    monkeypatch.setattr(Output, "interactive", True)
    seen = pdae(*args)
    assert seen.code == 0 and re.search(r"gap.*12/12", seen.err)
