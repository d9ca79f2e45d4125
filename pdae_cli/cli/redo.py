"""pdae redo: make a picture again from what it says of itself."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from ..errors import InputError, ModelError
from ..files import bundled_models
from .output import Output
from .run.manifest import AROUND, FOLDER, OWN, PATHS

COMMANDS = (
    "decode", "reconstruct", "interpolate", "manipulate", "inpaint", "colourise", "sample", "align"
)  # fmt: skip


def redo(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="A picture that pdae wrote.")],
    sources: Annotated[
        list[Path] | None,
        typer.Option("--input", "-i", help="What it was made of: a file, or a folder to look in."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Keep the new picture here.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", envvar="PDAE_MODEL", help="Where its model is; default: as recorded."
        ),
    ] = None,
    device: Annotated[str, typer.Option(envvar="PDAE_DEVICE", help="auto, cpu, cuda …")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Make a picture again from its recipe, and say whether it is the same; exit 3 if it isn't.

    The input is looked for by its digest: beside the picture, here, and where --input says.

    Example: pdae redo smile.png -o again.png
    """
    from ..files import write_bytes

    recipe = _recipe(file)
    inputs = [_found(source, file, sources or []) for source in recipe.get("sources", [])]
    with TemporaryDirectory() as folder:
        whole = "place" not in recipe
        target = Path(folder, f"out{file.suffix}") if whole else Path(folder, "out")
        where = [f"--output={target}{'' if whole else '/'}", f"--device={device}", "--quiet"]
        root: Any = context.find_root().command
        command = root.commands[recipe["command"]]
        what = [*_options(recipe, command, file, sources or []), f"--model={_model(recipe, model)}"]
        try:
            code = command.main([*what, *where, "--", *map(str, inputs)], standalone_mode=False)
        except typer.BadParameter as error:
            message = error.format_message().rstrip(".")
            raise InputError(f"{file}: its recipe can't be followed: {message}") from error
        if code:
            raise InputError("it can't be made again, see above")
        new = target if whole else _made(target, recipe, file.suffix)
        again = _recipe(new)
        if again["digest"] != recipe["digest"]:
            raise ModelError(
                f"{file} was made with weights {recipe['digest'][:12]}, "
                f"{again['model']} has {again['digest'][:12]}; name the right --model"
            )
        same = _pixels(new) == _pixels(file)
        if output is not None:
            write_bytes(output, new.read_bytes())
    if not same:
        raise InputError(f"{file}: comes out different; another version or device may have made it")
    record = {"status": "done", "input": str(file), "output": output and str(output), "same": same}
    Output(json=as_json).result(record, f"{file}: the same picture again")


def _recipe(file: Path) -> dict[str, Any]:
    """The recipe in a picture, as far as it is one that can be followed."""
    from ..pictures.decoding import open_picture
    from ..pictures.metadata import read_recipe

    recipe = read_recipe(open_picture(file, str(file)))
    if recipe is None:
        raise InputError(f"{file}: has no recipe of pdae")
    kinds = {"command": str, "options": dict, "model": str, "digest": str, "sources": list}
    if not all(isinstance(recipe.get(key), kind) for key, kind in kinds.items()):
        raise InputError(f"{file}: its recipe is of another version of pdae")
    if recipe["command"] not in COMMANDS:
        raise InputError(f"{file}: pdae {recipe['command']} can't be done again from a recipe")
    return recipe


def _found(source: Any, file: Path, places: Sequence[Path]) -> Path:
    """The file that a recipe's source was, known by its SHA-256: where the recipe says, beside the
    picture, or in the places."""
    name, digest = str(source.get("name")), source.get("sha256")
    candidates = [Path(name), file.parent / name, file.parent / Path(name).name]
    for place in places:
        candidates += sorted(place.rglob("*")) if place.is_dir() else [place]
    for path in candidates:
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == digest:
            return path
    raise InputError(
        f"{file}: was made of {name} (SHA-256 {str(digest)[:12]}), which isn't here; "
        "say where with --input"
    )


def _options(recipe: dict[str, Any], command: Any, file: Path, places: Sequence[Path]) -> list[str]:
    """The recipe's options as arguments of the command; each value stays within its own."""
    given = {name: value for name, value in recipe["options"].items() if name not in OWN + AROUND}
    given |= {key: recipe[key] for key in ("first", "count") if key in recipe}
    for name in [name for name in PATHS if isinstance(given.get(name), str)]:
        if sha := given.get(f"{name}_sha256"):  # a file, of a mask or of landmarks
            given[name] = _found({"name": given[name], "sha256": sha}, file, places)
        else:  # a folder, here or beside the picture
            where = [folder / given[name] for folder in (Path(), file.parent, *places)]
            given[name] = next((one for one in where if one.exists()), given[name])
    arguments = []
    for parameter in command.params:
        value = given.get(parameter.name)
        flag = next((one for one in parameter.opts if one.startswith("--")), None)
        if flag is None or value in (None, False):
            continue
        values = value if isinstance(value, list) else [value]
        arguments += [flag if one is True else f"{flag}={one}" for one in values]
    return arguments


def _model(recipe: dict[str, Any], model: str | None) -> str:
    """The model's name; one that a stranger's file names isn't fetched from the Hub."""
    name = model or recipe["model"]
    if model is None and name not in bundled_models() and not Path(name).is_dir():
        raise ModelError(f"was made with the model {name}; say where it is with --model")
    return str(name)


def _made(folder: Path, recipe: dict[str, Any], suffix: str) -> Path:
    """Among the new files the one that stands where this one stood."""
    found = [path for path in folder.rglob(f"*{suffix}") if FOLDER not in path.parts]
    place = Path(str(recipe["place"])).name
    named = [path for path in found if path.stem == place]
    if len(found) != 1 and len(named) != 1:
        raise InputError(f"its place {place} isn't among the {len(found)} new pictures")
    return found[0] if len(found) == 1 else named[0]


def _pixels(file: Path) -> list[bytes]:
    from ..pictures.decoding import open_frames

    return [frame.convert("RGBA").tobytes() for frame in open_frames(file, str(file))]
