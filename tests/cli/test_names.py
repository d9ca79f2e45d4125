"""Names of results at a terminal, single files that exist already, what is said beside results."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_runs import own_model
from conftest import Command, picture, tiny_model
from PIL import Image

from pdae_cli.checkpoints import write_model
from pdae_cli.cli.run.loading import own_names
from pdae_cli.engine.config import ModelConfig
from pdae_cli.engine.model import Model

FAST = ("--inference-steps", "2")
Typed = Callable[..., tuple[int, list[str], str]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with two pictures."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("a.png", "b.png")):
        picture(number, (32, 32)).save(name)
    return tmp_path


@pytest.fixture
def typed(pdae: Command, monkeypatch: pytest.MonkeyPatch) -> Typed:
    """Runs a command at a terminal: exit code, the lines of standard output, standard error."""
    pty = pytest.importorskip("pty")

    def run(*args: object) -> tuple[int, list[str], str]:
        keeper, slave = pty.openpty()
        with os.fdopen(slave, "w", encoding="utf-8") as out, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            result = pdae(*args)
            print("end", file=out, flush=True)
            data = b""
            while not data.endswith(b"end\r\n"):
                data += os.read(keeper, 65536)
        os.close(keeper)
        return result.code, data.decode().splitlines()[:-1], result.err

    return run


class TestNamesAtATerminal:
    def test_what_was_made_of_a_folder_in_it_is_none_of_its_inputs(
        self, typed: Typed, here: Path
    ) -> None:
        for _ in range(2):
            code, lines, _said = typed("encode", ".", "--no-noise")
            assert code == 0 and lines == ["out.safetensors"]

    @pytest.mark.parametrize(
        ("command", "name"),
        [
            (("interpolate", "a.png", "b.png", "--steps", 10, *FAST), "a-b.png"),
            (("manipulate", "a.png", "--attr", "smiling", "--scale", 0.3, *FAST),
             "a-smiling+0.3.png"),
            (("manipulate", "a.png", "--attr", "smiling=-1,1", *FAST), "a-smiling-1..+1.png"),
            (("encode", "a.png", "--no-noise"), "a.safetensors"),
            (("encode", "a.png", "b.png", "--no-noise"), "out.safetensors"),
            (("colourise", "a.png", *FAST), "a-coloured.png"),
            (("sample", "-n", 1, "--format", "webp", *FAST), "samples.webp"),
        ],
        ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
    )  # fmt: skip
    def test_the_name_is_the_one_line_of_stdout_and_again_it_is_unchanged(
        self, typed: Typed, here: Path, command: tuple[object, ...], name: str
    ) -> None:
        before = {path.name for path in here.iterdir()}
        code, lines, _ = typed(*command)
        assert (code, lines) == (0, [name])
        made = (here / name).read_bytes()
        code, lines, err = typed(*command)
        assert (code, lines) == (0, [name]) and "1 unchanged" in err
        assert {path.name for path in here.iterdir()} - before == {name}
        assert (here / name).read_bytes() == made

    def test_with_json_it_is_a_record_as_elsewhere(self, typed: Typed, here: Path) -> None:
        command = ("encode", "a.png", "b.png", "--no-noise", "--json")
        for status, count in (("done", 2), ("unchanged", 1)):
            code, lines, _ = typed(*command)
            told = [json.loads(line) for line in lines]
            assert code == 0 and [one["status"] for one in told] == [status] * count
            assert {one["output"] for one in told} == {"out.safetensors"}

    def test_what_lacks_an_input_has_one_name(self, typed: Typed, here: Path) -> None:
        Path("bad.png").write_bytes(b"no picture")
        for said in ("2 done, 1 failed", "1 unchanged, 1 failed"):
            code, lines, err = typed("encode", "a.png", "bad.png", "b.png", "--no-noise")
            assert (code, lines) == (3, ["out.safetensors"]) and said in err

    def test_a_number_behind_rather_than_another_file_lost(self, typed: Typed, here: Path) -> None:
        Path("a.safetensors").write_bytes(b"mine")
        for seed, name in ((0, "a-coloured.png"), (1, "a-coloured-2.png"), (0, "a-coloured.png")):
            assert typed("colourise", "a.png", "--seed", seed, *FAST)[:2] == (0, [name])
        assert typed("encode", "a.png", "--no-noise")[:2] == (0, ["a-2.safetensors"])
        assert Path("a.safetensors").read_bytes() == b"mine"

    def test_a_name_that_the_sheet_has_is_none_of_ours(self, typed: Typed, here: Path) -> None:
        line = ("colourise", "a.png", "--sheet", "a-coloured.png", *FAST)
        for _ in range(2):  # made, and unchanged
            assert typed(*line)[:2] == (0, ["a-coloured-2.png"])

    def test_no_name_steers_it(self, typed: Typed, here: Path) -> None:
        Path("a.png").rename("a\x1b]0;owned\x07.png")
        for _ in range(2):  # made, and unchanged
            code, lines, err = typed("encode", "a\x1b]0;owned\x07.png", "--no-noise")
            assert code == 0 and len(lines) == 1 and "\x1b" not in lines[0] + err

    def test_no_binary_data_to_a_terminal(self, typed: Typed, here: Path) -> None:
        code, lines, err = typed("encode", "a.png", "-o", "-")
        assert (code, lines) == (2, []) and "won't write binary data to a terminal" in err


class TestSingleFiles:
    def test_done_once_and_again_only_for_a_reason(self, pdae: Command, here: Path) -> None:
        command = ("reconstruct", "a.png", "-o", "x.png", "--json", *FAST)
        assert json.loads(pdae(*command).text)["status"] == "done"
        made = Path("x.png").read_bytes()
        assert json.loads(pdae(*command).text)["status"] == "unchanged"
        again = pdae(*command, "--compare")
        assert "a.png is made again: --compare was not given, is True" in again.err
        assert Path("x.png").read_bytes() != made
        assert "--compare" not in pdae(*command, "--compare").err
        shutil.copy("b.png", "a.png")
        assert "its input changed" in pdae(*command, "--compare").err

    @pytest.mark.parametrize("suffix", [".png", ".safetensors"])
    def test_a_strangers_file_is_kept(self, pdae: Command, here: Path, suffix: str) -> None:
        out = Path(f"x{suffix}")
        out.write_bytes(Path("b.png").read_bytes())
        before = out.read_bytes()
        command = ("manipulate", "a.png", "--attr", "smiling=0.3", *FAST, "-o", out)
        refused = pdae(*command)
        assert refused.code == 3 and "--overwrite or --skip-existing" in refused.err
        assert pdae(*command, "--skip-existing").code == 0 and out.read_bytes() == before
        assert pdae(*command, "--overwrite").code == 0 and out.read_bytes() != before


def test_a_rows_own_name_has_room_as_a_files() -> None:
    """In bytes, by which file systems count; of letters that are cut in the middle none is kept."""
    (name,) = own_names(["顔" * 100 + ".png"]) or [""]
    assert name == "顔" * 33


def test_a_folder_says_how_many_lie_deeper(pdae: Command, here: Path) -> None:
    Path("in/sub").mkdir(parents=True)
    for name in ("in/a.png", "in/sub/b.png", "in/sub/c.png"):
        shutil.copy("a.png", name)
    result = pdae("encode", "in", "-o", "z", "--no-noise")
    assert result.code == 0 and "in: 2 more lie in its folders; -r takes them too" in result.err
    assert "deeper" not in pdae("encode", "in", "-r", "-o", "z", "--no-noise").err
    assert len(list(Path("z").rglob("*.safetensors"))) == 3


def test_scores_where_no_picture_is_are_warned_of(
    pdae: Command, here: Path, tiny_folder: Path
) -> None:
    own_model(Path("mine"), tiny_folder, Smiling=(0.0, 100.0))
    for scale, warned in (("1sd", False), ("9sd", True), ("0sd,9sd", True)):
        command = ("manipulate", "a.png", "--attr", f"smiling={scale}", "-o", f"{scale}.png")
        result = pdae(*command, *FAST, model="mine")
        assert result.code == 0
        assert ("a.png: its Smiling would be +9" in result.err) == warned, result.err


def test_samples_of_eps_theta_alone_say_so(pdae: Command, here: Path) -> None:
    whole = tiny_model()
    write_model(
        Path("alone"), Model(ModelConfig(whole.config.schedule, whole.config.unet), whole.dpm)
    )
    result = pdae("sample", "-n", 1, "-o", "s.png", *FAST, model="alone")
    assert result.code == 0, result.err
    assert "alone is a diffusion model alone: plain samples of eps_theta" in result.err
    plain = pdae("sample", "-n", 1, "--unconditional", "-o", "p.png", *FAST, model="alone")
    assert plain.code == 0 and plain.err == ""
    with Image.open("s.png") as one, Image.open("p.png") as other:
        assert one.tobytes() == other.tobytes()
    guided = pdae("sample", "-n", 1, "-o", "g.png", "--guidance", "0,1", *FAST, model="alone")
    assert guided.code == 2 and "without a G_psi to guide with; leave --guidance" in guided.err
    assert guided.err.count("\n") == 1 and not Path("g.png").exists()
