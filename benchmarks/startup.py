"""Where the time of one command on one picture goes: interpreter, imports, weights, network, rest.

    python benchmarks/startup.py examples/faces/00000.png --rounds 5

Runs `pdae manipulate` in new processes, in turns with `python -c "import torch"` and others that
set the floor. Prints a table of medians. Seconds are by the clock, so nothing else should run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from report import stamp, table, write_between_marks

PYTHON = sys.executable
# Runs the command with clocks around its parts; the last line of standard error tells them.
TIMED = """
import sys, time
begun = time.perf_counter()
spent = {}
def clocked(name, function):
    def run(*args, **more):
        start = time.perf_counter()
        try:
            return function(*args, **more)
        finally:
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - start
    return run
import torch
spent["import torch"] = time.perf_counter() - begun
from pdae_cli.checkpoints import find
from pdae_cli.networks import encoder, heads
find.read_model = clocked("model: build, read weights", find.read_model)
heads.Heads.at = clocked("network", heads.Heads.at)
heads.Heads.prepare = clocked("network", heads.Heads.prepare)
encoder.Encoder.forward = clocked("network", encoder.Encoder.forward)
from pdae_cli.cli.app import app
try:
    app(sys.argv[1:], prog_name="pdae")
except SystemExit as end:
    assert not end.code, end.code
import json
spent["all of the process"] = time.perf_counter() - begun
print(json.dumps(spent), file=sys.stderr)
"""


def seconds(command: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - begun


def one_round(picture: Path, folder: str) -> dict[str, float]:
    edit = ["manipulate", str(picture), "--attr", "smiling", "--scale", "0.3", "--overwrite"]
    edit += ["-o", str(Path(folder, "out.png"))]
    found = {
        "python -c pass": seconds([PYTHON, "-c", "pass"]),
        "pdae --version": seconds([PYTHON, "-m", "pdae_cli", "--version"]),
        'python -c "import torch"': seconds([PYTHON, "-c", "import torch"]),
        "pdae manipulate": seconds([PYTHON, "-m", "pdae_cli", *edit]),
    }
    done = subprocess.run([PYTHON, "-c", TIMED, *edit], check=True, capture_output=True, text=True)
    parts = json.loads(done.stderr.splitlines()[-1])
    whole = parts.pop("all of the process")
    parts["all else"] = whole - sum(parts.values())
    return found | {f"… of it {name}": spent for name, spent in parts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--text", type=Path, help="put the table between its marks")
    args = parser.parse_args()
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).parents[1]))
    with TemporaryDirectory() as folder:
        one_round(args.picture, folder)  # compiles modules, fills the disk's cache
        rounds = [one_round(args.picture, folder) for _ in range(args.rounds)]
    middle = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    rows = [[name, f"{s:.2f}", f"{min(one[name] for one in rounds):.2f}"]
            for name, s in middle.items()]  # fmt: skip
    body = f"{stamp()}.\n\n{table('what|median, s|fastest, s', rows)}"
    print(body)
    if args.text:
        write_between_marks(args.text, body)


if __name__ == "__main__":
    main()
