"""A run whose numbers aren't finite any more: it ends soon, in a line, and what was saved stays."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cli_runs import outputs
from conftest import Command, tiny_model
from small_runs import OPTIONS, TINY, folder_of, quiet, stage_of, task_of

from pdae_cli.diffusion.trajectory import check_finite
from pdae_cli.errors import PdaeError
from pdae_cli.training.loop import Training


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("faces"))


@pytest.mark.parametrize("interrupted", [True, False])
@pytest.mark.parametrize("part", ["weights", "average"])
def test_a_run_that_diverged_leaves_what_was_saved(
    part: str, interrupted: bool, photos: Path, tmp_path: Path
) -> None:
    """Whether it is stopped or saves at its end; one line says what to do."""

    def run_of(images: int) -> Training:
        stage = stage_of("dpm", tiny_model(), task_of(photos, tmp_path))
        return Training(stage, replace(OPTIONS, images=images), tmp_path)

    run_of(16).train(quiet)
    before, run = outputs(tmp_path), run_of(32)

    def diverge(record: dict[str, object]) -> None:
        kept = run.parameters if part == "weights" else run.ema.shadow
        with torch.no_grad():
            kept[min(kept)].view(-1)[-1] = torch.nan
        if interrupted:
            raise KeyboardInterrupt

    with pytest.raises(PdaeError, match=r"aren't finite; what was saved in .* stays") as caught:
        run.train(diverge)
    assert "--precision float32" in str(caught.value) and "\n" not in str(caught.value)
    log = "training/dpm.jsonl"
    assert {**outputs(tmp_path), log: b""} == {**before, log: b""}
    assert run_of(32).step == 2


def test_a_run_that_diverges_ends_at_its_next_line(
    pdae: Command, photos: Path, tmp_path: Path
) -> None:
    """And not at its next checkpoint, thousands of steps later; the log stays JSON."""
    run = pdae("train", "dpm", photos, "-o", tmp_path, *TINY, "--images", 800, "--lr", 1000)
    assert run.code == 1 and "losses of step" in run.err and "a smaller --lr" in run.err
    lines = (tmp_path / "training" / "dpm.jsonl").read_text().splitlines()
    assert len(lines) < 99 and all(math.isfinite(json.loads(line)["loss"]) for line in lines)


@pytest.mark.parametrize("part", ["samples", "metrics"])
def test_what_isnt_finite_though_weights_are_is_told_as_diverged(
    part: str, photos: Path, tmp_path: Path
) -> None:
    """Samples named an option of other commands, and metrics made config.json unreadable."""
    stage = stage_of("dpm", tiny_model(), task_of(photos, tmp_path))
    run = Training(stage, replace(OPTIONS, images=8), tmp_path)
    if part == "metrics":
        stage.measure = lambda: {"held_out_loss": torch.inf}
    else:
        stage.preview = lambda: check_finite(eps=torch.tensor([torch.nan]))  # type: ignore[return-value, func-returns-value]
    with pytest.raises(PdaeError, match=f"the {part} of step 1 aren't finite") as caught:
        run.train(quiet)
    assert "--dtype" not in str(caught.value) and not (tmp_path / "model.safetensors").exists()
