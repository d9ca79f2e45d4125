"""pdae sample: new pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .batch import Destination, Runner, picture_suffix, recipe
from .options import BatchOptions, Format, OutputPath, takes


@takes(BatchOptions)
def sample(
    options: BatchOptions,
    output: OutputPath = "-",
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="How many.")] = 16,
    unconditional: Annotated[
        bool, typer.Option("--unconditional", help="Plain eps_theta, without z.")
    ] = False,
    grid: Annotated[
        bool, typer.Option("--grid", help="One sheet; the default where -o is a file.")
    ] = False,
    columns: Annotated[int, typer.Option(min=1, help="Of the sheet.")] = 8,
    format: Format = "png",
) -> None:
    """Make new pictures: z from the latent DPM, x_T from noise. Picture i depends on --seed and i.

    Example: pdae sample -n 16 -o grid.png
    """
    import torch

    from ..images import encode_picture, tile, to_pixels

    destination = Destination.parse(output, picture_suffix(format))
    runner = Runner(options, "sample", destination)
    single = not destination.folder or grid
    names = ["samples"] if single else [f"{number:05d}" for number in range(count)]
    if not runner.may_write([destination.path(Path(name)) for name in names], "sample"):
        runner.finish()
        return
    facts = {"unconditional": unconditional, "sampling": options.changes()}
    what = recipe(options, runner.model, "sample", facts)
    parts = []
    with runner.out.progress("sample", count) as bar:
        for first in range(0, count, options.batch_size):
            size = min(options.batch_size, count - first)
            pictures, _ = runner.model.sample(
                size,
                options.sampling(),
                seed=options.seed,
                first=first,
                unconditional=unconditional,
            )
            pixels = to_pixels(pictures)
            for row in range(0 if single else size):
                data = encode_picture(
                    pixels[row], destination.suffix, what | {"number": first + row}
                )
                written = destination.write(Path(names[first + row]), data)
                record = {"status": "done", "output": written, "seed": options.seed}
                runner.out.result(record | {"model": runner.model.name}, written)
            if single:
                parts.append(pixels)
            bar.advance_to(first + size)
    if single:
        sheet = tile(torch.cat(parts), columns)
        written = destination.write(Path(names[0]), encode_picture(sheet, destination.suffix, what))
        record = {"status": "done", "output": written, "count": count, "seed": options.seed}
        runner.out.result(record | {"model": runner.model.name}, f"{count} pictures in {written}")
