"""Killed at any instant, nothing is lost but time: a few kills of benchmarks/kills.py, of which
docs/trust.md has many; readers that leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import house
import kills
import pytest
import torch
from cli_runs import folder_of
from conftest import ROOT
from safetensors.torch import save_file
from small_runs import TINY, command
from small_runs import folder_of as photos

from pdae_cli.training.state import read_facts

# The benchmark kills one for all of these, which write alike.
MEASURED = ("reconstruction", "stages", "attributes", "samples", "semantics", "all")
pytestmark = pytest.mark.slow


@pytest.mark.skipif(os.name != "posix", reason="no SIGPIPE here")
def test_a_reader_that_leaves(tiny_folder: Path, tmp_path: Path) -> None:
    """`pdae … | head -c 1` ends without a word."""
    source = folder_of(tmp_path / "in", 3)
    script = (
        f"{sys.executable} -m pdae_cli reconstruct {source} --json --batch-size 1 "
        "--inference-steps 3 | head -c 1"
    )
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True,
        env=os.environ | {"PDAE_MODEL": str(tiny_folder)},
    )  # fmt: skip
    assert done.stdout == "{" and done.stderr == ""


@pytest.mark.skipif(os.name != "posix", reason="no SIGPIPE here")
def test_training_whose_reader_leaves_is_saved(tmp_path: Path) -> None:
    """`pdae train … --json | head -2` has what it learnt until then."""
    line = [*command(1, "train", "dpm", photos(tmp_path / "in"), "-o", tmp_path / "run", *TINY)]
    script = f"{' '.join(line)} --images 8000000 --json | head -2"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.count("\n") == 2 and "interrupted" not in done.stderr
    assert 2 <= read_facts(tmp_path / "run" / "training" / "dpm.safetensors")[0] < 2000


def test_every_command_that_writes_is_in_the_benchmark() -> None:
    """Those that take an -o, and those that change a model."""
    writing = {
        name
        for name, command in house.commands().items()
        if any("--output" in one.opts for one in command.params)
        or name in ("attributes fit", "attributes remove", "attributes rename", "train latent")
    }
    killed = {name for name in writing for line in kills.COMMANDS.values() if line.startswith(name)}
    assert len(writing) > 25 and writing - killed <= {f"evaluate {name}" for name in MEASURED}


def test_a_few_kills_of_the_benchmark() -> None:
    """Every rerun equals an uninterrupted run to the byte."""
    names = ("encode a folder", "codes merge", "attributes rename", "convert", "train dpm")
    command = [sys.executable, kills.__file__, *names, "--count", "10", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    figures = json.loads(done.stdout)
    assert [one["faults"] for one in figures.values()] == [[]] * len(names), done.stderr
    assert all(one["reruns"] == one["equal"] > 0 for one in figures.values())
    assert sum(one["kills"] for one in figures.values()) >= 10


def test_weights_that_are_spoilt_are_a_fault(tmp_path: Path) -> None:
    for name, value in (("a", 1.0), ("b", float("nan"))):
        save_file({"x": torch.tensor([value])}, tmp_path / f"{name}.safetensors")
    data = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "c.safetensors").write_bytes(data[:-1])
    found = kills.unreadable(tmp_path)
    assert [one.split()[0] for one in found] == ["b.safetensors", "c.safetensors"]
