"""Killed at any instant, nothing is lost but time: `kill -9` again and again, then once to the end.

PDAE_KILLS says how often: docs/trust.md has the figures for many.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import picture
from safetensors import safe_open
from test_runs import ended, folder_of, outputs, records, running

from pdae_cli.engine.codes import read_codes

KILLS = int(os.environ.get("PDAE_KILLS", "5"))
chance = random.Random(0)
TWICE = int(os.environ.get("PDAE_TWICE", "3"))
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
                read_codes(out / name, name)
    assert deaths > KILLS // 2  # else this tested nothing
    assert ended(running(tiny_folder, *command, out))[0] == 0
    assert outputs(out) == whole


def test_training(tmp_path: Path) -> None:
    """The weights are at every instant readable, and at the end those of an uninterrupted run."""
    data = tmp_path / "data"
    data.mkdir()
    for number in range(12):
        picture(number, (32, 32)).save(data / f"{number}.png")

    def training(folder: Path) -> subprocess.Popen[str]:
        return running(
            tmp_path, "train", "dpm", data, "-o", folder, "--image-size", 16,
            "--base-channels", 8, "--multipliers", "1,2", "--blocks", 1, "--attention", "8",
            "--head-channels", 8, "--images", 240, "--batch-size", 4, "--save-every", 2,
            "--log-every", 5, "--quiet",
        )  # fmt: skip

    code, _, err = ended(training(tmp_path / "whole"))
    assert code == 0, err
    deaths = 0
    folder = tmp_path / "run"
    for _ in range(KILLS):
        deaths += killed(training(folder), folder, within=2)
        if (folder / "model.safetensors").exists():
            with safe_open(folder / "model.safetensors", "pt") as file:
                assert all(file.get_tensor(name).isfinite().all() for name in file.keys())  # noqa: SIM118
    assert deaths > 0
    assert ended(training(folder))[0] == 0
    weights = [(one / "model.safetensors").read_bytes() for one in (tmp_path / "whole", folder)]
    assert weights[0] == weights[1]
    assert not list(folder.rglob("*.tmp"))


def test_two_writers(tiny_folder: Path, tmp_path: Path) -> None:
    """Each output is made once, whoever comes first."""
    source = folder_of(tmp_path / "in", 6)
    for number in range(TWICE):
        out = tmp_path / str(number)
        command = ("encode", source, "-o", out, "--json", "--batch-size", 1, "--no-noise")
        results = [ended(one) for one in [running(tiny_folder, *command) for _ in range(2)]]
        assert [code for code, _, _ in results] == [0, 0]
        statuses = [r["status"] for _, text, _ in results for r in records(text)]
        assert statuses.count("done") == 6 and statuses.count("unchanged") == 6
        assert outputs(out) == outputs(tmp_path / "0")


def test_a_process_that_dies_leaves_the_others_at_work(tiny_folder: Path, tmp_path: Path) -> None:
    source, out = folder_of(tmp_path / "in", 12), tmp_path / "o"
    command = ("encode", source, "-o", out, "--batch-size", 1, "--inference-steps", 20)
    parent = running(tiny_folder, *command, "--num-processes", 2)
    while not list(out.glob("*.safetensors")):
        time.sleep(0.05)
        assert parent.poll() is None
    child = subprocess.run(
        ["pgrep", "-P", str(parent.pid), "-f", "share 1/2"], capture_output=True, text=True
    ).stdout.split()
    subprocess.run(["kill", "-9", *child], check=True)
    code, _, err = ended(parent)
    assert code == 1 and "process 1 of 2 was killed" in err and "the same command" in err
    assert {f"{n}.safetensors" for n in (1, 3, 5, 7, 9, 11)} <= outputs(out).keys() or len(
        outputs(out)
    ) >= 6
    assert ended(running(tiny_folder, *command))[0] == 0
    assert len([name for name in outputs(out) if not name.endswith(".tmp")]) == 12


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
