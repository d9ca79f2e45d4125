"""pdae encode: pictures → codes."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from ..errors import UsageError
from ..pictures.listing import CODES
from .options import FILES, EncodeOptions, Inputs, OutputPath, takes
from .run.batches import Made, Run
from .run.destination import Destination, stem_of
from .run.making import codes_of
from .run.parts import write_parts
from .run.photos import framed, wanted_squares
from .run.stacked import StackedFile
from .run.tables import TABLE


@takes(EncodeOptions, without=("show", "sheet"))
def encode(
    options: EncodeOptions,
    inputs: Inputs = None,
    output: OutputPath = None,
    no_noise: Annotated[bool, typer.Option("--no-noise", help="z alone, without x_T.")] = False,
    format: Annotated[
        Literal["safetensors", "parquet"] | None,
        typer.Option(rich_help_panel=FILES, hidden=True, help="Where -o has no suffix."),
    ] = None,
) -> None:
    """Turn pictures into codes: z, what the picture means, and x_T, the rest.

    Several pictures become one stacked file (-o z.safetensors), a folder of files (-o codes/), or
    Parquet: a file (-o codes.parquet), or parts of a folder (-o codes/ --format parquet).

    Example: pdae encode face.png -o z.safetensors

    Example: pdae encode photos/ -r --align -o codes/
    """
    from ..engine.codes import to_bytes
    from ..engine.columns import arrow

    items = options.items("encode", inputs)
    suffix = f".{format}" if format else CODES
    destination = Destination.parse(output, suffix, {CODES, TABLE}, stem=stem_of(items))
    if destination.suffix == TABLE:
        arrow()
        if destination.stdout:
            raise UsageError("Parquet goes into a file or a folder: -o codes.parquet")
    model = options.load()
    nfe = 0 if no_noise else model.trajectory(options.sampling()).evaluations()[0]
    record = {"model": model.name, "nfe": nfe}
    with Run(model, options, "encode", destination, nfe) as run:
        load = wanted_squares(run)
        if destination.suffix == TABLE:
            write_parts(run, items, load, record, not no_noise)
            return
        file = None if destination.folder else StackedFile(run, items, noise=not no_noise)
        for batch in run.batches(items, load, whole=file is not None):
            with batch:
                codes = codes_of(run, batch, not no_noise)
                if file:
                    file.add(codes)
                rows = [codes[row : row + 1] for row in range(len(batch))]
                contents = [None if file else to_bytes(row) for row in rows]
                pairs = zip(batch, contents, strict=True)
                run.keep(batch, [Made(data, record | framed(one)) for one, data in pairs])
        if file:
            file.write({})
