"""`pdae manipulate --to`: scores that end where one says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_runs import own_model
from conftest import Command, picture, tiny_model

from pdae_cli.checkpoints.native import write_attributes

FAST = ("--inference-steps", 2)
SPREADS = {"Smiling": (0.5, 2.0), "Blond_Hair": (-1.0, 0.5)}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_folder: Path) -> Path:
    """Two pictures, and a model that knows how two of its three attributes' scores vary."""
    monkeypatch.chdir(tmp_path)
    own_model(Path("mine"), tiny_folder, **SPREADS)
    Path("in").mkdir()
    for number in range(2):
        picture(number, (32, 32)).save(f"in/{number}.png")
    return tmp_path


def moved(pdae: Command, *line: object) -> list[dict[str, Any]]:
    """The records of both pictures."""
    run = pdae("manipulate", "in", *line, *FAST, "--json", model="mine")
    assert run.code == 0, run.err
    return [json.loads(row)["attributes"] for row in run.text.splitlines()]


def test_each_picture_ends_at_the_score_whatever_it_was(pdae: Command, work: Path) -> None:
    first, second = moved(pdae, "--attr", "smiling", "--to", 0, "-o", "out")
    assert first["Smiling"]["before"] != second["Smiling"]["before"]
    for one in (first["Smiling"], second["Smiling"]):
        assert one["after"] == pytest.approx(0.5, abs=1e-4)  # the mean
        assert one["after_sd"] == pytest.approx(0, abs=1e-4)
        assert (one["to"], one["unit"]) == (0, "sd") and "scale" not in one


def test_several_attributes_end_where_they_should_at_once(pdae: Command, work: Path) -> None:
    line = ("--attr", "smiling", "--to", "-1", "--attr", "blond hair", "--to", "0.5,1.5")
    for one in moved(pdae, *line, "-o", "out"):
        assert one["Smiling"]["after_sd"] == pytest.approx([-1, -1], abs=1e-3)
        assert one["Blond_Hair"]["after_sd"] == pytest.approx([0.5, 1.5], abs=1e-3)
        assert one["Blond_Hair"]["to"] == [0.5, 1.5]


def test_each_attribute_is_named_once(pdae: Command, work: Path) -> None:
    """However it is written: the record has one scale of each."""
    line = ("manipulate", "in/0.png", "--attr", "smiling=0.3", "--attr", "Smiling=0.5")
    result = pdae(*line, *FAST, "-o", "x.png")
    assert result.code == 2 and not Path("x.png").exists()
    assert "each attribute is moved once; a list like --scale=" in result.err


def test_a_number_ends_at_a_value_of_its_own(pdae: Command, work: Path) -> None:
    attributes = tiny_model().attributes
    assert attributes is not None
    attributes.facts["Blond_Hair"] = {"score_mean": 35.0, "score_sd": 9.0, "unit": "years"}
    write_attributes(Path("mine"), attributes)
    for one in moved(pdae, "--attr", "blond_hair", "--to", "40u", "-o", "out"):
        assert one["Blond_Hair"]["after"] == pytest.approx(40, abs=1e-3)
        assert (one["Blond_Hair"]["to"], one["Blond_Hair"]["unit"]) == (40, "u")


def test_kept_scores_stay_and_recipes_are_followed(pdae: Command, work: Path) -> None:
    line = ("manipulate", "in/0.png", "--attr", "smiling", "--to", "1sd", "--keep", "blond_hair",
            *FAST, "--json", "-o", "out.png")  # fmt: skip
    run = pdae(*line, model="mine")
    assert run.code == 0, run.err
    record = json.loads(run.text)
    assert record["attributes"]["Smiling"]["after_sd"] == pytest.approx(1, abs=1e-3)
    kept = record["kept"]["Blond_Hair"]
    assert kept["after"] == pytest.approx(kept["before"], abs=1e-3)
    assert json.loads(pdae("info", "out.png", "--json").text)["recipe"]["options"]["to"] == ["1sd"]
    assert pdae("redo", "out.png", "-m", "mine").code == 0
    assert json.loads(pdae(*line, model="mine").text)["status"] == "unchanged"


def test_codes_are_moved_as_their_pictures_are(pdae: Command, work: Path) -> None:
    to = ("--attr", "smiling", "--to", 2)
    assert pdae("encode", "in", "-o", "z.safetensors", *FAST, model="mine").code == 0
    run = pdae("manipulate", "z.safetensors", *to, "-o", "moved", "--json", model="mine")
    assert run.code == 0, run.err
    told = [json.loads(row)["attributes"]["Smiling"] for row in run.text.splitlines()]
    assert [one["after_sd"] for one in told] == pytest.approx([2, 2], abs=1e-3)
    assert told == [one["Smiling"] for one in moved(pdae, *to, "-o", "out")]


def test_a_file_that_we_name_says_where_it_ends() -> None:
    from pdae_cli.cli.manipulate import _behind, edits

    assert _behind(edits(["Smiling"], [], ["1"]), True) == "-smiling-to+1"
    assert _behind(edits(["Smiling"], ["1"]), False) == "-smiling+1"
