"""pdae decode: codes → pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from .batch import Made, Runner
from .destination import Destination, picture_suffix
from .inputs import collect
from .loading import Loaded
from .making import codes_of, generators, picture_file
from .options import (
    BatchOptions,
    FilesFrom,
    Format,
    Inputs,
    Null,
    OutputPath,
    Recursive,
    Stream,
    takes,
)


@takes(BatchOptions)
def decode(
    options: BatchOptions,
    inputs: Inputs = None,
    output: OutputPath = "-",
    random_noise: Annotated[
        bool, typer.Option("--random-noise", help="Fresh x_T from --seed.")
    ] = False,
    format: Format = "png",
    files_from: FilesFrom = None,
    null: Null = False,
    recursive: Recursive = False,
    stream: Stream = None,
) -> None:
    """Turn codes back into pictures, with the settings they were encoded with.

    Example: pdae decode z.safetensors -o face.png
    """
    items = collect(inputs, files_from, recursive, null=null)
    destination = Destination.parse(output, picture_suffix(format), stream=stream)
    runner = Runner(options, "decode", destination)
    runner.nfe = runner.model.evaluations(options.sampling())[1]

    def process(batch: list[Loaded]) -> Sequence[Made]:
        codes = codes_of(runner, batch)
        pictures = runner.model.decode(
            codes,
            generators=generators(runner, batch),
            random_noise=random_noise,
            **options.changes(),
        )
        made = []
        for row, source in enumerate(batch):
            facts = {
                "sampling": codes.sampling | options.changes(),
                "random_noise": random_noise,
            }
            data = picture_file(runner, source, pictures[row], facts)
            made.append(Made(source, data, {"model": runner.model.name, "seed": options.seed}))
        return made

    runner.run(items, process)
