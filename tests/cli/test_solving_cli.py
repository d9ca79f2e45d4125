"""How trajectories are solved, from the command line: presets, what codes remember, likelihood."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from cli_runs import pixels_of
from conftest import Command, picture
from small_runs import untrained_diffae

from pdae_cli.checkpoints.native import write_whole
from pdae_cli.cli.options import SolvingOptions
from pdae_cli.cli.output import ProgressLine
from pdae_cli.diffusion.parity import PROGRAMS
from pdae_cli.diffusion.solvers import SOLVERS, SPACINGS
from pdae_cli.diffusion.trajectory import PRESETS
from pdae_cli.engine.codes import from_bytes, to_bytes
from pdae_cli.engine.columns import to_parquet
from pdae_cli.pictures.decoding import open_picture
from pdae_cli.pictures.metadata import read_recipe

FAST = ("--inference-steps", 3)


def recorded(path: Path) -> dict[str, object]:
    return from_bytes(path.read_bytes(), str(path)).sampling


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_sets_of_options(
    pdae: Command, pictures: list[Path], tmp_path: Path, preset: str
) -> None:
    """Codes by a preset equal codes by its options one by one; options beside it win."""
    by_name, by_hand, beside = (tmp_path / f"{name}.safetensors" for name in "abc")
    pdae("encode", pictures[0], "-o", by_name, "--preset", preset)
    options = [
        part for key, value in PRESETS[preset].items() if value is not None
        for part in (f"--{key.replace('_', '-')}", value)
    ]  # fmt: skip
    pdae("encode", pictures[0], "-o", by_hand, *options)
    tensors = [from_bytes(z.read_bytes(), "z").tensors() for z in (by_name, by_hand)]
    assert all(map(torch.equal, *(one.values() for one in tensors)))
    assert ("residual_T" in tensors[0]) == (preset in ("exact", "archival"))
    assert recorded(by_name) == recorded(by_hand)
    pdae("encode", pictures[0], "-o", beside, "--preset", preset, *FAST)
    assert recorded(beside) == recorded(by_name) | {"inference_steps": 3}


def test_presets_go_before_what_codes_say(
    pdae: Command, pictures: list[Path], tmp_path: Path
) -> None:
    """All of their settings: codes of leapfrog by the default's preset are decoded by dpmpp."""
    z = tmp_path / "z.safetensors"
    pdae("encode", pictures[0], "-o", z, "--preset", "archival")
    told = pdae("decode", z, "-o", tmp_path / "a.png", "--preset", "default")
    by_hand = pdae("decode", z, "-o", tmp_path / "b.png", "--solver", "dpmpp",
                   "--inference-steps", 20)  # fmt: skip
    assert told.code == by_hand.code == 0 and "solver leapfrog, not dpmpp" in told.err
    pdae("encode", pictures[0], "-o", z, "--parity", "pdae", *FAST)
    for way in (("--preset", "fast"), ("--preset", "exact"), ("--solver", "ddpm")):
        assert pdae("decode", z, "-o", tmp_path / "c.png", *way).code == 0
    assert pixels_of(tmp_path / "a.png") == pixels_of(tmp_path / "b.png")


def test_decode_follows_the_codes_and_warns_when_told_otherwise(
    pdae: Command, pictures: list[Path], tmp_path: Path
) -> None:
    z = tmp_path / "z.safetensors"
    pdae("encode", *pictures, "-o", z, *FAST)
    assert pdae("decode", z, "-o", tmp_path / "a").err == ""
    assert pdae("decode", z, "-o", tmp_path / "b", *FAST).err == ""
    for name in ("z-a.png", "z-c.png"):
        assert pixels_of(tmp_path / "a" / name) == pixels_of(tmp_path / "b" / name)
    other = pdae("decode", z, "-o", tmp_path / "c", "--inference-steps", 4, "--solver", "ddim")
    assert other.code == 0 and other.err.count("warning") == 1
    assert "inference_steps 3, not 4" in other.err and "solver dpmpp, not ddim" in other.err


@pytest.mark.parametrize(
    ("encoded", "decoded", "said"),
    [
        (("--corrections", 1), ("--solver", "leapfrog"), "solver dpmpp, not leapfrog"),
        (("--corrections", 1), ("--solver", "ddpm"), "solver dpmpp, not ddpm"),
        (("--corrections", 1), ("--parity", "pdae"), "parity None, not pdae"),
        (("--preset", "exact"), ("--parity", "diffusers"), "parity None, not diffusers"),
    ],
)
def test_codes_are_decoded_otherwise_whatever_they_record(
    pdae: Command, pictures: list[Path], tmp_path: Path, encoded: tuple[str, ...],
    decoded: tuple[str, ...], said: str,
) -> None:  # fmt: skip
    """Also between two of them; and the picture says how."""
    z, out = tmp_path / "z.safetensors", tmp_path / "a.png"
    few = ("--inference-steps", 4)
    pdae("encode", pictures[0], "-o", z, *few, *encoded)
    result = pdae("decode", z, "-o", out, *few, *decoded)
    assert result.code == 0 and f"{said}: the picture won't be quite the same" in result.err
    recipe = read_recipe(open_picture(out, "")) or {}
    told = {decoded[0][2:]: decoded[1], "inference_steps": 4}
    assert {name: recipe["sampling"][name] for name in told} == told
    way = ("interpolate", z, z, "--steps", 3, "-o", tmp_path / "way.png")
    assert pdae(*way, *few, *decoded).code == 0


@pytest.mark.parametrize(
    "line",
    [
        ("inpaint", "--like", "z.safetensors", "a.png", "--mask", "a.png"),
        ("inpaint", "z.safetensors", "--mask", "a.png"),
        ("colourise", "z.safetensors"),
        ("decode", "z.safetensors", "--random-noise"),
        ("manipulate", "z.safetensors", "--random-noise", "--attr", "smiling=1"),
        ("encode", "z.safetensors", "--no-noise"),
    ],
)
def test_nothing_is_said_of_settings_that_codes_arent_decoded_by(
    pdae: Command, pictures: list[Path], monkeypatch: pytest.MonkeyPatch, line: tuple[str, ...]
) -> None:
    """z alone is taken of them, or they are decoded as they were made: what is made of either has
    settings of its own."""
    monkeypatch.chdir(pictures[0].parent)
    pdae("encode", "a.png", "-o", "z.safetensors", "--inference-steps", 4)
    out = "out.safetensors" if line[0] == "encode" else "out.png"
    result = pdae(*line, "-o", out, "--inference-steps", 3)
    assert result.code == 0 and "warning: these codes" not in result.err


def test_encode_keeps_codes_as_they_are_and_warns_when_told_otherwise(
    pdae: Command, pictures: list[Path], tmp_path: Path
) -> None:
    """Their pictures aren't there to be encoded anew; a picture beside them is."""
    codes, out = tmp_path / "codes", tmp_path / "out"
    pdae("encode", *pictures[:2], "-o", f"{codes}/", *FAST)
    assert pdae("encode", codes, "-o", tmp_path / "same", *FAST).err == ""
    told = ("--preset", "exact", "--batch-size", 1)
    result = pdae("encode", codes, pictures[2], "-o", out, *told)
    assert result.code == 0 and result.err.count("warning") == 1
    other = "solver dpmpp, not leapfrog; spacing asinh5, not asinh"
    assert f"inference_steps 3, not 18; {other}: they stay" in result.err
    for name in ("a", "b"):
        of_codes, kept = (folder / f"{name}.safetensors" for folder in (codes, out))
        assert kept.read_bytes() == of_codes.read_bytes()
    assert recorded(out / "c.safetensors")["solver"] == "leapfrog"
    corrected = pdae("encode", codes, "-o", tmp_path / "more", "--corrections", 1)
    assert "made with corrections 0, not 1: they stay" in corrected.err


def test_codes_that_dont_converge_are_named(
    pdae: Command, pictures: list[Path], tmp_path: Path
) -> None:
    """The random weights of the tiny model answer a change of x_T a hundredfold."""
    z = tmp_path / "z.safetensors"
    result = pdae("encode", *pictures[:2], "-o", z, "--inference-steps", 12, "--corrections", 1)
    assert result.code == 0 and result.err.count("doesn't converge") == 2
    assert "a.png" in result.err and "b.jpg" in result.err
    assert from_bytes(z.read_bytes(), "z").converged == (False, False)
    assert "doesn't converge" not in pdae("encode", pictures[0], "-o", "-").err


def test_low_precision_says_what_comes_back(
    pdae: Command, pictures: list[Path], tmp_path: Path
) -> None:
    result = pdae("encode", *pictures, "-o", tmp_path / "z.safetensors", "--dtype", "bfloat16",
                  "--batch-size", 1, *FAST)  # fmt: skip
    assert result.code == 0 and result.err.count("bfloat16: of a first picture") == 1


@pytest.mark.parametrize("name", ["z.safetensors", "z.parquet"])
def test_codes_say_in_which_precision_they_were_made(
    pdae: Command, pictures: list[Path], tmp_path: Path, name: str
) -> None:
    """Decoded in another they give less back, which is said once, with what to do; older codes,
    which don't say it, are decoded in silence."""
    z, low = tmp_path / name, ("--dtype", "bfloat16")
    pdae("encode", *pictures, "-o", z, *low, *FAST)
    other = pdae("decode", z, "-o", f"{tmp_path}/out/", "--batch-size", 1)
    assert other.code == 0 and other.err.count("warning") == 1
    assert "made with --dtype bfloat16, not float32: give that here too" in other.err
    assert pdae("decode", z, "-o", f"{tmp_path}/same/", *low).err == ""
    kept = pdae("encode", z, "-o", tmp_path / "kept.safetensors")
    codes = from_bytes((tmp_path / "kept.safetensors").read_bytes(), "z")
    assert kept.err == "" and codes.dtype == "bfloat16"
    older = replace(codes, dtype="")
    z.write_bytes(to_parquet(older) if z.suffix == ".parquet" else to_bytes(older))
    assert pdae("decode", z, "-o", f"{tmp_path}/older/").err == ""


def test_interpolation_ends_equal_reconstructions(pdae: Command, tmp_path: Path) -> None:
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    for seed, path in enumerate((a, b)):
        picture(seed, (32, 32)).save(path)
    pdae("interpolate", a, b, "--steps", 4, "-o", tmp_path / "way", *FAST)
    pdae("reconstruct", a, b, "-o", tmp_path / "back", *FAST)
    for name, number in (("a", 0), ("b", 3)):
        end = tmp_path / "way" / f"{number:04d}.png"
        assert pixels_of(tmp_path / "back" / f"{name}.png") == pixels_of(end)


@pytest.mark.parametrize(
    ("field", "known"),
    [("preset", PRESETS), ("spacing", SPACINGS), ("solver", SOLVERS), ("parity", PROGRAMS)],
)
def test_choices_are_those_that_there_are(field: str, known: Collection[str]) -> None:
    """They stand twice, so that a wrong one fails and the shell completes without torch."""
    choice = get_type_hints(SolvingOptions)[field]
    assert set(get_args(get_args(choice)[0])) == set(known)


def test_inputs_are_read_ahead_and_stay_in_order(
    pdae: Command, pictures: list[Path], tmp_path: Path
) -> None:
    """A broken one in between is reported, and the others come in the order given."""
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG broken")
    again = shutil.copy(pictures[0], tmp_path / "again.png")
    wanted = [pictures[0], broken, pictures[1], pictures[2], again]
    result = pdae("reconstruct", *wanted, "--json", "--batch-size", 2, *FAST)
    records = [json.loads(line) for line in result.text.splitlines()]
    done = [Path(one["input"]) for one in records if one["status"] == "done"]
    assert result.code == 3 and done == [path for path in wanted if path != broken]
    assert [one["input"] for one in records if one["status"] == "failed"] == [str(broken)]


def test_standard_input_is_read_once(pdae: Command, pictures: list[Path]) -> None:
    data = pictures[0].read_bytes()
    codes = pdae("encode", "-", pictures[1], "-o", "-", *FAST, stdin=data)
    assert len(from_bytes(codes.out, "-")) == 2


@pytest.mark.parametrize(
    "line",
    [
        ("interpolate", "a.safetensors", "b.safetensors", "-o", "out/", "--mode", "latent"),
        ("interpolate", "a.safetensors", "b.safetensors", "-o", "out/", "--mode", "trajectory"),
        ("inpaint", "a.png", "--mask", "mask.png", "-o", "out/"),
        ("diffae", "inpaint", "a.png", "--mask", "mask.png", "-o", "out/"),
    ],
    ids=lambda line: " ".join(line[:2] + line[-1:]),
)
def test_a_bar_expects_as_many_evaluations_as_there_are(
    pdae: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = None
    if line[0] == "diffae":
        model, line = tmp_path / "diffae", line[1:]
        write_whole(model, untrained_diffae(), torch.float32, {})
    for seed, name in enumerate("ab"):
        picture(seed).save(f"{name}.png")
        pdae("encode", f"{name}.png", "-o", f"{name}.safetensors", *FAST)
    picture(2, mode="L").save("mask.png")
    bars, begin = list[ProgressLine](), ProgressLine.__init__

    def begun(self: ProgressLine, *how: Any) -> None:
        begin(self, *how)
        bars.append(self)

    monkeypatch.setattr(ProgressLine, "__init__", begun)
    assert pdae(*line, *FAST, model=model).code == 0
    (bar,) = bars
    assert bar.total is not None and bar.evaluations == bar.total * bar.nfe > 0
