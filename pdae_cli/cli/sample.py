"""pdae sample: new pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError, counted
from .conditions import SampleOptions, painting
from .options import Format, OutputPath, takes
from .run.batches import Made, Run
from .run.destination import Destination
from .run.inputs import Item
from .run.loading import numbered
from .run.making import picture_file, recipe
from .run.recipes import recordable

if TYPE_CHECKING:
    from torch import Tensor


COLUMNS = 8
MOST = 1_000_000  # at once: what becomes of each is known beforehand; --first goes on


@takes(SampleOptions, without=("keep_alpha", "keep_exif"))
def sample(
    options: SampleOptions,
    output: OutputPath = None,
    count: Annotated[int, typer.Option("-n", "--count", min=1, max=MOST, help="How many.")] = 16,
    first: Annotated[int, typer.Option(min=0, help="Number of the first.")] = 0,
    grid: Annotated[
        bool, typer.Option("--grid", help="One sheet; the default where -o is a file.")
    ] = False,
    columns: Annotated[int, typer.Option(min=1, help="Of the sheet.")] = COLUMNS,
    format: Format = "png",
) -> None:
    """Make new pictures: z from the latent DPM, x_T from noise. Picture i depends on --seed and i.

    With --like, 10 to 100 pictures that have something in common, only z that have it are taken.

    Example: pdae sample -n 16 -o grid.png
    """
    import torch

    from ..pictures.images import check_tiled, encode_picture, tile, to_pixels

    recordable(first + count)
    destination = _destination(options, output, format, grid, columns)
    one_file = not (destination.folder or destination.stream)
    model = options.load()
    if one_file:
        size = model.config.image_size
        check_tiled(count, columns, len(options.wanted()) * size, size, destination.suffix)
    record = {"model": model.name, "seed": options.seed}
    sheet: list[Tensor] = []
    with Run(model, options, "sample", destination) as run:
        rows, made_of = painting(run, options)
        run.bar.expect(count, len(rows) * model.trajectory(options.sampling()).evaluations()[1])
        if one_file:  # another count makes another sheet
            run.job.options.update(first=first, count=count)
            if made_of:
                kind = "classifier" if options.classifier else "like"
                run.job.options[f"{kind}_sha256"] = [made_of]
        items = [Item(f"sample {n}", Path(f"{n:05d}")) for n in range(first, first + count)]
        for batch in run.batches(items, numbered(made_of), whole=one_file, made_of=[]):
            with batch:
                places = [int(one.place.name) for one in batch]
                pictures = torch.cat([paint(places) for paint in rows], dim=2)
                if one_file:
                    sheet.extend(to_pixels(pictures))
                    run.keep(batch, [Made(None, record) for one in batch])
                    continue
                made = []
                for one, number, each in zip(batch, places, pictures, strict=True):
                    data = picture_file(run, one, each, {"first": number, "count": 1}, [])
                    made.append(Made(data, record))
                run.keep(batch, made)
        if sheet:
            what = recipe(run, [], {"first": first, "count": count, "failed": run.failures})
            data = encode_picture(tile(torch.stack(sheet), columns), destination.suffix, what)
            run.write(data, Made(data, record | {"count": count}, f": {counted(count, 'picture')}"))


def _destination(
    options: SampleOptions, output: str | None, format: str, grid: bool, columns: int
) -> Destination:
    """Where the samples go, as a sheet to one file. Raises UsageError as `Destination.parse`, and
    for options of a sheet where there is none."""
    to = Destination.parse(output, f".{format}", stream_out=options.stream, stem="samples")
    if grid and to.folder:
        to = Destination.parse(str(to.path(Path("samples"))), to.suffix)
    if grid and to.stream:
        raise UsageError("--grid is one sheet, --stream many pictures; leave one of them out")
    if columns != COLUMNS and (to.folder or to.stream):
        raise UsageError("--columns is of one sheet: give -o a file's name, or leave it out")
    return to
