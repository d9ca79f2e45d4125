"""What experiments of `pdae evaluate` share: their options, their pictures, where results go."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError, UsageError
from .options import FITS, ModelOptions
from .output import Output, plain

if TYPE_CHECKING:
    from torch import Tensor

    from ..engine.model import Model
    from ..evaluation.finding import Finding
    from ..evaluation.judge import Judge
    from ..training.data import Labels, Pictures

FILES = ("table.csv", "plot.svg", "sheet.png")  # of an experiment's folder
JUDGE_EPOCHS = 2  # of a judge that is trained for one run
USUAL = {  # pictures that experiments measure on
    "gap": 64, "reconstruction": 16, "stages": 16, "attributes": 2000, "samples": 2000,
    "semantics": 6,
}  # fmt: skip
QUICK = {
    "gap": 8, "reconstruction": 4, "stages": 4, "attributes": 600, "samples": 500, "semantics": 4
}  # fmt: skip
JUDGE_SEED = 1  # a judge's own: another --seed changes what is judged, and not who judges


def _usual() -> str:
    """USUAL, for people."""
    return ", ".join(f"{count} for {name}" for name, count in USUAL.items())


@dataclass(frozen=True)
class DataOptions:
    """Which labels go with DATA, how its pictures become squares, and what may be replaced."""

    labels: Annotated[
        Path | None,
        typer.Option(
            help="CSV of labels, by default labels.csv inside DATA; pictures whose `split` there "
            "isn't train are held out."
        ),
    ] = None
    fit: Annotated[str, typer.Option(help="Pictures that aren't square: crop, pad, stretch.")] = (
        "crop"
    )
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise UsageError(f"unknown --fit {self.fit!r}; known: {', '.join(FITS)}")

    def free(self, *paths: Path) -> None:
        """Raise InputError for a file that exists and isn't to be replaced, or whose folder can't
        be written: before the work, not after it."""
        for path in paths:
            if path.exists() and not self.overwrite:
                raise InputError(f"{path} exists; pass --overwrite")
            above = next(one for one in path.absolute().parents if one.exists())
            if not above.is_dir() or not os.access(above, os.W_OK):
                raise InputError(f"can't write {path}: {above} is no folder that may be written")


@dataclass(frozen=True)
class EvaluateOptions(DataOptions, ModelOptions):
    """For experiments over a data set."""

    pictures: Annotated[
        int | None,
        typer.Option(min=1, help=f"Pictures to measure on, at most. By default {_usual()}."),
    ] = None
    whole: Annotated[
        bool,
        typer.Option(
            "--whole", help="Draw them from all of DATA, not from what is held out alone."
        ),
    ] = False

    def material(self, data: Path, model: Model | None = None) -> Material:
        """The model, by default the chosen one, and the data in its frame."""
        from ..training.data import find_labels, split
        from .data import open_data

        model = model or self.load()
        config, labels = model.config, find_labels(data, self.labels)
        pictures = open_data(data, config.image_size, config.channels, self.fit, self.quiet)
        train, held_out = (pictures, pictures) if self.whole else split(pictures, labels)
        return Material(self, model, data, train, held_out, labels)


@dataclass(frozen=True)
class FolderOptions(EvaluateOptions):
    """For one experiment."""

    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for table.csv, plot.svg and sheet.png."),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output is not None:
            self.free(*(self.output / name for name in FILES))


@dataclass(frozen=True)
class Material:
    """A model with pictures in its frame: those to learn from, those to measure on."""

    options: EvaluateOptions
    model: Model
    data: Path
    train: Pictures
    held_out: Pictures
    labels: Labels | None

    def run(self, name: str, measure: Callable[..., Finding], *args: Any, **how: Any) -> Finding:
        """measure(*args, **how), with a bar on stderr of how far it is while someone watches."""
        out = Output(self.options.json, self.options.quiet)
        with ExitStack() as bars:

            def track(parts: Sequence[Any]) -> Iterator[Any]:
                bar = bars.enter_context(out.progress(name, len(parts)))
                self.model.evaluated = bar.evaluated
                for part in parts:
                    yield part
                    bar.advance(1)

            return measure(*args, **how, track=track)

    def rows(self, pictures: Pictures, count: int, seed: int | None = None) -> list[int]:
        """At most `count` numbers of the pictures, drawn by this seed or --seed."""
        import torch

        from ..diffusion.noise import generator

        chosen = generator(self.options.seed if seed is None else seed, "evaluated")
        return torch.randperm(len(pictures), generator=chosen)[:count].tolist()

    def some(self, pictures: Pictures, count: int) -> Tensor:
        """At most `count` of the pictures: float32 (N, C, H, W)."""
        from ..pictures.images import to_float

        return to_float(pictures.stack(self.rows(pictures, count)))

    def measured(self, name: str, usual: Mapping[str, int] = USUAL) -> Tensor:
        """The pictures that an experiment measures on: as many as is usual, where --pictures
        doesn't say."""
        return self.some(self.held_out, self.options.pictures or usual[name])

    def needs_parts(self, what: str) -> None:
        """Raise UsageError where pictures to learn from are those to measure on as well."""
        if self.options.whole:
            raise UsageError(f"{what} are measured on held-out pictures; leave --whole out")

    def table(self) -> Labels:
        """The labels. Raises UsageError where there are none."""
        return needed(self.labels, self.data)

    def probed(
        self, train: int, usual: Mapping[str, int] = USUAL, others: Sequence[Model] = ()
    ) -> tuple[list[str], dict[str, tuple[Tensor, Tensor]], Tensor, Tensor]:
        """Labels' names, representations of training and measured pictures, and their labels."""
        from ..evaluation.probes import encoded, pixels_and_components, standardised

        names = self.table().attributes
        held = self.options.pictures or usual["attributes"]
        self.needs_parts("probes")
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for one in (self, *(self.options.material(self.data, model) for model in others)):
            x = one.some(one.train, train), one.some(one.held_out, held)
            z = encoded(one.model, x[0]), encoded(one.model, x[1])
            title = f"z of {one.model.name}"
            found[f"{title}, model {len(found) + 1}" if title in found else title] = standardised(
                *z
            )
            if one is self:
                beside = pixels_and_components(*x, z[0].shape[1])
        truth = [
            self.table().matrix([part.names[row] for row in self.rows(part, count)])
            for part, count in ((self.train, train), (self.held_out, held))
        ]
        return names, found | beside, truth[0], truth[1]

    def judge(
        self, path: Path | None, epochs: int = JUDGE_EPOCHS, most: int | None = None
    ) -> Judge:
        """The judge in a file, or one that is trained now, on at most so many training pictures.
        Raises ModelError for a file that is none, UsageError for a judge of other pictures, and
        where there is nothing to train one on."""
        from ..evaluation.judge import read_judge
        from ..training.judge import train_judge

        if path is not None:
            found = read_judge(path)[0]
            found.check(self.train.channels, self.train.size)
            return found
        labels = needed(self.labels, self.data, ", or a judge's file as --judge")
        pictures, report = self.train, Output(quiet=self.options.quiet).say
        if most is not None:
            rows = self.rows(pictures, most, JUDGE_SEED)
            pictures = pictures.subset([pictures.names[row] for row in rows])
        how: dict[str, Any] = {"report": report, "device": self.model.device}
        return train_judge(pictures, self.held_out, labels, epochs, JUDGE_SEED, **how)[0]


def needed(labels: Labels | None, data: Path, instead: str = "") -> Labels:
    """The labels. Raises UsageError where there are none."""
    if labels is None:
        raise UsageError(f"{data} has no labels.csv; pass --labels CSV{instead}")
    return labels


def listed(text: str) -> list[str]:
    """ "a,b" → ["a", "b"]. Raises UsageError for an empty list."""
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise UsageError("an empty list; name at least one, as in a,b")
    return found


def deliver(finding: Finding, options: FolderOptions, model: Model) -> None:
    """Print the rows and the words, and write table, plot and sheet where they are wanted."""
    out = Output(options.json, options.quiet)
    facts = facts_of(finding, options, model)
    if options.json:
        for row in finding.rows:
            out.result(facts | row, "")
        out.say(finding.words)
    else:
        for line in (*_lines(finding), finding.words):
            out.result({}, line)
    if options.output is not None:
        _write(finding, options.output, facts | {"digest": model.digest})
        out.say(f"{options.output} has the table, the plot and, if there is one, the sheet")


def facts_of(finding: Finding, options: EvaluateOptions, model: Model) -> dict[str, Any]:
    """What all records of an experiment say."""
    return {"experiment": finding.experiment, "model": model.name, "seed": options.seed}


def _write(finding: Finding, folder: Path, facts: dict[str, Any]) -> None:
    """Write a finding's FILES."""
    from ..files import write_bytes
    from ..pictures.images import encode_picture

    table = io.StringIO()
    writer = csv.DictWriter(table, finding.columns(), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(plain(finding.rows))
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / FILES[0], table.getvalue().encode())
    write_bytes(folder / FILES[1], finding.plot.svg().encode())
    if finding.sheet is not None:
        recipe = {"command": f"evaluate {finding.experiment}", **facts}
        write_bytes(folder / FILES[2], encode_picture(finding.sheet, ".png", recipe))


def _lines(finding: Finding) -> list[str]:
    """The rows as lines of aligned columns, names first."""
    names = finding.columns()
    cells = [names, *([_cell(row.get(name)) for name in names] for row in finding.rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(names))]
    return [
        "  ".join(one.rjust(width) for one, width in zip(row, widths, strict=True)) for row in cells
    ]


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
