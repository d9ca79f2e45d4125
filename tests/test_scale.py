"""Training in several processes: the same batches, the same curve, bitwise resume, one voice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT, picture
from safetensors.torch import load_file
from test_training import EVEN, OPTIONS, SHAPE

from pdae_cli.training.data import open_pictures
from pdae_cli.training.loop import draw_batch

TINY = (
    "--image-size", "32", "--base-channels", "8", "--multipliers", "1,2", "--blocks", "1",
    "--attention", "16", "--head-channels", "8", "--batch-size", "8", "--log-every", "1",
    "--warmup", "2", "--device", "cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(24):
        picture(number, (32, 32)).save(folder / f"{number}.png")
    return folder


def command(processes: int, *args: object) -> list[str]:
    """`pdae ARGS` in so many processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [sys.executable, *(launcher if processes > 1 else []), "-m", "pdae_cli", *map(str, args)]


def training(
    processes: int, data: Path, folder: Path, *args: object
) -> subprocess.CompletedProcess[str]:
    whole = command(processes, "train", "dpm", data, "-o", folder, *TINY, *args)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run(whole, cwd=ROOT, env=environment, capture_output=True, text=True)


def losses(folder: Path) -> list[float]:
    lines = (folder / "training" / "dpm.jsonl").read_text().splitlines()
    return [record["loss"] for record in map(json.loads, lines) if "loss" in record]


def state(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "training" / "dpm.safetensors")


def said(process: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines of pdae itself; a launcher adds its own."""
    return [line for line in process.stderr.splitlines() if line.startswith("error: ")]


def worker(launcher: int, rank: int) -> int:
    """The process of this rank."""
    for path in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{path}/environ").read_bytes().split(b"\0"):
            return int(path)
    raise LookupError(rank)


@pytest.mark.parametrize("shards", [2, 4])
def test_shards_are_the_rows_of_one_batch(photos: Path, shards: int) -> None:
    """Pictures, timesteps, noise and flips: to the bit, however a step is cut up."""
    pictures, count = open_pictures(photos, 32), 8 // shards
    whole = draw_batch(pictures, EVEN, SHAPE, OPTIONS, 3, 0, 8)
    parts = [draw_batch(pictures, EVEN, SHAPE, OPTIONS, 3, n * count, count) for n in range(shards)]
    for name in ("x_0", "t", "eps"):
        together = torch.cat([vars(part)[name] for part in parts])
        assert torch.equal(together, vars(whole)[name]), name
    assert len({row.sum().item() for row in whole.eps}) == 8


def test_flips_are_fair(photos: Path) -> None:
    pictures = open_pictures(photos, 32)
    options = replace(OPTIONS, batch_size=24)
    plain = draw_batch(pictures, EVEN, SHAPE, replace(options, flip=False), 0, 0, 24).x_0
    mixed = draw_batch(pictures, EVEN, SHAPE, options, 0, 0, 24).x_0
    flipped = [not torch.equal(a, b) for a, b in zip(plain, mixed, strict=True)]
    assert 4 <= sum(flipped) <= 20
    assert all(
        torch.equal(a, b) or torch.equal(a.flip(2), b) for a, b in zip(plain, mixed, strict=True)
    )


@pytest.fixture(scope="module")
def runs(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same six steps in one process, in two, and in two that were stopped after three."""
    folder = tmp_path_factory.mktemp("runs")
    for name, processes, ends in (("one", 1, [48]), ("two", 2, [48]), ("resumed", 2, [24, 48])):
        for images in ends:
            done = training(processes, photos, folder / name, "--images", images, "--dropout", 0)
            assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
class TestTwoProcesses:
    def test_the_curve_is_that_of_one(self, runs: Path) -> None:
        """The same batches; only sums run in another order. A float32 mean over 8 pictures rounds
        by about 1e-7, and the first step's loss shows nothing else. After that Adam divides each
        gradient by its own size, so that a gradient which is all rounding still moves its weight by
        up to lr = 2e-4: 1e-4 of the loss within these six steps."""
        one, two = losses(runs / "one"), losses(runs / "two")
        assert len(one) == len(two) == 6
        assert two[0] == pytest.approx(one[0], rel=1e-6)
        assert two == pytest.approx(one, rel=1e-4)

    def test_a_resumed_run_is_bitwise_an_uninterrupted_one(self, runs: Path) -> None:
        whole, resumed = state(runs / "two"), state(runs / "resumed")
        assert whole.keys() == resumed.keys() and len(whole) > 10
        for name, tensor in whole.items():
            assert torch.equal(tensor, resumed[name]), name
        assert losses(runs / "two") == losses(runs / "resumed")

    def test_only_the_first_writes(self, runs: Path) -> None:
        """The same files as one process leaves, and each line of the log once."""
        files = [
            sorted(path.relative_to(runs / name).as_posix() for path in (runs / name).rglob("*"))
            for name in ("one", "two")
        ]
        assert files[0] == files[1]

    def test_one_goes_on_with_what_two_began(self, runs: Path, photos: Path) -> None:
        more = ("--images", 64, "--accumulate", 2, "--dropout", 0)
        done = training(1, photos, runs / "resumed", *more)
        assert done.returncode == 0, done.stderr
        assert len(losses(runs / "resumed")) == 8

    def test_a_failing_one_ends_all_with_a_line(self, photos: Path, tmp_path: Path) -> None:
        """Half of the training pictures can't be read: one process, or both, meet that at once."""
        data = tmp_path / "data"
        data.mkdir()
        for number, path in enumerate(sorted(photos.iterdir())):
            (data / path.name).write_bytes(path.read_bytes() if number % 2 else b"no")
        done = training(2, data, tmp_path / "run", "--images", 4800)
        assert done.returncode == 1
        (line,) = said(done)
        assert "pictures can't be read" in line

    def test_what_all_got_wrong_is_said_once(self, photos: Path, tmp_path: Path) -> None:
        done = training(2, photos, tmp_path / "run", "--batch-size", 7)
        (line,) = said(done)
        assert "not a multiple of 2 (2 processes x 1 micro-batches)" in line
        assert not (tmp_path / "run").exists()

    def test_a_killed_one_ends_the_other_with_a_line(self, photos: Path, tmp_path: Path) -> None:
        whole = command(2, "train", "dpm", photos, "-o", tmp_path, *TINY, "--images", 10**6)
        environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        with subprocess.Popen(
            whole, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
        ) as launcher:
            assert launcher.stderr is not None
            lines = []
            for line in launcher.stderr:
                lines.append(line)
                if line.startswith("step 3 "):
                    os.kill(worker(launcher.pid, rank=1), signal.SIGKILL)
        assert launcher.returncode == 1
        (said,) = [line for line in lines if line.startswith("error: ")]
        assert "another process of this run has ended; the same command resumes" in said

    def test_sigterm_stops_all_after_the_same_step(self, photos: Path, tmp_path: Path) -> None:
        """And the state resumes."""
        whole = command(2, "train", "dpm", photos, "-o", tmp_path, *TINY, "--images", 10**6)
        with subprocess.Popen(
            whole, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        ) as process:  # fmt: skip
            assert process.stderr is not None
            for line in process.stderr:
                if line.startswith("step 3 "):
                    process.send_signal(signal.SIGTERM)
        before = len(losses(tmp_path))
        assert before >= 3
        done = training(2, photos, tmp_path, "--images", 8 * (before + 1))
        assert done.returncode == 0, done.stderr
        assert len(losses(tmp_path)) == before + 1
