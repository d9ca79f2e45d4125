"""The batch runner that every command uses: inputs → batches → outputs → records → exit code.

A failing input is reported and the others go on; the command then ends with exit code 3.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .. import __version__
from ..errors import InputError, ModelError, UsageError
from .inputs import Item, Loaded, loaded_ahead
from .options import BatchOptions, ModelOptions
from .output import Output, ProgressLine

if TYPE_CHECKING:
    from torch import Tensor

    from ..codes import Codes
    from ..engine import Model

PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif"}
CODES_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Destination:
    """Where results go: `-` is standard output, else a file or a folder of files."""

    target: str
    suffix: str  # of the files
    folder: bool

    @classmethod
    def parse(
        cls, target: str, default_suffix: str, allowed: Set[str] = PICTURE_SUFFIXES
    ) -> Destination:
        """A folder is what ends in / or has no suffix or is one; a suffix names the format."""
        path = Path(target)
        if target == "-":
            return cls(target, default_suffix, folder=False)
        if target.endswith(("/", "\\")) or path.is_dir() or not path.suffix:
            return cls(target, default_suffix, folder=True)
        suffix = path.suffix.lower()
        if suffix not in allowed:
            known = ", ".join(sorted(allowed))
            raise UsageError(f"-o {target}: can't write {suffix} here; known: {known}")
        return cls(target, suffix, folder=False)

    @property
    def stdout(self) -> bool:
        return self.target == "-"

    def path(self, place: Path) -> Path:
        """The file for an input's place."""
        if not self.folder:
            return Path(self.target)
        return Path(self.target) / place.with_name(place.name + self.suffix)

    def write(self, place: Path, data: bytes) -> str:
        """Write one result; returns its name."""
        from ..files import write_bytes

        if self.stdout:
            write_stdout(data)
            return "-"
        write_bytes(self.path(place), data)
        return str(self.path(place))


def write_stdout(data: bytes) -> None:
    """Binary to standard output, but never to a terminal."""
    if sys.stdout.isatty():
        raise UsageError("won't write binary data to a terminal; redirect it or use -o FILE")
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


@dataclass
class Made:
    """What became of one input: a file's content (None: nothing to write) and its record."""

    source: Loaded
    data: bytes | None
    record: dict[str, Any]
    text: str = ""  # the record for people


@dataclass
class Runner:
    """One command's way through its inputs."""

    options: BatchOptions
    command: str
    destination: Destination | None = None  # of each input's own result
    stacked: Destination | None = None  # of one result for all inputs
    failures: int = 0
    done: int = 0
    _written: dict[Path, str] = field(default_factory=dict)
    _told: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        taken = self.destination or self.stacked
        stdout_taken = taken is not None and taken.stdout
        if stdout_taken and self.options.json:
            raise UsageError("--json and -o - both want standard output; write to a file")
        self.out = Output(self.options.json, self.options.quiet or stdout_taken)
        self.model: Model = self.options.load()

    def run(
        self,
        items: list[Item],
        process: Callable[[list[Loaded]], Sequence[Made]],
        write_stacked: Callable[[], None] = lambda: None,
    ) -> None:
        """process() batches of like inputs, write what it makes, report; exit 3 if any failed."""
        if (
            self.stacked
            and not self.stacked.stdout
            and not self.may_write(
                [self.stacked.path(Path())], ", ".join(item.label for item in items[:3])
            )
        ):
            return self.finish()
        if self.destination and not self.destination.folder and len(items) > 1:
            raise UsageError(f"{len(items)} inputs need a folder: -o {self.destination.target}/")
        self._check_collisions(items)
        with self.out.progress(self.command, len(items)) as bar:
            for batch in self._batches(items, bar):
                try:
                    made = process(batch)
                except InputError as error:
                    for source in batch:
                        self.fail(source.label, error)
                    continue
                for one in made:
                    self._finish(one)
        write_stacked()
        self.finish()

    def finish(self) -> None:
        """Say how it went; exit 3 if any input failed."""
        if self.failures:
            self.out.say(f"{self.failures} failed, {self.done} done")
            raise typer.Exit(InputError.exit_code)

    def fail(self, label: str, error: Exception) -> None:
        """Record one failed input."""
        self.failures += 1
        message = str(error)
        if label not in message:
            message = f"{label}: {message}"
        if self.options.json:
            self.out.result({"input": label, "status": "failed", "error": message}, "")
        self.out.error(message)

    def _check_collisions(self, items: list[Item]) -> None:
        if self.destination is None or not self.destination.folder:
            return
        taken: dict[Path, str] = {}
        for item in items:
            path = self.destination.path(item.place)
            if path in taken:
                raise UsageError(f"{taken[path]} and {item.label} would both become {path}")
            taken[path] = item.label

    def _batches(self, items: list[Item], bar: ProgressLine) -> Iterator[list[Loaded]]:
        """Loaded inputs in batches of one kind and one set of solver settings."""
        batch: list[Loaded] = []
        size, fit = self.options.batch_size, self.options.fit
        for number, (item, loaded) in enumerate(loaded_ahead(items, self.model, fit, 2 * size)):
            if isinstance(loaded, InputError):
                self.fail(item.label, loaded)
                loaded = []
            for one in filter(self._wanted, loaded):
                if batch and (len(batch) >= size or _kind(batch[0]) != _kind(one)):
                    yield batch
                    batch = []
                batch.append(one)
            bar.advance_to(number)
        if batch:
            yield batch
        bar.advance_to(len(items))

    def _wanted(self, loaded: Loaded) -> bool:
        """Whether its output is still to be made."""
        if self.destination is None or self.destination.stdout:
            return True
        return self.may_write([self.destination.path(loaded.place)], loaded.label)

    def may_write(self, paths: Sequence[Path], label: str) -> bool:
        """Whether these files don't exist or may be replaced; else report why not."""
        existing = [path for path in paths if path.exists()]
        if not existing or self.options.overwrite:
            return True
        if self.options.skip_existing:
            record = {"input": label, "output": str(existing[0]), "status": "skipped"}
            self.out.result(record, f"{label} skipped: {existing[0]} exists")
        else:
            error = InputError(f"{existing[0]} exists; pass --overwrite or --skip-existing")
            self.fail(label, error)
        return False

    def _finish(self, made: Made) -> None:
        label = made.source.label
        try:
            output = None
            if made.data is not None and self.destination is not None:
                self._refuse_second(made.source)
                output = self.destination.write(made.source.place, made.data)
        except InputError as error:
            self.fail(label, error)
            return
        self.done += 1
        record = {"status": "done", "input": label, "output": output, **made.record}
        self.out.result(
            record, f"{label} → {output}{made.text}" if output else f"{label}{made.text}"
        )

    def _refuse_second(self, source: Loaded) -> None:
        """One file takes one result: a codes file of several pictures needs a folder."""
        assert self.destination is not None
        path = self.destination.path(source.place)
        if path in self._written:
            raise InputError(f"{path} already holds {self._written[path]}; give a folder as -o")
        self._written[path] = source.label

    # --- What commands make of a batch -----------------------------------------------------------

    def codes(self, batch: list[Loaded], noise: bool = True) -> Codes:
        """The codes of a batch: as read, or encoded now."""
        import dataclasses

        import torch

        from ..codes import stack

        if batch[0].codes is not None:
            codes = stack([one.codes for one in batch if one.codes is not None])
            self._tell_of_changes(codes)
            return codes
        pictures = torch.cat([one.picture for one in batch if one.picture is not None])
        codes = self.model.encode(pictures, self.options.sampling(), noise=noise)
        if noise and self.options.dtype != "float32":
            self._tell_of_precision(codes[:1], pictures[:1])
        for row, source in enumerate(batch):
            if not all(codes.converged[row : row + 1]):  # empty without corrections
                self.out.warn(
                    f"{source.label}: correcting its codes doesn't converge, so they aren't exact; "
                    "more --inference-steps help"
                )
        return dataclasses.replace(codes, sources=tuple(one.label for one in batch))

    def _tell_of_precision(self, codes: Codes, picture: Tensor) -> None:
        """Say, once, how much of a picture a low precision gives back."""
        from ..metrics import equal_share, mse

        if self.options.dtype in self._told:
            return
        self._told.add(self.options.dtype)
        back = self.model.decode(codes)
        self.out.say(
            f"{self.options.dtype}: of a first picture {equal_share(picture, back).item():.1%} of "
            f"8-bit values come back exactly (MSE {mse(picture, back).item():.1e})"
        )

    def _tell_of_changes(self, codes: Codes) -> None:
        """Say, once for each difference, that codes aren't decoded as they were encoded."""
        told = {
            name: f"{name} {codes.sampling.get(name)}, not {value}"
            for name, value in self.options.changes().items()
            if codes.sampling.get(name) != value and name != "corrections"
        }
        text = "; ".join(told.values())
        if text and text not in self._told and self.command != "encode":
            self._told.add(text)
            self.out.warn(f"these codes were made with {text}: the picture won't be quite the same")

    def attribute(self, name: str) -> str:
        """The model's own name of an attribute. Raises UsageError, ModelError."""
        known = self.model.attributes
        if known is None:
            raise ModelError(
                f"model {self.model.name} has no attributes; `pdae attributes fit` makes some"
            )
        return known.names[known.index(name)]

    def generators(self, batch: list[Loaded]) -> list[Any]:
        """Each picture's own random numbers: of the seed and its content, nothing else."""
        from ..noise import generator

        return [generator(self.options.seed, one.digest) for one in batch]

    def picture_bytes(self, picture: Tensor, facts: dict[str, Any]) -> bytes:
        """A float picture (C, H, W) as a file that says how it was made."""
        from ..images import encode_picture, to_pixels

        assert self.destination is not None
        return encode_picture(
            to_pixels(picture),
            self.destination.suffix,
            recipe(self.options, self.model, self.command, facts),
        )


def _kind(loaded: Loaded) -> tuple[bool, bool, str]:
    codes = loaded.codes
    if codes is None:
        return (False, False, "")
    return (True, codes.x_T is not None, json.dumps(codes.sampling, sort_keys=True))


def recipe(
    options: ModelOptions, model: Model, command: str, facts: dict[str, Any]
) -> dict[str, Any]:
    """What a written picture says of itself."""
    return {
        "version": __version__,
        "command": command,
        "model": model.name,
        "digest": model.digest,
        "seed": options.seed,
        "note": "made or edited by a generative model",
        **facts,
    }


def picture_suffix(format: str) -> str:
    """ "png" → ".png". Raises UsageError for a format that can't be written."""
    suffix = "." + format.lower().lstrip(".")
    if suffix not in PICTURE_SUFFIXES:
        raise UsageError(f"unknown --format {format!r}; known: png, jpg, webp, gif")
    return suffix
