"""Damaged files through what the commands do with them: nothing unexpected, nothing large or slow.

    python benchmarks/fuzz.py pictures --count 50000 --seed 1
    python benchmarks/fuzz.py configs --seed 1 --first 812 --count 1    # one of them again

Subjects: pictures, configs, codes, archives, tables; needs the `test` extra. A child process goes
through the files; the parent sees when it hangs or dies, counts that, and goes on behind the file.
Unexpected is every exception that isn't a PdaeError, a message that steers or floods the terminal,
a temporary file that stays; memory counts above
what the modules take. Prints a table, or with --json an object; exit code 1 beyond a limit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue

from fuzzing import archives, configs, pictures, tables, tensors
from fuzzing.using import Kinds, damaged
from report import table

# Each: a folder → its kinds of files, which are made there.
SUBJECTS: dict[str, Callable[[Path], Kinds]] = {
    "pictures": pictures.kinds, "configs": configs.kinds, "codes": tensors.kinds,
    "archives": archives.kinds, "tables": tables.kinds,
}  # fmt: skip
Record = dict[str, object]
PATIENCE_S = 120.0  # of the parent, for one file: far beyond what is allowed
SECONDS, MEBIBYTES = 10.0, 600.0  # the limits for one file: of CPU, and of memory above the start
CEILING = 4 << 30  # bytes that the child may ask for at all
UNIT = 1 if sys.platform == "darwin" else 1024  # bytes, of ru_maxrss

# --- The child: goes through files, says what became of each -------------------------------------


def work(subject: str, seed: int, first: int, last: int, folder: Path) -> None:
    """Files first … last-1: a line of JSON before each, and one with its outcome after. Ends where
    a file made it too large, since it doesn't shrink again."""
    import torch

    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (CEILING, CEILING))
    os.environ |= {"PDAE_DEVICE": "cpu", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
    warnings.simplefilter("ignore")
    kinds, said = SUBJECTS[subject](folder), sys.stdout
    sys.stderr = os.fdopen(os.dup(2), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries in C complain there of each file
    for record in examined(kinds, f"{subject} {seed}", range(first, last)):
        print(json.dumps(record), file=said, flush=True)
        if float(str(record.get("grown", 0))) > MEBIBYTES:
            return


def examined(kinds: Kinds, seed: str, keys: Iterable[int]) -> Iterator[Record]:
    """Damage and use files of all kinds in turn; yield a record before and after each."""
    names, start = sorted(kinds), _peak()
    for key in keys:
        name, chance = names[key % len(names)], random.Random(f"{seed} {key}")
        data = damaged(name, kinds, chance)
        yield {"begun": key, "kind": name}
        begun, cpu, trace = time.perf_counter(), time.process_time(), ""
        try:
            outcome = kinds[name].use(data, chance)
        except Exception as error:
            outcome, trace = f"unexpected: {type(error).__name__}", traceback.format_exc()
        yield {
            "key": key, "kind": name, "outcome": outcome, "trace": trace[-3000:],
            "seconds": time.perf_counter() - begun, "cpu": time.process_time() - cpu,
            "peak": _peak(), "grown": _peak() - start,
        }  # fmt: skip


def _peak() -> float:
    """MiB that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT / (1 << 20)


# --- The parent ----------------------------------------------------------------------------------


@dataclass
class Figures:
    """What became of all files."""

    files: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    kinds: dict[str, Counter[str]] = field(default_factory=dict)
    unexpected: int = 0
    hangs: int = 0
    crashes: int = 0
    large: int = 0
    slow: int = 0
    slowest_s: float = 0.0
    slowest_cpu_s: float = 0.0
    slowest: str = ""
    peak_mib: float = 0.0  # in all
    grown_mib: float = 0.0  # above what the process had before the first file
    culprits: dict[str, str] = field(default_factory=dict)  # the first of each sort, to look into

    def add(self, record: Record) -> None:
        """One file's record."""
        kind, outcome, key = str(record["kind"]), str(record["outcome"]), record["key"]
        cpu, grown, trace = float(str(record["cpu"])), float(str(record["grown"])), record["trace"]
        self.count(kind, outcome)
        if cpu > self.slowest_cpu_s:
            self.slowest_cpu_s, self.slowest = cpu, f"{kind}, number {key}"
        self.slowest_s = max(self.slowest_s, float(str(record["seconds"])))
        self.peak_mib = max(self.peak_mib, float(str(record["peak"])))
        self.grown_mib = max(self.grown_mib, grown)
        if not outcome.startswith(("taken", "refused: ")):
            self.unexpected += 1
            self.blame(f"{kind}, number {key}: {outcome}", f"{trace}  in {kind}")
        if cpu > SECONDS:
            self.slow += 1
            self.blame(f"{kind}, number {key}: {cpu:.1f} s", f"slow {kind}")
        if grown > MEBIBYTES:
            self.large += 1
            self.blame(f"{kind}, number {key}: {grown:.0f} MiB", f"large {kind}")

    def count(self, kind: str, outcome: str) -> None:
        self.files += 1
        self.outcomes[outcome] += 1
        self.kinds.setdefault(kind, Counter())[outcome.partition(":")[0]] += 1

    def lost(self, key: int, kind: str, hung: bool, status: int | None) -> None:
        """The child didn't come back from a file."""
        self.hangs += hung
        self.crashes += not hung
        outcome = "hang" if hung else f"crash: status {status}"
        self.count(kind, outcome)
        self.blame(f"{kind}, number {key}: {outcome}", f"{outcome} {kind}")

    def blame(self, text: str, why: str) -> None:
        """Keep the first of what goes wrong at one place in a kind of files."""
        places = [line for line in why.splitlines() if line.startswith(("  File ", "  in "))]
        self.culprits.setdefault(" ".join(places[-2:]) or why, f"{text}\n{why}")

    @property
    def good(self) -> bool:
        """Whether nothing is unexpected and all limits hold."""
        return not (self.unexpected or self.hangs or self.crashes or self.large or self.slow)


def watch(
    child: Callable[[int], Sequence[str]], last: int, first: int = 0, patience: float = PATIENCE_S
) -> Figures:
    """Run `child(first)`, a command that goes through files first … last-1, again behind every file
    that it hangs, dies or ends at."""
    figures = Figures()
    while first < last:
        process = subprocess.Popen(child(first), stdout=subprocess.PIPE, text=True)
        before, begun, hung = first, None, False
        with process:
            for record in _records(process, patience):
                if "begun" in record:
                    begun = record
                elif "hung" in record:
                    hung = True
                    process.kill()
                else:
                    figures.add(record)
                    first, begun = int(str(record["key"])) + 1, None
        if begun is not None:
            key = int(str(begun["begun"]))
            figures.lost(key, str(begun.get("kind")), hung, process.returncode)
            first = key + 1
        elif first == before:
            status = process.returncode
            raise RuntimeError(f"the child ended with status {status} before file {first}")
    return figures


def _records(process: subprocess.Popen[str], patience: float) -> Iterator[Record]:
    """What a child says, a line each, and {"hung": true} once it is silent for `patience` s."""
    lines: Queue[str] = Queue()

    def forward() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put("")

    thread = threading.Thread(target=forward)
    thread.start()
    try:
        while line := lines.get(timeout=patience):
            yield json.loads(line)
    except Empty:
        yield {"hung": True}
    thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work is not None:
        return work(args.subject, args.seed, args.first, args.first + args.count, args.work)
    last = args.first + args.count

    def child(first: int) -> list[str]:
        line = [sys.executable, str(Path(__file__)), args.subject, "--seed", str(args.seed)]
        place = tempfile.mkdtemp(dir=folder)
        return [*line, "--first", str(first), "--count", str(last - first), "--work", place]

    with tempfile.TemporaryDirectory() as folder:
        figures = watch(child, last, args.first)
    if args.json:
        print(json.dumps(vars(figures), indent=1))
    else:
        show(figures)
    sys.exit(not figures.good)


def show(figures: Figures) -> None:
    """Print it for people."""
    rows = [[k, sum(c.values()), c["taken"], c["refused"]] for k, c in figures.kinds.items()]
    print(table("kind|files|taken|refused", sorted(rows)))
    print(table("outcome|files", sorted(map(list, figures.outcomes.items()))))
    print(
        f"{figures.files} files: {figures.unexpected} unexpected, {figures.hangs} hangs, "
        f"{figures.crashes} crashes, {figures.slow} slow, {figures.large} large; "
        f"slowest {figures.slowest_cpu_s:.2f} s of CPU ({figures.slowest}), "
        f"{figures.slowest_s:.2f} s by the clock; "
        f"memory {figures.grown_mib:.0f} MiB above the start, {figures.peak_mib:.0f} MiB in all"
    )
    print(*figures.culprits.values(), sep="\n\n")


if __name__ == "__main__":
    main()
