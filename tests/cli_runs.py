"""What tests of runs share: folders of pictures, their outputs, commands in a process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from conftest import picture, tiny_model
from PIL import Image

from pdae_cli.checkpoints import write_attributes
from pdae_cli.errors import STOPPING


def folder_of(path: Path, count: int) -> Path:
    """A folder of pictures."""
    path.mkdir(parents=True)
    for number in range(count):
        picture(number).save(path / f"{number}.png")
    return path


def outputs(folder: Path) -> dict[str, bytes]:
    """Every file of an output folder but the manifest's, by its place."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in files
        if ".pdae" not in path.parts
    }


def own_model(folder: Path, tiny_folder: Path, **spreads: tuple[float, float]) -> Path:
    """A model folder of one's own, which knows mean and deviation of these attributes' scores."""
    shutil.copytree(tiny_folder, folder)
    attributes = tiny_model().attributes
    assert attributes is not None
    for name, (mean, sd) in spreads.items():
        attributes.facts[name] = {"score_mean": mean, "score_sd": sd}
    write_attributes(folder, attributes)
    return folder


def files_in(folder: Path) -> list[str]:
    """The names of an output folder's files, but what the manifest keeps."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".pdae")


def size_of(path: Path) -> tuple[int, int]:
    """A picture's width and height."""
    with Image.open(path) as image:
        return image.size


def pixels_of(path: Path | str | BytesIO) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def records(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def running(folder: Path, *arguments: object, stdin: int | None = None) -> subprocess.Popen[str]:
    """The command as a process of its own, on one thread."""
    for one in STOPPING:  # a shell's background ignores some
        signal.signal(one, signal.SIG_DFL if one != signal.SIGINT else signal.default_int_handler)
    environment = os.environ | {"PDAE_MODEL": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "pdae_cli", *map(str, arguments)],
        env=environment, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def without(unwanted: str, first: str, *lines: Sequence[object], code: int = 0) -> str:
    """What a program prints that may import none of these modules: Python, then `pdae` with each of
    these lines, all of which end with this exit code."""
    program = f"""import sys\n{first}
for line in {[["pdae", *map(str, line)] for line in lines]}:
    from pdae_cli.cli import main
    sys.argv, ended = line, 0
    try:
        main()
    except SystemExit as stop:
        ended = stop.code or 0
    assert ended == {code}, (line, ended)
    assert not {set(unwanted.split())} & set(sys.modules), line
assert not {set(unwanted.split())} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err
