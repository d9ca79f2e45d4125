"""The settings of trajectories, and what codes record of them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model

from pdae_cli.diffusion.parity import steps
from pdae_cli.diffusion.schedule import Schedule
from pdae_cli.diffusion.trajectory import Sampling, Trajectory
from pdae_cli.engine.model import Model
from pdae_cli.errors import UsageError


@pytest.mark.parametrize("until", [None, 0])
def test_guided_to_the_end_is_guided_until_0(until: int | None) -> None:
    """Both decode alike, and codes record one of them, so that they go together."""
    sampling = Sampling(guide_until=until)
    assert sampling.guides(0) and sampling.guides_plainly
    assert sampling.record() == Sampling(guide_until=0).record()
    assert sampling.record()["guide_until"] == 0
    assert sampling.same_way(Sampling(corrections=1, guide_until=0))
    assert not sampling.same_way(Sampling(guide_until=1))


def test_codes_record_the_same_either_way(model: Model) -> None:
    x = torch.zeros(1, 3, 32, 32)
    recorded = [model.encode(x, inference_steps=2, guide_until=n).sampling for n in (None, 0)]
    assert recorded[0] == recorded[1] and recorded[0]["guide_until"] == 0


def test_samples_leave_the_end_to_eps_theta_unless_told() -> None:
    model = tiny_model()
    default, until_300, to_the_end = (
        model.sample(1, inference_steps=4, spacing="uniform", **told)[0]
        for told in ({}, {"guide_until": 300}, {"guide_until": 0})
    )
    assert torch.equal(default, until_300) and not torch.equal(default, to_the_end)


def test_nor_if_guidance_begins_there() -> None:
    """What was asked for would be nothing else."""
    model = tiny_model()
    late, to_the_end, never = (
        model.sample(1, inference_steps=4, spacing="uniform", **told)[0]
        for told in (
            {"guide_from": 280}, {"guide_from": 280, "guide_until": 0}, {"guidance": 0.0}
        )
    )  # fmt: skip
    assert torch.equal(late, to_the_end) and not torch.equal(late, never)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"solver": "euler"}, "unknown solver 'euler'; known: ddim"),
        ({"spacing": "even"}, "unknown spacing"),
        ({"parity": "ours"}, "unknown parity 'ours'; known: pdae, diffae, diffusers"),
        ({"parity": "pdae", "corrections": 1}, "leave solver, spacing and corrections out"),
        ({"guide_from": 100, "guide_until": 500}, "so G_psi would never guide"),
        ({"inference_steps": 0}, "inference steps must be 1 to 1000"),
        ({"guidance": float("nan")}, "guidance must be"),
        ({"corrections": 21}, "corrections must be 0 to 20"),
        ({"solver": "leapfrog", "corrections": 1}, "leapfrog is exact without"),
        ({"solver": "ddpm", "corrections": 1}, "ddpm decodes by chance"),
        ({"steps": 3}, "unknown sampling options: steps"),
        ({"parity": "diffae", "inference_steps": 7}, "choose a divisor"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Trajectory(Schedule(), Sampling().changed(settings), "small", False).timesteps()


@pytest.mark.parametrize("timesteps", [100, 500, 1000, 4000])
def test_the_authors_timesteps_are_numpys(timesteps: int) -> None:
    """For every step count: torch's linspace is now and then below a whole number."""
    schedule = Schedule(timesteps=timesteps)
    for count in range(1, min(timesteps, 1001)):
        visited = [one.t for one in steps("pdae", schedule, count, encode=True)]
        whole = np.linspace(0, timesteps - 1, count + 1).astype(int).tolist()
        assert [*visited, timesteps - 1] == whole, count


def test_numbers_of_numpy_are_recorded_as_pythons() -> None:
    given: dict[str, Any] = {"inference_steps": np.int64(7), "guidance": np.float32(1.5)}
    recorded = Sampling(**given).record()
    assert json.loads(json.dumps(recorded)) == Sampling(7, guidance=1.5).record()
    with pytest.raises(UsageError, match="guidance must be a number, not None"):
        Sampling(**{"guidance": None})  # type: ignore[arg-type]
