"""The file or folder that a user wants converted, and what a reader of its family finds there.

A reader is a module with `NAME`, `recognises(source)` and `read(source)`; it knows where
the family keeps things and which of our modules its tensors belong to. Adding a family means
adding one such file, and a line in `convert`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import yaml
from torch import Tensor

from ..engine.attributes import Attributes
from ..engine.config import ModelConfig
from ..engine.model import ignore
from ..errors import ModelError
from ..networks.latent import LatentConfig
from .hub import Announce, fetch, is_hub_id
from .native import MAX_CONFIG_BYTES
from .pickles import read_pickle
from .transfer import Part, Tensors

P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class Source:
    """What the user named. Pickles are read once, and only when a reader needs their content."""

    path: Path  # a file or folder
    config: Path | None = None  # a config that the user named
    licence: str = "unknown"  # where the place it comes from states one
    _read: dict[Path, dict[str, Any]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where its neighbours lie."""
        return self.path if self.path.is_dir() else self.path.parent

    def content(self, path: Path | None = None) -> dict[str, Any]:
        """Read a pickle; without a path the named file, and nothing of a folder. Raises
        ModelError."""
        if path is None and self.path.is_dir():
            return {}
        path = path or self.path
        if path not in self._read:
            self._read[path] = read_pickle(path)
        return self._read[path]

    def part(self, path: Path, key: str) -> dict[str, Any]:
        """Read the dictionary that a pickle holds under a key. Raises ModelError."""
        content = self.content(path)
        part = content.get(key)
        if not isinstance(part, dict):
            raise ModelError(f"{path} lacks {key}; it holds {', '.join(list(content)[:6])}")
        return part

    def tensors(self, path: Path, key: str) -> Tensors:
        """Read the tensors that a pickle holds under a key. Raises ModelError."""
        return Tensors.below("", self.part(path, key), f"{path}, {key}")

    def first(self, what: str, places: Iterable[Path]) -> Path:
        """Find the first of the places that exists. Raises ModelError that names them all."""
        looked = list(dict.fromkeys(places))
        for place in looked:
            if place.exists():
                return place
        shown = ", ".join(map(str, looked[:6]))
        raise ModelError(f"{self.path}: found no {what}; looked for {shown}")

    def upwards(self, relative: str) -> list[Path]:
        """The places that a path could mean that is relative to this folder or one above it."""
        here = self.folder.resolve()
        return [folder / relative for folder in [here, *here.parents][:6]]  # or it is absolute


def open_source(name: str, config: Path | None = None, announce: Announce = ignore) -> Source:
    """Open a file, a folder, or a Hub id with an optional `@revision`. Raises ModelError."""
    if os.path.exists(name):  # noqa: PTH110, Path.exists raises on names that are too long
        return Source(Path(name), config)
    if is_hub_id(name):
        folder, licence = fetch(name, announce)
        return Source(folder, config, licence)
    raise ModelError(f"{name}: no such file or folder, and not a Hub id (owner/name)")


@dataclass
class Found:
    """All that a source has for us."""

    config: ModelConfig
    parts: list[Part]
    latent: LatentConfig | None = None  # of the part "latent_dpm", where there is one
    attributes: Attributes | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)  # the source's own config
    ignored: dict[str, int] = field(default_factory=dict)  # why → how many tensors
    notes: list[str] = field(default_factory=list)  # what the user should know


@dataclass
class Settings:
    """A config's fields, read with checks; what is missing or odd is one clear ModelError."""

    where: str
    values: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path, defaults: Mapping[str, Any] | None = None) -> Settings:
        """Read a JSON file, or a YAML file by `safe_load`, that holds an object, over `defaults`.

        Raises ModelError.
        """
        try:
            if path.stat().st_size > MAX_CONFIG_BYTES:
                raise ModelError(f"{path}: larger than {MAX_CONFIG_BYTES >> 20} MiB, no config is")
            text = path.read_text(encoding="utf-8-sig")
            content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        except FileNotFoundError as error:
            raise ModelError(f"{path} is missing; it says how the networks are built") from error
        except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ModelError(f"{path} can't be read as a config: {reason}") from error
        if not isinstance(content, dict):
            kind = type(content).__name__
            raise ModelError(f"{path} is no config: it holds {kind}, not an object")
        return cls(str(path), {**(defaults or {}), **content})

    def get(self, name: str, kind: Any, default: Any = ...) -> Any:
        """A field of that type (float: whole numbers too), or its default where it is missing."""
        value = self.values.get(name, default)
        if value is ...:
            raise ModelError(f"{self.where} lacks {name}")
        if kind is float and isinstance(value, int):
            value = float(value)
        wrong = not isinstance(value, kind) or (isinstance(value, bool) and kind is int)
        if wrong and value is not default:
            raise ModelError(f"{self.where}: {name} is {value!r}, which can't be")
        return value

    def integers(self, **names: str) -> dict[str, Any]:
        """Whole numbers by our names, of fields by the source's."""
        return {ours: self.get(theirs, int) for ours, theirs in names.items()}

    def numbers(self, name: str) -> tuple[Any, ...]:
        """A list of numbers."""
        values = self.get(name, list | tuple)
        if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in values):
            raise ModelError(f"{self.where}: {name} is {values!r}, not numbers")
        return tuple(values)

    def below(self, name: str) -> Settings:
        """A nested object."""
        return Settings(f"{self.where}, {name}", self.get(name, dict))

    def refuse(self, name: str, *usual: Any) -> None:
        """Raise ModelError where a field has a value that our networks can't follow."""
        if name in self.values and self.values[name] not in usual:
            raise ModelError(f"{self.where}: {name} {self.values[name]!r} isn't supported")

    def expect(self, **usual: Any) -> None:
        """Raise ModelError where a field is given and isn't what it usually is."""
        for name, value in usual.items():
            self.refuse(name, value)

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
