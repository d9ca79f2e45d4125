"""pdae evaluate: what a model knows and how well its codes hold a picture, in figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError, UsageError
from .batch import Made, Runner
from .loading import Loaded
from .making import generators
from .options import FITS, FileOptions, Inputs, ModelOptions, numbers, takes
from .output import Output, plain

if TYPE_CHECKING:
    from torch import Tensor

    from ..engine import Model
    from ..evaluation.finding import Finding
    from ..training.data import Labels, Pictures

app = typer.Typer(
    no_args_is_help=True, help="Measure a model: the paper's experiments, and likelihood."
)
STEPS = 100  # of the ODE, where the user doesn't say
FILES = ("table.csv", "plot.svg", "sheet.png")  # of an experiment's folder

Data = Annotated[Path, typer.Argument(help="Folder or zip of pictures.")]


@dataclass(frozen=True)
class EvaluateOptions(ModelOptions):
    """For experiments over a data set."""

    pictures: Annotated[int, typer.Option(min=1, help="Pictures to measure on, at most.")] = 64
    whole: Annotated[
        bool, typer.Option("--whole", help="Of all of DATA, not of its held-out pictures alone.")
    ] = False
    labels: Annotated[
        Path | None, typer.Option(help="CSV of labels; its `split` column holds pictures out.")
    ] = None
    fit: Annotated[str, typer.Option(help="Pictures that aren't square: crop, pad, stretch.")] = (
        "crop"
    )
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for table.csv, plot.svg and sheet.png."),
    ] = None
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise UsageError(f"unknown --fit {self.fit!r}; known: {', '.join(FITS)}")
        for name in FILES if self.output is not None and not self.overwrite else ():
            if (Path(str(self.output)) / name).exists():
                raise InputError(f"{self.output}/{name} exists; pass --overwrite")

    def out(self) -> Output:
        """Where what is said goes."""
        return Output(self.json, self.quiet)

    def parts(self, model: Model, data: Path) -> tuple[Pictures, Pictures, Labels | None]:
        """Training pictures, those to measure on, and the labels of both, if there are any."""
        from ..training.data import find_labels, open_pictures, split

        unet, labels = model.config.unet, find_labels(data, self.labels)
        pictures = open_pictures(data, unet.image_size, unet.channels, self.fit)
        if self.whole:
            return pictures, pictures, labels
        train, held_out = split(pictures, labels)
        return train, held_out, labels

    def measured(self, model: Model, data: Path) -> Tensor:
        """The pictures to measure on: float32 (N, C, H, W)."""
        return chosen(self.parts(model, data)[1], self.pictures, self.seed)


def chosen(pictures: Pictures, count: int, seed: int) -> Tensor:
    """At most `count` of the pictures, drawn by the seed: float32 (N, C, H, W)."""
    from ..images import to_float

    return to_float(pictures.stack(drawn(len(pictures), count, seed)))


def drawn(available: int, count: int, seed: int) -> list[int]:
    """At most `count` of so many numbers, drawn by the seed."""
    import torch

    from ..noise import generator

    draw = torch.randperm(available, generator=generator(seed, "evaluated"))
    return draw[:count].tolist()


def listed(text: str) -> list[str]:
    """ "a,b" → ["a", "b"]. Raises UsageError for an empty list."""
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise UsageError("an empty list; name at least one, as in a,b")
    return found


def deliver(finding: Finding, options: EvaluateOptions, model: Model) -> None:
    """Print the rows and the words, and write table, plot and sheet where they are wanted."""
    out = options.out()
    facts = {"experiment": finding.experiment, "model": model.name, "seed": options.seed}
    for row in finding.rows if options.json else ():
        out.result(facts | row, "")
    for line in () if options.json else _lines(finding):
        out.result({}, line)
    if options.json:
        out.say(finding.words)
    else:
        out.result({}, finding.words)
    if options.output is not None:
        write(finding, options.output, facts | {"digest": model.digest})
        out.say(f"{options.output} has the table, the plot and, if there is one, the sheet")


def write(finding: Finding, folder: Path, facts: dict[str, object]) -> None:
    """Write a finding's FILES."""
    import csv
    import io

    from ..files import write_bytes
    from ..images import encode_picture

    table, names = io.StringIO(), _names(finding)
    writer = csv.DictWriter(table, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(plain(finding.rows))
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / FILES[0], table.getvalue().encode())
    write_bytes(folder / FILES[1], finding.plot.svg().encode())
    if finding.sheet is not None:
        recipe = {"command": f"evaluate {finding.experiment}", **facts}
        write_bytes(folder / FILES[2], encode_picture(finding.sheet, ".png", recipe))


def _names(finding: Finding) -> list[str]:
    return list(dict.fromkeys(name for row in finding.rows for name in row))


def _lines(finding: Finding) -> list[str]:
    """The rows as lines of aligned columns, names first."""
    names = _names(finding)
    cells = [names, *([_cell(row.get(name)) for name in names] for row in finding.rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(names))]
    return [
        "  ".join(one.rjust(width) for one, width in zip(row, widths, strict=True)) for row in cells
    ]


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


@app.command()
@takes(EvaluateOptions)
def gap(data: Data, options: EvaluateOptions) -> None:
    """Posterior mean gap by t: of eps_theta, of PDAE, and with another picture's z as control.

    The sheet shows what one step makes of x_t, with and without the shift.

    Example: pdae evaluate gap faces.zip --pictures 64 -o gap/
    """
    from ..evaluation.gap import gap as measure

    model = options.load()
    finding = measure(model, options.measured(model, data), seed=options.seed)
    deliver(finding, options, model)


@app.command()
@takes(EvaluateOptions)
def reconstruction(
    data: Data,
    options: EvaluateOptions,
    solvers: Annotated[str, typer.Option(help="Solvers to compare.")] = "dpmpp,ddim,ddpm",
    steps: Annotated[str, typer.Option(help="Numbers of their steps.")] = "5,10,20,50",
) -> None:
    """What comes back from z and x_T, from z alone, and from neither, by solver and steps.

    Example: pdae evaluate reconstruction faces.zip --pictures 16 -o reconstruction/
    """
    from ..evaluation.reconstruction import reconstruction as measure

    model = options.load()
    finding = measure(
        model,
        options.measured(model, data),
        solvers=listed(solvers),
        steps=numbers(steps),
        seed=options.seed,
    )
    deliver(finding, options, model)


@app.command()
@takes(FileOptions)
def likelihood(
    options: FileOptions,
    inputs: Inputs = None,
    conditional: Annotated[
        bool, typer.Option("--conditional", help="Of p(x | z), with each picture's own z.")
    ] = False,
    probes: Annotated[
        int, typer.Option(min=1, max=1000, help="Estimates of the divergence to average.")
    ] = 1,
) -> None:
    """Bits per dimension of pictures, by the probability-flow ODE's divergence.

    Example: pdae evaluate likelihood faces/ -r --inference-steps 200
    """
    from dataclasses import replace

    import torch

    from ..evaluation.likelihood import likelihood as measure

    if options.solver or options.parity or options.corrections or options.preset:
        raise UsageError("likelihood has its own solver; leave solver, corrections, preset out")
    items = options.items(inputs)
    runner = Runner(options, "evaluate likelihood")
    sampling = options.sampling()
    if options.inference_steps is None:
        sampling = replace(sampling, inference_steps=STEPS)

    steps = len(runner.model.trajectory(sampling).grid()) - 1
    runner.nfe = probes * (2 * steps + 1)

    def process(batch: list[Loaded]) -> Sequence[Made]:
        if any(one.picture is None for one in batch):
            raise InputError("a likelihood is of pictures, not of codes")
        pictures = torch.cat([one.picture for one in batch if one.picture is not None])
        bits = measure(
            runner.model, pictures, generators(runner, batch), sampling, conditional, probes
        )
        facts = {
            "conditional": conditional,
            "probes": probes,
            "nfe": runner.nfe,
            "seed": options.seed,
            "model": runner.model.name,
        }
        return [
            Made(source, None, {"bits_per_dimension": one} | facts, f"  {one:.4f} bits/dim")
            for source, one in zip(batch, bits.tolist(), strict=True)
        ]

    runner.run(items, process)
