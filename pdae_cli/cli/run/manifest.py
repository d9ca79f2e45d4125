"""What an output folder's files were made of: the same command does only what is missing.

`OUT/.pdae/manifest.jsonl` has a line for each output: the SHA-256 of the file, of its input, and of
the job (command, model, options). A file is done when its own digest stands in a line of this job
and this input; that it exists says nothing. The line is written before the file takes its name, so
that a killed process leaves a line too many, never a file that nobody knows. Processes that share
a folder have disjoint inputs and a manifest each; two runs of one job write the same bytes twice.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...files import append, read_limited, sha256, unwritable
from ...pictures.listing import CODES, is_folder
from ...pictures.listing import MANIFEST as FOLDER
from .destination import PICTURE_SUFFIXES
from .inputs import MAX_CODES, Item
from .recipes import PARTS, Recipe
from .tables import PART_NAME, TABLE

LINE = 1 << 20  # bytes of a line; longer ones are damage
LARGEST = 1 << 30  # bytes of a manifest


@dataclass(frozen=True)
class Job:
    """What is done to each input: the command, the model's digest, and the options that matter."""

    command: str
    model: str
    options: dict[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 of all three; options that weren't given don't count."""
        told = {k: v for k, v in self.options.items() if given(v)}
        text = json.dumps([self.command, self.model, told], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def difference(self, other: dict[str, Any]) -> str:
        """Why this job isn't the other, in words."""
        theirs = other.get("options", {})
        if other.get("model") != self.model:
            return "another model"
        ours = json.loads(json.dumps(self.options, default=str))
        changed = [
            f"--{name.replace('_', '-')} was {_shown(theirs.get(name))}, is {_shown(value)}"
            for name, value in ours.items()
            if theirs.get(name) != value and name not in PARTS
        ]
        parts = [PARTS[one] for one in PARTS if theirs.get(one) != self.options.get(one)]
        if parts and not changed:
            unsaid = any(one in self.options and one not in theirs for one in PARTS)
            said = "it doesn't say of which" if unsaid else "the model has other"
            return f"{said} {' and '.join(parts)}" + ("" if unsaid else " now")
        return "; ".join(changed) or "other options"


def given(value: Any) -> bool:
    """Whether an option has a value; 0 is one."""
    return not (value is None or value is False or value in ((), []))


def _shown(value: Any) -> str:
    """An option's value as one types it."""
    if not given(value):
        return "not given"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


@dataclass(frozen=True)
class State:
    """Of one output: done, to be made, or somebody else's file (`foreign`)."""

    done: bool = False
    foreign: bool = False
    reason: str = ""  # why it is made again; nothing for what was never made
    record: dict[str, Any] | None = None  # what was said when it was done
    text: str = ""  # … to people
    failed: Sequence[Sequence[str]] = ()  # of its inputs: names, and why


def state_of_file(path: Path, job: Job, items: Sequence[Item]) -> State:
    """Return what is to be done about the one file that a job makes of all items: its own recipe
    says what it was made of."""
    if not os.path.exists(path):  # noqa: PTH110, Path.exists raises on names that are too long
        return State()
    try:
        recipe = Recipe.of_file(path)
    except InputError:
        return State(foreign=True)
    if recipe.command != job.command:
        return State(foreign=True)
    theirs = Job(job.command, recipe.digest, recipe.options)
    if theirs.digest != job.digest:
        return State(reason=job.difference(vars(theirs)))
    if "-" in [item.name for item in items]:
        return State(reason="standard input can be read only once")
    now = [digest_of(items)] if path.suffix == TABLE else [sha_of(item) for item in items]
    if [sha for _, sha in recipe.sources] != now:
        return State(reason="its input changed")
    return State(done=True, failed=recipe.failed)


def sha_of(item: Item) -> str:
    """Compute the SHA-256 of an input's content; "" where it can't be read."""
    try:
        return hashlib.sha256(item.read()).hexdigest()
    except InputError:
        return ""


def digest_of(items: Iterable[Item]) -> str:
    """Compute a SHA-256 of many inputs' contents, also of those that can't be read."""
    whole = hashlib.sha256()
    for item in items:
        whole.update(bytes.fromhex(sha_of(item)) or bytes(1))
    return whole.hexdigest()


def _is_whole(path: Path) -> bool:
    """Whether a file that isn't as we wrote it is in order, and so somebody's work: a damaged one
    is nobody's. Of tables and arrays only emptiness tells."""
    from ...pictures.decoding import open_picture  # imports Pillow, which codes don't need

    try:
        if path.suffix.lower() == CODES:
            from ...engine.codes import from_bytes  # imports torch

            from_bytes(read_limited(path, MAX_CODES), str(path))
        elif path.suffix.lower() in PICTURE_SUFFIXES:
            open_picture(path, str(path))
    except InputError:
        return False
    return path.stat().st_size > 0


def _read(folder: Path) -> tuple[dict[str, list[dict[str, Any]]], dict[str, dict[str, Any]]]:
    """Read what the manifests of a folder say: of each output, and of each job."""
    entries: dict[str, list[dict[str, Any]]] = defaultdict(list)
    jobs: dict[str, dict[str, Any]] = {}
    for path in sorted((folder / FOLDER).glob("manifest*.jsonl")):
        for line in read_limited(path, LARGEST).splitlines():
            try:
                entry = json.loads(line) if 0 < len(line) < LINE else None
            except (ValueError, RecursionError):
                continue  # torn by a full disk or a power failure: its output is made again
            if not isinstance(entry, dict) or not all(
                isinstance(entry.get(part) or {}, dict) for part in ("record", "options")
            ):
                continue
            if "output" in entry:
                entries[str(entry["output"])].append(entry)
            elif "job" in entry:
                jobs[str(entry["job"])] = entry
    return entries, jobs


def own_outputs(command: str, given: dict[str, Any]) -> set[str]:
    """Return the real paths of what a command with these parameters writes, and in its output
    folder of what it wrote before: none of it is an input."""
    named = [str(given[name]) for name in ("output", "sheet") if given.get(name)]
    if command == "encode" and not given.get("output") and sys.stdout.isatty():
        named.append(f"out{CODES}")  # as Destination.parse names what is made of several
    found = {os.path.realpath(name) for name in named if name != "-"}
    for folder in [Path(one) for one in found if is_folder(Path(one))]:
        try:
            entries, jobs = _read(folder)
        except OSError:
            continue  # as opening it will say
        if command == "encode":
            found |= {str(one) for one in folder.iterdir() if PART_NAME.fullmatch(one.name)}
        for name, lines in entries.items():
            if any(jobs.get(str(line.get("job")), {}).get("command") == command for line in lines):
                found.add(str(folder / name))
    return found


class Manifest:
    """The outputs of one folder, as all processes that write there record them."""

    def __init__(self, folder: Path, job: Job, part: str = "") -> None:
        """`part` names this process among those that share the work. Raises InputError."""
        self.folder, self.job = folder, job
        self._own = folder / FOLDER / f"manifest{part}.jsonl"
        try:
            self._own.parent.mkdir(parents=True, exist_ok=True)
            if self._own.parent.is_symlink():  # another's, who has us write elsewhere
                raise OSError(errno.ELOOP, f"{FOLDER} is a link")
            self._entries, self._jobs = _read(folder)
        except OSError as error:
            raise unwritable(folder, error) from error
        if job.digest not in self._jobs:
            self._append([{"job": job.digest, **vars(job)}])

    def state(self, output: Path, source: str) -> State:
        """What is to be done about an output, made of an input with this SHA-256."""
        entries = self._entries.get(self._key(output), [])
        if not os.path.exists(output):  # noqa: PTH110, Path.exists raises on names that are too long
            return State(reason="it is missing" if entries else "")
        if not entries:
            return State(foreign=True)
        now = sha256(output)
        alike = [entry for entry in entries if entry.get("sha256") == now]
        for entry in alike:
            if entry.get("job") == self.job.digest and entry.get("source") == source:
                said = str(entry.get("text", ""))
                return State(done=True, record=entry.get("record"), text=said)
        if not alike and _is_whole(output):
            return State(foreign=True, reason="and was changed since it was written")
        if not alike:
            return State(reason="it isn't what was written")
        before = self._jobs.get(str(alike[-1].get("job")), {})
        if before.get("command") != self.job.command:
            return State(foreign=True)
        if alike[-1].get("job") != self.job.digest:
            return State(reason=self.job.difference(before))
        return State(reason="its input changed")

    def _key(self, output: Path) -> str:
        return output.relative_to(self.folder).as_posix()

    def add(self, made: Iterable[tuple[Path, str, bytes, dict[str, Any], str]]) -> None:
        """Record outputs that are about to be written: path, input's SHA-256, content, record, and
        that for people."""
        self._append(
            [
                {
                    "output": self._key(output),
                    "sha256": hashlib.sha256(data).hexdigest(),
                    "source": source,
                    "job": self.job.digest,
                    "record": record,
                    "text": text,
                }
                for output, source, data, record, text in made
            ]
        )

    def _append(self, entries: list[dict[str, Any]]) -> None:
        """In one write, so that processes don't mix lines; each begins anew after a torn one."""
        data = "".join(f"\n{json.dumps(entry, default=str)}\n" for entry in entries).encode()
        append(self._own, data)
