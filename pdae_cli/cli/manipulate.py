"""pdae manipulate: move pictures, or codes, along attributes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import UsageError
from ..pictures.listing import CODES
from .attributes import had, print_attributes
from .complete import attributes
from .options import FILES, EditOptions, Inputs, OutputPath, option, takes
from .run.batches import Batch, Made, Run
from .run.destination import PICTURE_SUFFIXES, Destination, agreed, is_folder, stem_of
from .run.inputs import Item, pipes_codes
from .run.loading import Loaded
from .run.making import codes_of, decoded_by, generators, recipe
from .run.masks import Masks
from .run.photos import WHOLE, by_photo, faces_of, framed, row_file, wanted_squares
from .run.stacked import StackedFile

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from ..engine.attributes import Scale
    from ..engine.codes import Codes
    from ..evaluation.likeness import Likeness

FAR = 4.0  # standard deviations: beyond them edits are the model's inventions


@dataclass(frozen=True)
class ManipulateOptions(EditOptions):
    """Pictures or codes to such that have more or less of something."""

    attr: list[str] | None = option(  # noqa: RUF009, None is the default
        None, None, "Attribute, or NAME=SCALE; repeatable.", autocompletion=attributes
    )
    scale: list[str] | None = option(  # noqa: RUF009
        None,
        None,
        "How far, one for each --attr, usually -0.5 … 0.5; 1.5sd: in standard deviations of the "
        "score, usually within 3; 10u: in units of a number, years of an age; a list like "
        "-0.3,0,0.3 makes a row.",
    )
    to: list[str] | None = option(  # noqa: RUF009
        None, None, "Or to which score, in standard deviations from the mean: 0, or -1,0,1; 40u."
    )
    keep: list[str] | None = option(  # noqa: RUF009
        None,
        None,
        "Attribute whose score is to stay as it is; repeatable.",
        autocompletion=attributes,
    )
    random_noise: bool = option(False, None, "Fresh x_T from --seed.", "--random-noise", rare=True)
    list_attributes: bool = option(False, None, "Print the model's attributes.", "--list")
    mask: str | None = option(
        None, None, "As large as the input: only what is white changes; or a folder."
    )
    format: Literal["png", "jpg", "jpeg", "webp", "gif", "codes", "safetensors"] | None = option(
        None,
        FILES,
        "Where -o has no suffix; default: png, and codes where all inputs are codes.",
        case_sensitive=False,
    )


@takes(ManipulateOptions)
def manipulate(
    options: ManipulateOptions, inputs: Inputs = None, output: OutputPath = None
) -> None:
    """Edit pictures: more or less of an attribute. Codes alone in, codes out, unless -o names a
    picture.

    Example: pdae manipulate face.png --attr smiling --scale 0.3 -o smile.png

    Example: pdae manipulate face.png --attr young=-1.5sd --keep eyeglasses -o older.png

    Example: pdae manipulate face.png -m my-model --attr age=+10u -o older.png

    Example: pdae manipulate face.png --attr smiling --to 1 -o smile.png

    Example: pdae manipulate face.png --attr smiling=0.5 --mask mouth.png -o smile.png

    Example: pdae manipulate photo.jpg --align --paste-back --attr smiling=0.3 -o photo-smiling.jpg
    """
    if options.list_attributes:
        print_attributes(options)
        return
    steps = edits(options.attr or [], options.scale or [], options.to or [])
    items = options.items("manipulate", inputs)
    destination = Destination.parse(
        output, _suffix(options.format, items, output), PICTURE_SUFFIXES | {CODES},
        stream=options.stream, stem=stem_of(items, _behind(steps, bool(options.to))),
    )  # fmt: skip
    to_codes = destination.suffix == CODES
    if to_codes and len(steps) > 1:
        pictures = "--format png makes pictures of codes"
        raise UsageError(f"a list of scales makes a row of pictures; codes take one; {pictures}")
    if to_codes and (options.paste_back or options.mask):
        flag = "--paste-back" if options.paste_back else "--mask"
        raise UsageError(
            f"{flag} makes pictures, not codes; give -o a picture's suffix or --format"
        )
    model = options.load()
    to_noise, to_picture = model.trajectory(options.sampling()).evaluations()
    nfe = (0 if options.random_noise else to_noise) + (0 if to_codes else to_picture * len(steps))
    with Run(model, options, "manipulate", destination, nfe) as run:
        whole = to_codes and not destination.folder
        file = StackedFile(run, items, noise=True) if whole else None
        edit = Edit(run, steps, options.keep or [], options.mask, file)
        for batch in run.batches(items, wanted_squares(run), whole):
            with batch:
                run.keep(batch, edit.of(batch))
        if file:
            file.write(framed(run.kept[0][0]) if len(run.kept) == 1 else {})


Steps = list[list[tuple[str, "Scale"]]]  # the edits of each picture in a row


def edits(attributes: list[str], scales_given: list[str], to: Sequence[str] = ()) -> Steps:
    """The edits of each picture in the row: [[(name, scale), …], …]. Raises UsageError."""
    if not attributes:
        raise UsageError("name at least one --attr; --list prints them")
    if to and (scales_given or any("=" in name for name in attributes)):
        raise UsageError("--scale says how far a score goes, --to where it ends; give one of them")
    option, waiting = ("--to", list(to)) if to else ("--scale", list(scales_given))
    pairs: list[tuple[str, list[Scale]]] = []
    for given in attributes:
        name, equals, value = given.partition("=")
        if not equals and not waiting:
            hint = "" if to else f", or write --attr {name}=0.3"
            raise UsageError(f"--attr {name} needs a {option}{hint}")
        values = scales(value if equals else waiting.pop(0), option)
        if to:  # a plain number is in standard deviations
            values = [replace(one, unit=one.unit or "sd") for one in values]
        pairs.append((name, values))
    if waiting:
        raise UsageError(f"{len(waiting)} more {option} than --attr")
    length = max(len(values) for _, values in pairs)
    if any(len(values) not in (1, length) for _, values in pairs):
        raise UsageError("lists of scales must be equally long")
    return [
        [(name, values[step if len(values) > 1 else 0]) for name, values in pairs]
        for step in range(length)
    ]


def scales(text: str, option: str = "--scale") -> list[Scale]:
    """ "-0.3,0,0.3" → scales of -0.3, 0 and 0.3; "0,1.5sd" → of 0 and 1.5 sd; "+10u" → of 10 u."""
    from ..engine.attributes import Scale

    found = [re.fullmatch(r"\s*(.*?)(sd|u)?\s*", part) for part in text.split(",")]
    try:
        values = [float(one[1]) for one in found if one]
    except ValueError:
        values = [math.nan]
    if not all(map(math.isfinite, values)):
        raise UsageError(f"{option} {text!r} isn't a number, 1.5sd, 10u, or a list like -0.3,0,0.3")
    units = {one[2] for one, value in zip(found, values, strict=True) if one and (value or one[2])}
    if len(units) > 1:
        raise UsageError(f"{option} {text!r}: write sd or u behind all of them or none")
    unit: Any = next(iter(units), None) or ""
    return [Scale(value, unit) for value in values]


def _suffix(format: str | None, items: Iterable[Item], output: str | None) -> str:
    """The files' suffix where -o doesn't say: codes stay codes; with pictures among them, all are
    to be pictures."""
    says = output not in (None, "-") and not is_folder(str(output))
    if format is None and isinstance(items, Sequence) and not says:  # not a stream of pictures
        codes = all(pipes_codes() if item.name == "-" else item.is_codes for item in items)
        format = "codes" if codes else None
    suffix = CODES if format in ("codes", "safetensors") else f".{format or 'png'}"
    if says and format:
        agreed(suffix, Path(str(output)))
    return suffix


def _behind(steps: Steps, to: bool) -> str:
    """What a file's name says of the edits: -smiling+0.3, or -smiling-to+1."""
    parts, way = [], "-to" if to else ""
    for (name, begin), (_, end) in zip(steps[0], steps[-1], strict=True):
        values = [begin.count] if len(steps) == 1 else [begin.count, end.count]
        parts.append(f"-{name.lower()}{way}" + "..".join(f"{one:+g}" for one in values))
    return "".join(parts)


class Edit:
    """The edits of a run: each picture by every step, as a row."""

    def __init__(
        self, run: Run, steps: Steps, keep: list[str], mask: str | None, file: StackedFile | None
    ) -> None:
        """Raises UsageError, ModelError for edits that the model can't do, before it reads any."""
        import torch

        self.run, self.steps = run, steps
        self.known = had(run.model.attributes, run.model.name)
        self.kept = [self._named(name) for name in keep]
        self.names = [self._named(name) for name, _ in steps[0]]
        self.to = bool(run.options.to)
        once, ends, option = [*self.names], "is moved once", "--scale"
        if self.to:
            once, ends, option = [*self.names, *self.kept], "ends at one score", "--to"
        if len({*once}) < len(once):
            raise UsageError(f"each attribute {ends}; a list like {option}=-1,0,1 is a row")
        for name, scale in [pair for step in steps for pair in step]:
            z = torch.zeros(1, self.known.weight.shape[1])
            others = [one for one in self.names if self.to and one != self._named(name)]
            self.known.move(z, name, scale, keep=[*self.kept, *others])
        digest = self.known.sha([*self.names, *self.kept])
        run.job.options["attributes_sha256"] = digest  # learnt anew, they make other pictures
        self.within = Masks(run, mask) if mask else None  # where the edits show
        self.file = file  # where one is made of all

    def _named(self, name: str) -> str:
        """The model's own name of an attribute."""
        return self.known.names[self.known.index(name)]

    def of(self, batch: Batch) -> list[Made]:
        """Edit a batch."""
        from ..engine.codes import to_bytes
        from ..engine.editing import reach
        from ..engine.model import Model

        run, model, faces = self.run, self.run.model, faces_of(batch)
        draws = generators(run, faces)
        original = codes_of(run, faces, noise=not run.options.random_noise)
        if run.options.random_noise:
            original = replace(original, x_T=model.noise(draws), residual_T=None)
        move = partial(reach if self.to else Model.manipulate, model, original, keep=self.kept)
        moved = [move(step) for step in self.steps]
        to_codes, pictures = run.destination.suffix == CODES, []
        if not to_codes:
            pictures = [self._pictures(faces, original, one, draws) for one in moved]
        records = self._records(faces, original, moved)
        made = []
        for one, rows in by_photo(batch, range(len(faces))):
            told, facts = [records[row] for row in rows], framed(one)
            data = None
            if to_codes and not run.whole:
                data = to_bytes(moved[0][rows[0] : rows[0] + 1], recipe(run, [one], facts))
            elif not to_codes:
                facts["sampling"] = decoded_by(run, moved[0])
                data = row_file(run, one, [[each[row] for each in pictures] for row in rows], facts)
            record = told[0] if len(told) == 1 else {"faces": told}
            record = record | {"model": model.name, "seed": run.options.seed}
            made.append(Made(data, record, "".join(map(_text, told))))
        if self.file:
            self.file.add(moved[0])
        return made

    def _records(
        self, faces: list[Loaded], original: Codes, moved: list[Codes]
    ) -> list[dict[str, Any]]:
        """What is told of each picture's edits; warns of odd ones."""
        scores = [self.run.model.scores(codes) for codes in (original, *moved)]
        distances, records = self._distances(faces, original), []
        for row, one in enumerate(faces):
            here = [each[row] for each in scores]
            report = {
                name: self._scale(column) | self._scores(name, here)
                for column, name in enumerate(self.names)
            }
            self._warn_of_far(one, report)
            record: dict[str, Any] = {"attributes": report}
            if self.kept:
                record["kept"] = {name: self._scores(name, here) for name in self.kept}
            record |= framed(replace(one, faces=()))
            if distances is not None:
                record["distance"] = distances[row]
            records.append(record)
        return records

    @cached_property
    def _likeness(self) -> Likeness | None:
        from ..evaluation.likeness import Likeness

        return Likeness.of(self.run.model, self.run.model.latent_training)

    def _distances(self, batch: list[Loaded], codes: Codes) -> list[float] | None:
        """How far each picture's code is from those of training, in standard deviations; None for
        a batch of codes, or where the model can't tell. Warns of pictures that don't look as if
        they lay in the model's frame."""
        from ..evaluation.likeness import LIMIT

        if batch[0].picture is None or self._likeness is None:
            return None
        distances = self._likeness.distances(codes.z)
        for one, distance in zip(batch, distances, strict=True):
            if distance > LIMIT:
                aligned = one.framed is not None and one.framed.how != WHOLE
                hint = "" if aligned else "; --align brings a photo's face into the frame"
                self.run.out.warn(
                    f"{one.label}: doesn't look as if it lay in the model's frame (its code is "
                    f"{distance:.1f} standard deviations off){hint}"
                )
        return distances

    def _pictures(
        self, batch: list[Loaded], original: Codes, moved: Codes, draws: list[Generator]
    ) -> Tensor:
        """The pictures (N, C, H, W) of moved codes; within a mask, if there is one."""
        from ..engine.editing import decode_within

        run = self.run
        how: dict[str, Any] = {"generators": draws, **run.options.changes()}
        if self.within is None:
            return run.model.decode(moved, **how)
        made = decode_within(run.model, original, moved, self.within.of(batch), **how)
        return self.within.over(batch, made) if run.options.paste_back else made

    def _scale(self, column: int) -> dict[str, Any]:
        """How far an attribute is moved, as a record has it."""
        given = [step[column][1] for step in self.steps]
        how = "to" if self.to else "scale"
        unit = {"unit": given[0].unit} if given[0].unit else {}
        return {how: _one_or_all([one.count for one in given]), **unit}

    def _scores(self, name: str, scores: list[Tensor]) -> dict[str, Any]:
        """A picture's score before and after; where it is known how the score varies, also in its
        standard deviations from its mean."""
        column, spread = self.known.index(name), self.known.spread(name)
        values = [each[column].item() for each in scores]
        report = {"before": values[0], "after": _one_or_all(values[1:])}
        if spread is not None:
            values = [(value - spread[0]) / spread[1] for value in values]
            report |= {"before_sd": values[0], "after_sd": _one_or_all(values[1:])}
        return report

    def _warn_of_far(self, one: Loaded, report: dict[str, Any]) -> None:
        """Warn of scores that are further from the mean than pictures' scores ever are."""
        nearer = "--to nearer to 0" if self.to else "a smaller --scale"
        for name, scores in report.items():
            after = scores.get("after_sd", 0.0)
            furthest = max(after if isinstance(after, list) else [after], key=abs)
            if abs(furthest) > FAR:
                self.run.out.warn(
                    f"{one.label}: its {name} would be {furthest:+.1f} standard deviations from "
                    f"the mean, where no picture is; {nearer} looks better"
                )


def _one_or_all(values: list[float]) -> float | list[float]:
    """A single edit's number, or a row's list."""
    return values[0] if len(values) == 1 else values


def _text(record: dict[str, Any]) -> str:
    """A picture's record for people."""
    told = [f"{name} {_shown(one)}" for name, one in record["attributes"].items()]
    told += [f"kept {name} {_shown(one)}" for name, one in record.get("kept", {}).items()]
    return "  " + "  ".join(told)


def _shown(report: dict[str, Any]) -> str:
    """Scores for people."""

    def way(before: float, after: float | list[float]) -> str:
        ends = after if isinstance(after, list) else [after]
        return f"{before:+.2f} → {', '.join(f'{one:+.2f}' for one in ends)}"

    text = way(report["before"], report["after"])
    sd = "before_sd" in report
    return f"{text} ({way(report['before_sd'], report['after_sd'])} sd)" if sd else text
