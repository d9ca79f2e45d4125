"""pdae codes: codes files as data. No command here loads a model."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError, UsageError
from .options import FilesFrom, Null, OutputPath, Recursive, takes
from .output import Output
from .run.destination import CODES_SUFFIX, Destination, write_stdout
from .run.inputs import CODES, PICTURES, collect

if TYPE_CHECKING:
    from ..engine.codes import Codes

LONGEST_NAME = 100  # characters of a split file's name

app = typer.Typer(no_args_is_help=True, help="Codes as data: join, split, sum, compare, export.")

Files = Annotated[list[str], typer.Argument(help="Codes: files, folders, or - for standard input.")]
NOISE = "x_T of the result: {}; first: the first one's; none: z alone."


@dataclass(frozen=True)
class FileOptions:
    """For commands that read files and write one, without a model."""

    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False
    json: Annotated[bool, typer.Option("--json", help="A JSON line for each result.")] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but failures.")] = False


@app.command()
@takes(FileOptions)
def merge(
    options: FileOptions,
    inputs: Annotated[
        list[str] | None, typer.Argument(help="Codes: files, folders, or - for standard input.")
    ] = None,
    output: OutputPath = "-",
    files_from: FilesFrom = None,
    null: Null = False,
    recursive: Recursive = False,
) -> None:
    """Join codes of one model and settings into one file.

    Example: pdae codes merge a.safetensors more/ -o all.safetensors
    """
    from ..engine.codes import stack, to_bytes

    read = _read(inputs, files_from, recursive, null)
    codes = stack([one for _, one in read], [name for name, _ in read])
    record = {"input": [name for name, _ in read], **_facts(codes)}
    _write(options, output, to_bytes(codes), record, f"{len(codes)} pictures")


@app.command()
@takes(FileOptions)
def split(
    options: FileOptions,
    inputs: Files,
    output: Annotated[str, typer.Option("--output", "-o", help="Folder.")],
) -> None:
    """Write a file for each picture, named as the picture was, or by its number where names clash.

    Example: pdae codes split all.safetensors -o codes/
    """
    from ..engine.codes import to_bytes

    destination = Destination.parse(output, CODES_SUFFIX, {CODES_SUFFIX})
    if not destination.folder:
        raise UsageError(f"split writes a folder of files: -o {output}/")
    rows = [one[row : row + 1] for _, one in _read(inputs) for row in range(len(one))]
    places = [Path(name) for name in file_names([row.sources[0] for row in rows])]
    for place in places:
        _refuse_existing(options, destination.path(place))
    out = Output(options.json, options.quiet)
    for place, row in zip(places, rows, strict=True):
        destination.write(place, to_bytes(row))
        record = {"input": row.sources[0], "output": str(destination.path(place))}
        out.result({"status": "done", **record}, "{input} → {output}".format_map(record))


def file_names(sources: Sequence[str]) -> list[str]:
    """A file's name, without suffix, for each picture: its own, or where two would be the same
    on some system, or one can't be a name, numbers for all."""
    names = []
    for source in sources:
        name = re.split(r"[/\\]", source)[-1]
        if Path(name).suffix.lower() in PICTURES | {CODES}:
            name = Path(name).stem
        names.append(re.sub(r"[^\w .()+=@,-]", "_", name).strip(" .-")[:LONGEST_NAME])
    if all(names) and len({name.casefold() for name in names}) == len(names):
        return names
    return [f"{row:0{len(str(len(names)))}}" for row in range(1, len(names) + 1)]


@app.command()
@takes(FileOptions)
def average(
    options: FileOptions,
    inputs: Files,
    output: OutputPath = "-",
    noise: Annotated[
        str, typer.Option(help=NOISE.format("plain: the mean, for a smooth picture"))
    ] = "plain",
) -> None:
    """The mean of all codes, as codes of one picture.

    Example: pdae codes average smiling/ -o smile.safetensors
    """
    from ..engine.arithmetic import mean
    from ..engine.codes import stack, to_bytes

    read = _read(inputs)
    codes = stack([one for _, one in read], [name for name, _ in read])
    record = {"input": [name for name, _ in read], **_facts(codes)}
    data = to_bytes(mean(codes, noise))
    _write(options, output, data, record, f"the mean of {len(codes)}")


@app.command()
@takes(FileOptions)
def mix(
    options: FileOptions,
    terms: Annotated[list[str], typer.Argument(help="FILE or FILE=WEIGHT; - is standard input.")],
    output: OutputPath = "-",
    noise: Annotated[
        str, typer.Option(help=NOISE.format("sphere: as noise is, for a sharp one; plain: summed"))
    ] = "sphere",
) -> None:
    """Sum codes with weights, picture by picture; a file of one picture goes with all of another's.

    Example: pdae codes mix a.safetensors=0.5 b.safetensors=0.5 -o between.safetensors

    Example: pdae codes mix face.safetensors hats.safetensors=1 bare.safetensors=-1 --noise first
    """
    from ..engine.arithmetic import combine
    from ..engine.codes import to_bytes

    weighted = [term(text) for text in terms]
    names = [name for name, _ in weighted]
    read = _read(names)
    if [name for name, _ in read] != names:
        raise UsageError("mix sums files; `pdae codes merge` makes one of a folder")
    parts = [(weight, one) for (_, weight), (_, one) in zip(weighted, read, strict=True)]
    codes = combine(parts, noise, names)
    record = {"input": names, "weights": [weight for _, weight in weighted], **_facts(codes)}
    _write(options, output, to_bytes(codes), record, f"{len(codes)} pictures")


def term(text: str) -> tuple[str, float]:
    """ "a.safetensors=0.5" → ("a.safetensors", 0.5); a weight that isn't given is 1."""
    import math

    name, equals, weight = text.rpartition("=")
    if not equals or Path(text).exists():
        return text, 1.0
    try:
        value = float(weight)
    except ValueError as error:
        raise UsageError(f"{text!r}: {weight!r} is no weight; write FILE or FILE=0.5") from error
    if not math.isfinite(value):
        raise UsageError(f"{text!r}: weights are finite numbers")
    return name, value


@app.command()
@takes(FileOptions)
def nearest(
    options: FileOptions,
    query: Annotated[str, typer.Argument(help="Codes to look for; - for standard input.")],
    library: Annotated[list[str], typer.Argument(help="Codes to look among: files, folders.")],
    count: Annotated[int, typer.Option("-k", "--count", min=1, help="So many for each.")] = 5,
    metric: Annotated[
        str,
        typer.Option(help="cosine: 1 - cos of z; euclidean: standard deviations of the library."),
    ] = "cosine",
) -> None:
    """Print the pictures whose z is nearest to the query's: query, distance, source.

    Example: pdae codes nearest face.safetensors all.safetensors -k 5
    """
    import torch

    from ..engine.arithmetic import nearest as find
    from ..engine.codes import require_alike

    asked, among = _read([query]), _read(library)
    if len(asked) != 1:
        raise UsageError(f"{query}: look for the codes of one file; `pdae codes merge` makes one")
    read = [(name, replace(one, x_T=None, eps_T=None)) for name, one in asked + among]
    require_alike([one for _, one in read], [name for name, _ in read])
    rows = [(name, row, one.sources[row]) for name, one in among for row in range(len(one))]
    wanted = asked[0][1]
    distances, found = find(wanted.z, torch.cat([one.z for _, one in among]), count, metric)
    out = Output(options.json, options.quiet)
    for source, *near in zip(wanted.sources, distances.tolist(), found.tolist(), strict=True):
        for rank, (distance, column) in enumerate(zip(*near, strict=True), 1):
            name, row, there = rows[column]
            record = {"status": "done", "input": source, "output": None, "rank": rank}
            record |= {"distance": distance, "source": there, "file": name, "row": row}
            out.result(record, f"{source}  {distance:.4f}  {there}")


@app.command()
@takes(FileOptions)
def export(
    options: FileOptions,
    inputs: Files,
    output: OutputPath = "-",
    format: Annotated[str, typer.Option(help="csv, npy or npz, where -o has no suffix.")] = "csv",
) -> None:
    """Codes for other programs: .csv (source and z), .npy (z), .npz (z, x_T and sources).

    Example: pdae codes export all.safetensors -o codes.csv
    """
    from ..engine import tables
    from ..engine.codes import stack

    writers = {".csv": tables.to_csv, ".npy": tables.to_npy, ".npz": tables.to_npz}
    if f".{format}" not in writers:
        raise UsageError(f"unknown --format {format!r}; known: csv, npy, npz")
    destination = Destination.parse(output, f".{format}", set(writers))
    read = _read(inputs)
    if destination.suffix != ".npz":  # of z alone: x_T may be there or not, made in whatever way
        read = [(name, replace(one, x_T=None, eps_T=None)) for name, one in read]
    codes = stack([one for _, one in read], [name for name, _ in read])
    record = {"input": [name for name, _ in read], **_facts(codes)}
    data = writers[destination.suffix](codes)
    _write(options, output, data, record, f"{len(codes)} pictures", destination)


def _read(
    names: Sequence[str] | None,
    files_from: str | None = None,
    recursive: bool = False,
    null: bool = False,
) -> list[tuple[str, Codes]]:
    """Codes files as named, and those in folders, each with its name. Raises InputError."""
    from ..engine.codes import read_codes

    items = collect(names, files_from, recursive, null=null)
    named = set(names or [])
    wanted = [item for item in items if item.is_codes or item.name in named]
    if not wanted:
        raise UsageError("no codes there; `pdae encode` makes them of pictures")
    return [(item.label, read_codes(io.BytesIO(item.read()), item.label)) for item in wanted]


def _facts(codes: Codes) -> dict[str, Any]:
    return {"pictures": len(codes), "model": codes.model, "digest": codes.digest}


def _write(
    options: FileOptions,
    output: str,
    data: bytes,
    record: dict[str, Any],
    text: str,
    destination: Destination | None = None,
) -> None:
    """Write the one file of a command, and report it."""
    if output == "-":
        if options.json:
            raise UsageError("--json and -o - both want standard output; write to a file")
        return write_stdout(data)
    destination = destination or Destination.parse(output, CODES_SUFFIX, {CODES_SUFFIX})
    if destination.folder:
        raise UsageError(f"-o {output} is a folder; name a file")
    _refuse_existing(options, Path(output))
    destination.write(Path(), data)
    out = Output(options.json, options.quiet)
    out.result({"status": "done", "output": output, **record}, f"{output}: {text}")


def _refuse_existing(options: FileOptions, path: Path) -> None:
    if path.exists() and not options.overwrite:
        raise InputError(f"{path} exists; pass --overwrite")
