"""Damaged files of every subject, a few of each: each is taken or a line, and what reads them goes
on. docs/trust.md has the figures for many."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import fuzz
import pytest
from conftest import ROOT, Command
from fuzzing import pictures
from fuzzing.using import Kinds, damaged

from pdae_cli.checkpoints import reading

COUNTS = {"configs": 48, "codes": 36, "archives": 24, "tables": 32}
BOTH = frozenset({"taken", "refused"})
pytestmark = pytest.mark.filterwarnings("ignore")  # as the commands ignore Pillow's


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Kinds]]:
    """Of every subject."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "read_pickle", reading.read_pickle)  # and back again
        patch.setenv("PDAE_DEVICE", "cpu")
        patch.chdir(tmp_path_factory.mktemp("fuzz"))
        found = {}
        for subject, make in fuzz.SUBJECTS.items():
            Path(subject).mkdir()
            found[subject] = make(Path(subject).resolve())
        yield found


@pytest.mark.parametrize("subject", COUNTS)
def test_a_few_damaged_files(subject: str, kinds: dict[str, Kinds]) -> None:
    """Nothing unexpected, and on both sides of the readers."""
    figures = fuzz.Figures()
    for record in fuzz.examined(kinds[subject], "suite", range(COUNTS[subject])):
        if "key" in record:
            figures.add(record)
    assert figures.culprits == {} and figures.good
    assert figures.files == COUNTS[subject] and len(figures.kinds) == len(kinds[subject])
    outcomes = sum((found for found in figures.kinds.values()), Counter[str]())
    assert outcomes.keys() == BOTH and min(outcomes.values()) > 2


def test_a_thousand_damaged_pictures_by_command() -> None:
    """In a process that is watched, also for its memory."""
    command = [sys.executable, fuzz.__file__, "pictures", "--count", "1000", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    figures = json.loads(done.stdout)
    assert figures["culprits"] == {} and done.returncode == 0
    assert figures["files"] == 1000 and figures["grown_mib"] < 600
    formats: dict[str, set[str]] = {}  # both sides of every reader are reached
    for kind, outcomes in figures["kinds"].items():
        formats.setdefault(kind.split()[0], set()).update(outcomes)
    assert len(formats) == 8 and set(map(frozenset, formats.values())) == {BOTH}


@pytest.mark.parametrize("subject", fuzz.SUBJECTS)
def test_whole_files_are_taken(subject: str, kinds: dict[str, Kinds]) -> None:
    """Else damage to them would show nothing."""
    for name, kind in kinds[subject].items():
        assert kind.use(kind.data, random.Random(0)) == "taken", name


@pytest.mark.parametrize("subject", fuzz.SUBJECTS)
def test_mutations_are_fixed_and_differ(subject: str, kinds: dict[str, Kinds]) -> None:
    for name, kind in kinds[subject].items():
        made, again = (
            [damaged(name, kinds[subject], random.Random(key)) for key in range(9)]
            for _ in range(2)
        )
        assert made == again and len(set(made)) > 5, name
        assert sum(data != kind.data for data in made) > 6, name


def test_a_folder_of_damaged_pictures(
    pdae: Command, tmp_path: Path, kinds: dict[str, Kinds]
) -> None:
    """The command itself: every file has a record; some fail, so the exit code is 3."""
    (tmp_path / "in").mkdir()
    for number, name in enumerate(sorted(kinds["pictures"])):
        data = damaged(name, kinds["pictures"], random.Random(number))
        (tmp_path / "in" / f"{number:03}.{name.split()[0]}").write_bytes(data)
    result = pdae("encode", tmp_path / "in", "-o", tmp_path / "out", "--no-noise", "--json")
    records = [json.loads(line) for line in result.text.splitlines()]
    statuses = Counter(one["status"] for one in records if "input" in one)
    assert result.code == 3 and statuses.keys() == {"done", "failed"}
    assert statuses.total() == len(kinds["pictures"]) and min(statuses.values()) > 5
    assert "Traceback" not in result.err and "unexpected" not in result.err
    written = sorted(path.stem for path in (tmp_path / "out").glob("*.safetensors"))
    assert written == sorted(Path(r["input"]).stem for r in records if r.get("status") == "done")


def test_animations_have_frames() -> None:
    frames = {name: len(pictures.read(data, "crop")) for name, data in pictures.files().items()}
    assert {name for name, count in frames.items() if count > 1} == {
        "png animated", "webp animated", "gif animated", "avif animated", "tiff of pages",
    }  # fmt: skip


CHILD = """
import json, os, sys, time
for key in range(int(sys.argv[1]), 9):
    print(json.dumps({"begun": key, "kind": "png"}), flush=True)
    if key == 2: os.abort()
    if key == 4: time.sleep(60)
    if key == 5: os._exit(0)
    outcome = "unexpected: ValueError" if key == 6 else "taken"
    print(json.dumps({"key": key, "kind": "png", "outcome": outcome, "trace": "here",
                      "seconds": 0.1, "cpu": 0.1, "peak": 900, "grown": 601 if key == 7 else 1}),
          flush=True)
"""


def test_whatever_goes_wrong_is_a_figure() -> None:
    figures = fuzz.watch(lambda first: [sys.executable, "-c", CHILD, str(first)], 9, patience=3)
    assert figures.files == 9 and figures.outcomes["taken"] == 5
    assert (figures.crashes, figures.hangs, figures.unexpected, figures.large) == (2, 1, 1, 1)
    assert not figures.good and len(figures.culprits) == 5


def test_a_child_that_never_begins_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="status 3 before file 0"):
        fuzz.watch(lambda first: [sys.executable, "-c", "raise SystemExit(3)"], 5)
