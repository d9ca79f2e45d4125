"""Every shell example of docs/pipelines.md runs as it stands there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, Command, picture

PAGE = (ROOT / "docs" / "pipelines.md").read_text()
EXAMPLES = re.findall(r"^## (.+?)\n(?:(?!^## )[\s\S])*?```bash\n([\s\S]+?)```", PAGE, re.MULTILINE)
PROGRAMS = ("ffmpeg", "jq")  # that an example may need and a machine may lack
RESULTS = {
    "A folder, overnight": ["out/a.png", "out/sub/a.png", "log.jsonl"],
    "Names from `find`": ["codes/photos/a.safetensors", "codes/photos/sub/a.safetensors"],
    "A filter among filters": ["smile.png"],
    "A film, frame by frame": ["out.mp4"],
    "A film of the way between two pictures": ["way.mp4"],
    "Codes as a table": ["z.csv"],
    "Arithmetic": ["mean.safetensors", "moved.png"],
    "One row for each attribute": ["rows/smiling.png", "rows/blond_hair.png"],
    "Several processes, several machines": ["codes/sub/a.safetensors"],
    "A job array": ["codes/sub/a.safetensors"],
    "Again, from the picture alone": ["again.png"],
}
SAID = {
    "The ten that come back worst": "photos/sub/a.png",
    "Who looks like whom": "photos/a.png",
    "Failures in a script": "the others are done",
    "Again, from the picture alone": "the same picture again",
}


@pytest.fixture
def shell(tmp_path: Path, tiny_folder: Path) -> dict[str, str]:
    """An environment in which `pdae` is this checkout's, with photos in the current folder."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, module in (("pdae", "pdae_cli"), ("torchrun", "torch.distributed.run")):
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
        (programs / name).chmod(0o755)
    for number, name in enumerate(("a", "b", "c", "sub/a")):
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number, (32, 32)).save(path)
    return os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PDAE_MODEL": str(tiny_folder),
        "OMP_NUM_THREADS": "1",
    }


def test_the_page_has_its_examples() -> None:
    assert len(EXAMPLES) >= 10
    assert {name for name, _ in EXAMPLES} == RESULTS.keys() | SAID.keys()


@pytest.mark.parametrize("numbers", [range(1, 9), range(8)], ids=["from 1", "from 0"])
def test_the_line_for_slurm(
    numbers: range, pdae: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its tasks run what it wraps, each with a number of its own."""
    (line,) = re.findall(r"^    sbatch --array=1-8 --wrap='pdae (.+)'$", PAGE, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    for name in ("a", "b", "sub/c", *"defghi"):
        picture(0, (32, 32)).save(f"photos/{name}.png")
    for number in numbers:
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(number))
        result = pdae(*os.path.expandvars(line).split(), "--json")
        assert result.code == 0 and 1 <= result.text.count('"done"') <= 2
    assert len(list(Path("codes").rglob("*.safetensors"))) == 9


@pytest.mark.slow
@pytest.mark.parametrize(("name", "script"), EXAMPLES, ids=[name for name, _ in EXAMPLES])
def test_example(name: str, script: str, shell: dict[str, str], tmp_path: Path) -> None:
    for program in PROGRAMS:
        if re.search(rf"\b{program}\b", script) and not shutil.which(program):
            pytest.skip(f"{program} isn't installed")
    if "-i film.mp4" in script:
        source = ["-f", "lavfi", "-i", "testsrc=s=32x32:d=0.2:r=20"]
        subprocess.run(["ffmpeg", "-v", "error", *source, "film.mp4"], cwd=tmp_path, check=True)
    if name == "Failures in a script":
        (tmp_path / "photos" / "bad.png").write_bytes(b"not a picture")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path, env=shell, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    for path in RESULTS.get(name, ()):
        assert (tmp_path / path).stat().st_size > 0
    assert SAID.get(name, "") in done.stdout
