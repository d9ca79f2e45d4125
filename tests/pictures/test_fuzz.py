"""Mutated pictures: each is a picture or a line, and what reads them goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import fuzz
import pytest
from conftest import ROOT, Command

COUNT = 2000


def test_two_thousand_mutated_pictures(tiny_folder: Path) -> None:
    """No traceback, hang or crash, and no more memory than 1.5 GiB."""
    command = [sys.executable, fuzz.__file__, "--count", str(COUNT), "--model", str(tiny_folder)]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, cwd=ROOT)
    figures = json.loads(done.stdout)
    assert figures["culprits"] == [] and figures["peak_mib"] < 1536
    assert figures["pictures"] == COUNT and len(figures["kinds"]) >= 10
    assert (figures["tracebacks"], figures["hangs"], figures["crashes"]) == (0, 0, 0)
    for kind, outcomes in figures["kinds"].items():  # both sides of every reader are reached
        assert outcomes.get("decoded", 0) > 2 and outcomes.get("refused", 0) > 2, kind


def test_a_folder_of_mutated_pictures(pdae: Command, tmp_path: Path) -> None:
    """The command itself: every file has a record; some fail, so the exit code is 3."""
    files = fuzz.seeds()
    (tmp_path / "in").mkdir()
    for key in range(140):
        kind = sorted(files)[key % len(files)]
        name = f"{key:03}.{kind.split()[0]}"
        (tmp_path / "in" / name).write_bytes(fuzz.mutated(kind, files, key))
    result = pdae("encode", tmp_path / "in", "-o", tmp_path / "out", "--no-noise", "--json")
    records = [json.loads(line) for line in result.text.splitlines()]
    statuses = Counter(one["status"] for one in records if "input" in one)
    assert result.code == 3 and statuses.keys() == {"done", "failed"}
    assert statuses.total() == 140 and min(statuses.values()) > 20
    assert "Traceback" not in result.err and "unexpected" not in result.err
    written = sorted(path.stem for path in (tmp_path / "out").glob("*.safetensors"))
    assert written == sorted(Path(r["input"]).stem for r in records if r.get("status") == "done")


def test_the_unchanged_files_are_read() -> None:
    frames = {kind: len(fuzz.read(data, "crop", 32)) for kind, data in fuzz.seeds().items()}
    assert len(frames) >= 10
    assert {kind for kind, count in frames.items() if count > 1} == {
        "png animated", "webp animated", "gif animated",
    }  # fmt: skip


def test_mutations_are_fixed_and_differ() -> None:
    files = fuzz.seeds()
    for kind in files:
        made = [fuzz.mutated(kind, files, key) for key in range(50)]
        assert made == [fuzz.mutated(kind, files, key) for key in range(50)]
        assert len(set(made)) > 45 and sum(data != files[kind] for data in made) > 45


CHILD = """
import json, os, sys, time
for key in range(int(sys.argv[1]), 8):
    print(json.dumps({"begun": key}), flush=True)
    if key == 2: os.abort()
    if key == 4: time.sleep(60)
    if key == 5: os._exit(0)
    outcome = "traceback: ValueError" if key == 6 else "decoded"
    print(json.dumps({"key": key, "kind": "png", "outcome": outcome, "trace": "here",
                      "seconds": 0.1, "cpu": 0.1, "peak": 1 << 20}), flush=True)
"""


def test_crashes_hangs_and_tracebacks_are_figures() -> None:
    figures = fuzz.watch(lambda first: [sys.executable, "-c", CHILD, str(first)], 8, patience=3)
    assert figures.pictures == 8 and figures.outcomes["decoded"] == 4
    assert (figures.crashes, figures.hangs, figures.tracebacks) == (2, 1, 1)
    assert not figures.good and len(figures.culprits) == 4


def test_a_child_that_never_begins_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="status 3 before picture 0"):
        fuzz.watch(lambda first: [sys.executable, "-c", "raise SystemExit(3)"], 5)
