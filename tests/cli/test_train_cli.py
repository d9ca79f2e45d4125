"""pdae train: every stage by commands alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli_runs import folder_of
from conftest import Command

FAST = ("--inference-steps", "3")


SMALL = ("--image-size", 32, "--base-channels", 8, "--head-channels", 8)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "data", 4)


class TestTrain:
    def test_every_stage_from_a_folder_of_pictures(self, pdae: Command, tmp_path: Path) -> None:
        """dpm → autoencoder → attributes → latent → sample, by commands alone; then resume."""
        dpm, out = tmp_path / "dpm", tmp_path / "model"
        data = folder_of(tmp_path / "photos", 24)
        loop = ("--images", 16, "--batch-size", 4, "--log-every", 1, "--save-every", 2)
        shape = (*SMALL, "--multipliers", "1,2", "--blocks", 1, "--attention", 16)
        first = pdae("train", "dpm", data, "-o", dpm, *shape, *loop)
        assert first.code == 0 and first.out == b"" and "step 4" in first.err
        second = pdae("train", "autoencoder", data, "--dpm", dpm, "-o", out, "--z-dim", 6, *loop)
        assert second.code == 0 and "gap_closed_shuffled" in second.err
        latent = ("--width", 8, "--layers", 2)
        assert pdae("train", "latent", data, "--model", out, *latent, *loop).code == 0
        assert pdae("sample", "-n", 1, "-o", tmp_path / "s.png", *FAST, model=out).code == 0
        again = pdae("train", "dpm", data, "-o", dpm, *shape, *loop[2:], "--images", 20)
        assert again.code == 0 and "step 4 of 5, " in again.err
        fewer = pdae("train", "dpm", data, "-o", dpm, *shape, *loop)
        assert fewer.code == 0 and "step 5 of 4 (nothing is left to do)" in fewer.err
        other = pdae("train", "dpm", data, "-o", dpm, *shape, *loop, "--lr", 1)
        assert other.code == 2 and "other options" in other.err
        further = tmp_path / "further"
        assert pdae("train", "dpm", data, "-o", further, "--init-from", dpm, *loop).code == 0
        assert list((out / "training").glob("*.png")), "sample sheets"
        more = tmp_path / "more"
        going_on = ("train", "autoencoder", data, "-o", more)
        assert pdae(*going_on, "--init-from", out, *loop).code == 0
        assert pdae(*going_on, *loop).code == pdae(*going_on, "--init-from", dpm, *loop).code == 2

    def test_a_zip_is_a_folder(self, pdae: Command, data: Path, tmp_path: Path) -> None:
        shutil.make_archive(str(data), "zip", tmp_path, data.name)
        args = (*SMALL, "--multipliers", "1", "--blocks", 1, "--attention", "", "--images", 4,
                "--batch-size", 4)  # fmt: skip
        zipped = data.with_suffix(".zip")
        assert pdae("train", "dpm", zipped, "-o", tmp_path / "m", *args).code == 0

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("flags", "code"),
        [(["--precision", "bfloat16"], 0), (["--channels-last"], 2), (["--compile"], 0)],
    )
    def test_faster_ways_to_train(
        self, data: Path, tmp_path: Path, flags: list[str], code: int
    ) -> None:
        """In a process of its own, which torch may crash: --channels-last would."""
        if "--compile" in flags and shutil.which("g++") is None:
            pytest.skip("torch.compile needs a C++ compiler on a CPU")
        args = ["train", "dpm", data, "-o", tmp_path / "m", *SMALL, "--blocks", "1",
                "--multipliers", "1", "--attention", "", "--images", "8", "--batch-size", "4",
                "--log-every", "1", "--device", "cpu", *flags]  # fmt: skip
        command = [sys.executable, "-m", "pdae_cli", *map(str, args)]
        # What machine code does, tests/training/test_training_loop.py looks at: it takes minutes.
        env = os.environ | {"TORCHDYNAMO_DISABLE": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        assert done.returncode == code, done.stderr
        said = "step 2 images 8 held_out_loss" if code == 0 else "leave --channels-last out"
        assert said in done.stderr

    def test_what_isnt_taken_of_the_labels_is_said_once(
        self, pdae: Command, data: Path, tiny_folder: Path, tmp_path: Path
    ) -> None:
        """And what can't be measured; a split alone is labels enough."""
        table, names = tmp_path / "l.csv", sorted(path.name for path in data.iterdir())
        rows = [f"{n},{'val' if k == 1 else 'train'},{'ab'[k % 2]}" for k, n in enumerate(names)]
        table.write_text("\n".join(["file,split,kind", *rows]))
        args = ("-o", tmp_path / "m", "--labels", table, "--dry-run", "--batch-size", 4)
        for more in ((), ("--condition", "kind")):
            result = pdae("train", "autoencoder", data, "--dpm", tiny_folder, *args, *more)
            assert result.code == 0, result.err
            assert result.err.count("kind ('a' in line 2 is no number)") == 1
            assert result.err.count("one picture is held out") == 1
        table.write_text("\n".join(["file,split", *(row[:-2] for row in rows)]))
        result = pdae("train", "autoencoder", data, "--dpm", tiny_folder, *args)
        assert result.code == 0 and "l.csv" not in result.err

    def test_what_is_left_open_suits_the_machine(
        self, pdae: Command, data: Path, tmp_path: Path
    ) -> None:
        few = ("--images", 4, "--batch-size", 2, "--device", "cpu")
        result = pdae("train", "dpm", data, "-o", tmp_path / "m", "--dry-run", "--json", *few)
        assert result.code == 0 and result.err.count("as suits a CPU") == 1
        assert "widths 32,96,160" in result.err and "patch 2" in result.err
        assert json.loads(result.out)["parameters"] < 6e6
        one = ("--base-channels", 8, "--multipliers", 1)
        result = pdae("train", "dpm", data, "-o", tmp_path / "m", *few, "--dry-run", *one)
        assert result.code == 0 and "widths 8," in result.err
        result = pdae("train", "dpm", data, "-o", tmp_path / "m", *few, *SMALL)
        assert result.code == 0 and "2 rows a step" in result.err

    def test_nothing_to_train_on(self, pdae: Command, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        for data, words in ((tmp_path / "empty", "no pictures"), (tmp_path / "no", "no such")):
            result = pdae("train", "dpm", data, "-o", tmp_path / "m")
            assert result.code == 3 and words in result.err
