"""pdae encode: pictures → codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import typer

from .batch import CODES_SUFFIX, Destination, Made, Runner
from .inputs import Loaded, collect
from .options import BatchOptions, FilesFrom, Inputs, OutputPath, Recursive, takes


@takes(BatchOptions)
def encode(
    options: BatchOptions,
    inputs: Inputs = None,
    output: OutputPath = "-",
    no_noise: Annotated[bool, typer.Option("--no-noise", help="z alone, without x_T.")] = False,
    files_from: FilesFrom = None,
    recursive: Recursive = False,
) -> None:
    """Turn pictures into codes: z, what the picture means, and x_T, the rest.

    Several pictures become one stacked file (-o z.safetensors) or a folder of files (-o codes/).

    Example: pdae encode face.png -o z.safetensors
    """
    from ..codes import Codes, stack, to_bytes

    items = collect(inputs, files_from, recursive)
    destination = Destination.parse(output, CODES_SUFFIX, {CODES_SUFFIX})
    stacked = None if destination.folder else destination
    runner = Runner(options, "encode", destination if destination.folder else None, stacked)
    kept: list[Codes] = []

    def process(batch: list[Loaded]) -> Sequence[Made]:
        codes = replace(
            runner.codes(batch, noise=not no_noise), sources=tuple(one.label for one in batch)
        )
        rows = [codes[row : row + 1] for row in range(len(batch))]
        nfe = 0 if no_noise else runner.model.evaluations(options.sampling())[0]
        if not destination.folder:
            kept.extend(rows)
        return [
            Made(
                source,
                to_bytes(row) if destination.folder else None,
                {"model": runner.model.name, "nfe": nfe}
                | ({} if destination.folder else {"output": output}),
                "" if destination.folder else f" → {output}",
            )
            for source, row in zip(batch, rows, strict=True)
        ]

    def write_stacked() -> None:
        if kept:
            destination.write(items[0].place, to_bytes(stack(kept)))

    runner.run(items, process, write_stacked)
