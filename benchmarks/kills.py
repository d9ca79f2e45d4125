"""Commands killed at any instant, and run again: in the end every file is as without the kill.

    python benchmarks/kills.py --count 300 --seed 1

Every command that writes, with tiny models of random weights; needs the `test` and `align` extras,
and a system that can fork: this process has imported everything and computed nothing, so that a run
costs a fraction of a second. Of two kills one comes after a random share of the run's time, one
before a random one of its writes. After the kill of a training each file of tensors opens
and is finite. Prints a table, or with --json an object.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import re
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from fuzzing.using import FAST, LOOP, MODEL, SHAPE, model_folder
from report import table

COMMANDS: dict[str, str] = {
    "encode a folder": f"encode in -o out/ {FAST} --batch-size 2 --report it.html",
    "encode": f"encode in/0.png in/1.png -o both.safetensors {FAST}",
    "encode into a table": f"encode in -o z.parquet {FAST}",
    "decode": f"decode z.safetensors -o out/ --batch-size 1 {FAST}",
    "reconstruct": f"reconstruct in -o out/ --sheet all.png {FAST}",
    "manipulate": f"manipulate in --attr smiling=0.3 -o out/ {FAST}",
    "manipulate one": f"manipulate in/0.png --attr smiling --scale=-1,1 -o row.png {FAST}",
    "interpolate": f"interpolate in/0.png in/1.png --steps 4 -o way/ {FAST}",
    "interpolate to a film": f"interpolate in/0.png in/1.png --steps 4 -o way.gif {FAST}",
    "inpaint": f"inpaint in --mask hole.png -o out/ {FAST}",
    "colourise": f"colourise in/0.png -o coloured.png {FAST}",
    "sample": f"sample -n 4 -o out/ --batch-size 1 {FAST}",
    "sample a grid": f"sample -n 4 -o grid.png {FAST}",
    "align": "align in --landmarks faces.json --size 32 -o out/",
    "redo": "redo moved.png -o again.png",
    "codes merge": "codes merge z.safetensors z.safetensors -o all.safetensors --overwrite",
    "codes mix": "codes mix z.safetensors z.safetensors -o mixed.safetensors --overwrite",
    "codes split": "codes split z.safetensors -o rows/ --overwrite",
    "codes average": "codes average z.safetensors -o mean.safetensors --overwrite",
    "codes export": "codes export z.safetensors -o z.npz --overwrite",
    "attributes fit": f"attributes fit data {MODEL}",
    "attributes discover": f"attributes discover data {MODEL} -k 2 -o pca.png --overwrite {FAST}",
    "attributes rename": f"attributes rename smiling grin {MODEL}",
    "attributes remove": f"attributes remove smiling {MODEL}",
    "convert": "convert source -o made --overwrite",
    "export": f"export {MODEL} --to diffusers -o theirs --overwrite",
    "evaluate": f"evaluate gap data {MODEL} --pictures 4 -o gap/ --overwrite",
    "evaluate judge": "evaluate judge data --epochs 1 -o judge.safetensors --overwrite",
    "train dpm": f"train dpm data -o run {SHAPE} {LOOP}",
    "train encoder": f"train encoder data --dpm m -o run --z-dim 4 {LOOP}",
    "train autoencoder": f"train autoencoder data --dpm m -o run --z-dim 6 {LOOP}",
    "train latent": f"train latent data -m bare --width 8 --layers 2 {LOOP}",
    "train diffae": f"train diffae data -o run --z-dim 6 {SHAPE} {LOOP}",
    "train classifier": "train classifier data --dpm m -o run --condition odd "
    f"--base-channels 8 {LOOP}",
}  # fmt: skip

# What may differ between two runs, and why: files by pattern → what of them is compared.
DIFFERS: dict[str, Callable[[bytes], bytes]] = {
    # How fast it was.
    r".*\.jsonl": lambda data: re.sub(rb'"(images_per_)?seconds?": [^,}]+', b"", data),
    # Pages tell of one run: when it was, how long it took, what it found done.
    r".*\.html": lambda data: b"",
    # Who holds or held it.
    r"(.*/)?[^/]*lock": lambda data: b"",
    # A line is written before its file, so that a killed run leaves one too many.
    r"(.*/)?\.pdae/manifest.*": lambda data: b"\n".join(sorted({*data.splitlines()})),
}
WRITES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate")
Tree = dict[str, bytes]

# --- One run -------------------------------------------------------------------------------------


def template(folder: Path) -> None:
    """All that the commands start from, in this folder."""
    import torch
    from conftest import picture
    from foreign_models import DDPM_STYLE, pipeline
    from labelled import labelled

    torch.set_num_threads(1)
    model_folder(folder)
    shutil.copytree(folder / "m", folder / "bare")
    (folder / "bare" / "latent_dpm.safetensors").unlink()  # which `train latent` doesn't replace
    (folder / "in").mkdir()
    for number in range(4):
        picture(number, (32, 32)).save(folder / "in" / f"{number}.png")
    picture(5, (32, 32)).convert("L").point(lambda x: 255 * (x > 128)).save(folder / "hole.png")
    face = {"left_eye": [10, 12], "right_eye": [20, 12.5], "mouth": [15, 22]}
    faces = {f"{number}.png": face for number in range(4)}
    (folder / "faces.json").write_text(json.dumps(faces))
    labelled(folder / "data", 8, 6)
    pipeline(folder / "source", DDPM_STYLE)


def begun(line: str, folder: Path, writes: mmap.mmap, last: int = 0) -> int:
    """Start a command in a process of its own, which counts its writes in `writes` and dies before
    the write number `last`, where that isn't 0."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.chdir(folder)
        log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ |= {"PDAE_MODEL": "m", "PDAE_DEVICE": "cpu", "HF_HUB_OFFLINE": "1"}
        import torch

        from pdae_cli.cli import main

        torch.set_num_threads(1)
        sys.addaudithook(lambda event, about: _count(event, about, writes, last))
        sys.argv = ["pdae", *shlex.split(line)]
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0
    finally:
        folder.with_suffix(".modules").write_text(" ".join(sys.modules))
        sys.stderr.flush()
        os._exit(code)


def _count(event: str, about: tuple[Any, ...], writes: mmap.mmap, last: int) -> None:
    flags = about[2] if event == "open" else 0
    if event in WRITES or (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)):
        done = int.from_bytes(writes[:8], "little") + 1
        writes[:8] = done.to_bytes(8, "little")
        if done == last:
            os.kill(os.getpid(), signal.SIGKILL)


def tree(folder: Path) -> Tree:
    """Every file below it, as far as runs are to agree on it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name, data = path.relative_to(folder).as_posix(), path.read_bytes()
            for pattern, agreed in DIFFERS.items():
                data = agreed(data) if re.fullmatch(pattern, name) else data
            found[name] = data
    return found


def unreadable(folder: Path) -> list[str]:
    """What is said of the tensors' files below it that can't be opened, or have a number that isn't
    finite. By numpy, since torch would start threads."""
    import numpy as np
    from safetensors.numpy import load_file

    said = []
    for path in sorted(folder.rglob("*.safetensors")):
        name = path.relative_to(folder).as_posix()
        try:
            if not all(np.isfinite(one).all() for one in load_file(path).values()):
                said.append(f"{name} isn't finite")
        except Exception as error:
            said.append(f"{name} can't be read: {error}")
    return said


# --- Many ----------------------------------------------------------------------------------------


@dataclass
class Figures:
    """What became of the kills of one command."""

    kills: int = 0
    late: int = 0  # the run was over before
    reruns: int = 0
    equal: int = 0
    torn: int = 0  # files that were neither old nor new after a kill
    refused: Counter[str] = field(default_factory=Counter)  # what reruns said that weren't 0
    faults: list[str] = field(default_factory=list)


class Command:
    """One command, its uninterrupted run, and what becomes of it when it is killed."""

    def __init__(self, name: str, start: Path, room: Path) -> None:
        self.name, self.line, self.start, self.room = name, COMMANDS[name], start, room
        self.figures, self.writes = Figures(), mmap.mmap(-1, 8)  # shared with the processes
        self.old, self.whole = tree(start), self.uninterrupted()
        before = time.perf_counter()
        if odd := {path for path, _ in self.whole.items() ^ self.uninterrupted().items()}:
            raise RuntimeError(f"{name}: two uninterrupted runs differ in {', '.join(sorted(odd))}")
        self.seconds = time.perf_counter() - before
        self.count = int.from_bytes(self.writes[:8], "little")

    def uninterrupted(self) -> Tree:
        """What a whole run makes. What it imported is imported here, so that the next is fast."""
        folder = self.copy("whole")
        self.writes[:8] = bytes(8)
        code = self.ended(begun(self.line, folder, self.writes))
        if code:
            raise RuntimeError(f"{self.name}: {folder.with_suffix('.log').read_text()}")
        for name in folder.with_suffix(".modules").read_text().split():
            with suppress(Exception):
                import_module(name)
        return tree(folder)

    def copy(self, name: str) -> Path:
        """A fresh folder to run in."""
        folder = self.room / name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.start, folder)
        return folder

    @staticmethod
    def ended(pid: int) -> int:
        """Wait for a process: its exit code, negative for the signal that killed it."""
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def kill(self, folder: Path, chance: random.Random) -> None:
        """Run the command and kill it: at a time, or at a write."""
        self.writes[:8] = bytes(8)
        if chance.random() < 0.5:
            pid = begun(self.line, folder, self.writes, chance.randrange(self.count) + 1)
        else:
            pid = begun(self.line, folder, self.writes)
            time.sleep(chance.uniform(0, self.seconds))
            os.kill(pid, signal.SIGKILL)  # which is there until it is waited for
        died = self.ended(pid) == -signal.SIGKILL
        self.figures.kills += died
        self.figures.late += not died
        if self.name.startswith("train"):  # between two of its steps the files are others
            self.figures.faults += unreadable(folder)
            return
        for name, data in tree(folder).items():
            grows = name.endswith((".tmp", ".jsonl"))
            known = [one[name] for one in (self.old, self.whole) if name in one]
            if not (grows or data in known or _of_both(name, data, known)):
                self.figures.torn += 1
                self.figures.faults.append(f"{name} is neither old nor new")

    def again(self, folder: Path) -> None:
        """Run it to its end and compare."""
        code = self.ended(begun(self.line, folder, self.writes))
        found, figures = tree(folder), self.figures
        figures.reruns += 1
        figures.equal += found == self.whole
        said = folder.with_suffix(".log").read_text().strip()[-300:]
        if code:
            figures.refused[f"{code}: {said}"] += 1
        for name in sorted(found.keys() | self.whole.keys()):
            if found.get(name) != self.whole.get(name):
                kind = "differs" if name in found and name in self.whole else "missing"
                kind = "stray" if name not in self.whole else kind
                figures.faults.append(f"{name}: {kind}; exit code {code}: {said}")


def _of_both(name: str, data: bytes, known: list[bytes]) -> bool:
    """Whether it is the config of a model that names the weights that were and those that come,
    until these are there: with either it is a whole model."""
    if not name.endswith("config.json"):
        return False
    now, others = json.loads(data), [json.loads(one) for one in known]
    shas = {sha for one in others for sha in one.pop("weights_sha256", [])}
    return set(now.pop("weights_sha256", [])) <= shas and now in others


def run(names: list[str], count: int, seed: int, room: Path) -> dict[str, Figures]:
    """Kill each of these commands in turn until there were `count` kills; a run in four is killed
    more than once before it may end."""
    start = room / "start"
    start.mkdir()
    if Command.ended(_apart(lambda: _prepare(start))):
        raise RuntimeError("the files to start from can't be made")
    commands = [Command(name, start, room) for name in names]
    chance, turn = random.Random(seed), 0
    while sum(one.figures.kills for one in commands) < count:
        command = commands[turn % len(commands)]
        folder = command.copy("killed")
        command.kill(folder, chance)
        while chance.random() < 0.25:
            command.kill(folder, chance)
        command.again(folder)
        turn += 1
    return {one.name: one.figures for one in commands}


def _prepare(start: Path) -> None:
    from fuzzing.using import pdae

    template(start)
    os.chdir(start)
    pdae(f"encode in {MODEL} -o z.safetensors {FAST}")
    pdae(f"manipulate in/0.png {MODEL} --attr smiling=1 -o moved.png {FAST}")


def _apart(what: Callable[[], None]) -> int:
    """Do something in a process of its own, so that this one computes nothing: threads that a
    library started don't live on in what is forked."""
    if pid := os.fork():
        return pid
    try:
        what()
        os._exit(0)
    finally:
        os._exit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("commands", nargs="*", metavar="COMMAND", help="; ".join(COMMANDS))
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    import_module("pdae_cli.cli.app")
    import_module("torch")
    with tempfile.TemporaryDirectory() as room:
        figures = run(args.commands or list(COMMANDS), args.count, args.seed, Path(room))
    if args.json:
        print(json.dumps({name: vars(one) for name, one in figures.items()}, indent=1))
    else:
        rows = [
            [name, one.kills, one.late, one.reruns, one.equal, one.torn, one.refused.total()]
            for name, one in figures.items()
        ]
        print(table("command|kills|too late|reruns|equal|torn files|refused reruns", rows))
        print(f"{sum(one.kills for one in figures.values())} kills")
        for name, one in figures.items():
            for said in (*one.refused, *one.faults[:3]):
                print(f"{name}: {said}")
    sys.exit(any(one.faults for one in figures.values()))


if __name__ == "__main__":
    main()
