"""The notebook runs, the site has no broken link, and what others read fits their schemas."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

import pdae_cli

NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"


def test_the_notebook_runs_from_top_to_bottom(monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer steps and faces, and nothing else changed."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("Agg")
    monkeypatch.chdir(NOTEBOOK.parent)
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    codes = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert all(cell.get("outputs", []) == [] for cell in cells)
    assert sum(code.count("STEPS, FACES = 20, 32  #") for code in codes) == 1
    names: dict[str, Any] = {}
    for number, code in enumerate(codes):
        few = code.replace("STEPS, FACES = 20, 32  #", "STEPS, FACES = 2, 8  #")
        exec(compile(few, f"{NOTEBOOK}[{number}]", "exec"), names)
    try:
        assert (names["back"] - names["pictures"]).square().mean() < 0.1
        assert (names["edits"][2] - names["edits"][0]).abs().mean() > 0.01
        assert len(names["way"]) == 6 and len(pyplot.get_fignums()) == 5
        assert (names["brighter"] - names["back"]).mean() > 0.01
    finally:
        pyplot.close("all")


def test_the_site_builds_and_no_link_is_broken(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="the extra docs isn't installed")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "docs" / "trust" / "index.html").is_file()


@pytest.mark.parametrize(
    ("name", "schema", "field"),
    [
        (".github/workflows/ci.yml", "github-workflows", "runs-on:"),
        ("CITATION.cff", "citation-file-format", "authors:"),
    ],
)
def test_files_that_others_read_fit_their_schemas(
    tmp_path: Path, name: str, schema: str, field: str
) -> None:
    pytest.importorskip("check_jsonschema")
    text, wrong = (ROOT / name).read_text(encoding="utf-8"), tmp_path / "wrong.yml"
    wrong.write_text(text.replace(field, f"x{field}"), encoding="utf-8")
    for path, code in ((ROOT / name, 0), (wrong, 1)):
        check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}"]
        done = subprocess.run([*check, str(path)], capture_output=True, text=True)
        assert done.returncode == code, done.stdout


def test_the_citation_is_of_this_version() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {pdae_cli.__version__}\n" in text
