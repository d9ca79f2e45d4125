"""pdae info: what a name is, without the Hub and torch where neither is needed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from cli_runs import without
from conftest import Command, picture
from drawn import saved

from pdae_cli.evaluation.judge import Judge, write_judge
from pdae_cli.pictures.images import encode_picture, prepare


def test_a_pictures_metadata_are_read_without_torch(tmp_path: Path) -> None:
    path = tmp_path / "it.png"
    path.write_bytes(encode_picture(prepare(picture(), 16), ".png", {"command": "decode"}))
    assert "command: decode" in without("torch", "", ("info", path))


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("none.png", 3, "no such file"),
        ("folder/none.JPG", 3, "no such file"),
        ("none.safetensors", 3, "no such file"),
        ("folder/in/none", 4, "neither a folder nor bundled"),
        ("none", 4, "neither a folder nor bundled"),
    ],
)
def test_what_exists_nowhere_is_never_sent_to_the_hub(
    name: str, code: int, words: str, pdae: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    monkeypatch.setattr("huggingface_hub.HfApi", None)
    result = pdae("info", name)
    assert result.code == code and words in result.err and result.err.count("\n") == 1


def test_no_command_asks_the_hub_for_what_cant_be_there(
    pdae: Command, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Hub:
        """Stands in for the Hub, and remembers what it was asked for."""

        def model_info(self, name: str, **more: object) -> None:
            asked.append(name)

    def snapshot(name: str, **more: object) -> str:
        asked.append(name)
        raise ValueError("not here")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    commands: tuple[tuple[object, ...], ...] = (
        ("info",), ("encode", pictures[0], "-o", "z.safetensors", "--model"),
        ("attributes", "list", "--model"), ("attributes", "remove", "hat", "--model"),
        ("convert", "-o", "out"), ("train", "dpm", pictures[0].parent, "-o", "run", "--init-from"),
        ("train", "autoencoder", pictures[0].parent, "-o", "run", "--dpm"),
        ("train", "dpm", pictures[0].parent, "-o", "run", "--first-stage"),
    )  # fmt: skip
    for command in commands:
        result = pdae(*command, "photos/a.png")
        assert result.code in (3, 4) and asked == [], (command, result.err)
        assert result.err.count("\n") == 1, result.err
    assert pdae("info", "user/model-v1.5@main").code == 4
    assert set(asked) == {"user/model-v1.5"}  # so it would have noticed


def test_a_judge_says_what_it_is(pdae: Command, tmp_path: Path) -> None:
    path = tmp_path / "judge.safetensors"
    write_judge(path, Judge(["Smiling", "Male"], size=32), {"Smiling": 0.9, "Male": None})
    told = json.loads(pdae("info", path, "--json").text)
    assert told["kind"] == "judge" and told["attributes"] == ["Smiling", "Male"]
    assert told["size"] == [32, 32] and told["held-out AUROC"] == {"Smiling": 0.9, "Male": None}
    assert "kind: judge" in pdae("info", path).text.splitlines()
    path.write_bytes(path.read_bytes()[:-3])
    damaged = pdae("info", path)
    assert damaged.code in (3, 4) and str(path) in damaged.err and damaged.err.count("\n") == 1


def test_a_picture_says_how_it_was_made_and_steers_no_terminal(
    pdae: Command, tmp_path: Path
) -> None:
    path, name = tmp_path / "it.png", "<&>\"']]> \n\t\x1b[31m\0 é \u202e \ud800.png"
    recipe = {"command": "manipulate", "sources": [{"name": name}], "model": "x\nkind: model"}
    path.write_bytes(encode_picture(prepare(picture(), 16), ".png", recipe))
    record = json.loads(pdae("info", path, "--json").text)
    assert record["recipe"]["sources"] == recipe["sources"] and record["size"] == [16, 16]
    assert record["digital_source_type"].endswith("compositeWithTrainedAlgorithmicMedia")
    text = pdae("info", path).text
    assert {"format: PNG", "mode: RGB", "  command: manipulate"} <= set(text.splitlines())
    assert not {"\x1b", "\u202e"} & set(text)
    assert [line for line in text.splitlines() if line.startswith("kind")] == ["kind: picture"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_fifo_isnt_waited_for(pdae: Command, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.safetensors")
    result = pdae("info", tmp_path / "x.safetensors")
    assert result.code == 3 and "not a regular file" in result.err


def test_any_other_file_is_read_as_a_picture(pdae: Command, tmp_path: Path) -> None:
    (tmp_path / "picture").write_bytes(saved(picture()))
    other = pdae("info", tmp_path / "picture")
    assert other.code == 0 and "recipe: none" in other.text
    (tmp_path / "notes.txt").write_text("no picture")
    assert pdae("info", tmp_path / "notes.txt").code == 3


def test_standard_input(pdae: Command, tmp_path: Path, pictures: list[Path]) -> None:
    codes = tmp_path / "z.safetensors"
    assert pdae("encode", pictures[0], "-o", codes, "--no-noise").code == 0
    for path, kind in ((codes, "kind: codes"), (pictures[1], "format: JPEG")):
        result = pdae("info", "-", stdin=path.read_bytes())
        assert result.code == 0 and kind in result.text
        assert result.text == pdae("info", path).text
    empty = pdae("info", "-")
    assert empty.code == 3 and "standard input is empty" in empty.err
