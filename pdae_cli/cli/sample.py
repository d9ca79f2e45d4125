"""pdae sample: new pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .conditions import SampleOptions, painter_of
from .options import Format, OutputPath, Stream, takes
from .run.batch import Made, Runner
from .run.destination import Destination, picture_suffix
from .run.inputs import Item
from .run.loading import Loaded, numbered
from .run.making import picture_file, recipe

if TYPE_CHECKING:
    from torch import Tensor


@takes(SampleOptions)
def sample(
    options: SampleOptions,
    output: OutputPath = "-",
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="How many.")] = 16,
    first: Annotated[int, typer.Option(min=0, help="Number of the first.")] = 0,
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

    from ..pictures.images import encode_picture, tile, to_pixels

    destination = Destination.parse(output, picture_suffix(format), stream=stream)
    if grid and destination.folder:
        destination = Destination.parse(
            str(destination.path(Path("samples"))), picture_suffix(format)
        )
    single = not destination.folder and not destination.stream
    runner = Runner(options, "sample", destination)
    painter = painter_of(runner, options)
    runner.nfe = len(painter.rows) * runner.model.trajectory(options.sampling()).evaluations()[1]
    record = {"model": runner.model.name, "seed": options.seed}
    sheet: list[Tensor] = []

    def process(batch: list[Loaded]) -> Sequence[Made]:
        places = [int(one.place.name) for one in batch]
        pictures = torch.cat([paint(places) for paint in painter.rows], dim=2)
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
