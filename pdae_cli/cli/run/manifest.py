"""What an output folder's files were made of: the same command does only what is missing.

`OUT/.pdae/manifest.jsonl` has a line for each output: the SHA-256 of the file, of its input, and of
the job (command, model, options). A file is done when its own digest stands in a line of this job
and this input; that it exists says nothing. The line is written before the file takes its name, so
that a killed process leaves a line too many, never a file that nobody knows.

Processes that share a folder claim each output by a lock on one byte of `OUT/.pdae/claims`, which
the system drops with the process.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...files import sha256, unwritable
from .locks import lock, unlock

FOLDER = ".pdae"
LINE = 1 << 20  # bytes of a line; longer ones are damage
OWN = ("inputs", "a", "b", "output", "files_from", "null", "recursive", "stream")
AROUND = ("model", "device", "batch_size", "compile", "json", "quiet", "overwrite",
          "skip_existing", "num_processes", "share", "count", "first",
          "show", "sheet", "report")  # fmt: skip


@dataclass(frozen=True)
class Job:
    """What is done to each input: the command, the model's digest, and the options that matter."""

    command: str
    model: str
    options: dict[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 of all three; options that weren't given don't count."""
        told = {k: v for k, v in self.options.items() if _given(v)}
        text = json.dumps([self.command, self.model, told], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def difference(self, other: dict[str, Any]) -> str:
        """Why this job isn't the other, in words."""
        theirs = other.get("options", {})
        if other.get("model") != self.model:
            return "another model"
        changed = [
            f"--{name.replace('_', '-')} was {_shown(theirs.get(name))}, is {_shown(value)}"
            for name, value in json.loads(json.dumps(self.options, default=str)).items()
            if theirs.get(name) != value
        ]
        return "; ".join(changed) or "other options"


def _given(value: Any) -> bool:
    """Whether an option has a value; 0 is one."""
    return not (value is None or value is False or value in ((), []))


def _shown(value: Any) -> str:
    """An option's value as one types it."""
    if not _given(value):
        return "not given"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def options_that_matter(parameters: dict[str, Any]) -> dict[str, Any]:
    """A command's parameters but those that say where, how fast and how loudly."""
    return {name: value for name, value in parameters.items() if name not in OWN + AROUND}


@dataclass(frozen=True)
class State:
    """Of one output: done, to be made, or somebody else's file (`foreign`)."""

    done: bool = False
    foreign: bool = False
    reason: str = ""  # why it is made again; nothing for what was never made
    record: dict[str, Any] | None = None  # what was said when it was done


class Manifest:
    """The outputs of one folder, as all processes that write there record them."""

    def __init__(self, folder: Path, job: Job, part: str = "") -> None:
        """`part` names this process among those that share the work. Raises InputError."""
        self.folder, self.job = folder, job
        self._own = folder / FOLDER / f"manifest{part}.jsonl"
        self._entries: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._jobs: dict[str, dict[str, Any]] = {}
        self._read: dict[Path, int] = {}
        try:
            self._own.parent.mkdir(parents=True, exist_ok=True)
            self._claims = (folder / FOLDER / "claims").open("a+b")
        except OSError as error:
            raise unwritable(folder, error) from error
        try:
            self.refresh()
            if job.digest not in self._jobs:
                self._append([{"job": job.digest, **vars(job)}])
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of all claims."""
        self._claims.close()

    # --- What is known ----------------------------------------------------------------------

    def refresh(self) -> None:
        """Read what was appended since the last time, by any process."""
        for path in sorted((self.folder / FOLDER).glob("manifest*.jsonl")):
            begin = self._read.get(path, 0)
            if path.stat().st_size == begin:
                continue
            with path.open("rb") as file:
                file.seek(begin)
                data = file.read()
            whole = data.rfind(b"\n") + 1  # the rest is being written, or was torn
            self._read[path] = begin + whole
            for line in data[:whole].splitlines():
                self._learn(line)

    def _learn(self, line: bytes) -> None:
        try:
            entry = json.loads(line) if 0 < len(line) < LINE else None
        except (ValueError, RecursionError):
            return  # torn by a full disk or a power failure: its output is made again
        if isinstance(entry, dict) and "output" in entry:
            self._entries[str(entry["output"])].append(entry)
        elif isinstance(entry, dict) and "job" in entry:
            self._jobs[str(entry["job"])] = entry

    def state(self, output: Path, source: str) -> State:
        """What is to be done about an output, made of an input with this SHA-256."""
        entries = self._entries.get(self._key(output), [])
        if not output.exists():
            return State(reason="it is missing" if entries else "")
        if not entries:
            return State(foreign=True)
        now = sha256(output)
        alike = [entry for entry in entries if entry.get("sha256") == now]
        for entry in alike:
            if entry.get("job") == self.job.digest and entry.get("source") == source:
                return State(done=True, record=entry.get("record"))
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

    # --- What is made ----------------------------------------------------------------------------

    def add(self, made: Iterable[tuple[Path, str, bytes, dict[str, Any]]]) -> None:
        """Record outputs that are about to be written: path, input's SHA-256, content, record."""
        self._append(
            [
                {
                    "output": self._key(output),
                    "sha256": hashlib.sha256(data).hexdigest(),
                    "source": source,
                    "job": self.job.digest,
                    "record": record,
                }
                for output, source, data, record in made
            ]
        )

    def _append(self, entries: list[dict[str, Any]]) -> None:
        """In one write, so that processes don't mix lines; each begins anew after a torn one."""
        text = "".join(f"\n{json.dumps(entry, default=str)}\n" for entry in entries)
        try:
            handle = os.open(self._own, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                if os.write(handle, text.encode()) < len(text.encode()):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:
            raise unwritable(self._own, error) from error

    # --- Whose work it is ----------------------------------------------------------------------

    def claim(self, output: Path) -> bool:
        """Take an output for this process; False while another has it."""
        return lock(self._claims, self._place(output))

    def release(self, output: Path) -> None:
        """Give an output free."""
        unlock(self._claims, self._place(output))

    def _place(self, output: Path) -> int:
        return int.from_bytes(hashlib.sha256(os.fsencode(self._key(output))).digest()[:6], "big")
