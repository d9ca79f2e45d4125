"""How trajectories are solved, from the command line: presets, what codes remember, likelihood."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from conftest import Command, picture
from PIL import Image

from pdae_cli.diffusion.sampling import PRESETS
from pdae_cli.engine.codes import read_codes

FAST = ("--inference-steps", 3)


def recorded(path: Path) -> dict[str, object]:
    return read_codes(path, str(path)).sampling


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_sets_of_options(
    pdae: Command, pictures: list[Path], tmp_path: Path, preset: str
) -> None:
    """Codes by a preset equal codes by its options one by one; options beside it win."""
    by_name, by_hand, beside = (tmp_path / f"{name}.safetensors" for name in "abc")
    pdae("encode", pictures[0], "-o", by_name, "--preset", preset)
    options = [
        part for key, value in PRESETS[preset].items()
        for part in (f"--{key.replace('_', '-')}", value)
    ]  # fmt: skip
    pdae("encode", pictures[0], "-o", by_hand, *options)
    assert by_name.read_bytes() == by_hand.read_bytes()
    pdae("encode", pictures[0], "-o", beside, "--preset", preset, *FAST)
    assert recorded(beside) == recorded(by_name) | {"inference_steps": 3}


def test_archival_codes_hold_both_states_and_edits_drop_one(
    pdae: Command, pictures: list[Path], tmp_path: Path
) -> None:
    z, moved = tmp_path / "z.safetensors", tmp_path / "moved.safetensors"
    pdae("encode", pictures[0], "-o", z, "--preset", "archival")
    codes = read_codes(z, "z")
    assert codes.eps_T is not None and codes.x_T is not None
    assert codes.eps_T.shape == codes.x_T.shape
    result = pdae("manipulate", z, "--attr", "smiling=0.1", "-o", moved)
    assert result.code == 0 and read_codes(moved, "moved").eps_T is None
    assert pdae("decode", moved, "-o", tmp_path / "moved.png").code == 0


def test_decode_follows_the_codes_and_warns_when_told_otherwise(
    pdae: Command, pictures: list[Path], tmp_path: Path
) -> None:
    z = tmp_path / "z.safetensors"
    pdae("encode", *pictures, "-o", z, *FAST)
    silent = pdae("decode", z, "-o", tmp_path / "a")
    assert silent.err == ""
    same = pdae("decode", z, "-o", tmp_path / "b", *FAST)
    assert same.err == ""
    for name in ("z-0000.png", "z-0002.png"):
        with Image.open(tmp_path / "a" / name) as a, Image.open(tmp_path / "b" / name) as b:
            assert a.tobytes() == b.tobytes()
    other = pdae("decode", z, "-o", tmp_path / "c", "--inference-steps", 4, "--solver", "ddim")
    assert other.code == 0 and other.err.count("warning") == 1
    assert "inference_steps 3, not 4" in other.err and "solver dpmpp, not ddim" in other.err


def test_codes_that_dont_converge_are_named(
    pdae: Command, pictures: list[Path], tmp_path: Path
) -> None:
    """The random weights of the tiny model answer a change of x_T a hundredfold."""
    z = tmp_path / "z.safetensors"
    result = pdae("encode", *pictures[:2], "-o", z, "--preset", "exact")
    assert result.code == 0 and result.err.count("doesn't converge") == 2
    assert "a.png" in result.err and "b.jpg" in result.err
    assert read_codes(z, "z").converged == (False, False)
    assert "doesn't converge" not in pdae("encode", pictures[0], "-o", "-").err


def test_low_precision_says_what_comes_back(
    pdae: Command, pictures: list[Path], tmp_path: Path
) -> None:
    result = pdae("encode", *pictures, "-o", tmp_path / "z.safetensors", "--dtype", "bfloat16",
                  "--batch-size", 1, *FAST)  # fmt: skip
    assert result.code == 0 and result.err.count("bfloat16: of a first picture") == 1


@pytest.mark.parametrize("mode", ["latent", "trajectory"])
def test_interpolation_ends_equal_reconstructions(pdae: Command, tmp_path: Path, mode: str) -> None:
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    for seed, path in enumerate((a, b)):
        picture(seed, (32, 32)).save(path)
    pdae("interpolate", a, b, "--steps", 4, "--mode", mode, "-o", tmp_path / "way", *FAST)
    pdae("reconstruct", a, b, "-o", tmp_path / "back", *FAST)
    for name, number in (("a", 0), ("b", 3)):
        with (
            Image.open(tmp_path / "back" / f"{name}.png") as back,
            Image.open(tmp_path / "way" / f"{number:04d}.png") as end,
        ):
            assert back.tobytes() == end.tobytes()


def test_codes_of_different_settings_dont_mix(
    pdae: Command, pictures: list[Path], tmp_path: Path
) -> None:
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    pdae("encode", pictures[0], "-o", a, *FAST)
    pdae("encode", pictures[1], "-o", b, "--inference-steps", 4)
    result = pdae("interpolate", a, b, "-o", tmp_path / "strip.png")
    assert result.code == 3 and "encode them alike" in result.err
    assert not (tmp_path / "strip.png").exists()


class TestLikelihood:
    def test_a_record_for_each_picture(self, pdae: Command, pictures: list[Path]) -> None:
        result = pdae("evaluate", "likelihood", *pictures, "--json", *FAST)
        records = [json.loads(line) for line in result.text.splitlines()]
        assert result.code == 0 and [Path(one["input"]) for one in records] == pictures
        assert all(one["nfe"] == 7 and one["status"] == "done" for one in records)
        assert all(isinstance(one["bits_per_dimension"], float) for one in records)

    def test_it_depends_on_picture_and_seed_alone(
        self, pdae: Command, pictures: list[Path]
    ) -> None:
        def bits(*args: object) -> list[float]:
            lines = pdae("evaluate", "likelihood", *args, "--json", *FAST).text.splitlines()
            return [json.loads(line)["bits_per_dimension"] for line in lines]

        together = bits(*pictures)
        assert bits(pictures[1]) == pytest.approx(together[1:2], rel=1e-4)
        assert bits(*pictures, "--batch-size", 1) == pytest.approx(together, rel=1e-4)
        assert bits(pictures[1], "--seed", 1) != together[1:2]
        assert bits(pictures[1], "--conditional") != together[1:2]

    def test_what_it_cant_take_is_one_line(self, pdae: Command, pictures: list[Path]) -> None:
        z = pdae("encode", pictures[0], "-o", "-", *FAST).out
        codes = pdae("evaluate", "likelihood", "-", stdin=z)
        assert codes.code == 3 and "of pictures, not of codes" in codes.err
        solver = pdae("evaluate", "likelihood", pictures[0], "--solver", "ddim")
        assert solver.code == 2 and "its own solver" in solver.err
        for option in ("--guidance", "--guide-from", "--guide-until"):
            guided = pdae("evaluate", "likelihood", pictures[0], option, 1)
            assert guided.code == 2 and "add --conditional" in guided.err
        assert pdae("evaluate", "likelihood", pictures[0], "--keep-alpha").code == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "best"], "known: default, exact, archival"),
        (["--spacing", "square"], "known: uniform, quadratic, logsnr, asinh"),
        (["--solver", "leapfrog", "--corrections", 1], "leapfrog is exact without"),
        (["--solver", "ddpm", "--corrections", 1], "ddpm decodes by chance"),
        (["--parity", "pdae", "--corrections", 1], "leave solver, spacing and corrections out"),
    ],
)
def test_wrong_usage(
    pdae: Command, pictures: list[Path], options: list[object], message: str
) -> None:
    result = pdae("reconstruct", pictures[0], *options)
    assert result.code == 2 and message in result.err and result.err.count("\n") == 1


def test_inputs_are_read_ahead_and_stay_in_order(
    pdae: Command, pictures: list[Path], tmp_path: Path
) -> None:
    """A broken one in between is reported, and the others come in the order given."""
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG broken")
    wanted = [pictures[0], broken, pictures[1], pictures[2], pictures[0]]
    result = pdae("reconstruct", *wanted, "--json", "--batch-size", 2, *FAST)
    records = [json.loads(line) for line in result.text.splitlines()]
    done = [Path(one["input"]) for one in records if one["status"] == "done"]
    assert result.code == 3 and done == [path for path in wanted if path != broken]
    assert [one["input"] for one in records if one["status"] == "failed"] == [str(broken)]


def test_standard_input_is_read_once(pdae: Command, pictures: list[Path]) -> None:
    data = pictures[0].read_bytes()
    codes = pdae("encode", "-", pictures[1], "-o", "-", *FAST, stdin=data)
    assert len(read_codes(io.BytesIO(codes.out), "-")) == 2
