"""Bits per dimension of a model's pictures; that they are right is shown in tests/diffusion."""

from __future__ import annotations

import pytest
from labelled import FAST, faces

from pdae_cli.diffusion.noise import generator
from pdae_cli.engine.model import Model
from pdae_cli.errors import UsageError
from pdae_cli.evaluation.likelihood import likelihood


def test_each_picture_takes_a_probe_at_least(model: Model) -> None:
    own = [generator(0, row) for row in range(2)]
    assert likelihood(model, faces(2), own, FAST).isfinite().all()
    with pytest.raises(UsageError, match="probes is 0; the divergence takes at least one"):
        likelihood(model, faces(2), own, FAST, probes=0)
