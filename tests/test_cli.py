"""The commands: exit code, stdout and stderr, for success and for each failure a user can cause."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Command, picture
from PIL import Image
from test_images import png_claiming

from pdae_cli.engine.codes import read_codes
from pdae_cli.pictures.metadata import read_recipe

FAST = ("--inference-steps", "3")


def pixels(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def files_in(folder: Path) -> list[str]:
    """The files of an output folder, but what the manifest keeps."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".pdae")


class TestStart:
    """What must not wait for torch."""

    @pytest.mark.parametrize("args", [["--help"], ["--version"], ["encode", "--help"], ["nothing"]])
    def test_help_and_usage_errors_dont_import_torch(self, args: list[str]) -> None:
        code = (
            "import sys\nfrom pdae_cli.cli import main\n"
            f"sys.argv = ['pdae', *{args!r}]\n"
            "try:\n    main()\nexcept SystemExit:\n    pass\n"
            "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True)
        assert done.returncode == 0, done.stderr.decode()

    def test_version(self, pdae: Command) -> None:
        result = pdae("--version")
        assert result.code == 0 and result.text.startswith("pdae 0.") and result.err == ""

    def test_help_names_commands_and_exit_codes(self, pdae: Command) -> None:
        text = pdae("--help").text
        for word in ("encode", "decode", "reconstruct", "interpolate", "manipulate", "sample",
                     "train", "attributes", "info", "Exit codes", "130"):  # fmt: skip
            assert word in text

    def test_unknown_command_is_wrong_usage(self, pdae: Command) -> None:
        result = pdae("encod")
        assert result.code == 2 and result.out == b"" and "encod" in result.err


class TestEncodeDecode:
    def test_one_stacked_file(self, pdae: Command, pictures: list[Path], tmp_path: Path) -> None:
        result = pdae("encode", *pictures, "-o", tmp_path / "z.safetensors", *FAST)
        assert result.code == 0 and result.err == ""
        codes = read_codes(tmp_path / "z.safetensors", "z")
        assert len(codes) == 3 and codes.x_T is not None and codes.model == "tiny"
        assert codes.sources == tuple(map(str, pictures))
        assert codes.sampling["inference_steps"] == 3

    def test_a_folder_of_files_mirrors_the_tree(self, pdae: Command, tmp_path: Path) -> None:
        for name in ("a.png", "sub/a.png", "sub/deep/b.png"):
            path = tmp_path / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            picture().save(path)
        result = pdae("encode", "-r", tmp_path / "in", "-o", tmp_path / "out", "--no-noise")
        assert result.code == 0
        found = sorted(
            p.relative_to(tmp_path / "out").as_posix() for p in tmp_path.rglob("*.safetensors")
        )
        assert found == ["a.safetensors", "sub/a.safetensors", "sub/deep/b.safetensors"]
        back = pdae(
            "decode", "-r", tmp_path / "out", "-o", tmp_path / "back", "--random-noise", *FAST
        )
        assert back.code == 0 and (tmp_path / "back" / "sub" / "deep" / "b.png").is_file()

    def test_rows_of_a_stacked_file_are_decoded_to_a_folder(
        self, pdae: Command, pictures: list[Path], tmp_path: Path
    ) -> None:
        z = tmp_path / "z.safetensors"
        pdae("encode", *pictures, "-o", z, *FAST)
        assert pdae("decode", z, "-o", tmp_path / "out").code == 0
        assert files_in(tmp_path / "out") == [
            "z-0000.png", "z-0001.png", "z-0002.png",
        ]  # fmt: skip
        assert pixels(tmp_path / "out" / "z-0000.png") == (32, 32)

    def test_codes_files_say_no_to_another_model(
        self, pdae: Command, pictures: list[Path], tmp_path: Path, tiny_folder: Path
    ) -> None:
        import torch
        from conftest import tiny_model

        from pdae_cli.checkpoints import write_model

        other = tmp_path / "other"
        shutil.copytree(tiny_folder, other)
        write_model(other, tiny_model(seed=1), torch.float32)
        pdae("encode", pictures[0], "-o", tmp_path / "z.safetensors", *FAST)
        result = pdae("decode", tmp_path / "z.safetensors", "-o", tmp_path / "x.png", model=other)
        assert result.code == 3 and result.out == b"" and "another model (tiny" in result.err
        assert not (tmp_path / "x.png").exists()

    def test_through_pipes(self, pdae: Command, pictures: list[Path], tmp_path: Path) -> None:
        """encode - | manipulate - | decode - = the three commands with files."""
        data = pictures[0].read_bytes()
        codes = pdae("encode", "-", "-o", "-", *FAST, stdin=data)
        assert codes.code == 0 and codes.err == ""
        moved = pdae("manipulate", "-", "--attr", "smiling=0.2", "-o", "-", stdin=codes.out)
        assert moved.code == 0 and moved.err == ""
        decoded = pdae("decode", "-", "-o", "-", stdin=moved.out)
        assert decoded.code == 0 and decoded.out.startswith(b"\x89PNG")
        pdae("encode", pictures[0], "-o", tmp_path / "z.safetensors", *FAST)
        edit = ("--attr", "smiling=0.2", "-o", tmp_path / "m.png")
        assert pdae("manipulate", tmp_path / "z.safetensors", *edit).code == 0
        with (
            Image.open(tmp_path / "m.png") as by_file,
            Image.open(io.BytesIO(decoded.out)) as piped,
        ):
            assert by_file.tobytes() == piped.tobytes()

    def test_random_noise_belongs_to_seed_and_picture(
        self, pdae: Command, pictures: list[Path], tmp_path: Path
    ) -> None:
        z = tmp_path / "z.safetensors"
        pdae("encode", *pictures, "-o", z, "--no-noise")

        def decoded(seed: int, *args: str) -> bytes:
            result = pdae("decode", "-", "-o", "-", "--random-noise", "--seed", seed, *FAST, *args,
                          stdin=single.read_bytes())  # fmt: skip
            assert result.code == 0, result.err
            return Image.open(io.BytesIO(result.out)).tobytes()

        single = tmp_path / "one.safetensors"
        pdae("encode", pictures[1], "-o", single, "--no-noise")
        assert decoded(1) == decoded(1) != decoded(2)
        pdae("decode", z, "-o", tmp_path / "o", "--random-noise", "--seed", 1, *FAST)
        with Image.open(tmp_path / "o" / "z-0001.png") as together:
            assert together.tobytes() == decoded(1)


class TestReconstruct:
    def test_json_record(self, pdae: Command, pictures: list[Path], tmp_path: Path) -> None:
        out = tmp_path / "back.png"
        result = pdae("reconstruct", pictures[0], "-o", out, "--json", *FAST)
        record = json.loads(result.text)
        assert result.code == 0 and record["status"] == "done" and record["output"] == str(out)
        assert {"input", "mse", "psnr", "ssim", "equal", "nfe", "seconds", "seed", "model"} <= set(
            record
        )
        assert record["nfe"] == 3 + 3
        assert pixels(out) == (32, 32)

    def test_compare_is_side_by_side_and_without_output_it_measures(
        self, pdae: Command, pictures: list[Path], tmp_path: Path
    ) -> None:
        out = tmp_path / "pair.png"
        assert pdae("reconstruct", pictures[0], "-o", out, "--compare", *FAST).code == 0
        assert pixels(out) == (64, 32)
        result = pdae("reconstruct", *pictures, *FAST)
        assert result.code == 0 and result.text.count("ssim") == 3

    def test_solver_ddpm_from_z_alone(self, pdae: Command, pictures: list[Path]) -> None:
        args = ("--random-noise", "--solver", "ddpm", "--json", *FAST)
        record = json.loads(pdae("reconstruct", pictures[0], *args).text)
        assert record["status"] == "done" and record["nfe"] == 4


class TestInterpolate:
    @pytest.mark.parametrize("mode", ["latent", "trajectory"])
    def test_a_strip_has_the_stated_number_of_pictures(
        self, pdae: Command, pictures: list[Path], tmp_path: Path, mode: str
    ) -> None:
        strip = tmp_path / "strip.png"
        args = ("--steps", "4", "--mode", mode, *FAST)
        assert pdae("interpolate", *pictures[:2], "-o", strip, *args).code == 0
        assert pixels(strip) == (4 * 32 + 3 * 2, 32)

    @pytest.mark.parametrize("suffix", [".gif", ".webp"])
    def test_animations(
        self, pdae: Command, pictures: list[Path], tmp_path: Path, suffix: str
    ) -> None:
        out = tmp_path / f"way{suffix}"
        assert pdae("interpolate", *pictures[:2], "-o", out, "--steps", "5", *FAST).code == 0
        with Image.open(out) as image:
            assert image.n_frames == 5  # type: ignore[attr-defined]

    def test_a_bad_end_is_one_failure(
        self, pdae: Command, pictures: list[Path], tmp_path: Path
    ) -> None:
        out = tmp_path / "strip.png"
        result = pdae("interpolate", pictures[0], tmp_path / "no.png", "-o", out, "--json")
        assert result.code == 3 and "no such file" in result.err and not out.exists()
        assert json.loads(result.text)["status"] == "failed"

    def test_a_folder_of_frames(self, pdae: Command, pictures: list[Path], tmp_path: Path) -> None:
        out = tmp_path / "frames"
        assert pdae("interpolate", *pictures[:2], "-o", out, *FAST).code == 0
        assert files_in(out) == [f"{n:04d}.png" for n in range(10)]


class TestManipulate:
    def test_a_list_of_scales_makes_a_row(
        self, pdae: Command, pictures: list[Path], tmp_path: Path
    ) -> None:
        row = tmp_path / "row.png"
        args = ("--attr", "SMILING", "--scale", "-0.3,0,0.3", "--json", *FAST)
        result = pdae("manipulate", pictures[0], *args, "-o", row)
        assert result.code == 0 and pixels(row) == (96, 32)
        report = json.loads(result.text)["attributes"]["Smiling"]
        assert report["scale"] == [-0.3, 0, 0.3]
        assert report["after"][0] < report["before"] < report["after"][2]
        assert report["after"][1] == pytest.approx(report["before"], abs=1e-4)

    def test_several_attributes(self, pdae: Command, pictures: list[Path], tmp_path: Path) -> None:
        args = ("--attr", "smiling", "--attr", "blond hair=0.1", "--scale", "0.3", "--json")
        result = pdae("manipulate", pictures[0], *args, "-o", tmp_path / "x.png", *FAST)
        attributes = json.loads(result.text)["attributes"]
        assert {name: one["scale"] for name, one in attributes.items()} == {
            "Smiling": 0.3, "Blond_Hair": 0.1,
        }  # fmt: skip

    def test_list(self, pdae: Command) -> None:
        result = pdae("manipulate", "--list")
        assert result.code == 0 and result.text.split() == [
            "Smiling",
            "Blond_Hair",
            "5_o_Clock_Shadow",
        ]

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["--attr", "smilling=1"], "did you mean Smiling?"),
            (["--attr", "smiling"], "needs a --scale"),
            (["--attr", "smiling", "--scale", "big"], "isn't a number"),
            (["--attr", "smiling=1", "--scale", "1"], "more --scale than --attr"),
            ([], "name at least one --attr"),
            (["--attr", "smiling=1,2", "--attr", "blondhair=1,2,3"], "equally long"),
        ],
    )
    def test_wrong_usage(
        self, pdae: Command, pictures: list[Path], tmp_path: Path, args: list[str], message: str
    ) -> None:
        result = pdae("manipulate", pictures[0], "-o", tmp_path / "x.png", *args)
        assert result.code == 2 and result.out == b"" and message in result.err
        assert result.err.count("\n") == 1 and not (tmp_path / "x.png").exists()


class TestSample:
    def test_a_sheet_and_a_folder_are_the_same_pictures(
        self, pdae: Command, tmp_path: Path
    ) -> None:
        sheet, folder = tmp_path / "s.png", tmp_path / "s"
        assert pdae("sample", "-n", 3, "-o", sheet, "--seed", 2, *FAST).code == 0
        assert pixels(sheet) == (3 * 32 + 4, 32)
        small = ("--batch-size", 2)
        assert pdae("sample", "-n", 3, "-o", folder, "--seed", 2, *small, *FAST).code == 0
        with Image.open(sheet) as whole, Image.open(folder / "00002.png") as last:
            ours = whole.crop((68, 0, 100, 32)).tobytes()
            assert max(abs(a - b) for a, b in zip(ours, last.tobytes(), strict=True)) <= 1

    def test_unconditional(self, pdae: Command, tmp_path: Path) -> None:
        out = tmp_path / "s.png"
        assert pdae("sample", "-n", 1, "--unconditional", "-o", out, *FAST).code == 0
        with Image.open(out) as image:
            made = read_recipe(image)
        assert made is not None and made["command"] == "sample" and made["options"]["unconditional"]


class TestInfo:
    def test_models_codes_and_pictures(
        self, pdae: Command, pictures: list[Path], tmp_path: Path, tiny_folder: Path
    ) -> None:
        z, back = tmp_path / "z.safetensors", tmp_path / "back.png"
        pdae("encode", pictures[0], "-o", z, *FAST)
        pdae("decode", z, "-o", back)
        kinds = {}
        for what in (tiny_folder, z, back):
            result = pdae("info", what, "--json")
            assert result.code == 0
            kinds[json.loads(result.text)["kind"]] = json.loads(result.text)
        assert set(kinds) == {"model", "codes", "picture"}
        recipe = kinds["picture"]["recipe"]
        assert recipe["codes"] == read_codes(z, "z").fingerprint(0)
        assert kinds["codes"]["digest"] == kinds["model"]["digest"] == recipe["digest"]
        other = pdae("info", pictures[1])
        assert other.code == 0 and "size: [40, 32]" in other.text and "recipe: none" in other.text


class TestAttributes:
    def test_two_folders_make_an_attribute(
        self, pdae: Command, tmp_path: Path, tiny_folder: Path
    ) -> None:
        mine = tmp_path / "mine"
        shutil.copytree(tiny_folder, mine)
        for kind, colour in (("with", "red"), ("without", "blue")):
            (tmp_path / kind).mkdir()
            for number in range(6):
                plain = Image.new("RGB", (32, 32), colour)
                image = Image.blend(picture(number, (32, 32)), plain, 0.7)
                image.save(tmp_path / kind / f"{number}.png")
        folders = ("--with", tmp_path / "with", "--without", tmp_path / "without")
        fitted = pdae("attributes", "fit", *folders, "--name", "Redness", model=mine)
        assert fitted.code == 0 and "Redness" in fitted.text
        assert "Redness" in pdae("attributes", "list", model=mine).text
        out = tmp_path / "red.png"
        source = tmp_path / "without" / "0.png"
        edit = ("--attr", "redness", "--scale", "0.5", "-o", out)
        assert pdae("manipulate", source, *edit, *FAST, model=mine).code == 0
        assert pdae("attributes", "remove", "redness", model=mine).code == 0
        assert "Redness" not in pdae("attributes", "list", model=mine).text

    def test_a_table_of_labels(self, pdae: Command, tmp_path: Path, tiny_folder: Path) -> None:
        mine, data = tmp_path / "mine", tmp_path / "data"
        shutil.copytree(tiny_folder, mine)
        data.mkdir()
        rows = ["file,split,Warm,Note"]
        for number in range(12):
            picture(number, (32, 32)).save(data / f"{number}.png")
            rows.append(f"{number}.png,{'val' if number > 7 else 'train'},{number % 2},x")
        (data / "labels.csv").write_text("\n".join(rows))
        result = pdae("attributes", "fit", data, "--json", model=mine)
        record = json.loads(result.text)
        assert result.code == 0 and record["attribute"] == "Warm" and record["held_out"] == 4

    def test_only_folders_of_ones_own_are_changed(
        self, pdae: Command, monkeypatch: pytest.MonkeyPatch, tiny_folder: Path
    ) -> None:
        from pdae_cli.checkpoints import find

        monkeypatch.setattr(find, "bundled_models", lambda: {"ours": tiny_folder})
        result = pdae("attributes", "remove", "smiling", model="ours")
        assert result.code == 2 and f"cp -r {tiny_folder} mine" in result.err
        assert pdae("attributes", "list", model="ours").text.startswith("Smiling")

    def test_usage(self, pdae: Command, tmp_path: Path) -> None:
        assert pdae("attributes", "fit").code == 2
        assert pdae("attributes", "fit", tmp_path, "--with", tmp_path).code == 2
        assert pdae("attributes", "remove", "nothing").code == 2


class TestTrain:
    def test_every_stage_from_a_folder_of_pictures(self, pdae: Command, tmp_path: Path) -> None:
        """dpm → autoencoder → attributes → latent → sample, by commands alone; then resume."""
        data, dpm, out = tmp_path / "data", tmp_path / "dpm", tmp_path / "model"
        data.mkdir()
        for number in range(10):
            picture(number, (40, 32)).save(data / f"{number}.png")
        loop = ("--images", 16, "--batch-size", 4, "--log-every", 1, "--save-every", 2)
        shape = ("--image-size", 32, "--base-channels", 8, "--multipliers", "1,2", "--blocks", 1,
                 "--attention", 16, "--head-channels", 8)  # fmt: skip
        first = pdae("train", "dpm", data, "-o", dpm, *shape, *loop)
        assert first.code == 0 and first.out == b"" and "step 4" in first.err
        second = pdae("train", "autoencoder", data, "--dpm", dpm, "-o", out, "--z-dim", 6, *loop)
        assert second.code == 0 and "gap_closed_shuffled" in second.err
        latent = ("--width", 8, "--layers", 2)
        assert pdae("train", "latent", data, "--model", out, *latent, *loop).code == 0
        assert pdae("sample", "-n", 1, "-o", tmp_path / "s.png", *FAST, model=out).code == 0
        again = pdae("train", "dpm", data, "-o", dpm, *shape, *loop[2:], "--images", 20)
        assert again.code == 0 and "step 4 of 5" in again.err
        other = pdae("train", "dpm", data, "-o", dpm, *shape, *loop, "--lr", 1)
        assert other.code == 2 and "other options" in other.err
        further = tmp_path / "further"
        assert pdae("train", "dpm", data, "-o", further, "--init-from", dpm, *loop).code == 0
        assert list((out / "training").glob("*.png")), "sample sheets"
        more = tmp_path / "more"
        going_on = ("train", "autoencoder", data, "-o", more)
        assert pdae(*going_on, "--init-from", out, *loop).code == 0
        assert pdae(*going_on, *loop).code == pdae(*going_on, "--init-from", dpm, *loop).code == 2

    def test_a_zip_is_a_folder(self, pdae: Command, tmp_path: Path) -> None:
        import zipfile

        with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
            for number in range(4):
                buffer = io.BytesIO()
                picture(number, (32, 32)).save(buffer, "PNG")
                archive.writestr(f"deep/{number}.png", buffer.getvalue())
        args = ("--image-size", 32, "--base-channels", 8, "--multipliers", "1", "--blocks", 1,
                "--attention", "", "--head-channels", 8, "--images", 4,
                "--batch-size", 4)  # fmt: skip
        assert pdae("train", "dpm", tmp_path / "data.zip", "-o", tmp_path / "m", *args).code == 0

    @pytest.mark.parametrize(
        ("args", "code", "message"),
        [
            (["--batch-size", "3", "--accumulate", "2"], 2, "multiple of 2"),
            (["--precision", "int8"], 2, "--precision"),
            (["--base-channels", "8", "--head-channels", "7"], 2, "attention heads"),
            (["--image-size", "33"], 2, "multiple"),
        ],
    )
    def test_wrong_options(
        self, pdae: Command, tmp_path: Path, args: list[str], code: int, message: str
    ) -> None:
        data = tmp_path / "data"
        data.mkdir()
        for number in range(4):
            picture(number, (32, 32)).save(data / f"{number}.png")
        result = pdae("train", "dpm", data, "-o", tmp_path / "m", "--image-size", 32,
                      "--base-channels", 8, "--head-channels", 8, "--images", 4, *args)  # fmt: skip
        assert result.code == code and message in result.err and result.err.count("\n") == 1

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("flags", "code"),
        [
            (["--precision", "bfloat16"], 0),
            (["--channels-last"], 2),
            (["--compile"], 0),
        ],
    )
    def test_faster_ways_to_train(self, tmp_path: Path, flags: list[str], code: int) -> None:
        """In a process of its own, which torch may crash: --channels-last would."""
        if "--compile" in flags and shutil.which("g++") is None:
            pytest.skip("torch.compile needs a C++ compiler on a CPU")
        data = tmp_path / "data"
        data.mkdir()
        for number in range(4):
            picture(number, (32, 32)).save(data / f"{number}.png")
        args = ["train", "dpm", data, "-o", tmp_path / "m", "--image-size", "32", "--blocks", "1",
                "--base-channels", "8", "--multipliers", "1", "--attention", "", "--images", "8",
                "--head-channels", "8", "--batch-size", "4", "--log-every", "1",
                "--device", "cpu", *flags]  # fmt: skip
        command = [sys.executable, "-m", "pdae_cli", *map(str, args)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        said = "step 2 images 8 held_out_loss" if code == 0 else "leave --channels-last out"
        assert said in done.stderr

    def test_nothing_to_train_on(self, pdae: Command, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        for data, words in ((tmp_path / "empty", "no pictures"), (tmp_path / "no", "no such")):
            result = pdae("train", "dpm", data, "-o", tmp_path / "m")
            assert result.code == 3 and words in result.err


class TestFailures:
    """One line each, the right exit code, the others still done, nothing half-written."""

    @pytest.mark.parametrize(
        ("name", "data", "message"),
        [
            ("missing.png", None, "no such file"),
            ("text.png", b"not a picture at all", "not a picture"),
            ("huge.png", png_claiming(50_000, 50_000), "limit of 64 million"),
            ("none.png", png_claiming(0, 0), "not a picture"),
            ("cut.png", png_claiming(64, 64), "can't be read"),
            ("x.safetensors", b"{}", "not a codes file"),
        ],
    )
    def test_a_bad_input_among_good_ones(
        self, pdae: Command, pictures: list[Path], tmp_path: Path, name: str, data: bytes | None,
        message: str,
    ) -> None:  # fmt: skip
        bad = tmp_path / name
        if data is not None:
            bad.write_bytes(data)
        out = tmp_path / "out"
        result = pdae("reconstruct", pictures[0], bad, pictures[1], "-o", out, *FAST)
        assert result.code == 3
        assert files_in(out) == ["a.png", "b.png"]
        lines = result.err.splitlines()
        assert len(lines) == 2 and lines[1] == "2 done, 1 failed"
        assert lines[0].startswith(f"error: {bad}") and message in lines[0]

    def test_failures_are_json_too(self, pdae: Command, tmp_path: Path) -> None:
        result = pdae("reconstruct", tmp_path / "no.png", "--json")
        record = json.loads(result.text)
        assert (
            result.code == 3 and record["status"] == "failed" and "no such file" in record["error"]
        )

    def test_existing_outputs(self, pdae: Command, pictures: list[Path], tmp_path: Path) -> None:
        out = tmp_path / "out"
        out.mkdir()
        (out / "a.png").write_bytes(before := b"somebody's")
        refused = pdae("reconstruct", *pictures[:2], "-o", out, *FAST)
        assert refused.code == 3 and "--overwrite or --skip-existing" in refused.err
        assert (out / "b.png").exists() and (out / "a.png").read_bytes() == before
        skipped = pdae("reconstruct", *pictures[:2], "-o", out, "--skip-existing", "--json", *FAST)
        records = [json.loads(line) for line in skipped.text.splitlines()]
        assert skipped.code == 0 and [r["status"] for r in records] == ["skipped", "unchanged"]
        again = pdae("reconstruct", *pictures[:2], "-o", out, "--overwrite", "--compare", *FAST)
        assert again.code == 0 and (out / "a.png").read_bytes() != before

    def test_unwritable_output(self, pdae: Command, pictures: list[Path], tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        for target in (tmp_path / "file" / "x.png", tmp_path / "file" / "sub/"):
            result = pdae("reconstruct", pictures[0], "-o", target, *FAST)
            assert result.code == 3 and "can't write" in result.err
        z = tmp_path / "file" / "z.safetensors"
        result = pdae("encode", pictures[0], "-o", z, *FAST)
        assert result.code == 3 and "can't write" in result.err

    def test_colliding_outputs_are_found_before_any_work(
        self, pdae: Command, tmp_path: Path
    ) -> None:
        for name in ("a.png", "a.jpg"):
            picture().save(tmp_path / name)
        result = pdae("encode", tmp_path / "a.png", tmp_path / "a.jpg", "-o", tmp_path / "out")
        assert result.code == 2 and "would both become" in result.err
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("args", "code", "message"),
        [
            (["encode"], 2, "no input"),
            (["encode", "-", "-"], 2, "only once"),
            (["encode", "A", "-o", "z.png"], 2, "can't write .png here"),
            (["decode", "A", "-o", "z.xyz"], 2, "can't write .xyz here"),
            (["reconstruct", "A", "A", "-o", "x.png"], 2, "need a folder"),
            (["reconstruct", "A", "-o", "-", "--json"], 2, "standard output"),
            (["reconstruct", "A", "--fit", "magic"], 2, "crop, pad, stretch"),
            (["reconstruct", "A", "--solver", "euler"], 2, "ddim, dpmpp"),
            (["reconstruct", "A", "--dtype", "int3"], 2, "float32"),
            (["reconstruct", "A", "--device", "abacus"], 2, "can't be used"),
            (["reconstruct", "A", "--overwrite", "--skip-existing"], 2, "exclude"),
            (["reconstruct", "A", "--inference-steps", "0"], 2, "inference-steps"),
            (["interpolate", "A", "A", "-o", "x.png", "--mode", "magic"], 2, "trajectory"),
            (["reconstruct", "A", "-m", "no-such-model"], 4, "neither a folder nor bundled"),
            (["info", "no-such-model"], 4, "neither a folder nor bundled"),
        ],
    )
    def test_wrong_usage(
        self, pdae: Command, pictures: list[Path], tmp_path: Path, args: list[str], code: int,
        message: str, monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.chdir(tmp_path)
        result = pdae(*[str(pictures[0]) if arg == "A" else arg for arg in args])
        assert result.code == code and result.out == b"" and message in result.err
        assert "Traceback" not in result.err

    def test_names_cant_steer_the_terminal(self, pdae: Command, tmp_path: Path) -> None:
        result = pdae("reconstruct", tmp_path / "\x1b[31mred\x07.png")
        assert result.code == 3 and "\x1b" not in result.err and "\x07" not in result.err

    def test_unexpected_errors_are_a_line_and_exit_1(
        self, pdae: Command, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from pdae_cli.engine.model import Model

        def broken(self: Model, x: object) -> object:
            raise RuntimeError("the sky fell")

        monkeypatch.setattr(Model, "encoder", broken)
        result = pdae("reconstruct", pictures[0])
        assert result.code == 1 and "the sky fell" in result.err and "PDAE_DEBUG" in result.err
        monkeypatch.setenv("PDAE_DEBUG", "1")
        with pytest.raises(RuntimeError):
            pdae("reconstruct", pictures[0])

    def test_out_of_memory_is_exit_5(
        self, pdae: Command, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import torch

        from pdae_cli.networks.encoder import Encoder

        def hungry(self: Encoder, x: object) -> object:
            raise torch.OutOfMemoryError("no")

        monkeypatch.setattr(Encoder, "forward", hungry)
        result = pdae("reconstruct", pictures[0])
        assert result.code == 5 and "--batch-size" in result.err

    def test_interruption_is_exit_130(
        self, pdae: Command, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from pdae_cli.engine.model import Model

        def interrupted(self: Model, x: object) -> object:
            raise KeyboardInterrupt

        monkeypatch.setattr(Model, "encoder", interrupted)
        result = pdae("reconstruct", pictures[0])
        assert result.code == 130 and "Traceback" not in result.err


class TestInputs:
    def test_files_from_a_list(self, pdae: Command, pictures: list[Path], tmp_path: Path) -> None:
        names = "\n".join(map(str, pictures)).encode()
        result = pdae(
            "encode", "--files-from", "-", "-o", tmp_path / "z", "--no-noise", stdin=names
        )
        assert result.code == 0 and len(files_in(tmp_path / "z")) == 3
        (tmp_path / "list.txt").write_bytes(names)
        args = ("--files-from", tmp_path / "list.txt", "-o", tmp_path / "y", "--no-noise")
        assert pdae("encode", *args).code == 0

    def test_folders_come_in_natural_order(self, pdae: Command, tmp_path: Path) -> None:
        folder = tmp_path / "in"
        folder.mkdir()
        for name in ("p10.png", "p9.png", "P1.png"):
            picture().save(folder / name)
        pdae("encode", folder, "-o", tmp_path / "z.safetensors", "--no-noise")
        codes = read_codes(tmp_path / "z.safetensors", "z")
        assert [Path(source).name for source in codes.sources] == ["P1.png", "p9.png", "p10.png"]

    def test_an_empty_folder_says_so(self, pdae: Command, tmp_path: Path) -> None:
        (tmp_path / "in" / "sub").mkdir(parents=True)
        picture().save(tmp_path / "in" / "sub" / "a.png")
        result = pdae("encode", tmp_path / "in", "-o", tmp_path / "z")
        assert result.code == 2 and "-r looks into" in result.err

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
    def test_special_files_are_refused(self, pdae: Command, tmp_path: Path) -> None:
        fifo, folder = tmp_path / "fifo.png", tmp_path / "folder.png"
        os.mkfifo(fifo)
        folder.mkdir()
        assert pdae("reconstruct", fifo).code == 3
        assert pdae("reconstruct", folder).code == 2

    @pytest.mark.skipif(os.name != "posix", reason="no SIGPIPE here")
    def test_a_reader_that_leaves_is_no_error(self, tiny_folder: Path) -> None:
        command = f"{sys.executable} -m pdae_cli info {tiny_folder} | true; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", command], capture_output=True)
        assert done.returncode in (0, 141) and done.stderr == b""

    def test_json_has_no_infinities(self, pdae: Command, tmp_path: Path) -> None:
        from pdae_cli.cli.output import plain

        assert plain({"a": [float("inf"), 1.5], "b": float("nan")}) == {"a": [None, 1.5], "b": None}

    def test_quiet_says_nothing(self, pdae: Command, pictures: list[Path], tmp_path: Path) -> None:
        result = pdae("encode", pictures[0], "-o", tmp_path / "z", "-q", "--no-noise")
        assert (result.code, result.out, result.err) == (0, b"", "")
