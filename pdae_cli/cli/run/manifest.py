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
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...files import append, read_limited, sha256_limited, unwritable
from ...pictures.listing import CODES, HEAD, MAX_PICTURE, is_folder, kind_of
from ...pictures.listing import MANIFEST as FOLDER
from .inputs import MAX_CODES, SEALED, Item
from .recipes import PARTS, Recipe, told
from .tables import PART_NAME, TABLE

LINE = 1 << 20  # bytes of a line; longer ones are damage
LARGEST = 1 << 30  # bytes of a manifest
KINDS: dict[str, type] = {  # of what a line says, if it says it
    "output": str, "sha256": str, "source": str, "record": dict, "text": str,
    "job": str, "command": str, "model": str, "options": dict, "input": str, "where": list,
}  # fmt: skip
WRITTEN = ("PNG", "JPEG", "WEBP", "GIF")  # pictures that we write


@dataclass(frozen=True)
class Job:
    """What is done to each input: the command, the model's digest, and the options that matter."""

    command: str
    model: str
    options: dict[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 of all three; options that weren't given don't count."""
        said = {k: v for k, v in self.options.items() if given(v)}
        text = json.dumps([self.command, self.model, said], sort_keys=True, default=str)
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
            return f"of {' and '.join(parts)} than now"
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
    other: str = ""  # the input that it was made of, where that is another one
    failed: Sequence[Sequence[str]] = ()  # of its inputs: names, and why

    def refusal(self, path: Path, label: str, *, alone: bool) -> str:
        """Why a foreign file isn't replaced, and what to do; `alone` in no folder of ours."""
        what, also = " ".join(filter(None, (f"{path} exists", self.reason))), ""
        if self.other and alone:
            what += f" and was made of {self.other}"
        elif self.other:
            another = "another " if self.other in label else ""
            what = f"{another}{self.other} and {label} would both become {path}"
            also = "rename one, write them into two folders, or "
        return f"{what}; {also}pass --overwrite or --skip-existing"


def state_of_file(
    path: Path, job: Job, items: Sequence[Item], read: Callable[[Item], object]
) -> State:
    """Return what is to be done about the one file that a job makes of all items: its own recipe
    says what it was made of. Inputs that failed then are tried again by `read`."""
    if not os.path.exists(path):  # noqa: PTH110, Path.exists raises on names that are too long
        return State()
    try:
        recipe = Recipe.of_file(path)
    except InputError:
        return State(foreign=True)
    if recipe.command != job.command:
        return State(foreign=True)
    is_table, theirs = path.suffix.lower() == TABLE, Job(job.command, recipe.digest, recipe.options)
    other = "" if is_table else _other(recipe.sources, items)
    if other and not {sha for _, sha in recipe.sources} & set(_shas(items, ())):
        return State(foreign=True, other=other)
    if theirs.digest != job.digest:
        return State(reason=job.difference(vars(theirs)))
    if "-" in [item.name for item in items]:
        return State(reason="standard input can be read only once")
    failed = {name for name, _ in recipe.failed}
    unread = _unread([item for item in items if told(item.label) in failed], read)
    shas = _shas(items, unread)
    now = [digest_of(shas)] if is_table else list(shas)
    if [sha for _, sha in recipe.sources] != now:
        return State(reason="its input changed")
    names = {told(label) for label in unread}
    others = [one for one in recipe.failed if one[0] not in names]
    return State(done=True, failed=[*unread.items(), *others])


def _other(sources: Sequence[tuple[str, str]], items: Sequence[Item]) -> str:
    """The first of the sources, as a recipe names them, where surely none is among the items. An
    item may be one wherever its path ends as the recipe's, which says no more of it."""
    if not items or any(item.name in ("", "-") for item in items):
        return ""
    ways = (os.path.abspath, os.path.realpath)
    ours = {"/".join(Path(way(item.label)).parts) for item in items for way in ways}
    alike = defaultdict(list)
    for path in ours:
        alike[path.rpartition("/")[2]].append(path)
    for name, _ in sources:
        if any(path.endswith(f"/{name}") for path in alike[name.rpartition("/")[2]]):
            return ""
    return sources[0][0] if sources else ""


def _unread(items: Iterable[Item], read: Callable[[Item], object]) -> dict[str, str]:
    """The labels of those that can't be read, and why."""
    found = {}
    for item in items:
        try:
            read(item)
        except InputError as error:
            found[item.label] = str(error)
    return found


def _shas(items: Iterable[Item], unread: Collection[str]) -> Iterator[str]:
    """The SHA-256 of each input's content; "" for the unread, whatever they hold by now."""
    return ("" if item.label in unread else sha_of(item) for item in items)


def sha_of(item: Item) -> str:
    """Compute the SHA-256 of an input's content; "" where it can't be read."""
    try:
        return hashlib.sha256(item.read()).hexdigest()
    except InputError:
        return ""


def digest_of(shas: Iterable[str]) -> str:
    """Compute a SHA-256 of many inputs, by that of each one's content; "" is of the unread."""
    whole = hashlib.sha256()
    for sha in shas:
        whole.update(bytes.fromhex(sha) or bytes(1))
    return whole.hexdigest()


def _is_damaged(path: Path) -> bool:
    """Whether a file that isn't as we wrote it is surely nobody's work: it is empty, or begins as
    ours do and can't be decoded. One that is too large for us or closed to us is somebody's, and
    codes of another version are in order."""
    from PIL.Image import DecompressionBombError

    from ...engine.tensors import LARGEST_HEADER, check, load  # imports torch
    from ...pictures.decoding import open_picture

    is_codes = path.suffix.lower() == CODES
    try:
        data = read_limited(path, MAX_CODES if is_codes else MAX_PICTURE)
    except InputError:
        return False
    try:
        if is_codes:
            load(data, check(data, None, LARGEST_HEADER))
        else:
            open_picture(data, "")
    except ValueError:
        return not data or data[4:9] == SEALED
    except InputError as error:
        refused = error.__cause__ is None or isinstance(error.__cause__, DecompressionBombError)
        return not data or (kind_of(data[:HEAD]) in WRITTEN and not refused)
    return False


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
                isinstance(entry.get(name, kind()), kind) for name, kind in KINDS.items()
            ):
                continue
            if "output" in entry:
                entries[entry["output"]].append(entry)
            elif "job" in entry:
                jobs[entry["job"]] = entry
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
        except (OSError, InputError):
            continue  # as opening it will say
        if command == "encode":
            found |= {str(one) for one in folder.iterdir() if PART_NAME.fullmatch(one.name)}
        for name, lines in entries.items():
            if any(jobs.get(line.get("job", ""), {}).get("command") == command for line in lines):
                found.add(str(folder / name))
    return found


class Manifest:
    """The outputs of one folder, as all processes that write there record them."""

    def __init__(self, folder: Path, job: Job, part: str = "") -> None:
        """`part` names this process among those that share the work. Raises InputError."""
        self.folder, self.job = folder, job
        self._own = folder / FOLDER / f"manifest{part}.jsonl"
        self._size = -1  # bytes of all manifests when they were read
        try:
            self._own.parent.mkdir(parents=True, exist_ok=True)
            if self._own.parent.is_symlink():  # another's, who has us write elsewhere
                raise OSError(errno.ELOOP, f"{FOLDER} is a link")
            self._read_anew()
        except OSError as error:
            raise unwritable(folder, error) from error
        if job.digest not in self._said[1]:
            self._append([{"job": job.digest, **vars(job)}])

    def state(self, output: Path, source: str, item: Item) -> State:
        """What is to be done about an output, made of an item with this SHA-256."""
        if not os.path.exists(output):  # noqa: PTH110, Path.exists raises on names that are too long
            return State(reason="it is missing" if self._entries(output) else "")
        if not (self._entries(output) or self._entries(output, anew=True)):
            return State(foreign=True)
        try:
            now = sha256_limited(output, MAX_CODES)
        except InputError:
            return State(foreign=True, reason="and can't be read")
        alike = self._entries(output, now) or self._entries(output, now, anew=True)
        for entry in alike:
            if entry.get("job") == self.job.digest and entry.get("source") == source:
                return State(True, record=entry.get("record"), text=entry.get("text", ""))
        if not alike and not _is_damaged(output):
            return State(foreign=True, reason="and was changed since it was written")
        if not alike:
            return State(reason="it isn't what was written")
        before = self._said[1].get(alike[-1].get("job", ""), {})
        if before.get("command") != self.job.command:
            return State(foreign=True)
        where = alike[-1].get("where", [])
        ours = item.whereabouts(self.folder) if where else []
        if alike[-1].get("source") != source and ours and not any(one in where for one in ours):
            return State(foreign=True, other=alike[-1].get("input", "another input"))
        if alike[-1].get("job") != self.job.digest:
            return State(reason=self.job.difference(before))
        return State(reason="standard input changed" if where == ["-"] else "its input changed")

    def _entries(self, output: Path, sha: str = "", anew: bool = False) -> list[dict[str, Any]]:
        """The lines of an output, or of this content of it; `anew` also what another run has added
        since."""
        if anew:
            self._read_anew()
        lines = self._said[0].get(self._key(output), [])
        return [line for line in lines if sha in ("", line.get("sha256"))]

    def _read_anew(self) -> None:
        """Read all manifests again where they have grown."""
        size = sum(one.stat().st_size for one in self._own.parent.glob("manifest*.jsonl"))
        if size != self._size:
            self._size, self._said = size, _read(self.folder)

    def _key(self, output: Path) -> str:
        return output.relative_to(self.folder).as_posix()

    def add(self, made: Iterable[tuple[Item, Path, str, bytes, dict[str, Any], str]]) -> None:
        """Record outputs that are about to be written: of which item, path, input's SHA-256,
        content, record, and that for people."""
        self._append(
            [
                {
                    "output": self._key(output),
                    "sha256": hashlib.sha256(data).hexdigest(),
                    "source": source,
                    "job": self.job.digest,
                    "record": record,
                    "text": text,
                    "input": told(item.label),
                    "where": item.whereabouts(self.folder),
                }
                for item, output, source, data, record, text in made
            ]
        )

    def _append(self, entries: list[dict[str, Any]]) -> None:
        """In one write, so that processes don't mix lines; each begins anew after a torn one."""
        data = "".join(f"\n{json.dumps(entry, default=str)}\n" for entry in entries).encode()
        append(self._own, data)
