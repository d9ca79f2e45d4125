"""pdae codes: codes files as data. No command here loads a model."""

from __future__ import annotations

import math
from collections.abc import Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import UsageError, counted
from ..pictures.listing import CODES
from .options import FILES, NamesOptions, OutputPath, option, takes
from .run.destination import Destination, refuse_existing
from .run.loading import own_names
from .run.tables import TABLE

if TYPE_CHECKING:
    from ..engine.codes import Codes

NOISE = "x_T of the result: {}; first: the first one's; none: z alone."
Noise = Literal["sphere", "plain", "first", "none"]
Inputs = Annotated[
    list[str] | None, typer.Argument(help="Codes: files, folders, or - for standard input.")
]
Read = list[tuple[str, "Codes"]]  # codes files by name

app = typer.Typer(no_args_is_help=True, help="Codes as data: join, split, sum, compare, export.")


@dataclass(frozen=True)
class CodesOptions(NamesOptions):
    """How codes files are found, and what is written without a model."""

    overwrite: bool = option(False, FILES, "Replace existing files.", "--overwrite")

    def read(self, inputs: list[str] | None, states: bool = True) -> Read:
        """Read the codes files that are named, and those in folders, each with its name; without
        their `states` for what is done with z alone. Raises UsageError, InputError."""
        from ..engine.codes import from_bytes

        last, found = None, []  # type: ignore[var-annotated]
        for item in self.named("codes", inputs):
            table = item.table if item.is_codes else None
            if (item.is_codes or not item.found) and (table is None or table is not last):
                codes = from_bytes(table.read() if table else item.read(), item.name)
                codes = codes if states else replace(codes, x_T=None, residual_T=None)
                found.append((item.name, codes))
            last = table
        if not found:
            raise UsageError("no codes there; `pdae encode` makes them of pictures")
        return found

    def joined(self, inputs: list[str] | None, states: bool = True) -> tuple[list[str], Codes]:
        """Read the files' names, and all their codes as one. Raises InputError for unlike ones."""
        from ..engine.codes import stack

        read = self.read(inputs, states)
        names = [name for name, _ in read]
        return names, stack([one for _, one in read], names)

    def file(
        self, output: str | None, suffix: str = CODES, allowed: Set[str] = {CODES}
    ) -> Destination:
        """Choose the file, or standard output, to write. Raises UsageError, InputError."""
        file = Destination.parse(output, suffix, allowed, stem="codes")
        if file.folder:
            raise UsageError(f"-o {output} is a folder; name a file")
        if file.stdout and self.json:
            raise UsageError("--json and -o - both want standard output; write to a file")
        if file.named:
            file = file.at(next(path for path in file.candidates() if not path.exists()))
        if not file.stdout:
            refuse_existing(Path(file.target), self.overwrite)
        return file

    def write(self, file: Destination, data: bytes, record: dict[str, Any], codes: Codes) -> None:
        """Write what a command made of codes, and report it."""
        file.write(Path(), data)
        if not file.stdout:
            made = {"pictures": len(codes), "model": codes.model, "digest": codes.weights_sha}
            text = f"{file.target}: of {counted(len(codes), 'picture')}"
            self.report({"output": file.target, **record, **made}, text)

    def report(self, record: dict[str, Any], text: str) -> None:
        """Print a JSON line, or the text."""
        self.out.result({"status": "done", **record}, text)


@app.command()
@takes(CodesOptions)
def merge(options: CodesOptions, inputs: Inputs = None, output: OutputPath = None) -> None:
    """Join codes of one model and settings into one file.

    Example: pdae codes merge a.safetensors more/ -o all.safetensors
    """
    from ..engine.codes import one_file

    file = options.file(output)
    names, codes = options.joined(inputs)
    options.write(file, one_file(codes), {"input": names}, codes)


@app.command()
@takes(CodesOptions)
def split(
    options: CodesOptions,
    output: Annotated[str, typer.Option("--output", "-o", help="Folder.")],
    inputs: Inputs = None,
) -> None:
    """Write a file for each picture, named as the picture was, or by its number where names clash.

    Example: pdae codes split all.safetensors -o codes/
    """
    from ..engine.codes import to_bytes

    folder = Destination.parse(output, CODES, {CODES})
    if not folder.folder:
        raise UsageError(f"split writes a folder of files: -o {output}/")
    rows = [one[row : row + 1] for _, one in options.read(inputs) for row in range(len(one))]
    numbers = [f"{row:0{len(str(len(rows)))}}" for row in range(1, len(rows) + 1)]
    names = own_names([row.sources[0] for row in rows]) or numbers
    places = [Path(name) for name in names]
    for place in places:
        refuse_existing(folder.path(place), options.overwrite)
    for place, row in zip(places, rows, strict=True):
        folder.write(place, to_bytes(row))
        source, path = row.sources[0], str(folder.path(place))
        options.report({"input": source, "output": path}, f"{source} → {path}")


@app.command()
@takes(CodesOptions)
def average(
    options: CodesOptions,
    inputs: Inputs = None,
    output: OutputPath = None,
    noise: Annotated[
        Noise, typer.Option(help=NOISE.format("plain: the mean, for a smooth picture"))
    ] = "plain",
) -> None:
    """The mean of all codes, as codes of one picture.

    Example: pdae codes average smiling/ -o smile.safetensors
    """
    from ..engine.codes import mean, to_bytes

    file = options.file(output)
    names, codes = options.joined(inputs)
    options.write(file, to_bytes(mean(codes, noise)), {"input": names}, codes)


@app.command()
@takes(CodesOptions, without=("recursive", "files_from", "null"))
def mix(
    options: CodesOptions,
    terms: Annotated[list[str], typer.Argument(help="FILE or FILE=WEIGHT; - is standard input.")],
    output: OutputPath = None,
    noise: Annotated[
        Noise,
        typer.Option(help=NOISE.format("sphere: as noise is, for a sharp one; plain: summed")),
    ] = "sphere",
) -> None:
    """Sum codes with weights, picture by picture; a file of one picture goes with all of another's.

    Example: pdae codes mix a.safetensors=0.5 b.safetensors=0.5 -o between.safetensors

    Example: pdae codes mix face.safetensors hats.safetensors=1 bare.safetensors=-1 --noise first
    """
    from ..engine.codes import combine, to_bytes

    file = options.file(output)
    names, weights = (list(part) for part in zip(*map(term, terms), strict=True))
    read = options.read(names)
    if [name for name, _ in read] != names:
        raise UsageError("mix sums files; `pdae codes merge` makes one of a folder")
    parts = [(weight, one) for weight, (_, one) in zip(weights, read, strict=True)]
    codes = combine(parts, noise, names)
    options.write(file, to_bytes(codes), {"input": names, "weights": weights}, codes)


def term(text: str) -> tuple[str, float]:
    """ "a.safetensors=0.5" → ("a.safetensors", 0.5); a weight that isn't given is 1."""
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
@takes(CodesOptions, without=("overwrite",))
def nearest(
    options: CodesOptions,
    query: Annotated[str, typer.Argument(help="Codes to look for; - for standard input.")],
    library: Annotated[list[str], typer.Argument(help="Codes to look among: files, folders.")],
    count: Annotated[int, typer.Option("-k", "--count", min=1, help="So many for each.")] = 5,
    metric: Annotated[
        Literal["cosine", "euclidean"],
        typer.Option(help="cosine: 1 - cos of z; euclidean: standard deviations of the library."),
    ] = "cosine",
) -> None:
    """Print the pictures whose z is nearest to the query's: query, distance, source.

    Example: pdae codes nearest face.safetensors all.safetensors -k 5
    """
    import torch

    from ..engine.codes import nearest as find
    from ..engine.codes import require_alike

    asked, among = CodesOptions().read([query], False), options.read(library, False)
    if len(asked) != 1:
        raise UsageError(f"{query}: look for the codes of one file; `pdae codes merge` makes one")
    require_alike([one for _, one in asked + among], [name for name, _ in asked + among])
    wanted, known = asked[0][1], torch.cat([one.z for _, one in among])
    distances, found = find(wanted.z, known, count, metric)
    rows = [(name, row, one.sources[row]) for name, one in among for row in range(len(one))]
    for source, *near in zip(wanted.sources, distances.tolist(), found.tolist(), strict=True):
        for rank, (distance, column) in enumerate(zip(*near, strict=True), 1):
            name, row, there = rows[column]
            record = {"input": source, "output": None, "rank": rank, "distance": distance}
            record |= {"source": there, "file": name, "row": row}
            options.report(record, f"{source}  {distance:.4f}  {there}")


@app.command()
@takes(CodesOptions)
def export(
    options: CodesOptions,
    inputs: Inputs = None,
    output: OutputPath = None,
    format: Annotated[
        Literal["csv", "npy", "npz", "parquet"], typer.Option(help="Where -o has no suffix.")
    ] = "csv",
) -> None:
    """Codes for other programs: .csv (source and z), .npy (z), .npz (z, x_T and sources), .parquet
    (all, which pdae reads, too).

    Example: pdae codes export all.safetensors -o codes.csv
    """
    from ..engine.columns import to_csv, to_npy, to_npz, to_parquet

    writers = {".csv": to_csv, ".npy": to_npy, ".npz": to_npz, TABLE: to_parquet}
    file = options.file(output, f".{format}", set(writers))
    # Of z alone, x_T may be there or not, made in whatever way.
    names, codes = options.joined(inputs, states=file.suffix in (".npz", TABLE))
    options.write(file, writers[file.suffix](codes), {"input": names}, codes)
