"""How far a picture's code is from those of training: does it lie in the model's frame?"""

from __future__ import annotations

import pytest
import torch
from conftest import BUNDLED, ROOT, tiny_model

from pdae_cli import checkpoints
from pdae_cli.evaluation.likeness import LIMIT, Likeness


def test_codes_far_from_training_are_far() -> None:
    """What the model makes itself is near; a number doesn't depend on its neighbours."""
    model = tiny_model()
    likeness = Likeness.of(model)
    assert likeness is not None
    own = model.sample_z([torch.Generator().manual_seed(seed) for seed in range(40)])
    near = likeness.distances(own)
    assert sum(near) / 40 == pytest.approx(0, abs=0.8)
    assert near[3:5] == likeness.distances(own[3:5])
    model.latent_dpm = None
    assert Likeness.of(model) is None


def test_what_training_recorded_is_taken_and_else_measured() -> None:
    model = tiny_model()
    measured = Likeness.of(model)
    assert measured is not None
    assert Likeness.of(model, measured.recorded()) == measured
    assert Likeness.of(model, {"own_error": {"mean": 5.0, "spread": 2.0}}) == Likeness(
        model, 5.0, 2.0
    )
    for wrong in ({"mean": 5.0}, {"mean": 5.0, "spread": 0.0}, {"mean": "5", "spread": 2.0}, None):
        assert Likeness.of(model, {"own_error": wrong}) == measured


def test_the_bundled_model_tells_turned_faces_from_upright_ones() -> None:
    model = checkpoints.load(str(BUNDLED), "cpu")
    likeness = Likeness.of(model)
    assert likeness is not None
    faces = sorted((ROOT / "examples" / "faces").glob("*.png"))
    upright = model.pictures(faces)
    near = likeness.distances(model.encode_z(upright))
    far = likeness.distances(model.encode_z(upright.flip(2)))
    assert sum(one < LIMIT for one in near) >= len(faces) - 1
    assert sum(one > LIMIT for one in far) >= len(faces) - 1
