"""--tensorboard: the log's numbers once more, as curves; the log stays."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from conftest import Command, picture
from test_scale import TINY


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(12):
        (tmp_path / "photos").mkdir(exist_ok=True)
        picture(number, (32, 32)).save(tmp_path / "photos" / f"{number}.png")
    return tmp_path / "photos"


def test_curves_are_the_log(pdae: Command, photos: Path, tmp_path: Path) -> None:
    """Also over a resumed run."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    for images in (16, 32):
        args = ("--images", images, "--tensorboard", "--quiet")
        result = pdae("train", "dpm", photos, "-o", run, *TINY, *args)
        assert result.code == 0, result.err
    events = EventAccumulator(str(run / "training" / "tensorboard" / "dpm"))
    events.Reload()
    lines = (run / "training" / "dpm.jsonl").read_text().splitlines()
    logged = {r["step"]: r["loss"] for r in map(json.loads, lines) if "loss" in r}
    drawn = {event.step: event.value for event in events.Scalars("loss")}
    assert drawn == pytest.approx(logged, rel=1e-6) and list(drawn) == [1, 2, 3, 4]
    assert set(events.Tags()["scalars"]) == {"loss", "images_per_second", "held_out_loss"}


def test_without_the_package(
    pdae: Command, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    result = pdae("train", "dpm", photos, "-o", tmp_path / "run", *TINY, "--tensorboard", "-q")
    assert result.code == 2 and "pip install 'pdae-cli[tensorboard]'" in result.err
    assert result.err.count("\n") == 1
