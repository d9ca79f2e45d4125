"""What a result depends on beside the weights and the options: when it changed, the same command
makes the result again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from zipfile import ZipFile

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
    assert "made again: of other attributes than now" in edit()
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
    assert "of another latent DPM than now" in pdae(*line, model=mine).err


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


class TestOtherInputs:
    """What was made of an input is never replaced by what another one gives."""

    ENCODE = ("encode", "--no-noise", "-o")

    @pytest.fixture
    def two(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Two folders with a picture each, both of one name."""
        monkeypatch.chdir(tmp_path)
        for number, folder in enumerate(("a", "b")):
            Path(folder).mkdir()
            picture(number, (32, 32)).save(f"{folder}/x.png")
        return tmp_path

    def test_of_one_name_are_refused_as_within_a_run(self, pdae: Command, two: Path) -> None:
        assert pdae(*self.ENCODE, "out", "a/x.png").code == 0
        made = Path("out/x.safetensors").read_bytes()
        for line in (["b/x.png"], [two / "b"], ["b", "--fit", "pad"]):
            result = pdae(*self.ENCODE, "out", *line)
            assert result.code == 3 and "x.png would both become out/x.safe" in result.err
            assert "a/x.png and " in result.err and "rename one" in result.err
        assert pdae(*self.ENCODE, "out", "b", "--skip-existing").code == 0
        assert Path("out/x.safetensors").read_bytes() == made
        assert pdae(*self.ENCODE, "out", "b", "--overwrite").code == 0
        assert "b/x.png and a/x.png would both" in pdae(*self.ENCODE, "out", "a").err

    def test_an_edited_picture_is_the_same_input_however_it_is_named(
        self, pdae: Command, two: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """From wherever, through links, and where both folders were moved."""
        assert pdae(*self.ENCODE, "out", "a/x.png").code == 0
        Path("link").symlink_to("a")
        for seed, name in enumerate(("a", two / "a", "link/x.png", "b/../a/x.png"), 5):
            picture(seed, (32, 32)).save("a/x.png")
            result = pdae(*self.ENCODE, "out", name)
            assert result.code == 0 and "is made again: its input changed" in result.err
        Path("c").mkdir()
        for folder in ("a", "out"):
            Path(folder).rename(f"c/{folder}")
        monkeypatch.chdir("c/a")
        picture(9, (32, 32)).save("x.png")
        assert "its input changed" in pdae(*self.ENCODE, "../out", "x.png").err

    def test_a_copy_is_as_good(self, pdae: Command, two: Path) -> None:
        assert pdae(*self.ENCODE, "out", "a").code == 0
        Path("a").rename("c")
        assert "1 unchanged" in pdae(*self.ENCODE, "out", "c").err
        assert pdae(*self.ENCODE, "out", "c", "--fit", "pad").code == 0

    def test_members_of_zips_and_ends_of_ways(self, pdae: Command, two: Path) -> None:
        for name in ("a", "b"):
            with ZipFile(f"{name}.zip", "w") as archive:
                archive.write(f"{name}/x.png", "x.png")
        assert pdae(*self.ENCODE, "out", "a.zip").code == 0
        said = "a.zip/x.png and b.zip/x.png would both become out/x.safetensors"
        assert said in pdae(*self.ENCODE, "out", "b.zip").err
        way = ("interpolate", "--steps", 2, *FAST, "-o", "way/")
        assert pdae(*way, "a/x.png", "b/x.png").code == 0
        assert "would both become way/0000.png" in pdae(*way, "b/x.png", "a/x.png").err
        picture(7, (32, 32)).save("a/x.png")
        assert "its input changed" in pdae(*way, "a/x.png", "b/x.png").err

    def test_standard_input_has_no_name(self, pdae: Command, two: Path) -> None:
        one, other = (Path(name).read_bytes() for name in ("a/x.png", "b/x.png"))
        assert pdae(*self.ENCODE, "out", "-", stdin=one).code == 0
        result = pdae(*self.ENCODE, "out", "-", stdin=other)
        assert result.code == 0 and "made again: standard input changed" in result.err

    @pytest.mark.parametrize("line", [{}, {"where": [[1], None]}])
    def test_lines_that_dont_say_or_say_nonsense(
        self, pdae: Command, two: Path, line: dict[str, Any]
    ) -> None:
        """As versions wrote them that didn't record it: nobody can tell."""
        assert pdae(*self.ENCODE, "out", "a").code == 0
        path = Path("out/.pdae/manifest.jsonl")
        lines = [json.loads(one) for one in path.read_text().split("\n") if one]
        for one in lines:
            one.pop("where", None)
        path.write_text("".join(f"{json.dumps(one | line)}\n" for one in lines))
        result = pdae(*self.ENCODE, "out", "b")
        assert ("its input changed" in result.err) == (not line), result.err

    @pytest.mark.parametrize("output", ["z.safetensors", "z.png"])
    def test_of_a_single_file_its_recipe_says(
        self, pdae: Command, two: Path, monkeypatch: pytest.MonkeyPatch, output: str
    ) -> None:
        """As far as it does: a name without the folders that an absolute path has."""
        line = self.ENCODE if output == "z.safetensors" else ("reconstruct", *FAST, "-o")
        assert pdae(*line, output, "a/x.png").code == 0
        result = pdae(*line, output, "b/x.png")
        said = f"b/x.png: {output} exists and was made of a/x.png; pass --overwrite"
        assert result.code == 3 and said in result.err
        picture(7, (32, 32)).save("a/x.png")
        assert "is made again: its input changed" in pdae(*line, output, two / "a/x.png").err
        assert pdae(*line, output, "b/x.png", "--overwrite").code == 0
        if output == "z.safetensors":  # one more: still of the same
            assert "its input changed" in pdae(*line, output, "a/x.png", "b/x.png").err
