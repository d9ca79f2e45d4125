"""The file or folder that a user wants converted, with its neighbours."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import ModelError
from .pickles import read_pickle


@dataclass
class Source:
    """What the user named. Pickles are read once, and only when a reader needs their content."""

    path: Path  # a file or folder
    config: Path | None = None  # a config that the user named
    licence: str = "unknown"  # where the place it comes from states one
    _read: dict[Path, dict[str, Any]] = field(default_factory=dict)

    @cached_property
    def folder(self) -> Path:
        """Where its neighbours lie."""
        return self.path if self.path.is_dir() else self.path.parent

    def at(self, path: Path) -> Source:
        """The same, for another file that it turned out to mean."""
        return replace(self, path=path)

    def content(self, path: Path) -> dict[str, Any]:
        """What a pickle holds. Raises ModelError."""
        if path not in self._read:
            self._read[path] = read_pickle(path)
        return self._read[path]

    def own_content(self) -> dict[str, Any]:
        """What the named file holds; nothing for a folder."""
        return {} if self.path.is_dir() else self.content(self.path)

    def first(self, what: str, places: Iterable[Path]) -> Path:
        """The first of the places that exists. Raises ModelError that names them all."""
        looked = list(dict.fromkeys(places))
        for place in looked:
            if place.exists():
                return place
        shown = ", ".join(map(str, looked[:6]))
        raise ModelError(f"{self.path}: found no {what}; looked for {shown}")

    def upwards(self, relative: str | Path) -> list[Path]:
        """The places that a path could mean that is relative to this folder or one above it."""
        path = Path(relative)
        if path.is_absolute():
            return [path]
        here = self.folder.resolve()
        return [folder / path for folder in [here, *here.parents][:6]]
