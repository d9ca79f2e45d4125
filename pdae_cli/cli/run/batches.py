"""A command's way through its inputs: batches in, results and records out.

    with Run(model, options, "decode", destination, nfe) as run:
        for batch in run.batches(items):
            with batch:
                run.keep(batch, [Made(…) for …])

An input that fails is reported and costs itself alone: a batch whose body raises InputError comes
again, one by one. In an output folder a manifest knows what is done; a file's own recipe does.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import typer

from ...errors import InputError, UsageError, printable
from ..options import SharedOptions
from ..output import Output
from .destination import HOLDING, Destination
from .inputs import Item, files_named, shared_out
from .launch import any_of_us
from .loading import Load, Loaded, anew, loaded_ahead, pictures_and_codes
from .manifest import Job, Manifest, State, state_of_file
from .recipes import defaults_sha, options_that_matter, told
from .tables import TABLE
from .viewing import Viewer

if TYPE_CHECKING:
    from torch import Tensor

    from ...checkpoints import PretrainedModel

STATUSES = ("done", "unchanged", "skipped", "failed")


@dataclass
class Made:
    """What became of one input: a file's content (None: nothing to write) and its record."""

    data: bytes | None
    record: dict[str, Any]
    text: str = ""  # the record for people
    picture: Tensor | None = None  # uint8 (C, H, W): the result alone, where no file holds it so


class Batch(list[Loaded]):
    """Inputs of one kind. As a context it keeps an InputError for `Run.batches`."""

    error: InputError | None = None

    def __enter__(self) -> Batch:
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if isinstance(error, InputError):
            self.error = error
        return self.error is not None


class Run:
    """One command's run. Entered, it shows progress; left, it says how it went, and raises
    typer.Exit(3) if an input failed, here or in another process of a launcher."""

    def __init__(
        self,
        model: PretrainedModel,
        options: SharedOptions,
        command: str,
        destination: Destination,
        nfe: int = 0,  # network evaluations a picture, for the progress
    ) -> None:
        """Raises UsageError where the options don't go together."""
        if destination.stdout and options.json:
            raise UsageError("--json and -o - both want standard output; write to a file")
        for name, holding in HOLDING.items():
            if options.given.get(name) and destination.suffix not in holding:
                known = f"--{name.replace('_', '-')} is for {', '.join(holding)}, which hold that"
                raise UsageError(f"{known}; write one of these, or leave it out")
        self.model, self.command = model, command
        self.options: Any = options  # composed, for each command its own, in cli.options
        self.destination, self.nfe = destination, nfe
        # Whether standard output has the file's name and nothing else.
        self.told_by_name = destination.named and not options.json
        self.share, self.shares = options.shares()
        self.out = Output(options.json, options.quiet or destination.stdout)
        parts = {"config_sha256": model.config.sha, "defaults_sha256": defaults_sha()}
        self.job = Job(command, model.weights_sha, options_that_matter(options.given) | parts)
        self.viewer = Viewer(options, command, self.out, destination)
        one_file = destination.target and not destination.folder
        if self.shares > 1 and (one_file or self.viewer.files):
            raise UsageError("a share of the inputs needs a folder as -o, no --sheet or --report")
        self.counts: Counter[str] = Counter()  # of inputs, by status
        self.causes: Counter[str] = Counter()  # of failures
        self.failures: list[tuple[str, str]] = []  # names, without folders, and why
        self.shas: dict[str, str] = {}  # of inputs by label, as they were read; "" of the unread
        self.manifest: Manifest | None = None
        self.resumable = False  # whether the same command goes on where this one stops
        self.whole = False  # whether one file is made of all inputs
        self.kept: list[tuple[Loaded, Made]] = []  # for that
        self._file = files_named()
        # Whose the files are that this run has decided on.
        self._taken = {self._file(name): option for option, name in self.viewer.files.items()}
        other = self._taken.get(self._file(destination.target))
        if other and not destination.named:
            raise UsageError(f"-o {destination.target} and {other} have one name; rename one")
        self._told: set[str] = set()

    def __enter__(self) -> Run:
        self._progress = self.out.progress(self.command, None, self.nfe)
        self.bar = self._progress.__enter__()
        self.model.evaluated = self.bar.evaluated
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.__exit__(kind, error, trace)
        if isinstance(error, KeyboardInterrupt) and self.resumable:
            error.args = ("the same command goes on where it stopped",)
        if error is not None:
            return
        if self.counts.keys() - {"done"}:
            parts = [f"{self.counts[one]} {one}" for one in STATUSES if self.counts[one]]
            self.out.say(", ".join(parts))
        if self.counts["failed"] > len(self.causes):
            for cause, count in self.causes.most_common(20):
                self.out.say(f"{count} times: {cause}" if count > 1 else f"once: {cause}")
        self.viewer.finish(self.model, self.job)
        if any_of_us(self.counts["failed"] > 0):
            raise typer.Exit(InputError.exit_code)

    # --- The way through -------------------------------------------------------------------------

    def batches(
        self,
        items: Iterable[Item],
        load: Load | None = None,
        whole: bool = False,
        made_of: list[Item] | None = None,
    ) -> Iterator[Batch]:
        """Yield what is still to be done, in batches of one kind. With `whole` all of it makes one
        file, which the command hands to `write`; `made_of` these, where not of the items.

        Raises UsageError where results would have no file, or the same, and for shares of a stream.
        """
        load = self.viewer.load = load or pictures_and_codes(self.model, self.options)
        self.whole = whole
        if not isinstance(items, Sequence) and self.destination.file and not whole:
            raise UsageError("a stream of pictures needs a folder, -o out/, or -o -")
        if not isinstance(items, Sequence) and self.shares > 1:
            raise UsageError("a stream has no shares: each process would do all of it; run one")
        if isinstance(items, Sequence):
            self._check_room(items)
            items = shared_out(items, self.share, self.shares)
            self.bar.expect(len(items))
        inputs = items if made_of is None else made_of
        if self.destination.file and not self.file_wanted(inputs, load):
            return
        if self.destination.folder:
            part = f"-{self.share}" if self.shares > 1 else ""
            self.manifest = Manifest(Path(self.destination.target), self.job, part)
            self.resumable = True
        yield from self.through(items, load)

    def through(self, items: Iterable[Item], load: Load) -> Iterator[Batch]:
        """Yield batches of items as they come."""
        for batch in self._wanted_batches(items, load):
            yield batch
            if batch.error is not None and len(batch) == 1:
                self.fail(batch[0].label, batch.error)
            elif batch.error is not None:  # only the cause of it fails
                for one in batch:
                    alone = Batch([one])
                    yield alone
                    if alone.error is not None:
                        self.fail(one.label, alone.error)
            self.bar.advance(len(batch))

    def _wanted_batches(self, items: Iterable[Item], load: Load) -> Iterator[Batch]:
        """Batch what is in the items; report those that can't be read."""
        size, batch = self.options.batch_size, Batch()
        try:
            for item, loaded in loaded_ahead(items, load, self._find, 2 * size):
                if isinstance(loaded, InputError):
                    self.fail(item.label, loaded)
                    loaded = []
                if self.whole:
                    self.shas[item.label] = loaded[0].input_sha if loaded else ""
                self._check_folder(len(loaded), f"pictures of {item.label}")
                for note in {one.note for one in loaded if one.note}:
                    self.out.say(note)
                if self.whole:  # of what is kept none holds its bytes, and no two are the same
                    named = replace(item, read=partial(bytes))
                    loaded = [replace(one, item=named) for one in loaded]
                wanted = [one for one in loaded if self._wanted(one)]
                if not wanted:
                    self.bar.advance(1)
                for one in wanted:
                    if batch and (len(batch) >= size or _kind(batch[0]) != _kind(one)):
                        yield batch
                        batch = Batch()
                    batch.append(one)
        except InputError as error:  # of a stream, which ends here
            self.fail("-", error)
        if batch:
            yield batch

    def _check_room(self, items: Sequence[Item]) -> None:
        self._check_folder(len(items), "inputs")
        taken = dict(self._taken)
        for item in items if self.destination.folder else ():
            path = self.destination.path(item.place)
            other = taken.get(file := self._file(path))
            if other is not None:
                both = f"{other} and {item.label} would both become {path}"
                raise UsageError(f"{both}; rename one, or write them into two folders")
            taken[file] = item.label

    def _check_folder(self, count: int, what: str) -> None:
        """Raise UsageError where so many results have one file."""
        to = self.destination
        if count > 1 and not self.whole and (to.file or (to.stdout and not to.stream)):
            folder = to.target if to.file else "out"
            raise UsageError(f"{count} {what} need a folder: -o {folder}/")

    # --- What is done already --------------------------------------------------------------------

    def _find(self, item: Item, place: Path, input_sha: str) -> State:
        """Return what there is of the output for a place, made of an item."""
        if self.manifest is None or self.options.given.get("overwrite"):
            return State()  # nothing that is there counts
        return self.manifest.state(self.destination.path(place), input_sha, item)

    def _wanted(self, one: Loaded) -> bool:
        """Whether its output is still to be made; else report why not."""
        if not self.destination.folder:
            return True
        path = self.destination.path(one.place)
        other = self._taken.get(file := self._file(path))
        if other is not None:  # a frame, row or face has its name only now
            both = f"its output {path.name} is that of {told(other)} too"
            self.fail(one.label, InputError(f"{both}; rename one"))
            return False
        self._taken[file] = one.label
        return self._may_write(path, one.label, one.state, one)

    def file_wanted(self, items: Iterable[Item], load: Load) -> bool:
        """Whether the one file is still to be made; where we named it, under which name."""
        if not isinstance(items, Sequence):  # a stream, of which nobody knows
            items = [Item("-", Path(), name="-")]
        label = items[0].label if len(items) == 1 else self.destination.target

        def read(item: Item) -> None:
            list(load(item, anew))

        for path in self.destination.candidates():
            is_table = path.suffix.lower() == TABLE
            by_name = self.options.skip_existing and is_table  # its inputs aren't read
            state = State() if by_name else state_of_file(path, self.job, items, read)
            theirs = not state.done and path.exists()
            if self.destination.named and (theirs or self._file(path) in self._taken):
                continue
            self.destination = self.destination.at(path)
            if state.done and not self.options.overwrite and self.told_by_name:
                print(printable(str(path)))
            return self._may_write(path, label, state)
        return True

    def _may_write(self, path: Path, label: str, state: State, one: Loaded | None = None) -> bool:
        facts = {"input": label, "output": str(path)}
        if self.options.overwrite:
            return True
        if state.done:
            facts |= {"status": "unchanged"}
            record = facts | (state.record or {}) | facts
            self.counts["unchanged"] += 1
            for name, why in state.failed:
                self.fail(name, InputError(why))
            self.out.result(record, "")
            self.viewer.see(record, state.text, one, path)
        elif self.options.skip_existing and os.path.exists(path):  # noqa: PTH110, as in manifest
            record = facts | {"status": "skipped"}
            self.counts["skipped"] += 1
            self.out.result(record, f"{label} skipped: {path} exists")
            self.viewer.see(record)
        elif state.foreign:
            why = state.refusal(path, label, alone=self.destination.file)
            self.fail(label, InputError(why))
        else:
            if state.reason:
                self.out.say(f"{label} is made again: {state.reason}")
            return True
        return False

    # --- Results ---------------------------------------------------------------------------------

    def keep(self, batch: Batch, made: Sequence[Made]) -> None:
        """Write a batch's results and report them; the manifest learns of them first."""
        pairs = list(zip(batch, made, strict=True))
        if self.whole:
            self.kept += [(one.lean(self.viewer.looks), what) for one, what in pairs]
            return
        if self.manifest is not None:
            to = self.destination.path
            self.manifest.add(
                (one.item, to(one.place), one.input_sha, what.data, what.record, what.text)
                for one, what in pairs
                if what.data is not None
            )
        for one, what in pairs:
            try:
                if what.data is not None:
                    self.destination.write(one.place, what.data)
            except InputError as error:
                self.fail(one.label, error)
            else:
                self.report(one, what)

    def write(self, data: bytes, record: Made | None = None) -> None:
        """Write the one file of all that was kept, and report each of it, or this `record`."""
        try:
            self.destination.write(Path(), data)
        except InputError as error:
            self.fail(self.destination.target, error)
            return
        for one, what in self.kept if record is None else [(self.kept[0][0], record)]:
            self.report(one, what)

    def report(self, one: Loaded, what: Made) -> None:
        """Say one input's record, once its result is kept."""
        self.counts["done"] += 1
        output = self.destination.target or None
        if self.destination.folder:
            output = str(self.destination.path(one.place))
        record = {"status": "done", "input": one.label, "output": output, **what.record}
        text = f"{one.label} → {output}{what.text}" if output else f"{one.label}{what.text}"
        if self.told_by_name:
            if self.first_time(str(output)):
                print(printable(str(output)))
            self.out.say(text)
        else:
            self.out.result(record, text)
        self.viewer.see(record, what.text, one, what.data if what.picture is None else what.picture)

    def fail(self, label: str, error: Exception) -> None:
        """Report one failed input."""
        message = str(error)
        self.counts["failed"] += 1
        why = message.removeprefix(f"{label}: ")
        self.causes[why] += 1
        self.failures.append((told(label), why.replace(label, told(label))[:1000]))
        if label not in message:
            message = f"{label}: {message}"
        record = {"input": label, "status": "failed", "error": message}
        if self.options.json:
            self.out.result(record, "")
        self.out.error(message)
        self.viewer.see(record)

    def first_time(self, text: str) -> bool:
        """Whether this is to be said: once a run."""
        new = text not in self._told
        self._told.add(text)
        return new


def _kind(loaded: Loaded) -> tuple[bool, bool, str]:
    codes = loaded.codes
    if codes is None:
        return (False, False, "")
    return (True, codes.x_T is not None, json.dumps(codes.sampling, sort_keys=True))
