"""pdae redo: make a picture again from what it says of itself."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from ..errors import InputError, ModelError, UsageError
from ..files import bundled_models, sha256_limited, write_bytes
from .output import Output
from .run.destination import Destination, refuse_existing, writable
from .run.inputs import CODES, Item, check_names, collect
from .run.manifest import FOLDER, given, sha_of
from .run.recipes import AROUND, OWN, PARTS, PATHS, Recipe, told

# That can be done again, and of how many files each makes a picture.
COMMANDS = {
    "decode": 1, "reconstruct": 1, "interpolate": 2, "manipulate": 1, "inpaint": 1, "colourise": 1,
    "sample": 0, "align": 1,
}  # fmt: skip
LARGEST = 1 << 40  # bytes of a model's weights
MOST_STEPS = 20_000  # of solvers, in all: beyond, a stranger's picture would keep us for hours


def redo(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="A picture that pdae wrote.")],
    sources: Annotated[
        list[Path] | None,
        typer.Option("--input", "-i", help="What it was made of: file, folder, zip or table."),
    ] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help="Where to keep it.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that is there.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="Where its model is; default: as recorded, else PDAE_MODEL."
        ),
    ] = None,
    device: Annotated[str, typer.Option(envvar="PDAE_DEVICE", help="auto, cpu, cuda …")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Make a picture again from its recipe, and say whether it is the same; exit 3 if it isn't.

    The input is looked for by its digest: beside the picture, here, and where --input says.

    Example: pdae redo smile.png -o again.png
    """
    check_names({"output": output})
    if output not in (None, "-"):
        writable(output)
    recipe, places = Recipe.of_file(file), sources or []
    keep = None if output is None else _kept(output, file, recipe, overwrite)
    if as_json and keep and keep.stdout:
        raise UsageError("--json and -o - both want standard output; write to a file")
    root: Any = context.find_root().command
    _check_device(device)
    try:
        command = root.commands[_followed(recipe)]
        with TemporaryDirectory() as folder:
            into = Path(folder) / "in"
            what = _options(recipe, command, file, places, into)
            what.append(f"--model={_model(recipe, model)}")
            inputs = [_found(*one, file, places, into) for one in recipe.sources]
            target = f"{folder}/out" + (file.suffix if recipe.place is None else "/")
            where = [f"--output={target}", f"--device={device}", "--quiet"]
            if command.main([*what, *where, "--", *inputs], standalone_mode=False):
                raise InputError(f"{file}: it can't be made again, see above")
            new = Path(target) if recipe.place is None else _made(Path(target), recipe, file)
            same = _same(recipe, Recipe.of_file(new), new, file)
            data = (file if same else new).read_bytes()  # a copy's name would be in the new one's
    except (typer.BadParameter, UsageError) as error:  # a stranger may have written it
        message = getattr(error, "message", str(error)).rstrip(".")[:300]
        raise InputError(f"{file}: its recipe can't be followed: {message}") from error
    if keep is not None and (same or overwrite or not os.path.lexists(keep.target)):
        keep.write(Path(), data)
    if not same:
        raise InputError(f"{file}: comes out different; another version or device may have made it")
    kept = keep.target if keep else None
    record = {"status": "done", "input": str(file), "output": kept, "same": same}
    Output(as_json, quiet=kept == "-").result(record, f"{file}: the same picture again")


def _check_device(device: str) -> None:
    """Raise UsageError for a device that isn't here: it is the user's choice, not the recipe's."""
    import torch

    try:
        torch.empty(1, device="cpu" if device == "auto" else device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"device {device!r} can't be used: {reason}; try cpu") from error


def _kept(output: str, file: Path, recipe: Recipe, overwrite: bool) -> Destination:
    """Where the new picture goes: standard output, a file, or one of this name in a folder. Raises
    UsageError for another format, InputError for a file that is there and isn't this picture's."""
    suffix = file.suffix.lower()
    alike = {".jpg", ".jpeg"} if suffix in (".jpg", ".jpeg") else {suffix}
    to = Destination.parse(output, suffix, alike)
    if to.folder:
        to = Destination(str(Path(to.target) / file.name), suffix)
    path = Path(to.target)
    if not to.stdout and os.path.lexists(path):
        with suppress(InputError):
            overwrite = overwrite or Recipe.of_file(path) == recipe
        refuse_existing(path, overwrite)
    return to


def _followed(recipe: Recipe) -> str:
    """The recipe's command. Raises UsageError where it can't be done again, or asks for more of it
    than pictures are made of."""
    name, options = recipe.command, recipe.options
    if name not in COMMANDS:
        raise UsageError(f"pdae {name} can't be done again from a recipe")
    if len(recipe.sources) != COMMANDS[name]:
        raise UsageError(f"{name} makes a picture of {COMMANDS[name]} files")
    usual = {"inference_steps": 20, "corrections": 0, "steps": 1, "count": 1}
    recorded = {"count": recipe.count} | {key: options[key] for key in usual if key in options}
    numbers = usual | {key: number for key, number in recorded.items() if number is not None}
    if wrong := [key for key, number in numbers.items() if not isinstance(number, int)]:
        raise UsageError(f"its {wrong[0]} is no whole number")
    steps = math.prod(numbers[key] for key in ("inference_steps", "steps", "count"))
    steps *= 1 + 2 * numbers["corrections"]
    for value in options.values():  # lists like 0,0.5,1 make so many pictures each
        texts = value if isinstance(value, list) else [value]
        steps *= max((str(text).count(",") + 1 for text in texts), default=1)
    if steps > MOST_STEPS:
        raise UsageError(f"it asks for {steps:,} solver steps; type its command to have that done")
    return name


def _found(name: str, sha: str, file: Path, places: Sequence[Path], into: Path) -> str:
    """The file of this name that a picture was made of, known by its SHA-256: here, beside the
    picture, or in the places. What is part of a zip or table is copied `into` a folder."""
    own = Path(told(name))
    near = [own, file.parent / own, file.parent / own.name]
    for whole in (*own.parents, Path(str(own).rpartition(":")[0])):  # zips, and tables by row
        near += [one for one in (whole, file.parent / whole) if os.path.isfile(one)]  # noqa: PTH113
    files = [one for one in near if not os.path.isdir(one)]  # noqa: PTH112, a stranger names them
    alike = (
        item
        for named in (True, False)  # first; a table may have more rows than memory holds
        for place in (*files, *places)
        for item in _items(place)
        if (Path(item.label).name == own.name) is named
    )
    found = next((item for item in alike if sha_of(item) == sha), None)
    if found is None:
        what = f"{file}: was made of {str(own)[:80]} (SHA-256 {sha[:12]})"
        raise InputError(f"{what}, which isn't here; say where with --input")
    if os.path.isfile(found.label):  # noqa: PTH113
        return found.label
    suffix = CODES if found.is_codes else "" if found.table else Path(found.label).suffix
    copy = into / sha[:12] / f"{found.place.name}{suffix or '.png'}"  # of two zips names are alike
    write_bytes(copy, found.read())
    return str(copy)


def _items(place: Path) -> Iterable[Item]:
    """What there is at a place that can be an input."""
    with suppress(UsageError):  # of a folder without any
        return collect([str(place)], recursive=True) if os.path.lexists(place) else []
    return []


def _options(
    recipe: Recipe, command: Any, file: Path, places: Sequence[Path], into: Path
) -> list[str]:
    """The recipe's options as arguments of the command; each value stays within its own. Raises
    UsageError for what can't be typed so."""
    options = {name: one for name, one in recipe.options.items() if name not in PARTS}
    left = {name: one for name, one in options.items() if given(one)}
    for name in ("first", "count"):
        left.setdefault(name, vars(recipe)[name])
    for name in [name for name in PATHS if isinstance(left.get(name), str)]:
        sha = left.pop(f"{name}_sha256", None)  # of a file
        if isinstance(sha, str):
            left[name] = _found(left[name], sha, file, places, into)
        else:  # a folder
            left[name] = _folder(told(left[name]), file, places)
    arguments = []
    for parameter in command.params:
        if parameter.name == "format":  # where a folder is written
            left["format"] = file.suffix.lower()[1:]
        flag = next((one for one in parameter.opts if one.startswith("--")), "")
        own = parameter.name in OWN + AROUND and parameter.name not in ("first", "count")
        value = left.pop(parameter.name, None) if flag and not own else None
        if value is None:
            continue
        values = value if parameter.multiple and isinstance(value, list) else [value]
        if any(isinstance(one, list) or (one is True) != parameter.is_flag for one in values):
            raise UsageError(f"{flag} can't be {str(value)[:80]!r}")
        arguments += [flag if one is True else f"{flag}={one}" for one in values]
    if odd := sorted(name for name, value in left.items() if value is not None):
        raise UsageError(f"pdae {recipe.command} records no {', '.join(odd)[:80]}")
    return arguments


def _folder(name: str, file: Path, places: Sequence[Path]) -> str:
    """A folder, zip or file that the recipe names: here, beside the picture, or one of the places
    or in it."""
    where = [folder / name for folder in (Path(), file.parent, *places)]
    where += [place for place in places if place.name == Path(name).name]
    found = next((str(one) for one in where if os.path.lexists(one)), None)
    if found is None:
        raise InputError(f"{file}: was made with {name[:80]}, which isn't here; pass --input")
    return found


def _model(recipe: Recipe, model: str | None) -> str:
    """The model's name; one that a stranger's file names isn't fetched from the Hub. Recipes have
    the last part of a name alone, which other models may share: the weights' digest tells."""
    if model:
        return model
    name, bundled = recipe.model, bundled_models()
    here = name == told(name) and os.path.isdir(name)  # noqa: PTH112, for long names
    found = [name] if here else []
    if name in bundled:
        found.append(str(bundled[name]) if here else name)
    if environment := os.environ.get("PDAE_MODEL"):
        found.append(environment)
    if not found:
        raise ModelError(f"was made with the model {name[:80]}; say where it is with --model")
    alike = (one for one in found if len(found) > 1 and _weights_sha(one) == recipe.digest)
    return next(alike, found[0])


def _weights_sha(model: str) -> str | None:
    """The SHA-256 of the weights of a model that is here; None of one that isn't."""
    folder = Path(model) if os.path.isdir(model) else bundled_models().get(model)  # noqa: PTH112
    with suppress(InputError):
        return sha256_limited(folder / "model.safetensors", LARGEST) if folder else None
    return None


def _made(folder: Path, recipe: Recipe, file: Path) -> Path:
    """Among the new files the one of the same codes, or else the one that stands where this one
    stood."""
    found = [path for path in folder.rglob(f"*{file.suffix.lower()}") if FOLDER not in path.parts]
    alike = [one for one in found if recipe.codes and Recipe.of_file(one).codes == recipe.codes]
    name = Path(str(recipe.place)).name
    named = [path for path in alike or found if path.stem == name] or alike
    if len(found) != 1 and not named:
        raise InputError(f"{file}: its place {name[:80]} isn't among {len(found)} new pictures")
    return found[0] if len(found) == 1 else named[0]


def _same(recipe: Recipe, again: Recipe, new: Path, file: Path) -> bool:
    """Whether the new picture's frames are the file's, pixel by pixel. Raises ModelError where
    another model made them."""
    from ..pictures.decoding import open_frames

    if again.digest != recipe.digest:
        raise ModelError(
            f"{file} was made with weights {recipe.digest[:12]}, "
            f"{again.model} has {again.digest[:12]}; name the right --model"
        )
    for key, part in PARTS.items():
        if recipe.options.get(key, again.options.get(key)) != again.options.get(key):
            raise ModelError(f"{file} was made with {part} than now")
    frames = zip_longest(open_frames(new, str(new)), open_frames(file, str(file)))
    return all(
        one is not None
        and other is not None
        and one.convert("RGBA").tobytes() == other.convert("RGBA").tobytes()
        for one, other in frames
    )
