"""Killed at any instant, nothing is lost but time: `kill -9` again and again, then once to the end.

PDAE_KILLS says how often: docs/trust.md has the figures for many.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import house
import kills
import pytest
from cli_runs import ended, folder_of, outputs, running
from conftest import ROOT

from pdae_cli.engine.codes import from_bytes

# The benchmark kills one for all of these, which write alike.
MEASURED = ("reconstruction", "stages", "attributes", "samples", "semantics", "all")
KILLS = int(os.environ.get("PDAE_KILLS", "3"))
chance = random.Random(0)
pytestmark = pytest.mark.slow


def state_of(folder: Path) -> set[tuple[str, int]]:
    """What there is below a folder, and since when."""
    found = set()
    for path in folder.rglob("*") if folder.exists() else ():
        with contextlib.suppress(FileNotFoundError):  # a temporary name that is gone by now
            found.add((str(path), path.stat().st_mtime_ns))
    return found


def killed(process: subprocess.Popen[str], folder: Path, within: float) -> bool:
    """Kill it at a random instant within so many seconds from when it first writes something into
    the folder; whether that came before its end."""
    before = state_of(folder)
    while process.poll() is None and state_of(folder) == before:
        time.sleep(0.01)
    time.sleep(chance.uniform(0, within))
    process.kill()
    process.communicate()
    return process.returncode < 0


def test_encoding_a_folder(tiny_folder: Path, tmp_path: Path) -> None:
    """No unreadable file at a final name, ever; at the end the tree of an uninterrupted run."""
    source, out = folder_of(tmp_path / "in", 40), tmp_path / "o"
    command = ("encode", source, "--inference-steps", 30, "--batch-size", 2, "-o")
    assert ended(running(tiny_folder, *command, tmp_path / "whole"))[0] == 0
    whole, deaths = outputs(tmp_path / "whole"), 0
    for number in range(KILLS):
        if number % 5 == 0 and number:  # nearly done by now: leave some of it to do
            for path in list(out.rglob("*.safetensors"))[5:]:
                path.unlink()
        deaths += killed(running(tiny_folder, *command, out), out, within=1)
        for name, data in outputs(out).items() if out.exists() else ():
            if not name.endswith(".tmp"):
                assert data == whole[name]
                from_bytes((out / name).read_bytes(), name)
    assert deaths > KILLS // 2  # else this tested nothing
    assert ended(running(tiny_folder, *command, out))[0] == 0
    assert outputs(out) == whole


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
    names = ("encode a folder", "codes merge", "attributes rename", "convert")
    command = [sys.executable, kills.__file__, *names, "--count", "8", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    figures = json.loads(done.stdout)
    assert [one["faults"] for one in figures.values()] == [[]] * len(names), done.stderr
    assert all(one["reruns"] == one["equal"] > 0 for one in figures.values())
    assert sum(one["kills"] for one in figures.values()) >= 8
