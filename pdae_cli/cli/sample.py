"""pdae sample: new pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from .conditions import painter_of
from .options import BatchOptions, Format, OutputPath, Stream, takes
from .running.batch import Made, Runner
from .running.destination import Destination, picture_suffix
from .running.inputs import Item
from .running.loading import Loaded, numbered
from .running.making import picture_file, recipe

if TYPE_CHECKING:
    from torch import Tensor

    from ..sampling import Sampling


@dataclass(frozen=True)
class SampleOptions(BatchOptions):
    """For samples, which can be made with several strengths."""

    guidance: Annotated[
        str | None,
        typer.Option(help="Strength of G_psi, or several, 0,1,2: one below the other."),
    ] = None  # type: ignore[assignment]

    def changes(self) -> dict[str, Any]:
        """As of one strength, the first."""
        first = {} if self.guidance is None else {"guidance": strengths(self.guidance)[0]}
        return super().changes() | first

    def samplings(self) -> list[Sampling]:
        """One for each strength. Raises UsageError."""
        if self.guidance is None:
            return [self.sampling()]
        return [self.sampling().changed({"guidance": one}) for one in strengths(self.guidance)]


def strengths(text: str) -> list[float]:
    """ "0,0.5,1" → [0.0, 0.5, 1.0]. Raises UsageError."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--guidance {text!r} isn't a number, or a list like 0,0.5,1") from error


@takes(SampleOptions)
def sample(
    options: SampleOptions,
    output: OutputPath = "-",
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="How many.")] = 16,
    first: Annotated[int, typer.Option(min=0, help="Number of the first.")] = 0,
    unconditional: Annotated[
        bool, typer.Option("--unconditional", help="Plain eps_theta, without z.")
    ] = False,
    label: Annotated[
        list[str] | None,
        typer.Option(help="Class of the pictures, of the model or --classifier; NAME=0: without."),
    ] = None,
    classifier: Annotated[
        str | None, typer.Option(help="Folder of a classifier, whose gradient guides to --label.")
    ] = None,
    classifier_scale: Annotated[
        float, typer.Option(help="Strength of that gradient; 1 is Bayes' rule.")
    ] = 1.0,
    like: Annotated[
        str | None, typer.Option(help="Make pictures like those in this folder, zip or codes file.")
    ] = None,
    unlike: Annotated[
        str | None, typer.Option(help="… and unlike those; else what the model makes is unknown.")
    ] = None,
    grid: Annotated[
        bool, typer.Option("--grid", help="One sheet; the default where -o is a file.")
    ] = False,
    columns: Annotated[int, typer.Option(min=1, help="Of the sheet.")] = 8,
    format: Format = "png",
    stream: Stream = None,
) -> None:
    """Make new pictures: z from the latent DPM, x_T from noise. Picture i depends on --seed and i.

    With --like, 10 to 100 pictures that have something in common, only z that have it are taken.

    Example: pdae sample -n 16 -o grid.png
    """
    import torch

    from ..images import encode_picture, tile, to_pixels

    destination = Destination.parse(output, picture_suffix(format), stream=stream)
    if grid and destination.folder:
        destination = Destination.parse(
            str(destination.path(Path("samples"))), picture_suffix(format)
        )
    single = not destination.folder and not destination.stream
    runner = Runner(options, "sample", destination)
    samplings = options.samplings()
    runner.nfe = len(samplings) * runner.model.trajectory(samplings[0]).evaluations()[1]
    guide = None if classifier is None else (classifier, classifier_scale)
    painter = painter_of(runner, unconditional, label or [], guide, like, unlike)
    record = {"model": runner.model.name, "seed": options.seed}
    sheet: list[Tensor] = []

    def process(batch: list[Loaded]) -> Sequence[Made]:
        places = [int(one.place.name) for one in batch]
        pictures = torch.cat([painter.paint(places, one) for one in samplings], dim=2)
        if single:
            sheet.extend(to_pixels(pictures))
            return [Made(one, None, record) for one in batch]
        return [
            Made(one, picture_file(runner, one, picture, {"first": number, "count": 1}, []), record)
            for one, number, picture in zip(batch, places, pictures, strict=True)
        ]

    def gather(made: list[Made]) -> tuple[bytes, list[Made]]:
        what = recipe(runner, [], {"first": first, "count": count})
        data = encode_picture(tile(torch.stack(sheet), columns), destination.suffix, what)
        whole = Made(made[0].source, data, record | {"count": count}, f": {count} pictures")
        return data, [whole]

    items = [Item(f"sample {n}", Path(f"{n:05d}")) for n in range(first, first + count)]
    runner.run(items, process, gather if single else None, load=numbered(painter.source))
