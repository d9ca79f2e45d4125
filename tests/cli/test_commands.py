"""The commands: exit code, stdout and stderr."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from cli_runs import files_in, outputs, pixels_of, size_of
from conftest import Command, picture
from PIL import Image

from pdae_cli.checkpoints import find
from pdae_cli.engine.codes import from_bytes
from pdae_cli.pictures.metadata import read_recipe

FAST = ("--inference-steps", "3")


class TestEncodeDecode:
    def test_one_stacked_file(self, pdae: Command, pictures: list[Path], tmp_path: Path) -> None:
        result = pdae("encode", *pictures, "-o", tmp_path / "z.safetensors", *FAST)
        assert result.code == 0 and result.err == ""
        codes = from_bytes((tmp_path / "z.safetensors").read_bytes(), "z")
        assert len(codes) == 3 and codes.x_T is not None and codes.model == "tiny"
        assert codes.sources == tuple(path.name for path in pictures)  # of nobody's folders
        assert codes.sampling["inference_steps"] == 3

    def test_a_folder_of_files_mirrors_the_tree(self, pdae: Command, tmp_path: Path) -> None:
        for name in ("a.png", "sub/a.png", "sub/deep/b.png"):
            path = tmp_path / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            picture().save(path)
        result = pdae("encode", "-r", tmp_path / "in", "-o", tmp_path / "out", "--no-noise")
        assert result.code == 0
        assert sorted(outputs(tmp_path / "out")) == [
            "a.safetensors",
            "sub/a.safetensors",
            "sub/deep/b.safetensors",
        ]
        line = ("decode", "-r", tmp_path / "out", "-o", tmp_path / "back", "--random-noise", *FAST)
        assert pdae(*line).code == 0 and (tmp_path / "back" / "sub" / "deep" / "b.png").is_file()

    def test_rows_of_a_stacked_file_are_decoded_to_a_folder(
        self, pdae: Command, pictures: list[Path], tmp_path: Path
    ) -> None:
        z = tmp_path / "z.safetensors"
        pdae("encode", *pictures, "-o", z, *FAST)
        assert pdae("decode", z, "-o", tmp_path / "out").code == 0
        assert files_in(tmp_path / "out") == [f"z-{name}.png" for name in "abc"]
        assert size_of(tmp_path / "out" / "z-a.png") == (32, 32)

    def test_rows_whose_names_clash_are_numbered(
        self, pdae: Command, pictures: list[Path], tmp_path: Path
    ) -> None:
        z, twin = tmp_path / "z.safetensors", tmp_path / "other" / "a.png"
        twin.parent.mkdir()
        picture(7).save(twin)
        pdae("encode", pictures[0], twin, "-o", z, *FAST)
        assert pdae("decode", z, "-o", tmp_path / "out").code == 0
        assert files_in(tmp_path / "out") == ["z-0000.png", "z-0001.png"]

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
        assert pixels_of(tmp_path / "m.png") == pixels_of(io.BytesIO(decoded.out))

    def test_edits_of_pictures_are_pictures(
        self, pdae: Command, pictures: list[Path], tmp_path: Path
    ) -> None:
        """Also of a piped one, and where codes lie among them; of codes alone they are codes."""
        edit = ("--attr", "smiling=0.2", *FAST)
        piped = pdae("manipulate", "-", *edit, "-o", "-", stdin=pictures[0].read_bytes())
        assert piped.code == 0 and piped.out.startswith(b"\x89PNG")
        assert pdae("manipulate", "-", *edit, "-o", "-").code == 3  # nothing came
        z = tmp_path / "z.safetensors"
        pdae("encode", pictures[0], "-o", z, *FAST)
        assert pdae("manipulate", pictures[1], z, *edit, "-o", tmp_path / "mixed").code == 0
        assert files_in(tmp_path / "mixed") == [f"{pictures[1].stem}.png", "z.png"]
        assert pdae("manipulate", z, *edit, "-o", tmp_path / "codes").code == 0
        assert files_in(tmp_path / "codes") == ["z.safetensors"]

    def test_random_noise_belongs_to_seed_and_picture(
        self, pdae: Command, pictures: list[Path], tmp_path: Path
    ) -> None:
        z = tmp_path / "z.safetensors"
        pdae("encode", *pictures, "-o", z, "--no-noise")

        def decoded(seed: int, *args: str) -> bytes:
            result = pdae("decode", "-", "-o", "-", "--random-noise", "--seed", seed, *FAST, *args,
                          stdin=single.read_bytes())  # fmt: skip
            assert result.code == 0, result.err
            return pixels_of(io.BytesIO(result.out))

        single = tmp_path / "one.safetensors"
        pdae("encode", pictures[1], "-o", single, "--no-noise")
        assert decoded(1) == decoded(1) != decoded(2)
        pdae("decode", z, "-o", tmp_path / "o", "--random-noise", "--seed", 1, *FAST)
        assert pixels_of(tmp_path / "o" / "z-b.png") == decoded(1)


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
        assert size_of(out) == (32, 32)

    def test_compare_is_side_by_side_and_without_output_it_measures(
        self, pdae: Command, pictures: list[Path], tmp_path: Path
    ) -> None:
        out = tmp_path / "pair.png"
        assert pdae("reconstruct", pictures[0], "-o", out, "--compare", *FAST).code == 0
        assert size_of(out) == (64, 32)
        result = pdae("reconstruct", *pictures, *FAST)
        assert result.code == 0 and result.text.count("ssim") == 3

    def test_figures_dont_depend_on_the_batch(self, pdae: Command, tmp_path: Path) -> None:
        """Sums of a batch round in another order."""
        for seed in range(12):
            picture(seed, (32, 32)).save(tmp_path / f"{seed}.png")
        told = [
            pdae("reconstruct", tmp_path, "--json", "--batch-size", size, *FAST).text
            for size in (1, 5, 12)
        ]
        figures = [
            [[record[name] for name in ("mse", "psnr", "ssim", "equal")]
             for record in map(json.loads, text.splitlines()) if "mse" in record]
            for text in told
        ]  # fmt: skip
        assert len(figures[0]) == 12 and figures[0] == figures[1] == figures[2]

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
        assert size_of(strip) == (4 * 32 + 3 * 2, 32)

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
        assert result.code == 0 and size_of(row) == (96, 32)
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
        names = [line.split()[0] for line in result.text.splitlines()]
        assert names == ["Smiling", "Blond_Hair", "5_o_Clock_Shadow"]


class TestSample:
    def test_a_sheet_and_a_folder_are_the_same_pictures(
        self, pdae: Command, tmp_path: Path
    ) -> None:
        sheet, folder = tmp_path / "s.png", tmp_path / "s"
        assert pdae("sample", "-n", 3, "-o", sheet, "--seed", 2, *FAST).code == 0
        assert size_of(sheet) == (3 * 32 + 4, 32)
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
        assert recipe["codes"] == from_bytes(z.read_bytes(), "z").row_sha(0)
        assert kinds["codes"]["digest"] == kinds["model"]["digest"] == recipe["digest"]
        other = pdae("info", pictures[1])
        assert other.code == 0 and "size: [40, 32]" in other.text and "recipe: none" in other.text


def test_only_attributes_of_ones_own_are_changed(
    pdae: Command, monkeypatch: pytest.MonkeyPatch, tiny_folder: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(find, "bundled_models", lambda: {"ours": tiny_folder})
    refused = pdae("attributes", "remove", "smiling", model="ours")
    assert refused.code == 2 and f"cp -r {tiny_folder} mine" in refused.err
    assert pdae("attributes", "list", model="ours").text.startswith("Smiling")
    mine = shutil.copytree(tiny_folder, tmp_path / "mine")
    assert pdae("attributes", "remove", "nothing", model=mine).code == 2
    assert pdae("attributes", "remove", "smiling", model=mine).code == 0
    assert pdae("attributes", "list", model=mine).text.startswith("Blond_Hair")
