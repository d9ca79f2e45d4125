"""pdae manipulate: move pictures, or codes, along attributes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from .attributes import print_attributes
from .batch import Made, Runner
from .destination import CODES_SUFFIX, PICTURE_SUFFIXES, Destination, picture_suffix
from .inputs import Item, collect
from .loading import Loaded
from .making import attribute, codes_of, generators, picture_file
from .options import (
    BatchOptions,
    FilesFrom,
    Inputs,
    Null,
    OutputPath,
    Recursive,
    Stream,
    scales,
    takes,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ..codes import Codes
    from ..engine import Model


@takes(BatchOptions)
def manipulate(
    options: BatchOptions,
    inputs: Inputs = None,
    output: OutputPath = "-",
    attr: Annotated[
        list[str] | None, typer.Option("--attr", help="Attribute, or NAME=SCALE; repeatable.")
    ] = None,
    scale: Annotated[
        list[str] | None,
        typer.Option(help="How far, one for each --attr; a list like -0.3,0,0.3 makes a row."),
    ] = None,
    list_attributes: Annotated[
        bool, typer.Option("--list", help="Print the model's attributes.")
    ] = False,
    format: Annotated[
        str | None,
        typer.Option(
            help="png, jpg, webp, or codes, where -o has no suffix; default: as the input."
        ),
    ] = None,
    files_from: FilesFrom = None,
    null: Null = False,
    recursive: Recursive = False,
    stream: Stream = None,
) -> None:
    """Edit pictures: more or less of an attribute. Codes in, codes out, unless -o names a picture.

    Example: pdae manipulate face.png --attr smiling --scale 0.3 -o smile.png
    """
    if list_attributes:
        print_attributes(options)
        return
    steps = edits(attr or [], scale or [])
    items = collect(inputs, files_from, recursive, null=null, stream=stream)
    destination = Destination.parse(
        output, _suffix(format, items), PICTURE_SUFFIXES | {CODES_SUFFIX}, stream
    )
    if destination.suffix == CODES_SUFFIX and len(steps) > 1:
        raise UsageError("a list of scales makes a row of pictures; codes take one scale")
    runner = Runner(options, "manipulate", destination)
    for name, _ in steps[0]:
        attribute(runner, name)

    def process(batch: list[Loaded]) -> Sequence[Made]:
        return edited(runner, batch, steps)

    runner.run(items, process)


def edits(attributes: list[str], scales_given: list[str]) -> list[list[tuple[str, float]]]:
    """The edits of each picture in the row: [[(name, scale), …], …]. Raises UsageError."""
    if not attributes:
        raise UsageError("name at least one --attr; --list prints them")
    pairs: list[tuple[str, list[float]]] = []
    waiting = list(scales_given)
    for given in attributes:
        name, equals, value = given.partition("=")
        if not equals and not waiting:
            raise UsageError(f"--attr {name} needs a --scale, or write --attr {name}=0.3")
        pairs.append((name, scales(value if equals else waiting.pop(0))))
    if waiting:
        raise UsageError(f"{len(waiting)} more --scale than --attr")
    length = max(len(values) for _, values in pairs)
    if any(len(values) not in (1, length) for _, values in pairs):
        raise UsageError("lists of scales must be equally long")
    return [
        [(name, values[step if len(values) > 1 else 0]) for name, values in pairs]
        for step in range(length)
    ]


def _suffix(format: str | None, items: Iterable[Item]) -> str:
    """The files' suffix where -o doesn't say: pictures stay pictures, codes stay codes."""
    if format is not None:
        return (
            CODES_SUFFIX if format.lower() in ("codes", "safetensors") else picture_suffix(format)
        )
    if not isinstance(items, list):  # a stream of pictures
        return picture_suffix("png")
    codes = any(item.name == "-" or item.is_codes for item in items)
    return CODES_SUFFIX if codes else picture_suffix("png")


def edited(
    runner: Runner, batch: list[Loaded], steps: list[list[tuple[str, float]]]
) -> Sequence[Made]:
    """Each picture of a batch with every step's edits, as a row."""
    import torch

    from ..codes import to_bytes

    assert runner.destination is not None
    model, names = runner.model, [attribute(runner, name) for name, _ in steps[0]]
    original = codes_of(runner, batch)
    moved = [model.manipulate(original, step) for step in steps]
    reports = _reports(model, names, steps, original, moved)
    rows: list[Tensor] = []
    if runner.destination.suffix != CODES_SUFFIX:
        changes = runner.options.changes()
        pictures = [
            model.decode(codes, generators=generators(runner, batch), **changes) for codes in moved
        ]
        rows = list(torch.cat(pictures, dim=3))
    made = []
    for row, (source, report) in enumerate(zip(batch, reports, strict=True)):
        facts = {
            "attributes": report,
            "sampling": original.sampling,
        }
        if rows:
            data = picture_file(runner, source, rows[row], facts)
        else:
            data = to_bytes(moved[0][row : row + 1])
        text = "  ".join(
            f"{name} {one['before']:+.2f} → {_shown(one['after'])}" for name, one in report.items()
        )
        record = {"attributes": report, "model": model.name, "seed": runner.options.seed}
        made.append(Made(source, data, record, f"  {text}"))
    return made


def _reports(
    model: Model,
    names: list[str],
    steps: list[list[tuple[str, float]]],
    original: Codes,
    moved: list[Codes],
) -> list[dict[str, dict[str, Any]]]:
    """For each picture: the scale of each edited attribute, and its score before and after."""
    assert model.attributes is not None
    columns = [model.attributes.names.index(name) for name in names]
    before = model.scores(original)[:, columns].tolist()
    after = [model.scores(codes)[:, columns].tolist() for codes in moved]
    return [
        {
            name: {
                "scale": _one_or_all([step[column][1] for step in steps]),
                "before": before[row][column],
                "after": _one_or_all([scores[row][column] for scores in after]),
            }
            for column, name in enumerate(names)
        }
        for row in range(len(original))
    ]


def _one_or_all(values: list[float]) -> float | list[float]:
    """A single edit's number, or a row's list."""
    return values[0] if len(values) == 1 else values


def _shown(scores: float | list[float]) -> str:
    return ", ".join(
        f"{score:+.2f}" for score in (scores if isinstance(scores, list) else [scores])
    )
