"""The file or folder that a user wants converted, and what a reader of its family finds there.

A reader is a module with `NAME`, `recognises(source)` and `read(source)`; it knows where
the family keeps things and which of our modules its tensors belong to. Adding a family means
adding one such file, and a line in `convert`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from torch import Tensor

from ..engine.attributes import Attributes
from ..engine.computing import Say, ignore
from ..engine.config import ModelConfig
from ..engine.tensors import shown
from ..errors import ModelError
from ..networks.latent import LatentConfig
from .hub import FOLDERS, fetch, is_hub_id, licence_in
from .reading import read_object, read_weights
from .transfer import Part, Tensors

P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class Source:
    """What the user named. Weights are read once, and only when a reader needs their content."""

    path: Path  # a file or folder
    config: Path | None = None  # a config that the user named
    licence: str = "unknown"  # where the place it comes from states one
    hub: str = ""  # its id on the Hub, where it comes from there
    _read: dict[Path, dict[str, Any]] = field(default_factory=dict)

    @property
    def called(self) -> str:
        """What the user calls it."""
        return self.hub or str(self.path)

    @property
    def folder(self) -> Path:
        """Where its neighbours lie."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def folder_name(self) -> str:
        """The name of that, which neighbours share: also where `.` or a file in it was named."""
        return self.folder.resolve().name

    def content(self, path: Path | None = None) -> dict[str, Any]:
        """Read a file of weights; without a path the named one, and nothing of a folder. Raises
        ModelError."""
        if path is None and self.path.is_dir():
            return {}
        path = path or self.path
        if path not in self._read:
            self._read[path] = read_weights(path)
        return self._read[path]

    def part(self, path: Path, key: str) -> dict[str, Any]:
        """Read the dictionary that a file holds under a key. Raises ModelError."""
        content = self.content(path)
        part = content.get(key)
        if not isinstance(part, dict):
            raise ModelError(
                f"{path} lacks {key}; it holds {', '.join(map(shown, [*content][:6]))}"
            )
        return part

    def tensors(self, path: Path, key: str) -> Tensors:
        """Read the tensors that a file holds under a key. Raises ModelError."""
        return Tensors.below("", self.part(path, key), f"{path}, {key}")

    def first(self, what: str, places: Iterable[Path]) -> Path:
        """Find the first of the places that exists. Raises ModelError that names them all."""
        looked = list(dict.fromkeys(places))
        for place in looked:
            if os.path.exists(place):  # noqa: PTH110, Path.exists raises on names that are too long
                return place
        names = ", ".join(str(place)[-200:] for place in looked[:6])
        told = f"{self.path}: found no {what}; looked for {names}"
        raise ModelError(told.replace(str(self.path), self.called))

    def told(self, text: str) -> str:
        """A text without the folders that the source lies in, which are the user's own."""
        places = {self.folder, (self.config or self.path).parent}
        above = {up for one in places for way in (one.absolute(), one.resolve())
                 for up in (way, *way.parents)}  # fmt: skip
        for folder in sorted(map(str, above), key=len, reverse=True):
            text = text.replace(f"{folder}{os.sep}", "")
        return text

    def upwards(self, relative: str) -> list[Path]:
        """The places that a path could mean that is relative to this folder or one above it."""
        here = self.folder.resolve()
        return [folder / relative for folder in [here, *here.parents][:6]]  # or it is absolute


def open_source(
    name: str, config: Path | None = None, announce: Say = ignore, folders: Sequence[str] = FOLDERS
) -> Source:
    """Open a file, a folder, or a Hub id with an optional `@revision`, of which weights are needed
    in these folders. Raises ModelError."""
    if os.path.exists(name):  # noqa: PTH110, Path.exists raises on names that are too long
        found = Source(Path(name), config)
        return replace(found, licence=licence_in(found.folder))
    if is_hub_id(name):
        folder, licence = fetch(name, announce, folders)
        return Source(folder, config, licence, name)
    raise ModelError(f"{name}: no such file or folder, and not a Hub id (owner/name)")


@dataclass
class Foreign:
    """All that a source has for us."""

    config: ModelConfig
    parts: list[Part]
    latent: LatentConfig | None = None  # of the part "latent_dpm", where there is one
    attributes: Attributes | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)  # the source's own config
    notes: list[str] = field(default_factory=list)  # what the user should know


@dataclass(frozen=True)
class Fields:
    """Every field of one kind of config: no setting that changes numbers is ignored in silence.
    What becomes of each is told in the table of docs/checkpoints.md."""

    config: str  # what people call it
    taken: str  # the fields that are followed
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # what alone is supported
    # Why they change nothing here → fields; a* for all that begin so.
    idle: Mapping[str, str] = field(default_factory=dict)
    null: str = ""  # fields whose null means something; other nulls are fields that are missing

    def known(self) -> set[str]:
        """The names of all fields."""
        return {*" ".join([self.taken, *self.idle.values()]).split(), *self.fixed}


@dataclass
class Settings:
    """A config's fields, read with checks; what is missing or odd is one clear ModelError."""

    where: str
    values: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> Settings:
        """Read a JSON or a YAML file that holds an object. Raises ModelError."""
        return cls(str(path), read_object(path))

    def follow(self, fields: Fields, notes: list[str]) -> Settings:
        """Leave out nulls that mean defaults; note the fields that nobody knows. Raises ModelError
        where one of the `fixed` is something else."""
        meant = fields.null.split()
        values = {k: v for k, v in self.values.items() if v is not None or k in meant}
        settings = Settings(self.where, values)
        for name, usual in fields.fixed.items():
            settings.refuse(name, *usual)
        known, every = fields.known(), sorted(map(str, values))
        begun = ("_", *(one[:-1] for one in known if one.endswith("*")))
        unknown = [name for name in every if name not in known and not name.startswith(begun)]
        if unknown:
            more = f" and {len(unknown) - 20} more" if len(unknown) > 20 else ""
            names = ", ".join(shown(name)[1:-1] for name in unknown[:20])
            notes.append(f"{self.where}: fields that are unknown here, left out: {names}{more}")
        return settings

    def get(self, name: str, kind: Any, default: Any = ...) -> Any:
        """A field of that type (float: whole numbers too), or its default where it is missing."""
        value = self.values.get(name, default)
        if value is ...:
            raise ModelError(f"{self.where} lacks {name}")
        if kind is float and type(value) is int and abs(value) < 1 << 63:
            value = float(value)
        wrong = not isinstance(value, kind) or (isinstance(value, bool) and kind is int)
        if wrong and value is not default:
            raise ModelError(f"{self.where}: {name} is {shown(value)}, which can't be")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """A truth, or null for False, as Python programs take it."""
        return bool(self.get(name, bool | None, default))

    def word(self, name: str, known: Mapping[str, str], default: str) -> str:
        """Our word for one of theirs. Raises ModelError for one that isn't known."""
        self.refuse(name, *known)
        return known[self.get(name, str, default)]

    def integers(self, **names: str) -> dict[str, Any]:
        """Whole numbers by our names, of fields by the source's."""
        return {ours: self.get(theirs, int) for ours, theirs in names.items()}

    def numbers(self, name: str, kind: Any = int | float) -> tuple[Any, ...]:
        """A list of numbers."""
        values = self.get(name, list | tuple)
        if not all(isinstance(one, kind) and not isinstance(one, bool) for one in values):
            raise ModelError(f"{self.where}: {name} is {shown(values)}, not numbers")
        return tuple(values)

    def below(self, name: str) -> Settings:
        """A nested object."""
        return Settings(f"{self.where}, {name}", self.get(name, dict))

    def refuse(self, name: str, *usual: Any) -> None:
        """Raise ModelError where a field has a value that our networks can't follow."""
        value = self.values.get(name)
        alike = (value == one and (type(value) is bool) == (type(one) is bool) for one in usual)
        if name in self.values and not any(alike):
            raise ModelError(f"{self.where}: {name} {shown(value)} isn't supported")

    def build(self, kind: Callable[P, T], /, *values: P.args, **fields: P.kwargs) -> T:
        """Build a config of ours; a shape that our networks refuse is this config's ModelError."""
        try:
            return kind(*values, **fields)
        except (ValueError, ArithmeticError) as error:
            raise ModelError(f"{self.where}: {error}") from error


def vector(value: Any, where: str, length: int) -> tuple[float, ...]:
    """A tensor of `length` finite numbers, of shape (length,) or (1, length). Raises ModelError."""
    if not isinstance(value, Tensor) or value.numel() != length or not value.isfinite().all():
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ModelError(f"{where} is {shape}, not {length} finite numbers")
    return tuple(value.double().flatten().tolist())
