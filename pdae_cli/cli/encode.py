"""pdae encode: pictures → codes."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import EncodeOptions, Inputs, OutputPath, takes
from .run.batches import Made, Run
from .run.destination import CODES_SUFFIX, Destination, stem_of
from .run.making import codes_of, encoded, pictures_of, recipe
from .run.photos import framed, wanted_squares


@takes(EncodeOptions, without=("show", "sheet"))
def encode(
    options: EncodeOptions,
    inputs: Inputs = None,
    output: OutputPath = None,
    no_noise: Annotated[bool, typer.Option("--no-noise", help="z alone, without x_T.")] = False,
) -> None:
    """Turn pictures into codes: z, what the picture means, and x_T, the rest.

    Several pictures become one stacked file (-o z.safetensors) or a folder of files (-o codes/).

    Example: pdae encode face.png -o z.safetensors

    Example: pdae encode photos/ -r --align -o codes/
    """
    from ..engine.codes import stack, to_bytes

    items = options.items("encode", inputs)
    destination = Destination.parse(output, CODES_SUFFIX, {CODES_SUFFIX}, stem=stem_of(items))
    model = options.load()
    sampling = options.sampling()
    nfe = 0 if no_noise else model.trajectory(sampling).evaluations()[0]
    record = {"model": model.name, "nfe": nfe}
    found = []
    with Run(model, options, "encode", destination, nfe) as run:
        for batch in run.batches(items, wanted_squares(run), whole=not destination.folder):
            with batch:
                if batch[0].codes is not None:
                    codes = codes_of(run, batch)
                else:
                    codes = model.encode(pictures_of(batch), sampling, noise=not no_noise)
                    codes = encoded(run, batch, codes)
                rows = [codes[row : row + 1] for row in range(len(batch))]
                contents = [to_bytes(row) if destination.folder else None for row in rows]
                pairs = zip(batch, contents, strict=True)
                run.keep(batch, [Made(data, record | framed(one)) for one, data in pairs])
                found += [] if destination.folder else rows
        if found:
            run.write(to_bytes(stack(found), recipe(run, [one for one, _ in run.kept], {})))
