"""What other programs' runs say, tensor by tensor, and the shared steps to compute it here."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SHARED
from safetensors.torch import load_file
from torch import Tensor

from pdae_cli.checkpoints.convert import read_foreign
from pdae_cli.checkpoints.source import Source
from pdae_cli.diffusion import parity, solvers
from pdae_cli.diffusion.schedule import Level, Schedule
from pdae_cli.engine.codes import Codes
from pdae_cli.engine.model import Model

GOLDEN = SHARED / "golden"


class Expected:
    """Expected tensors of one file and how exact they are; knows which are still to be compared."""

    def __init__(
        self, folder: str, name: str, tensors: dict[str, Tensor], atol: dict[str, float]
    ) -> None:
        self.folder, self.name, self.tensors, self.atol = folder, name, tensors, atol
        self.extra: dict[str, Any] = {}
        self.other_inputs: dict[str, Tensor] = {}
        self.left = {name for name in tensors if not name.startswith("in.")}

    def __getitem__(self, name: str) -> Tensor:
        """An input, or an expected tensor."""
        return self.tensors[name] if name in self.tensors else self.other_inputs[name]

    def starting(self, prefix: str) -> list[tuple[str, str]]:
        """Expected tensors whose names start so, each with the rest of its name."""
        found = [name for name in self.tensors if name.startswith(prefix)]
        return [(name, name.removeprefix(prefix)) for name in sorted(found)]

    def check(
        self,
        name: str,
        got: Tensor | None,
        *,
        rtol: float = 0.0,
        atol: float | None = None,
        every: int = 1,
    ) -> None:
        """Compare within the file's own atol; integers must be equal. `every`: of how many values
        one was computed."""
        want, where = self.tensors[name], f"{self.folder}/{self.name}: {name}"
        want = want if every == 1 else want[::every]
        assert got is not None, f"{where} is missing"
        assert got.shape == want.shape, f"{where} is {tuple(got.shape)}, not {tuple(want.shape)}"
        self.left.discard(name)
        if not want.is_floating_point():
            assert got.tolist() == want.tolist(), where
            return
        if atol is None:
            atol = 0.0 if rtol else self.atol[name]
        off = ((got.double() - want.double()).abs() - rtol * want.double().abs()).max().item()
        assert off <= atol, f"{where} is off by {off:.2e}, allowed are {atol:.2e}"

    def check_states(self, name: str, got: Tensor) -> None:
        """`got`: (steps, N, C, H, W); expected are all or every fifth of the first picture."""
        want = self.tensors[name]
        first = got[:, 0]
        self.check(name, first if len(first) == len(want) else first[4::5])

    def complete(self) -> None:
        assert not self.left, f"{self.folder}/{self.name}: not compared: {sorted(self.left)}"


def expected_in(folder: str, name: str) -> Expected:
    """An expected file of a fixture; inputs that it lacks are in two others of the folder."""
    place = GOLDEN / folder
    place = place / "expected" if (place / "expected").is_dir() else place
    manifest = json.loads((place / "manifest.json").read_text())
    facts = manifest["files"][f"{name}.safetensors"]["tensors"]
    atol = {tensor: fact["atol"] for tensor, fact in facts.items() if "atol" in fact}
    found = Expected(folder, name, load_file(place / f"{name}.safetensors"), atol)
    found.extra = manifest["extra"]
    for other in ("ddim_decode_10", "forward"):
        if (place / f"{other}.safetensors").exists():
            found.other_inputs |= load_file(place / f"{other}.safetensors")
    return found


covered: set[str] = set()  # the files that some test is about, as FOLDER/NAME


def about(folders: Sequence[str], *files: str) -> pytest.MarkDecorator:
    """The test is about these files of these folders, and gets one after the other."""
    pairs = [(folder, name) for folder in folders for name in files]
    ids = [f"{folder}/{name}" for folder, name in pairs]
    covered.update(ids)
    return pytest.mark.parametrize("expected", pairs, indirect=True, ids=ids)


@pytest.fixture
def expected(request: pytest.FixtureRequest, shared: Path) -> Iterator[Expected]:
    """A file that the test is about, none of whose tensors may be left out."""
    found = expected_in(*request.param)
    yield found
    found.complete()


# Where the model of a folder's files lies; others are the folder itself.
MODELS = {
    "diffae_ddpm64": "checkpoints/tiny64_ddpm",
    "diffae_autoenc64": "checkpoints/tiny64_autoenc_latent",
    "diffusers_ddpm": "pipeline",
    "diffusers_adm": "pipeline",
}


@cache
def converted(path: Path) -> Model:
    """What a checkpoint becomes. Tests share it, so none may change it."""
    return read_foreign(Source(path)).model


@pytest.fixture
def model(expected: Expected) -> Model:
    """The model that `expected` is of."""
    return converted(GOLDEN / expected.folder / MODELS.get(expected.folder, ""))


class States(list[Tensor]):
    """The state after each step of every trajectory of another program's DDIM."""

    def taken(self) -> Tensor:
        """Those since the last time: (steps, N, ...)."""
        together = torch.stack(self)
        self.clear()
        return together


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> States:
    """What the engine's trajectories go through."""
    states, ddim = States(), parity.ddim

    def by_steps(
        predict: Any, x: Tensor, steps: Sequence[parity.Step], *how: Any, **more: Any
    ) -> Tensor:
        for step in steps:
            states.append(x := ddim(predict, x, [step], *how, **more))
        return x

    monkeypatch.setattr(parity, "ddim", by_steps)
    return states


def alone(model: Model) -> solvers.Predict:
    """eps_theta of a diffusion model."""
    return lambda x, t: model.predict(x, at(t, x), None)[0]


def to_noise(model: Model, program: str, x_0: Tensor, count: int) -> Tensor:
    """x_T that a program infers; a diffusion model alone has no `encode`."""
    steps = parity.steps(program, model.schedule, count, encode=True)
    return parity.ddim(alone(model), x_0, steps, clip=1, recompute=True)


def timesteps(program: str, model: Model, count: int, encode: bool = False) -> Tensor:
    """Where a program asks the network, in its order."""
    return torch.tensor([step.t for step in parity.steps(program, model.schedule, count, encode)])


def codes(z: Tensor, x_T: Tensor, **sampling: Any) -> Codes:
    return Codes(z, x_T, picture_shas=("",) * len(z), sampling=sampling)


def no_z(x_T: Tensor, **sampling: Any) -> Codes:
    """Codes for a diffusion model alone."""
    return codes(torch.zeros(len(x_T), 0), x_T, guidance=0, **sampling)


def at(t: int, x: Tensor) -> Tensor:
    return torch.full((len(x),), t)


def sampled(moments: tuple[Tensor, Tensor], noise: Tensor, last: bool) -> Tensor:
    """A draw from p(x_there | x_here) with given noise; its mean where it is the last."""
    mean, log_variance = moments
    return mean if last else mean + (log_variance / 2).exp() * noise


def clamped(step: parity.Step, x: Tensor, eps: Tensor) -> Tensor:
    """The noise that x implies where its x_0 is clamped to [-1, 1]."""
    level = Level.of(step.here)
    return level.eps(x, level.x_0(x, eps).clamp(-1, 1))


def learned(
    moments: tuple[Tensor, Tensor], step: parity.Step, share: Tensor
) -> tuple[Tensor, Tensor]:
    """The same with a log variance so far between its own and beta's (improved DDPM eq. 15)."""
    share, large = (share + 1) / 2, math.log(1 - step.here / step.there)
    return moments[0], share * large + (1 - share) * moments[1]


def neighbours(schedule: Schedule, t: int) -> parity.Step:
    """The step from t to t - 1; from 0 to the picture."""
    return parity.Step(t, schedule.alpha_bar[t].item(), schedule.alpha_bar_prev[t].item())
