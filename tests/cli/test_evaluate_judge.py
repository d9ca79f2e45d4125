"""pdae evaluate judge: the file that --judge takes."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_runs import records
from conftest import Command, tiny_model
from labelled import LABELS as RED_AND_ODD
from labelled import labelled

from pdae_cli.checkpoints import write_model
from pdae_cli.cli.evaluation_data import EvaluateOptions
from pdae_cli.errors import UsageError
from pdae_cli.evaluation.judge import read_judge, write_judge
from pdae_cli.files import sha256
from pdae_cli.pictures.images import to_float
from pdae_cli.training.data import Pictures, open_pictures, split
from pdae_cli.training.judge import train_judge
from pdae_cli.training.labels import Labels, find_labels

# The last is of one kind where pictures are held out.
LABELS = RED_AND_ODD | {"early": lambda n: int(n < 20)}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return labelled(tmp_path / "photos", 40, train=28, labels=LABELS)


def parts(photos: Path) -> tuple[Pictures, Pictures, Labels]:
    """Training pictures, held-out pictures, and their labels."""
    pictures = open_pictures(photos, 32)
    labels = find_labels(photos, None, pictures.names)
    assert labels is not None
    return *split(pictures, labels), labels


def test_it_is_what_training_makes_of_the_pictures(
    pdae: Command, photos: Path, tmp_path: Path
) -> None:
    """The same bytes for the same pictures, epochs and seed, and others for another seed."""
    write_judge(tmp_path / "own", *train_judge(*parts(photos), 2, seed=7))
    made = []
    for seed in (7, 8):
        out = tmp_path / f"{len(made)}.safetensors"
        args = ("evaluate", "judge", photos, "-o", out, "--epochs", 2, "--device", "cpu")
        assert pdae(*args, "--seed", seed).code == 0
        made.append(out.read_bytes())
    assert made[0] == (tmp_path / "own").read_bytes() != made[1]


def test_records_say_what_the_file_holds(pdae: Command, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "judge.safetensors"
    result = pdae("evaluate", "judge", photos, "-o", out, "--epochs", 3, "--json")
    *rows, last = records(result.text)
    judge, auroc = read_judge(out)
    assert judge.names == list(LABELS) and (judge.size, judge.channels) == (32, 3)
    assert auroc == {row["attribute"]: row["auroc"] for row in rows}
    assert [row["held_out_with"] for row in rows] == [6, 3, 0]
    assert {row["held_out"] for row in rows} == {12}
    assert auroc["early"] is None and auroc["red"] > 0.95
    assert last["status"] == "done" and last["output"] == str(out)
    assert last["digest"] == judge.weights_sha
    assert last["auroc"] == judge.auroc == (auroc["red"] + auroc["odd"]) / 2
    assert (last["pictures"], last["held_out"], last["epochs"]) == (28, 12, 3)
    assert result.err.splitlines() == [f"judge: epoch {k} of 3" for k in (1, 2, 3)]


def test_for_people_and_a_file_that_exists(pdae: Command, photos: Path, tmp_path: Path) -> None:
    """It is replaced only where that is said; the labels may be a table of one's own."""
    mine, out = tmp_path / "mine.csv", tmp_path / "judge.safetensors"
    (photos / "labels.csv").rename(mine)
    out.write_bytes(b"old")
    args = ("evaluate", "judge", photos, "-o", out, "--epochs", 1, "--labels", mine)
    refused = pdae(*args)
    assert refused.code == 3 and "--overwrite" in refused.err and out.read_bytes() == b"old"
    lines = pdae(*args, "--overwrite").text.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == list(LABELS)
    assert all(" AUROC " in line for line in lines)
    digest = read_judge(out)[0].weights_sha[:12]
    assert lines[-1].startswith(f"{out}: judge {digest}, mean AUROC 0.")
    quiet = pdae(*args, "--overwrite", "--quiet")
    assert (quiet.code, quiet.text, quiet.err) == (0, "", "")
    assert [path.name for path in tmp_path.glob("*judge*")] == [out.name]


def test_it_is_known_as_the_same_whether_it_was_written_or_not(
    photos: Path, tmp_path: Path
) -> None:
    """Figures of one judge compare, also where it has no AUROC for a label."""
    judge, quality = train_judge(*parts(photos), 1)
    write_judge(tmp_path / "judge.safetensors", judge, quality)
    read, known = read_judge(tmp_path / "judge.safetensors")
    assert read.protocol == judge.protocol
    assert read.weights_sha == judge.weights_sha == sha256(tmp_path / "judge.safetensors")
    assert quality["early"] != quality["early"] and known["early"] is None


def test_auroc_is_that_of_held_out_pictures_in_parts(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, held_out, labels = parts(photos)
    judge, whole = train_judge(train, held_out, labels, 2)
    logits = judge.logits(to_float(held_out.stack(range(12))))[:, 0]
    red = labels.matrix(held_out.names)[:, 0] == 1
    wins = (logits[red][:, None] > logits[~red]).float().mean().item()
    assert whole["red"] == pytest.approx(wins)
    monkeypatch.setattr("pdae_cli.training.judge.CHUNK", 5)
    assert str(train_judge(train, held_out, labels, 2)[1]) == str(whole)


def test_its_size_is_the_models_or_what_is_said(
    pdae: Command, photos: Path, tmp_path: Path
) -> None:
    gray, out = tmp_path / "gray", tmp_path / "judge.safetensors"
    write_model(gray, tiny_model(channels=1, image_size=16))
    for args, shape in ((("-m", gray), (1, 16)), (("--image-size", 24), (3, 24))):
        common = ("evaluate", "judge", photos, "-o", out, "--epochs", 1, "--overwrite")
        assert pdae(*common, *args).code == 0
        judge = read_judge(out)[0]
        assert (judge.channels, judge.size) == shape


def test_commands_take_it_and_name_it(pdae: Command, photos: Path, tmp_path: Path) -> None:
    """A judge that a run trains for itself measures the same as its file, for every seed."""
    out = tmp_path / "judge.safetensors"
    made = records(pdae("evaluate", "judge", photos, "-o", out, "--epochs", 2, "--json").text)[-1]
    for seed in (0, 1):
        args = ("evaluate", "samples", photos, "-n", 5, "--steps", 2, "--json", "--seed", seed)
        given, own = records(pdae(*args, "--judge", out).text), records(pdae(*args).text)
        for row, other in zip(given, own, strict=True):
            assert made["digest"][:12] in row["features"]
            assert f"AUROC {made['auroc']:.3f}" in row["features"]
            assert row | {"features": ""} == other | {"features": ""}
    result = pdae("evaluate", "samples", photos, "--judge", out, "-m", "faces64")
    assert result.code == 2 and "the judge takes 3x32x32 pictures" in result.err


def test_a_small_one_of_a_run_is_the_same_for_every_seed(photos: Path, tiny_folder: Path) -> None:
    judges = [
        EvaluateOptions(model=str(tiny_folder), device="cpu", seed=seed, quiet=True)
        .material(photos).judge(None, 1, 20)
        for seed in (0, 1)
    ]  # fmt: skip
    assert judges[0].weights_sha == judges[1].weights_sha


def test_what_cannot_be_learnt_is_said(pdae: Command, photos: Path, tmp_path: Path) -> None:
    table = (photos / "labels.csv").read_text().replace("odd", "odd,all,none").splitlines()
    rows = [line.rsplit(",", 1) for line in table[1:]]
    text = "\n".join([table[0], *(f"{a},1,{int(n > 30)},{b}" for n, (a, b) in enumerate(rows))])
    (photos / "labels.csv").write_text(text)
    out = tmp_path / "judge.safetensors"
    result = pdae("evaluate", "judge", photos, "-o", out, "--epochs", 1)
    assert result.code == 0 and "pictures have it: all, none" in result.err
    assert read_judge(out)[0].names == ["red", "odd", "all", "none", "early"]
    train, held_out, labels = parts(photos)
    with pytest.raises(UsageError, match="no label tells the 1 training pictures"):
        train_judge(train.subset([0]), held_out, labels, 1)


@pytest.mark.parametrize(
    ("table", "code", "says"),
    [
        (None, 2, "no labels.csv; pass --labels CSV"),
        ("file,red\nelsewhere/0.png,1\nelsewhere/1.png,0\n", 3, "0 of 40 pictures match"),
        ("file,red\n00.png,1\n02.png,1\n", 2, "no label tells the"),
        ("file,name\n00.png,Ann\n01.png,Ben\n", 2, "no label tells the"),
        ("file\n00.png\n", 3, "no column holds labels"),
    ],
)
def test_without_labels_there_is_no_judge(
    pdae: Command, photos: Path, tmp_path: Path, table: str | None, code: int, says: str
) -> None:
    """And a file that is to be replaced stays."""
    (photos / "labels.csv").unlink()
    if table is not None:
        (photos / "labels.csv").write_text(table)
    out = tmp_path / "judge.safetensors"
    out.write_bytes(b"old")
    result = pdae("evaluate", "judge", photos, "-o", out, "--overwrite")
    *remarks, error = result.err.splitlines()
    assert result.code == code and error.startswith("error: ") and says in error
    assert all("labels.csv: " in one for one in remarks)  # what isn't taken, before
    assert out.read_bytes() == b"old" and result.text == ""


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("nowhere",), 3, "no such folder"),
        (("{photos}", "-o", "-"), 2, "a .safetensors"),
        (("{photos}", "-o", "{photos}/00.png/judge.safetensors"), 3, "can't write"),
        (("{photos}", "-m", "nowhere"), 4, "no model"),
        (("{photos}", "--device", "abacus"), 2, "can't be used"),
        (("{photos}", "--seed", f"{10**22}"), 2, "numbers below 2^63"),
        (("{photos}", "--seed", f"{-(10**22)}"), 2, "numbers below 2^63"),
        (("{photos}", "--labels", "nowhere.csv"), 3, "nowhere.csv: no such file"),
    ],
)
def test_refusals_come_before_anything_is_trained(
    pdae: Command, photos: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...],
    code: int, says: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(photos)
    monkeypatch.setattr("pdae_cli.training.judge.train_judge", None)
    result = pdae("evaluate", "judge", *(one.format(photos=photos) for one in args))
    assert result.code == code and says in result.err and len(result.err.splitlines()) == 1
    assert not list(photos.glob("judge*"))


def test_one_that_doesnt_fit_into_memory_is_a_line(
    pdae: Command, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It speaks of no option that the command lacks."""

    def full(*of: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate")

    monkeypatch.setattr("pdae_cli.training.judge.Judge.forward", full)
    result = pdae("evaluate", "judge", photos, "-o", tmp_path / "judge.safetensors", "--quiet")
    assert result.code == 5 and result.err.count("\n") == 1
    assert "to train a judge" in result.err and "--batch-size" not in result.err
