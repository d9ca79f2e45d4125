"""What needs no model and must not wait for torch: help, completion, what is wrong at once."""

from __future__ import annotations

import json
from pathlib import Path

import commands_page
import pytest
from cli_runs import without
from conftest import BUNDLED, Command
from random_codes import codes_of

from pdae_cli.engine.codes import to_bytes

HEAVY = "torch numpy"
HELP = ("--help", "--version", "encode --help", "help train dpm")
WRONG = (
    "nothing", "encode a.png --solver euler", "encode a.png --batch-size 0",
    "encode a.png --share 3/2", "train dpm x -o y --precision int8",
)  # fmt: skip


@pytest.mark.parametrize(("code", "lines"), [(0, HELP), (2, WRONG)], ids=["help", "wrong"])
def test_help_and_wrong_choices_dont_import_torch(code: int, lines: tuple[str, ...]) -> None:
    without(HEAVY, "", *map(str.split, lines), code=code)
    with pytest.raises(AssertionError):  # so it would have been noticed
        without("json", "import json")


def test_completion_doesnt_import_torch() -> None:
    if not BUNDLED.is_dir():
        pytest.skip("no bundled model here")
    told = without(
        HEAVY,
        "from types import SimpleNamespace\nfrom pdae_cli.cli.complete import attributes, models\n"
        "faces = SimpleNamespace(params={'model': 'faces64'})\n"
        "print(models('fac'), attributes(faces, 'smil'))",
    )
    assert told.split() == ["['faces64']", "['Smiling']"]


def test_completion_knows_models_here(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace
    from typing import Any

    from pdae_cli.cli.complete import attributes, models

    monkeypatch.chdir(tmp_path)
    Path("mine").symlink_to(tiny_folder)
    assert models("mi") == ["mine"]
    here: Any = SimpleNamespace(params={"model": "mine"})
    assert attributes(here, "B") == ["Blond_Hair"]
    for content in (b"", b"\xff" * 20, b"\x02\0\0\0\0\0\0\0{}", b"\x02\0\0\0\0\0\0\0[]"):
        Path("broken").mkdir(exist_ok=True)
        Path("broken/attributes.safetensors").write_bytes(content)
        assert attributes(SimpleNamespace(params={"model": "broken"}), "") == []  # type: ignore[arg-type]


def test_version(pdae: Command) -> None:
    result = pdae("--version")
    assert result.code == 0 and result.text.startswith("pdae 0.") and result.err == ""


@pytest.mark.parametrize("asked", ["help", "--help", "-h"])
def test_help_names_all_commands_and_exit_codes(pdae: Command, asked: str) -> None:
    text = pdae(asked).text
    words = {name.split()[1] for name, _ in commands_page.everything() if name != "pdae"}
    assert words <= set(text.split()) and "Exit codes" in text and "130" in text


def test_help_of_a_command(pdae: Command) -> None:
    short, rare = pdae("help", "encode").text, pdae("help", "encode", "--all").text
    assert "--solver" in short and "--spacing" not in short
    assert "--spacing" in rare and "--share" in rare and len(rare) > len(short)
    assert "--share" not in pdae("encode", "-h").text
    assert "Train" in pdae("help", "train").text and "--images" in pdae("help", "train", "dpm").text


def test_json_has_no_infinities() -> None:
    from pdae_cli.cli.output import plain

    record = {"a": [float("inf"), 1.5], "b": float("nan")}
    assert json.dumps(plain(record)) == '{"a": [null, 1.5], "b": null}'


@pytest.mark.parametrize("line", ["align", "reconstruct", "evaluate likelihood"])
def test_help_names_codes_only_where_they_are_taken(
    pdae: Command, tmp_path: Path, line: str
) -> None:
    (z := tmp_path / "z.safetensors").write_bytes(to_bytes(codes_of(1)))
    refused = pdae(*line.split(), z)
    assert refused.code == 3 and "codes" in refused.err
    assert "Pictures or codes" not in pdae("help", *line.split(), "--all").text
    assert "Pictures or codes" in pdae("help", "decode", "--all").text
