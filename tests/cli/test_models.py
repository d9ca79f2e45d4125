"""pdae models: what is here, without torch and without the network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli_runs import without
from conftest import BUNDLED, Command

from pdae_cli.checkpoints.native import CLASSIFIER


@pytest.fixture
def here(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two models in folders, and two of a cache, one of them another program's."""
    from huggingface_hub import constants

    for name in ("mine", "runs/other"):
        shutil.copytree(tiny_folder, tmp_path / name)
    for name in ("faces", "ddpm"):
        repository = tmp_path / "cache" / f"models--someone--{name}"
        for commit in ("a" * 40, "b" * 40):
            shutil.copytree(tiny_folder, repository / "snapshots" / commit)
            if name == "ddpm":
                (repository / "snapshots" / commit / "config.json").write_text(
                    '{"_class_name": "U"}'
                )
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("b" * 40)
    for number, text in enumerate(("{", "[]", "1", '{"format": "pdae-model-1"}', "[" * 100_000)):
        (tmp_path / f"odd{number}").mkdir()
        (tmp_path / f"odd{number}" / "config.json").write_text(text)
        (tmp_path / f"odd{number}" / "model.safetensors").write_bytes(b"")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def listed(pdae: Command, *args: object) -> list[dict[str, Any]]:
    result = pdae("models", "--json", *args)
    assert (result.code, result.err) == (0, "")
    records = [json.loads(line) for line in result.text.splitlines()]
    return [one for one in records if one["place"] != "bundled"]


def test_all_that_are_here(pdae: Command, here: Path) -> None:
    found = listed(pdae)
    assert [one["name"] for one in found] == ["mine", f"someone/faces@{'a' * 40}", "someone/faces"]
    size = sum(path.stat().st_size for path in (here / "mine").iterdir())
    assert {key: found[0][key] for key in ("bytes", "image_size", "attributes", "licence")} == {
        "bytes": size, "image_size": 32, "attributes": 3, "licence": "unknown"
    }  # fmt: skip
    assert "3 attributes, unknown" in pdae("models").text


@pytest.mark.parametrize(
    ("part", "value"),
    [("unet", '{"image_size": 1e999}'), ("unet", '{"image_size": 0}'),
     ("first_stage", f'{{"widths": [{",".join("1" * 20_000)}]}}')],
)  # fmt: skip
def test_one_whose_size_cant_be_hides_no_other(
    pdae: Command, here: Path, part: str, value: str
) -> None:
    odd = Path(shutil.copytree("mine", "damaged")) / "config.json"
    odd.write_text(
        json.dumps(json.loads(odd.read_text()) | {part: "here"}).replace('"here"', value)
    )
    names = [one["name"] for one in listed(pdae)]
    assert "mine" in names and "damaged" not in names and pdae("models").code == 0


def test_those_of_folders(pdae: Command, here: Path) -> None:
    names = [one["name"] for one in listed(pdae, "runs", here / "mine") if one["place"] == "folder"]
    assert names == ["runs/other", str(here / "mine")]
    for folder in ("cache", "none", "odd0"):
        result = pdae("models", folder)
        assert (result.code, len(result.err.splitlines())) == (4, 1) and folder in result.err


def test_neither_torch_nor_the_network_is_asked(here: Path) -> None:
    told = without(
        "torch",
        "import socket\n"
        "def refuse(*a, **k): raise AssertionError('a socket was opened')\n"
        "socket.socket.__init__ = refuse",
        ("models",),
    )
    assert ("faces64 (bundled)" in told) == BUNDLED.is_dir() and "mine (folder)" in told


def test_a_classifier_says_what_takes_it(pdae: Command, tmp_path: Path) -> None:
    """Converting it would be in vain."""
    (tmp_path / "cls").mkdir()
    (tmp_path / "cls" / CLASSIFIER).write_bytes(b"as `pdae train classifier` writes it")
    for command in ("models", "info"):
        result = pdae(command, tmp_path / "cls")
        assert result.code == 4 and result.err.count("\n") == 1
        assert "is a classifier, no model; `pdae sample --classifier" in result.err
