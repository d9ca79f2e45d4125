"""The batch runner that every command uses: inputs → batches → outputs → manifest → records.

A failing input is reported and the others go on; the command then ends with exit code 3. In an
output folder a manifest knows what is done; the same command does only the rest.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ...errors import InputError, UsageError
from ..options import BatchOptions
from ..output import Output, ProgressLine
from . import processes
from .destination import Destination
from .inputs import Item
from .loading import Load, Loaded, loaded_ahead, pictures_and_codes
from .manifest import Job, Manifest, State, options_that_matter
from .viewing import Viewer

if TYPE_CHECKING:
    from torch import Tensor

    from ...engine.model import Model

STATUSES = ("done", "unchanged", "skipped", "failed")
POLL = 0.2  # seconds between looks at what another process works on


@dataclass
class Made:
    """What became of one input: a file's content (None: nothing to write) and its record."""

    source: Loaded
    data: bytes | None
    record: dict[str, Any]
    text: str = ""  # the record for people
    picture: Tensor | None = None  # uint8 (C, H, W): the result alone, where no file holds it so


Process = Callable[[list[Loaded]], Sequence[Made]]
Gather = Callable[[list[Made]], tuple[bytes, list[Made]]]  # one file of all, and what to report


@dataclass
class Runner:
    """One command's way through its inputs."""

    options: BatchOptions
    command: str
    destination: Destination | None = None
    nfe: int = 0  # network evaluations a picture, for the progress
    counts: Counter[str] = field(default_factory=Counter)  # of inputs, by status
    causes: Counter[str] = field(default_factory=Counter)  # of failures
    _written: dict[Path, str] = field(default_factory=dict)
    _seen: set[Path] = field(default_factory=set)  # outputs that this run has decided on
    _told: set[str] = field(default_factory=set)
    _later: list[Item] = field(default_factory=list)  # others work on these
    _gathered: list[Made] = field(default_factory=list)

    def __post_init__(self) -> None:
        stdout = self.destination is not None and self.destination.stdout
        if stdout and self.options.json:
            raise UsageError("--json and -o - both want standard output; write to a file")
        if stdout and sys.stdout.isatty():
            raise UsageError("won't write binary data to a terminal; redirect it or use -o FILE")
        self.number, self.shares = self._share()
        self.out = Output(self.options.json, self.options.quiet or stdout)
        self.viewer = Viewer(self.options, self.command, self.out, self.destination)
        self.model = self._load()
        self.job = Job(self.command, self.model.digest, options_that_matter(self.options.given))
        self.manifest: Manifest | None = None

    def _share(self) -> tuple[int, int]:
        """Which share of the inputs is this process's, of how many.

        With --num-processes other processes do it all, and this one ends with their exit code.
        """
        options, launched = self.options, processes.launched()
        if (options.num_processes > 1) + (options.share is not None) + (launched[1] > 1) > 1:
            raise UsageError("--num-processes, --share and a launcher exclude each other")
        number, shares = processes.parse_share(options.share) if options.share else launched
        if max(shares, options.num_processes) > 1:
            inputs = [*(options.given.get("inputs") or []), options.given.get("files_from")]
            if "-" in inputs or (self.destination is not None and not self.destination.folder):
                raise UsageError("several processes need a folder as -o, and no standard input")
            if options.report or options.sheet:
                raise UsageError("--report and --sheet need one process; run it again as one")
        if options.num_processes > 1:
            raise typer.Exit(processes.run_shares(sys.argv[1:], options.num_processes))
        return number, shares

    def _load(self) -> Model:
        """The model, on this process's device."""
        if processes.launched()[1] > 1:
            processes.join_launcher()
        elif self.shares > 1:
            return self.options.load(processes.device_of_share(self.options.device, self.number))
        return self.options.load()

    def first_time(self, text: str) -> bool:
        """Whether this is to be said: once a run."""
        new = text not in self._told
        self._told.add(text)
        return new

    # --- The way through -------------------------------------------------------------------------

    def run(
        self,
        items: Iterable[Item],
        process: Process,
        gather: Gather | None = None,
        load: Load | None = None,
    ) -> None:
        """process() batches of like inputs, write what it makes, report; exit 3 if any failed.

        With `gather` nothing is written for single inputs but one file for all, at the end; it gets
        what process() made and returns the file's content and what to report.
        """
        if isinstance(items, list):
            self._check_room(items, gather is not None)
            items = items[self.number :: self.shares]
        if gather and not self._file_wanted():
            return self.finish()
        if self.destination and self.destination.folder:
            part = f"-{self.number}" if self.shares > 1 else ""
            self.manifest = Manifest(Path(self.destination.target), self.job, part)
        load = self.viewer.load = load or pictures_and_codes(self.model, self.options)
        total = len(items) if isinstance(items, list) else None
        try:
            with self.out.progress(self.command, total, self.nfe) as bar:
                self.model.evaluated = bar.evaluated
                while True:
                    for batch in self._batches(items, load, bar):
                        self._do(batch, process, gather is not None)
                    if not self._later:
                        break
                    items = list(dict.fromkeys(self._later))
                    self._later.clear()
                    time.sleep(POLL)
            if gather and self._gathered:
                self._write_gathered(gather)
        except KeyboardInterrupt:
            hint = "; the same command goes on where it stopped" if self.manifest else ""
            self.out.say(f"interrupted{hint}")
            raise
        finally:
            if self.manifest is not None:
                self.manifest.close()
        self.finish()

    def _check_room(self, items: list[Item], gathers: bool) -> None:
        """Whether each result has a file of its own. Raises UsageError."""
        if self.destination is None or gathers:
            return
        if not self.destination.folder:
            if len(items) > 1 and not self.destination.stream:
                raise UsageError(
                    f"{len(items)} inputs need a folder: -o {self.destination.target}/"
                )
            return
        taken: dict[Path, str] = {}
        for item in items:
            path = self.destination.path(item.place)
            if path in taken:
                raise UsageError(
                    f"{taken[path]} and {item.label} would both become {path}; rename one, or pass "
                    "-r to mirror folders"
                )
            taken[path] = item.label

    def _do(self, batch: list[Loaded], process: Process, gathers: bool) -> None:
        """Process a batch; when that fails, each of it alone, so that only the cause fails."""
        try:
            made = process(batch)
        except InputError as error:
            if len(batch) > 1:
                for one in batch:
                    self._do([one], process, gathers)
                return
            self.fail(batch[0].label, error)
            made = []
        if gathers:
            self._gathered += made
        else:
            self._keep(made)
        self._release(batch)

    def _batches(
        self, items: Iterable[Item], load: Load, bar: ProgressLine
    ) -> Iterator[list[Loaded]]:
        """Loaded inputs that are to be done, in batches of one kind."""
        batch: list[Loaded] = []
        size = self.options.batch_size
        ahead = loaded_ahead(items, load, self._find, 2 * size)
        while True:
            try:
                item, loaded = next(ahead)
            except StopIteration:
                break
            except InputError as error:  # of a stream, which ends here
                self.fail("-", error)
                break
            if isinstance(loaded, InputError):
                self.fail(item.label, loaded)
                loaded = []
            for note in {one.note for one in loaded if one.note}:
                self.out.say(note)
            wanted = [one for one in loaded if self._wanted(one)]
            if not wanted and item not in self._later:
                bar.advance(1)
            for one in wanted:
                if batch and (len(batch) >= size or _kind(batch[0]) != _kind(one)):
                    yield batch
                    bar.advance(len(batch))
                    batch = []
                batch.append(one)
        if batch:
            yield batch
            bar.advance(len(batch))

    # --- What is done, and whose it is -----------------------------------------------------------

    def _find(self, place: Path, source: str) -> State:
        """What there is of the output for a place."""
        if self.manifest is not None and self.destination is not None:
            return self.manifest.state(self.destination.path(place), source)
        single = self.destination is not None and not self.destination.stdout
        return State(foreign=single and self._file_exists())

    def _file_exists(self) -> bool:
        """Whether the one file to write is there; what this run wrote doesn't count."""
        assert self.destination is not None
        path = self.destination.path(Path())
        return path.exists() and path not in self._written

    def _wanted(self, loaded: Loaded) -> bool:
        """Whether its output is still to be made, by this process; else report why not."""
        state = loaded.state
        if self.destination is None or self.destination.stdout:
            return True
        path = self.destination.path(loaded.place)
        if self.manifest is not None:
            if path in self._seen:
                return False
            if not self.manifest.claim(path):
                self._later.append(loaded.item)
                return False
            self._seen.add(path)
            if not state.done:  # another process may have made it since this was read
                self.manifest.refresh()
                state = self._find(loaded.place, loaded.source)
        if self._may_write(path, loaded.label, state, loaded):
            return True
        if self.manifest is not None:
            self.manifest.release(path)
        return False

    def _may_write(
        self, path: Path, label: str, state: State, source: Loaded | None = None
    ) -> bool:
        if self.options.overwrite:
            return True
        if state.done:
            self.counts["unchanged"] += 1
            facts = {"status": "unchanged", "input": label, "output": str(path)}
            record = facts | (state.record or {}) | facts
            self.out.result(record, "")
            self.viewer.see(record, "", source, path)
            return False
        if self.options.skip_existing and path.exists():
            self.counts["skipped"] += 1
            record = {"input": label, "output": str(path), "status": "skipped"}
            self.out.result(record, f"{label} skipped: {path} exists")
            self.viewer.see(record)
            return False
        if state.foreign:
            self.fail(label, InputError(f"{path} exists; pass --overwrite or --skip-existing"))
            return False
        if state.reason:
            self.out.say(f"{label} is made again: {state.reason}")
        return True

    def _file_wanted(self) -> bool:
        """Whether the one file of all results is to be made."""
        assert self.destination is not None
        if self.destination.stdout:
            return True
        state = State(foreign=self._file_exists())
        return self._may_write(self.destination.path(Path()), self.destination.target, state)

    def _release(self, batch: list[Loaded]) -> None:
        if self.manifest is not None and self.destination is not None:
            for one in batch:
                self.manifest.release(self.destination.path(one.place))

    # --- Results ---------------------------------------------------------------------------------

    def _keep(self, made: Sequence[Made]) -> None:
        """Write a batch's results and report them; the manifest learns of them first."""
        if self.manifest is not None and self.destination is not None:
            self.manifest.add(
                (self.destination.path(one.source.place), one.source.source, one.data, one.record)
                for one in made
                if one.data is not None
            )
        for one in made:
            try:
                if one.data is not None and self.destination is not None:
                    self._write(one)
            except InputError as error:
                self.fail(one.source.label, error)
                continue
            self.report(one)

    def _write(self, made: Made) -> None:
        assert self.destination is not None and made.data is not None
        if not self.destination.stdout:
            path = self.destination.path(made.source.place)
            if path in self._written and not self.destination.folder:
                raise InputError(f"{path} already holds {self._written[path]}; give a folder as -o")
            self._written[path] = made.source.label
        self.destination.write(made.source.place, made.data)

    def _write_gathered(self, gather: Gather) -> None:
        assert self.destination is not None
        try:
            data, made = gather(self._gathered)
            self.destination.write(Path(), data)
        except InputError as error:
            self.fail(self.destination.target, error)
            return
        for one in made:
            self.report(one)

    def report(self, made: Made) -> None:
        """One input's record, once its result is kept."""
        self.counts["done"] += 1
        output = None
        if self.destination is not None:
            single = not self.destination.folder
            output = self.destination.target if single else None
            output = output or str(self.destination.path(made.source.place))
        label = made.source.label
        record = {"status": "done", "input": label, "output": output, **made.record}
        text = f"{label} → {output}{made.text}" if output else f"{label}{made.text}"
        result = made.data if made.picture is None else made.picture
        self.out.result(record, text)
        self.viewer.see(record, made.text, made.source, result)

    def fail(self, label: str, error: Exception) -> None:
        """Report one failed input."""
        message = str(error)
        self.counts["failed"] += 1
        self.causes[message.removeprefix(f"{label}: ")] += 1
        if label not in message:
            message = f"{label}: {message}"
        record = {"input": label, "status": "failed", "error": message}
        if self.options.json:
            self.out.result(record, "")
        self.out.error(message)
        self.viewer.see(record)

    def finish(self) -> None:
        """Say how it went, failures by cause; exit 3 if there are any."""
        if self.counts.keys() - {"done"}:
            parts = [
                f"{self.counts[status]} {status}" for status in STATUSES if self.counts[status]
            ]
            self.out.say(", ".join(parts))
        if self.counts["failed"] > len(self.causes):
            for cause, count in self.causes.most_common(20):
                self.out.say(f"{count} times: {cause}")
        self.viewer.finish(self.model, self.job)
        if self.shares > 1 and processes.launched()[1] > 1:
            processes.wait_for_others()
        if self.counts["failed"]:
            raise typer.Exit(InputError.exit_code)


def _kind(loaded: Loaded) -> tuple[bool, bool, str]:
    codes = loaded.codes
    if codes is None:
        return (False, False, "")
    return (True, codes.x_T is not None, json.dumps(codes.sampling, sort_keys=True))
