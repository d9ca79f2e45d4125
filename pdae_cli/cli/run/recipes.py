"""What written files say of how they were made: enough to make them again, and nothing of where the
user keeps things. Anybody can write one, so what is read is checked before it means anything."""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import InputError, UsageError
from ...files import read_limited
from .inputs import CODES, MAX_CODES
from .tables import TABLE, opened

OWN = ("inputs", "a", "b", "output", "files_from", "null", "recursive", "stream", "list_attributes")
AROUND = ("model", "device", "batch_size", "compile", "json", "quiet", "overwrite",
          "skip_existing", "share", "count", "first",
          "show", "sheet", "report")  # fmt: skip
PATHS = ("mask", "like", "unlike", "landmarks", "classifier")
# No options, but other ones make other pictures: of the model, beside its weights, and of pdae.
PARTS = {
    "attributes_sha256": "other attributes", "latent_dpm_sha256": "another latent DPM",
    "config_sha256": "other settings in the model's config.json",
    "defaults_sha256": "other default settings",
}  # fmt: skip

OPTION = re.compile("[a-z_][a-z0-9_]{0,39}")
MOST_OPTIONS, MOST_VALUES = 64, 100  # of a recipe, and of an option that can be given repeatedly
LONGEST = 4096  # characters of a text
LARGEST = 1 << 63


def recordable(number: int) -> int:
    """Return a number, also as its option's callback, if a recipe can say it. Raises UsageError."""
    if abs(number) >= LARGEST:  # the file would be taken for a stranger's
        raise UsageError(f"{number} is too large: files record numbers below 2^63")
    return number


def options_that_matter(parameters: dict[str, Any]) -> dict[str, Any]:
    """A command's parameters but those that say where, how fast and how loudly; of files without
    what an absolute path says of its owner."""
    kept = {name: value for name, value in parameters.items() if name not in OWN + AROUND}
    return kept | {name: told(str(kept[name])) for name in PATHS if kept.get(name)}


def defaults_sha() -> str:
    """SHA-256 of what options that aren't given mean: a version of pdae may mean something else."""
    from ...diffusion.trajectory import PRESETS, Sampling
    from ...engine.editing import COMPLETING

    return hashlib.sha256(repr((Sampling(), PRESETS, COMPLETING)).encode()).hexdigest()


def told(name: str) -> str:
    """A file's name without what an absolute path, or one that leaves its folder, says."""
    path = Path(name)
    return path.name if path.is_absolute() or ".." in path.parts else path.as_posix()


@dataclass(frozen=True)
class Recipe:
    """How a file says that it was made, as far as that can be followed."""

    command: str
    options: dict[str, Any]  # values are None, bool, numbers, texts, and lists of them
    model: str
    digest: str  # weights_sha
    sources: list[tuple[str, str]]  # name and SHA-256 of each file that it was made of
    place: str | None
    first: int | None
    count: int | None
    failed: list[list[str]] = field(default_factory=list)  # names of inputs, and why
    codes: str | None = None  # SHA-256 of the row of codes that it is of

    @classmethod
    def read(cls, what: dict[str, Any] | None, name: str) -> Recipe:
        """Check what a file of this name says. Raises InputError."""
        if what is None:
            raise InputError(f"{name}: has no recipe of pdae")
        rows = [one if isinstance(one, dict) else {} for one in _listed(what.get("sources"))]
        failed: Any = _listed(what.get("failed", []))
        made_of: list[Any] = [(row.get("name"), row.get("sha256")) for row in rows]
        command, model, digest = (what.get(key) for key in ("command", "model", "digest"))
        place, codes = what.get("place"), what.get("codes")
        first, count = what.get("first"), what.get("count")
        sound = {
            "options": _are_options(what.get("options")),
            "sources": all(_is_text(one) for pair in made_of for one in pair),
            "command, model or digest": all(map(_is_text, (command, model, digest))),
            "failed": all(len(_listed(one)) == 2 and all(map(_is_text, one)) for one in failed),
            "place": place is None or _is_text(place),
            "codes": codes is None or _is_text(codes),
            "first and count": all(
                one is None or (type(one) is int and 0 <= one < LARGEST) for one in (first, count)
            ),
        }
        if wrong := [part for part, good in sound.items() if not good]:
            reason = f"damaged or of another version of pdae: it has no {wrong[0]} to follow"
            raise InputError(f"{name}: its recipe is {reason}")
        facts: tuple[Any, ...] = model, digest, made_of, place, first, count, failed, codes
        return cls(str(command), what["options"], *facts)

    @classmethod
    def of_file(cls, path: Path) -> Recipe:
        """Read a picture's recipe, or that of codes. Raises InputError where there is none."""
        from ...pictures.decoding import open_picture
        from ...pictures.metadata import parse_recipe, read_recipe

        if path.suffix.lower() == TABLE:
            with opened(path) as table:
                what = (table.metadata.metadata or {}).get(b"recipe")
            return cls.read(parse_recipe(what), str(path))
        if path.suffix.lower() != CODES:
            return cls.read(read_recipe(open_picture(path, str(path))), str(path))
        from ...engine.codes import read_recipe as recipe_of_codes  # imports torch

        return cls.read(recipe_of_codes(read_limited(path, MAX_CODES)), str(path))


def _are_options(options: Any) -> bool:
    """Whether it says options: few, of short names, with values that can be typed."""
    if not isinstance(options, dict) or len(options) > MOST_OPTIONS:
        return False
    lists = [_listed(one) for one in options.values()]
    values = [one for some in lists for one in some]
    few = all(len(some) <= MOST_VALUES for some in lists)
    return few and all(map(OPTION.fullmatch, options)) and all(map(_is_value, values))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _is_value(value: Any) -> bool:
    """Whether it can be typed: nothing, yes or no, a number or a text, none of them huge."""
    return (
        value is None
        or _is_text(value)
        or (isinstance(value, float) and math.isfinite(value))
        or (isinstance(value, int) and abs(value) < LARGEST)
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST
