"""Training in several processes: the same curve, bitwise resume, one voice."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from conftest import tiny_model
from small_runs import (
    OPTIONS,
    TINY,
    assert_equal,
    ended,
    folder_of,
    losses,
    quiet,
    stage_of,
    started,
    state,
    task_of,
)

from pdae_cli.errors import InputError, OutOfMemory
from pdae_cli.training.loop import Training


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("photos"))


def training(processes: int, data: Path, folder: Path, *args: object) -> tuple[int, str]:
    return ended("train", "dpm", data, "-o", folder, *TINY, *args, processes=processes)


def said(err: str) -> list[str]:
    """The lines of pdae itself; a launcher adds its own."""
    return [line for line in err.splitlines() if line.startswith("error: ")]


def worker(launcher: int, rank: int) -> int:
    """The process of this rank."""
    for path in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{path}/environ").read_bytes().split(b"\0"):
            return int(path)
    raise LookupError(rank)


@pytest.fixture(scope="module")
def runs(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same six steps in one process, in two, and in two that were stopped after three."""
    folder = tmp_path_factory.mktemp("runs")
    for name, processes, ends in (("one", 1, [48]), ("two", 2, [48]), ("resumed", 2, [24, 48])):
        for images in ends:
            more = ("--images", images, "--dropout", 0)
            code, err = training(processes, photos, folder / name, *more)
            assert code == 0, err
    return folder


@pytest.mark.parametrize(
    ("error", "told"),
    [(OutOfMemory("no room"), False), (torch.OutOfMemoryError("CUDA"), False),
     (InputError("a picture can't be read"), True)],
)  # fmt: skip
def test_who_waits_for_gradients_isnt_waited_for(
    error: Exception, told: bool, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one whose memory runs out within a step the others hear as it ends; of what fails before
    a step it tells them."""

    def fail(*args: object) -> None:
        raise error

    said = list[bool]()
    run = Training(stage_of("dpm", tiny_model(), task_of(photos, tmp_path)), OPTIONS, tmp_path)
    monkeypatch.setattr(run, "_fail", lambda: said.append(True))
    monkeypatch.setattr(run, "batches" if told else "train_step", fail)
    with pytest.raises(InputError if told else OutOfMemory):
        run.train(quiet)
    assert said == [True] * told


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
        assert_equal(state(runs / "two"), state(runs / "resumed"))
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
        code, err = training(1, photos, runs / "resumed", *more)
        assert code == 0, err
        assert len(losses(runs / "resumed")) == 8

    def test_a_failing_one_ends_all_with_a_line(self, photos: Path, tmp_path: Path) -> None:
        """Most of the pictures can't be read: each process meets that, and one says so."""
        data = tmp_path / "data"
        data.mkdir()
        for number, path in enumerate(sorted(photos.iterdir())):
            (data / path.name).write_bytes(path.read_bytes() if number % 3 == 0 else b"no")
        code, err = training(2, data, tmp_path / "run", "--images", 4800)
        assert code == 1
        (line,) = set(said(err))
        assert "pictures can't be read" in line

    def test_what_all_got_wrong_is_said_once(self, photos: Path, tmp_path: Path) -> None:
        _, err = training(2, photos, tmp_path / "run", "--batch-size", 7)
        (line,) = said(err)
        assert "not a multiple of 2 (2 processes x 1 micro-batches)" in line
        assert not (tmp_path / "run").exists()

    def test_a_killed_one_ends_the_other_with_a_line(self, photos: Path, tmp_path: Path) -> None:
        args = ("train", "dpm", photos, "-o", tmp_path, *TINY, "--images", 10**6)
        with started(*args, processes=2) as launcher:
            assert launcher.stderr is not None
            lines = []
            for line in launcher.stderr:
                lines.append(line)
                if line.startswith("step 3 "):
                    os.kill(worker(launcher.pid, rank=1), signal.SIGKILL)
        assert launcher.returncode == 1
        (line,) = said("".join(lines))
        assert "another process of this run has ended; the same command resumes" in line

    def test_sigterm_stops_all_after_the_same_step(self, photos: Path, tmp_path: Path) -> None:
        """And the state resumes. Meanwhile nobody else may train there."""
        args = ("train", "dpm", photos, "-o", tmp_path, *TINY, "--images")
        with started(*args, 10**6, processes=2) as process:
            assert process.stderr is not None
            for line in process.stderr:
                if line.startswith("step 3 "):
                    code, err = ended(*args, 10**6, processes=2)
                    assert code != 0
                    (line,) = said(err)
                    assert "is being trained in by process" in line and "wait for it" in line
                    process.send_signal(signal.SIGTERM)
        before = len(losses(tmp_path))
        assert before >= 3
        code, err = ended(*args, 8 * (before + 1), processes=2)
        assert code == 0, err
        assert len(losses(tmp_path)) == before + 1
