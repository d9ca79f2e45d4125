"""pdae encode: pictures → codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import typer

from .options import FileOptions, Inputs, OutputPath, takes
from .run.batch import Made, Runner
from .run.destination import CODES_SUFFIX, Destination
from .run.loading import Loaded
from .run.making import codes_of


@takes(FileOptions)
def encode(
    options: FileOptions,
    inputs: Inputs = None,
    output: OutputPath = "-",
    no_noise: Annotated[bool, typer.Option("--no-noise", help="z alone, without x_T.")] = False,
) -> None:
    """Turn pictures into codes: z, what the picture means, and x_T, the rest.

    Several pictures become one stacked file (-o z.safetensors) or a folder of files (-o codes/).

    Example: pdae encode face.png -o z.safetensors
    """
    from ..engine.codes import Codes, stack, to_bytes

    items = options.items(inputs)
    destination = Destination.parse(output, CODES_SUFFIX, {CODES_SUFFIX})
    runner = Runner(options, "encode", destination)
    runner.nfe = 0 if no_noise else runner.model.trajectory(options.sampling()).evaluations()[0]
    stacked: list[Codes] = []

    def process(batch: list[Loaded]) -> Sequence[Made]:
        codes = replace(
            codes_of(runner, batch, noise=not no_noise), sources=tuple(one.label for one in batch)
        )
        rows = [codes[row : row + 1] for row in range(len(batch))]
        if not destination.folder:
            stacked.extend(rows)
        record = {"model": runner.model.name, "nfe": runner.nfe}
        return [
            Made(source, to_bytes(row) if destination.folder else None, record)
            for source, row in zip(batch, rows, strict=True)
        ]

    def gather(made: list[Made]) -> tuple[bytes, list[Made]]:
        return to_bytes(stack(stacked)), made

    runner.run(items, process, None if destination.folder else gather)
