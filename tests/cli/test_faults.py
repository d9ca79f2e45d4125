"""Numbers that stop being finite: the item fails and says where; no black picture comes out."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from conftest import Command, tiny_model
from torch import Tensor

from pdae_cli.diffusion.noise import generator
from pdae_cli.diffusion.schedule import Schedule
from pdae_cli.diffusion.solvers import SOLVERS
from pdae_cli.diffusion.trajectory import Sampling, Trajectory, solve_latent
from pdae_cli.errors import InputError

INJECTIONS = 1000


@dataclass
class Faulty:
    """A toy predict whose answer number `at` holds `fault` in one place."""

    at: int = -1  # none
    fault: float = math.nan
    place: float = 0.0  # 0 … 1, in the tensor
    asked: list[int] = field(default_factory=list)

    def __call__(self, x: Tensor, t: int) -> Tensor:
        eps = 0.1 * x
        if len(self.asked) == self.at:
            eps.view(-1)[int(self.place * eps.numel())] = self.fault
        self.asked.append(t)
        return eps


def settings(chance: random.Random) -> Sampling:
    steps, solver = chance.randint(1, 12), chance.choice(sorted(SOLVERS))
    if chance.random() < 0.2:
        return Sampling(
            chance.choice([2, 5, 10]), parity=chance.choice(["pdae", "diffae", "diffusers"])
        )
    corrections = chance.randint(0, 2) if SOLVERS[solver].kind == "ode" else 0
    return Sampling(steps, solver, corrections=corrections)


def test_injected_faults_are_named_by_evaluation_and_timestep() -> None:
    """1,000 faults, in either direction, with every solver: none comes out silently."""
    for number in range(INJECTIONS):
        chance = random.Random(number)
        trajectory = Trajectory(Schedule(), settings(chance), "small", False)
        x = torch.randn(2, 3, 4, 4, generator=generator(number))
        encode = chance.random() < 0.5

        def solve(
            predict: Faulty, way: Trajectory = trajectory, x: Tensor = x, encode: bool = encode
        ) -> None:
            if encode:
                way.to_noise(predict, x)
            else:
                way.to_picture(predict, x, [generator(0), generator(1)])

        solve(sound := Faulty())
        fault = chance.choice([math.nan, math.inf, -math.inf])
        predict = Faulty(chance.randrange(len(sound.asked)), fault, chance.random())
        with pytest.raises(InputError) as caught:
            solve(predict)
        place = f"eps at evaluation {predict.at + 1}, timestep {sound.asked[predict.at]},"
        assert str(caught.value) == f"{place} has numbers that aren't finite; use --dtype float32"


def test_states_that_overflow_are_named_too() -> None:
    """Where the network's answers are finite, but a sum of them is not."""
    trajectory = Trajectory(Schedule(), Sampling(2, "ddim"), "small", False)
    with pytest.raises(InputError, match="x_0 has numbers"):
        far = torch.full((1, 3, 4, 4), 3e38)
        trajectory.to_picture(lambda x, t: torch.zeros_like(x), far, [generator(0)])


def test_codes_of_the_latent_dpm() -> None:
    with pytest.raises(InputError, match="eps at evaluation 8, timestep"):
        solve_latent(Faulty(at=7), torch.ones(1, 4), Sampling())


def test_an_encoder_without_finite_answers() -> None:
    model = tiny_model()
    model.encoder.out.bias.data.fill_(float("nan"))  # type: ignore[union-attr]
    with pytest.raises(InputError, match="z has numbers that aren't finite"):
        model.encode(torch.zeros(1, 3, 32, 32), noise=False)


def test_only_the_faulty_item_of_a_batch_fails(
    pdae: Command, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its neighbours get the same result as without it, and no file is written for it."""
    from pdae_cli.networks.heads import Heads

    fast = ("--inference-steps", "2")
    assert pdae("reconstruct", *pictures, "-o", tmp_path / "good", *fast).code == 0
    computed = Heads.at

    def faulty(self, x, t, *rest, **options):  # type: ignore[no-untyped-def]
        eps, gradients = computed(self, x, t, *rest, **options)
        marked = (x[:, :, 0, 0] - mark).abs().amax(1) < 1e-6
        return torch.where(marked[:, None, None, None], torch.nan, eps), gradients

    model = tiny_model()
    mark = model.pictures(pictures[1])[0, :, 0, 0]
    monkeypatch.setattr(Heads, "at", faulty)
    result = pdae("reconstruct", *pictures, "-o", tmp_path / "out", *fast)
    assert result.code == 3 and f"{pictures[1]}: eps at evaluation 1, timestep 0," in result.err
    assert sorted(path.name for path in (tmp_path / "out").glob("[a-z]*")) == ["a.png", "c.png"]
