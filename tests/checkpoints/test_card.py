"""A model's card: what commands keep current in it, and what they leave as people wrote it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import BUNDLED, Command, tiny_model
from foreign_models import DDPM_STYLE, pipeline
from huggingface_hub import ModelCard
from small_runs import folder_of, stage_of, task_of

from pdae_cli.checkpoints import card, native, read_model, write_model
from pdae_cli.checkpoints.card import read_card, with_section
from pdae_cli.checkpoints.convert import read_foreign
from pdae_cli.checkpoints.source import Source
from pdae_cli.errors import ModelError
from pdae_cli.files import sha256

PEOPLE = """---
# my own order
language: en
license: mit
tags: photos
---
# My faces

What I think of them.

<!-- pdae -->
<!-- /pdae -->

## Thanks

To all | who helped.
"""


def card_of(folder: Path) -> ModelCard:
    return ModelCard((folder / "README.md").read_text())


def test_each_stage_keeps_it_current(pdae: Command, tmp_path: Path) -> None:
    """What the loop calls when it saves; then commands."""
    data, run = folder_of(tmp_path / "photos"), tmp_path / "run"
    task = replace(task_of(data, run), name="hf.co/datasets/someone/faces@main:train")
    model = tiny_model()
    for kind, metric in (("dpm", "held_out_loss"), ("autoencoder", "gap_closed")):
        if kind == "autoencoder":
            source = "pdae: hf.co/someone/dpm@main"
            model.config = replace(model.config, licence="CC-BY-4.0", source=source)
            model.weights_sha = sha256(run / native.WEIGHTS)  # as one that is loaded from there
            text = (run / "README.md").read_text()
            (run / "README.md").write_text(text.replace("# run", "# Mine, by hand"))
        summary = {"stage": kind, "images": 16, "options": {"lr": 0.1}, "metrics": {metric: 0.25}}
        stage_of(kind, model, task).save(summary)
        assert card_of(run).data.license == ("cc-by-4.0" if kind == "autoencoder" else None)
    short = ("--images", 8, "--batch-size", 8, "--device", "cpu", "--width", 8, "--layers", 2)
    assert pdae("train", "latent", data, "-m", run, *short).code == 0
    rows = "".join(f"{number}.png,{number % 2}\n" for number in range(24))
    (data / "labels.csv").write_text(f"name,hat\n{rows}")
    assert pdae("attributes", "fit", data, "-m", run).code == 0
    card = card_of(run)
    known = (card.data.library_name, card.data.pipeline_tag, card.data.datasets)
    assert known == ("pdae", "image-to-image", ["someone/faces"])
    assert card.data.base_model == "someone/dpm"
    assert card.data.metrics == ["held_out_loss", "gap_closed"]
    assert "# Mine, by hand" in card.text and "attributes (1)" in card.text
    recipe = (
        "**dpm**: 16 pictures seen, of hf.co/datasets/someone/faces@main:train; lr 0.1; on held",
        "**latent**: 8 pictures seen, of photos; images 8, batch_size 8",
        "hat: held_out 2",
    )
    for line in recipe:
        assert card.text.count(f"\n- {line}") == 1, line
    assert str(tmp_path) not in str(card) + (run / "config.json").read_text()
    assert pdae("attributes", "remove", "-m", run, "hat").code == 0
    assert "hat: " not in (run / "README.md").read_text()


def test_a_conversion_names_its_source_and_no_folder(pdae: Command, tmp_path: Path) -> None:
    source, folder = tmp_path / "somebody" / "pipe", tmp_path / "model"
    pipeline(source, DDPM_STYLE)
    config = source / "unet" / "config.json"
    config.write_text(config.read_text().replace("{", '{"odd_field": 1,', 1))
    folder.mkdir()
    (folder / "README.md").write_text("# Kept\n")
    result = pdae("convert", source, "-o", folder, "--overwrite")
    assert result.code == 0, result.err
    card = (folder / "README.md").read_text()
    assert "# Kept\n" in card and "unet/config.json: fields that are unknown here" in card
    assert card.count("<!-- conversion -->") == 1 and str(tmp_path) not in card
    again = pdae("convert", source, "-o", folder, "--overwrite")
    assert again.code == 0 and (folder / "README.md").read_text() == card


def test_so_does_one_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline(tmp_path / "pipe", DDPM_STYLE)
    monkeypatch.chdir(tmp_path / "pipe")
    assert read_foreign(Source(Path())).model.name == "pipe"


class TestAnotherModelInItsPlace:
    """`convert --overwrite`: what was said of the model before isn't said of the new one."""

    @pytest.fixture
    def before(self, tiny_folder: Path, tmp_path: Path) -> Path:
        """A model with terms, and papers beside it."""
        folder = tmp_path / "m"
        model = read_model(tiny_folder, "m")
        terms = "non-commercial-research"
        model.config = replace(model.config, licence=terms, source="pdae: hf.co/someone/faces")
        (folder / "training").mkdir(parents=True)
        for name in ("LICENSE.md", "figures.json", "notes.txt"):
            (folder / name).write_text("Of the model before.")
        write_model(folder, model)
        data = card_of(folder).data
        assert (data.license_name, data.license_link) == (terms, "LICENSE.md")
        assert data.base_model == "someone/faces"
        (folder / "README.md").write_text((folder / "README.md").read_text() + "\nMine.\n")
        return folder

    @pytest.mark.parametrize("licence", ["unknown", "mit"])
    def test_licence_origin_and_papers_go(
        self, pdae: Command, before: Path, tmp_path: Path, licence: str
    ) -> None:
        pipeline(tmp_path / "pipe", DDPM_STYLE)
        if licence != "unknown":
            (tmp_path / "pipe" / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
        result = pdae("convert", tmp_path / "pipe", "-o", before, "--overwrite")
        assert result.code == 0, result.err
        card = card_of(before)
        assert card.data.license == (None if licence == "unknown" else licence)
        left = card.data.to_dict().keys() & {"license_name", "license_link", "base_model"}
        assert left == set() and "Mine." in card.text
        assert {path.name for path in before.iterdir()} == {
            "README.md", "config.json", "model.safetensors", "notes.txt", "training"
        }  # fmt: skip

    def test_of_the_same_source_papers_stay(self, before: Path) -> None:
        native.write_whole(before, read_model(before, "m"), None, {}, conversion="Again.")
        assert (before / "LICENSE.md").exists() and (before / "figures.json").exists()
        assert card_of(before).data.license_link == "LICENSE.md"


class TestPeoplesText:
    def test_it_stays(self, tiny_folder: Path, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(tiny_folder, tmp_path / "m"))
        for text in (PEOPLE, PEOPLE.replace("\n", "\r\n")):
            (folder / "README.md").write_bytes(text.encode())
            write_model(folder, read_model(folder, "m"))
            written = (folder / "README.md").read_bytes().decode()
            tail = text.partition("# My")[2]
            assert written.partition("# My")[2].startswith(tail.partition("<!-- pdae -->")[0])
            assert written.endswith(tail.partition("<!-- /pdae -->")[2])
            data = ModelCard(written).data
            assert (data.language, data.license, data.tags) == ("en", "mit", ["photos", "pdae"])
            once = written
            write_model(folder, read_model(folder, "m"))
            assert (folder / "README.md").read_bytes().decode() == once

    def test_the_bundled_card_keeps_its_terms_and_figures(self, tmp_path: Path) -> None:
        shutil.copytree(BUNDLED, tmp_path / "f", ignore=shutil.ignore_patterns("*.safetensors"))
        before, text, card = read_card(tmp_path / "f", {"pdae": "ours", "figures": "new"})
        assert card.data.license_name == "non-commercial-research"
        assert text.startswith(before.partition("<!-- figures -->")[0])
        assert "<!-- figures -->\nnew\n<!-- /figures -->" in text
        assert text.endswith("\n\n<!-- pdae -->\nours\n<!-- /pdae -->\n")

    @pytest.mark.parametrize(
        ("card", "words"),
        [
            (b"---\nlicense: [\n---\n", "can't be renewed"),
            (b"---\n- a list\n---\n", "should be a dict"),
            (b"<!-- pdae --> not closed", "behind it one <!-- /pdae -->"),
            (b"<!-- /pdae --><!-- pdae -->", "behind it one <!-- /pdae -->"),
            (b"\xff\xfe", "no text of UTF-8"),
        ],
    )
    def test_what_cannot_be_kept_current_is_told_before_the_work(
        self, pdae: Command, tmp_path: Path, tiny_folder: Path, card: bytes, words: str
    ) -> None:
        folder = Path(shutil.copytree(tiny_folder, tmp_path / "m"))
        (folder / "README.md").write_bytes(card)
        data = folder_of(tmp_path / "photos", 4)
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        for line in (
            ("train", "autoencoder", data, "--dpm", folder, "-o", folder),
            ("attributes", "rename", "-m", folder, "Smiling", "Grin"),
        ):
            result = pdae(*line)
            assert result.code == 4 and result.err.count("error: ") == 1, result.err
            assert words in result.err.splitlines()[-1]
        after = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert {name: data for name, data in after.items() if name in before} == before
        with pytest.raises(ModelError, match="README"):
            read_card(folder)


def test_nothing_of_a_config_ends_the_section(tiny_folder: Path, tmp_path: Path) -> None:
    model = read_model(tiny_folder, "m")
    name = "a<!-- pdae -->`|'; rm"
    evil = {"stage": "<!-- /pdae -->\n# |", "options": {"<b>": "\n---"}, "metrics": [1]}
    model.config = replace(model.config, licence=f"<!-- /pdae -->\n{'x' * 5000}", training=(evil,))
    for _ in range(2):
        write_model(tmp_path / name, model)
    text = (tmp_path / name / "README.md").read_text()
    assert text.count("<!-- pdae -->") == text.count("<!-- /pdae -->") == 1
    assert len(text) < 5000 and "\n# |" not in text


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_change_that_was_killed_is_made_by_the_same_command(
    pdae: Command, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card is written first, so that the attributes say whether it is done."""
    whole, killed = (shutil.copytree(tiny_folder, tmp_path / "of" / n / "m") for n in "ab")
    rename = ("attributes", "rename", "smiling", "grin")
    assert pdae(*rename, model=whole).code == 0
    with monkeypatch.context() as patch:
        patch.setattr(native, "write_attributes", interrupted)
        assert pdae(*rename, model=killed).code == 130
    assert "grin" in (killed / "README.md").read_text()
    assert pdae(*rename, model=killed).code == 0
    assert (killed / "README.md").read_text() == (whole / "README.md").read_text()


def test_a_conversion_writes_its_card_once(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that whoever kills it leaves the old one or the new."""
    contents = list[bytes]()
    monkeypatch.setattr(card, "write_bytes", lambda path, data: contents.append(data))
    model = read_model(tiny_folder, "tiny")
    native.write_whole(tmp_path / "m", model, None, {}, conversion="From elsewhere.")
    assert len(contents) == 1 and b"From elsewhere." in contents[0]


def test_the_current_folder_has_a_name(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    write_model(Path(), read_model(tiny_folder, "m"))
    text = Path("README.md").read_text()
    assert "# mine\n" in text and " -m mine\n" in text and "from_pretrained('mine')" in text


def test_a_section_is_put_behind_a_text_that_has_none() -> None:
    assert with_section("", "a", " x ") == "<!-- a -->\nx\n<!-- /a -->\n"
    assert with_section("t\n", "a", "x") == "t\n\n<!-- a -->\nx\n<!-- /a -->\n"
    assert with_section("<!-- a -->y<!-- /a -->t", "a", "x") == "<!-- a -->\nx\n<!-- /a -->t"
