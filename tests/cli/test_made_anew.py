"""What a result depends on beside the weights and the options: when it changed, the same command
makes the result again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cli_runs import own_model, pixels_of
from conftest import Command, picture, tiny_model
from PIL import Image

from pdae_cli.checkpoints import write_attributes, write_latent_dpm
from pdae_cli.engine import guidance
from pdae_cli.errors import InputError

FAST = ("--inference-steps", 2)


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_folder: Path) -> Path:
    """A model folder of one's own, in the current folder, beside two pictures."""
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        picture(number, (32, 32)).save(f"{number}.png")
    return own_model(Path("mine"), tiny_folder)


@pytest.mark.parametrize("output", ["one.png", "folder/"])
def test_attributes_that_were_learnt_anew(pdae: Command, mine: Path, output: str) -> None:
    """Only those that the edit takes count; `redo` says whose fault it is."""

    def edit() -> str:
        result = pdae("manipulate", "0.png", "--attr", "smiling=1", *FAST, "-o", output, model=mine)
        assert result.code == 0
        return result.err

    edit()
    made = Path("one.png" if output == "one.png" else "folder/0.png")
    before, attributes = pixels_of(made), tiny_model().attributes
    assert attributes is not None
    attributes.weight[attributes.index("Blond_Hair")] += 1
    write_attributes(mine, attributes)
    assert "1 unchanged" in edit()
    attributes.weight[attributes.index("Smiling")].neg_()
    write_attributes(mine, attributes)
    result = pdae("redo", made, "-i", "0.png", "--model", mine)
    assert result.code == 4 and "was made with other attributes than" in result.err
    assert "made again: the model has other attributes now" in edit()
    assert pixels_of(made) != before
    other = ("manipulate", "0.png", "--attr", "blond hair=1", *FAST, "-o", output)
    assert "--attr was smiling=1, is blond hair=1" in pdae(*other, model=mine).err
    edit()
    assert pdae("redo", made, "-i", "0.png", "--model", mine).code == 0


@pytest.mark.parametrize("output", ["grid.png", "folder/"])
def test_a_latent_dpm_that_was_trained_on(pdae: Command, mine: Path, output: str) -> None:
    line = ("sample", "-n", 1, *FAST, "-o", output)
    assert pdae(*line, model=mine).code == 0
    assert pdae(*line, "--overwrite", "--unconditional", model=mine).code == 0
    assert "1 unchanged" in pdae(*line, "--unconditional", model=mine).err
    assert pdae(*line, "--overwrite", model=mine).code == 0
    network = tiny_model().latent_dpm
    assert network is not None
    with torch.no_grad():
        next(network.parameters()).mul_(2)
    write_latent_dpm(mine, network, {})
    assert "the model has other latent DPM now" in pdae(*line, model=mine).err


def test_a_sheet_of_other_examples(
    pdae: Command, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guidance, "UNLABELLED", 32)
    Path("like").mkdir()
    for number in range(6):
        picture(number, (32, 32)).save(f"like/{number}.png")
    line = ("sample", "--like", "like", "-n", 1, *FAST, "-o", "x.png")
    assert pdae(*line).code == 0
    assert "1 unchanged" in pdae(*line).err
    picture(7, (32, 32)).save("like/0.png")
    assert "made again" in pdae(*line).err


def test_a_sheet_that_lacks_pictures_isnt_whole(
    pdae: Command, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is kept; the command says the same again, and so does its exit code."""
    from pdae_cli.engine.model import Model

    sample, line = Model.sample, ("sample", "-n", 2, *FAST, "--batch-size", 1, "-o", "x.png")

    def failing(self: Model, numbers: Any, *more: Any, **how: Any) -> Any:
        if 1 in numbers:
            raise InputError("no such z")
        return sample(self, numbers, *more, **how)

    monkeypatch.setattr(Model, "sample", failing)
    assert pdae(*line).code == 3
    again = pdae(*line)
    assert again.code == 3 and "no such z" in again.err and "1 unchanged" in again.err


@pytest.mark.parametrize(
    "command", [("reconstruct", "x.png"), ("encode", "x.safetensors"), ("reconstruct", "new.png")]
)
def test_a_stream_replaces_nobodys_file(
    pdae: Command, mine: Path, command: tuple[str, str]
) -> None:
    """Nor does one file take many pictures."""
    Path("x.png").write_bytes(b"precious")
    Path("x.safetensors").write_bytes(b"precious")
    name, target = command
    frames = Path("0.png").read_bytes() + Path("1.png").read_bytes()
    result = pdae(name, "-", "--stream", "png", *FAST, "-o", target, stdin=frames)
    if target.endswith("png"):
        assert result.code == 2 and "a stream of pictures needs a folder" in result.err
        assert not Path("new.png").exists()
    else:
        assert result.code == 3 and "exists; pass --overwrite" in result.err
    assert Path("x.png").read_bytes() == Path("x.safetensors").read_bytes() == b"precious"


def test_codes_with_and_without_what_converged_are_joined(pdae: Command, mine: Path) -> None:
    """A mean has no corrections of its own."""
    assert (
        pdae("encode", "0.png", "1.png", *FAST, "--corrections", 1, "-o", "ab.safetensors").code
        == 0
    )
    assert pdae("codes", "average", "ab.safetensors", "-o", "m.safetensors").code == 0
    for order in (("ab", "m"), ("m", "ab")):
        files = [f"{name}.safetensors" for name in order]
        assert pdae("codes", "merge", *files, "-o", "all.safetensors", "--overwrite").code == 0
        assert pdae("decode", "all.safetensors", "-o", "-".join(order) + "/").code == 0


def test_codes_lose_their_noise_when_asked(pdae: Command, mine: Path) -> None:
    assert pdae("encode", "0.png", *FAST, "-o", "a.safetensors").code == 0
    assert pdae("encode", "a.safetensors", "--no-noise", "-o", "b.safetensors").code == 0
    result = pdae("decode", "b.safetensors", "-o", "x.png")
    assert result.code == 3 and "--random-noise" in result.err


def test_seeds_count_wherever_they_are_taken(pdae: Command, mine: Path) -> None:
    """Between two pictures too, and at both ends."""
    line = ("interpolate", "0.png", "1.png", "--steps", 3, "--solver", "ddpm", *FAST)
    made = []
    for seed in (0, 1):
        assert pdae(*line, "--seed", seed, "-o", f"{seed}/").code == 0
        made.append([pixels_of(f"{seed}/{number:04d}.png") for number in range(3)])
    assert all(one != other for one, other in zip(*made, strict=True))
    ends = ("reconstruct", "0.png", "--solver", "ddpm", *FAST, "--seed", 1, "-o", "end.png")
    assert pdae(*ends).code == 0 and pixels_of("end.png") == made[1][0]


def test_a_mask_may_have_any_name(pdae: Command, mine: Path) -> None:
    Path("masks").mkdir()
    Image.new("L", (32, 32), 255).save("masks/0.png")
    Path("masks/0.png").rename(b"masks/\xff.png".decode("utf-8", "surrogateescape"))
    result = pdae("inpaint", "0.png", "--mask", "masks", *FAST, "-o", "x.png")
    assert result.code == 3 and "holds no mask of the name 0" in result.err
