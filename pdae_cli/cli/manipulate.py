"""pdae manipulate: move pictures, or codes, along attributes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from .attributes import print_attributes
from .options import Inputs, OutputPath, PhotoOptions, takes
from .run.batch import Made, Runner
from .run.destination import CODES_SUFFIX, PICTURE_SUFFIXES, Destination, picture_suffix
from .run.inputs import Item
from .run.loading import Loaded
from .run.making import attribute, codes_of, generators, picture_file, pixels_file
from .run.masks import Mask
from .run.photos import Watch, pasted, wanted_squares

if TYPE_CHECKING:
    from torch import Tensor

    from ..engine.attributes import Scale
    from ..engine.codes import Codes
    from ..engine.model import Model


@takes(PhotoOptions)
def manipulate(
    options: PhotoOptions,
    inputs: Inputs = None,
    output: OutputPath = "-",
    attr: Annotated[
        list[str] | None, typer.Option("--attr", help="Attribute, or NAME=SCALE; repeatable.")
    ] = None,
    scale: Annotated[
        list[str] | None,
        typer.Option(
            help="How far, one for each --attr; 1.5sd: in standard deviations of the score; a list "
            "like -0.3,0,0.3 makes a row."
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(help="Attribute whose score is to stay as it is; repeatable."),
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
    mask: Annotated[
        str | None,
        typer.Option(help="Picture as large as the input: only what is white changes."),
    ] = None,
) -> None:
    """Edit pictures: more or less of an attribute. Codes in, codes out, unless -o names a picture.

    Example: pdae manipulate face.png --attr smiling --scale 0.3 -o smile.png

    Example: pdae manipulate face.png --attr young=-1.5sd --keep eyeglasses -o older.png

    Example: pdae manipulate face.png --attr smiling=0.5 --mask mouth.png -o smile.png

    Example: pdae manipulate photo.jpg --align --paste-back --attr smiling=0.3 -o photo-smiling.jpg
    """
    if list_attributes:
        print_attributes(options)
        return
    steps = edits(attr or [], scale or [])
    items = options.items(inputs)
    destination = Destination.parse(
        output, _suffix(format, items), PICTURE_SUFFIXES | {CODES_SUFFIX}, options.stream
    )
    if destination.suffix == CODES_SUFFIX and len(steps) > 1:
        raise UsageError("a list of scales makes a row of pictures; codes take one scale")
    if destination.suffix == CODES_SUFFIX and (options.paste_back or mask):
        flag = "--paste-back" if options.paste_back else "--mask"
        raise UsageError(f"{flag} makes pictures, not codes; give -o a picture's suffix")
    runner = Runner(options, "manipulate", destination)
    kept = [attribute(runner, name) for name in keep or []]
    check(runner, steps, kept)
    within = Mask.read(runner, mask) if mask else None
    watch = Watch(runner)

    def process(batch: list[Loaded]) -> Sequence[Made]:
        return edited(runner, batch, steps, kept, watch, options.paste_back, within)

    runner.run(items, process, load=wanted_squares(runner))


Steps = list[list[tuple[str, "Scale"]]]  # the edits of each picture in a row


def edits(attributes: list[str], scales_given: list[str]) -> Steps:
    """The edits of each picture in the row: [[(name, scale), …], …]. Raises UsageError."""
    if not attributes:
        raise UsageError("name at least one --attr; --list prints them")
    pairs: list[tuple[str, list[Scale]]] = []
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


def scales(text: str) -> list[Scale]:
    """ "-0.3,0,0.3" → [-0.3, 0.0, 0.3]; "0,1.5sd" → [Deviations(0.0), Deviations(1.5)]."""
    import math

    from ..engine.attributes import Deviations

    parts = [part.strip() for part in text.split(",")]
    counted = [part.endswith("sd") for part in parts]
    try:
        values = [float(part.removesuffix("sd")) for part in parts]
    except ValueError:
        values = [math.nan]
    if not all(map(math.isfinite, values)):
        raise UsageError(f"--scale {text!r} isn't a number, 1.5sd, or a list like -0.3,0,0.3")
    if any(counted):
        if any(value and not sd for value, sd in zip(values, counted, strict=True)):
            raise UsageError(f"--scale {text!r}: write sd behind all of them or none")
        return [Deviations(value) for value in values]
    return list(values)


def check(runner: Runner, steps: Steps, kept: list[str]) -> None:
    """Raise UsageError, ModelError for edits that this model can't do, before anything is read."""
    import torch

    for name, scale in [pair for step in steps for pair in step]:
        attribute(runner, name)
        known = runner.model.attributes
        assert known is not None
        known.move(torch.zeros(1, known.weight.shape[1]), name, scale, keep=kept)


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
    runner: Runner,
    batch: list[Loaded],
    steps: Steps,
    kept: list[str],
    watch: Watch,
    paste_back: bool,
    within: Mask | None,
) -> Sequence[Made]:
    """Each picture of a batch with every step's edits, as a row; `within`: where they show."""
    from ..engine.codes import to_bytes

    assert runner.destination is not None
    model, names = runner.model, [attribute(runner, name) for name, _ in steps[0]]
    original = codes_of(runner, batch)
    distances = watch.distances(batch, original)
    moved = [model.manipulate(original, step, kept) for step in steps]
    before, after = model.scores(original), [model.scores(codes) for codes in moved]
    pictures: list[Tensor] = []
    if runner.destination.suffix != CODES_SUFFIX:
        pictures = [_decoded(runner, batch, original, codes, within) for codes in moved]
        if paste_back and within:
            pictures = [within.over(batch, each) for each in pictures]
    made = []
    for row, source in enumerate(batch):
        here = before[row], [scores[row] for scores in after]
        report = {
            name: _scale(column, steps) | _scores(model, name, *here)
            for column, name in enumerate(names)
        }
        record: dict[str, Any] = {"attributes": report}
        if kept:
            record["kept"] = {name: _scores(model, name, *here) for name in kept}
        if source.framed is not None:
            record["frame"] = source.framed.frame.to_json()
            record["found"] = source.framed.found
        if distances is not None:
            record["distance"] = distances[row]
        if pictures:
            facts = {name: record[name] for name in ("frame",) if name in record}
            facts["sampling"] = original.sampling
            side_by_side = [each[row] for each in pictures]
            data = row_file(runner, source, side_by_side, facts, paste_back)
        else:
            data = to_bytes(moved[0][row : row + 1])
        record |= {"model": model.name, "seed": runner.options.seed}
        text = [f"{name} {_shown(one)}" for name, one in report.items()]
        text += [f"kept {name} {_shown(one)}" for name, one in record.get("kept", {}).items()]
        made.append(Made(source, data, record, "  " + "  ".join(text)))
    return made


def _decoded(
    runner: Runner, batch: list[Loaded], original: Codes, moved: Codes, within: Mask | None
) -> Tensor:
    """The pictures of moved codes, or of moved ones within a mask and the original elsewhere."""
    from ..engine.editing import decode_within

    how = {"generators": generators(runner, batch), **runner.options.changes()}
    if within is None:
        return runner.model.decode(moved, **how)
    return decode_within(runner.model, original, moved, within.of(batch), **how)


def row_file(
    runner: Runner,
    source: Loaded,
    pictures: list[Tensor],
    facts: dict[str, Any],
    paste_back: bool,
) -> bytes:
    """The file of a picture's edits side by side, each in its photo where that is wanted."""
    import torch

    if not paste_back:
        return picture_file(runner, source, torch.cat(pictures, dim=2), facts)
    photos = [pasted(source, picture) for picture in pictures]
    return pixels_file(runner, source, torch.cat(photos, dim=2), facts)


def _scale(column: int, steps: Steps) -> dict[str, Any]:
    """How far an attribute is moved, as a record has it."""
    from ..engine.attributes import Deviations

    given = [step[column][1] for step in steps]
    counts = [one.count if isinstance(one, Deviations) else one for one in given]
    unit = {"unit": "sd"} if isinstance(given[0], Deviations) else {}
    return {"scale": _one_or_all(counts), **unit}


def _scores(model: Model, name: str, before: Tensor, after: list[Tensor]) -> dict[str, Any]:
    """A picture's score before and after; where it is known how the score varies, also in its
    standard deviations from its mean."""
    assert model.attributes is not None
    column, spread = model.attributes.index(name), model.attributes.spread(name)
    values = [scores[column].item() for scores in (before, *after)]
    report = {"before": values[0], "after": _one_or_all(values[1:])}
    if spread is not None:
        values = [(value - spread[0]) / spread[1] for value in values]
        report |= {"before_sd": values[0], "after_sd": _one_or_all(values[1:])}
    return report


def _one_or_all(values: list[float]) -> float | list[float]:
    """A single edit's number, or a row's list."""
    return values[0] if len(values) == 1 else values


def _shown(report: dict[str, Any]) -> str:
    """Scores for people."""
    text = _way(report["before"], report["after"])
    sd = "before_sd" in report
    return f"{text} ({_way(report['before_sd'], report['after_sd'])} sd)" if sd else text


def _way(before: float, after: float | list[float]) -> str:
    ends = after if isinstance(after, list) else [after]
    return f"{before:+.2f} → {', '.join(f'{one:+.2f}' for one in ends)}"
