"""What files say of how they were made: nothing of the user's folders; and a stranger's recipe
costs a line, whatever it says."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import house
import pytest
import torch
from conftest import Command, picture
from PIL import Image, PngImagePlugin

from pdae_cli.cli.redo import COMMANDS, _options
from pdae_cli.cli.run.recipes import AROUND, OWN, Recipe
from pdae_cli.engine.codes import from_bytes, to_bytes
from pdae_cli.errors import InputError, UsageError
from pdae_cli.pictures.decoding import open_picture
from pdae_cli.pictures.images import encode_picture
from pdae_cli.pictures.metadata import MAX_DEPTH, parse_recipe, read_recipe

FAST = ("--inference-steps", 1)
SECRET = "alice_secret"
PLAIN = {"options": {}, "model": "tiny", "digest": "d", "sources": [], "place": "a"}
NASTY: tuple[Any, ...] = (
    True, None, 0, -1, 10**9, 10**40, 1.5, 1e308, float("inf"), float("nan"), "", "-1", "0x10",
    "--output=/tmp/evil", "--help", "-", "../../x", "/dev/zero", "/proc/kmsg", "0," * 60 + "0",
    "nan", "\0", "\x1b[31m", "\ud800", "n" * 300, "a" * 5000, [], ["x"], [[1]], [True], [1] * 101,
    {"a": 1}, {"name": 1, "sha256": None}, [{"name": "a.png"}], [{"name": "sparse", "sha256": "0"}],
)  # fmt: skip


def picture_saying(path: Path, recipe: dict[str, Any]) -> Path:
    """A small picture with this recipe, NaN and all."""
    data = encode_picture(torch.zeros(3, 8, 8, dtype=torch.uint8), ".png", None)
    path.write_bytes(data)
    with Image.open(path) as image:
        chunk = PngImagePlugin.PngInfo()
        chunk.add_itxt("pdae", json.dumps({"software": "pdae", **recipe}))
        image.save(path, pnginfo=chunk)
    return path


class TestPrivacy:
    @pytest.fixture
    def home(self, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A folder with pictures, a mask, landmarks and a model; beside it the current one."""
        home = tmp_path / SECRET
        (home / "photos").mkdir(parents=True)
        for number in range(10):
            picture(number, (32, 32)).save(home / "photos" / f"{number}.png")
        (home / "others").mkdir()
        for number in range(4):
            Image.new("RGB", (32, 32), (255, 250 - number, 250)).save(
                home / "others" / f"{number}.png"
            )
        Image.new("L", (32, 32), 255).save(home / "mask.png")
        eyes = {"left_eye": [10, 12], "right_eye": [22, 12], "mouth": [16, 24]}
        (home / "eyes.json").write_text(json.dumps({"0.png": eyes}))
        shutil.copytree(tiny_folder, home / "model")
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        return home

    def test_no_command_writes_where_its_files_were(self, pdae: Command, home: Path) -> None:
        photos, mask, eyes = home / "photos", home / "mask.png", home / "eyes.json"
        a, b = photos / "0.png", photos / "1.png"
        edit = ("--attr", "smiling=0.3")
        for command in (
            ("reconstruct", a, "-r", "-o", "mirrored"),
            ("encode", a, "-r", "-o", "mirrored-codes"),
            ("encode", a, Path("..", SECRET, "photos", "1.png"), "-o", "z.safetensors"),
            ("inpaint", a, "--mask", mask, "--like", b, "-o", "inpainted.jpg"),
            ("manipulate", a, *edit, "--mask", mask, "-o", "edited.webp"),
            ("manipulate", a, *edit, "--landmarks", eyes, "-o", "framed.png"),
            ("manipulate", a, *edit, "-o", "edited.safetensors"),
            ("interpolate", a, b, "--steps", 3, "-o", "way.gif"),
            ("sample", "-n", 1, "--like", photos, "--unlike", home / "others", "-o", "samples/"),
            ("decode", "z.safetensors", "-o", "decoded/"),
            ("codes", "merge", "z.safetensors", "-o", "merged.safetensors"),
            ("attributes", "discover", photos, "-k", 1, "-o", "sheet.png"),
        ):
            fast = () if command[0] == "codes" else FAST
            result = pdae(*command, *fast, model=home / "model")
            assert result.code == 0, (command, result.err)
        written = [
            one for one in (*Path().rglob("*"), *(home / "model").iterdir()) if one.is_file()
        ]
        files = [one for one in written if ".pdae" not in one.parts]
        assert len(files) > 15
        assert [one for one in files if SECRET.encode() in one.read_bytes()] == []

    def test_a_page_for_others_doesnt_either(self, pdae: Command, home: Path) -> None:
        page, gone = Path("page.html"), home / "photos" / "gone.png"
        line = ("encode", home / "photos" / "0.png", gone, "--no-noise", "--report", page)
        assert pdae(*line, "-o", home / "codes/", model=home / "model").code == 3
        text = page.read_text()
        assert "0.png" in text and "gone.png" in text and SECRET not in text

    def test_what_lies_below_the_current_folder_is_told(
        self, pdae: Command, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(home)
        assert pdae("encode", "photos/0.png", "-o", "z.safetensors", *FAST).code == 0
        assert from_bytes(Path("z.safetensors").read_bytes(), "z").sources == ("photos/0.png",)


class TestReader:
    def test_whatever_is_said_is_read_or_refused_in_a_line(self) -> None:
        chance = random.Random(5)
        kinds = [*PLAIN, "command", "first", "count"]
        for _ in range(3000):
            what = {"command": chance.choice([*COMMANDS, "train"]), **PLAIN}
            for _ in range(chance.randrange(3)):
                what[chance.choice(kinds)] = chance.choice(NASTY)
            what["options"] = what["options"] or {chance.choice("ab"): chance.choice(NASTY)}
            try:
                recipe = Recipe.read(what, "x.png")
            except InputError as error:
                assert str(error).isprintable() and len(str(error)) < 200
            else:
                texts = [
                    recipe.command,
                    recipe.model,
                    *(one for two in recipe.sources for one in two),
                ]
                assert all(isinstance(one, str) and len(one) <= 8192 for one in texts)
                assert "inf" not in json.dumps(recipe.options, allow_nan=False)

    def test_no_deep_ones_and_none_that_are_no_objects(self) -> None:
        deep: Any = 1
        for _ in range(MAX_DEPTH + 1):
            deep = [deep]
        for text in (json.dumps({"a": deep}), "[" * 100_000, '"a"', "1" * 5000, None, "{"):
            assert parse_recipe(text) is None
        assert parse_recipe('{"a": [1]}') == {"a": [1]}

    def test_a_strangers_file_in_the_way_is_a_strangers(
        self, pdae: Command, pictures: list[Path], tmp_path: Path
    ) -> None:
        for sources in (["a.png"], 7, [{"name": 1}]):
            recipe = {"command": "reconstruct", **PLAIN, "sources": sources}
            out = picture_saying(tmp_path / "out.png", recipe)
            result = pdae("reconstruct", pictures[0], "-o", out, *FAST)
            assert result.code == 3 and "pass --overwrite" in result.err, result.err


def draws(count: int) -> Iterator[tuple[str, str, Any]]:
    """Nasty values for options of commands."""
    chance, commands = random.Random(11), house.commands()
    for name in COMMANDS:
        for parameter in commands[name].params:
            for value in chance.sample(NASTY, count):
                yield name, parameter.name, value


class TestRedo:
    def test_only_what_can_be_typed_as_the_commands_options(self) -> None:
        commands = house.commands()
        for name, option, value in draws(6):
            command = commands[name]
            known = {one for p in command.params for one in p.opts if p.name not in OWN + AROUND}
            known |= {"--first", "--count"} if name == "sample" else set()
            try:
                recipe = Recipe.read({"command": name, **PLAIN, "options": {option: value}}, "x")
                arguments = _options(recipe, command, Path("x.png"), [], Path())
            except (InputError, UsageError):
                continue
            flags = {one.partition("=")[0] for one in arguments}
            assert flags <= known, (name, option, value)
            assert all("=" in one or one in known for one in arguments)

    def test_strangers_pictures_cost_a_line(
        self, pdae: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_folder: Path
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "sparse").write_bytes(b"")
        os.truncate("sparse", 1 << 35)
        picture(0, (32, 32)).save("a.png")
        made = ("reconstruct", "a.png", "-o", "made.png", "--seed", 3, *FAST)
        assert pdae(*made).code == 0
        recipe = dict(read_recipe(open_picture(Path("made.png"), "")) or {})
        chance, cases = random.Random(2), list[dict[str, Any]]()
        for key in ("command", "model", "digest", "sources", "place", "first", "count", "options"):
            cases += [recipe | {key: one} for one in chance.sample(NASTY, 2)]
        for _, option, value in chance.sample(list(draws(1)), 15):
            cases.append(recipe | {"options": {**recipe["options"], option: value}})
        cases += [
            {"command": "sample", **PLAIN, "count": 10**9, "options": {"inference_steps": 1}},
            {"command": "sample", **PLAIN, "options": {"guidance": "0," * 500 + "0", "count": 99}},
            {"command": "interpolate", **PLAIN, "options": {"steps": 1000, "inference_steps": 99}},
            recipe | {"options": {"inference_steps": 1000, "corrections": 20}},
            recipe | {"options": {"inference_steps": "1000", "corrections": 20}},
        ]
        before = set(tmp_path.iterdir())
        for case in cases:
            result = pdae("redo", picture_saying(Path("x.png"), case), model="")
            said = result.err.splitlines()
            assert result.code in (0, 3, 4) and "unexpected" not in result.err, (case, result.err)
            assert len(said) <= 3 and all(len(one) < 500 for one in said), (case, said)
        assert set(tmp_path.iterdir()) - before == {tmp_path / "x.png"}

    @pytest.mark.parametrize("suffix", ["jpg", "webp", "gif"])
    def test_one_file_of_any_format(
        self, pdae: Command, pictures: list[Path], tmp_path: Path, suffix: str
    ) -> None:
        out = tmp_path / f"out.{suffix}"
        assert pdae("reconstruct", pictures[0], "-o", out, *FAST).code == 0
        assert pdae("redo", out, "--input", pictures[0]).code == 0


@pytest.mark.parametrize("seed", [2**63 - 1, 1 - 2**63])
def test_all_seeds_that_are_taken_can_be_said(pdae: Command, tmp_path: Path, seed: int) -> None:
    line = ("sample", "-n", 1, "--seed", seed, "-o", tmp_path / "a.png", *FAST)
    assert pdae(*line).code == 0
    again = pdae(*line)
    assert again.code == 0 and "1 unchanged" in again.err


def test_rows_of_one_file_are_made_of_one_file(
    pdae: Command, pictures: list[Path], tmp_path: Path
) -> None:
    z, again = tmp_path / "z.safetensors", tmp_path / "again.safetensors"
    assert pdae("encode", *pictures, "-o", z, *FAST).code == 0
    assert pdae("encode", z, "-o", again).code == 0
    assert len(Recipe.of_file(again).sources) == 1 and len(Recipe.of_file(z).sources) == 3
    codes = from_bytes(again.read_bytes(), "again")
    assert to_bytes(codes) == to_bytes(from_bytes(z.read_bytes(), "z"))
    result = pdae("encode", z, "-o", again)
    assert result.code == 0 and "1 unchanged" in result.err
