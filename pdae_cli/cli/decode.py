"""pdae decode: codes → pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from .batch import Destination, Made, Runner, picture_suffix
from .inputs import Loaded, collect
from .options import BatchOptions, FilesFrom, Format, Inputs, OutputPath, Recursive, takes


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
    recursive: Recursive = False,
) -> None:
    """Turn codes back into pictures, with the settings they were encoded with.

    Example: pdae decode z.safetensors -o face.png
    """
    items = collect(inputs, files_from, recursive)
    destination = Destination.parse(output, picture_suffix(format))
    runner = Runner(options, "decode", destination)

    def process(batch: list[Loaded]) -> Sequence[Made]:
        codes = runner.codes(batch)
        pictures = runner.model.decode(
            codes,
            generators=runner.generators(batch),
            random_noise=random_noise,
            **options.changes(),
        )
        made = []
        for row, source in enumerate(batch):
            facts = {
                "codes": codes.fingerprint(row),
                "sampling": codes.sampling | options.changes(),
            }
            data = runner.picture_bytes(pictures[row], facts | {"random_noise": random_noise})
            made.append(Made(source, data, {"model": runner.model.name, "seed": options.seed}))
        return made

    runner.run(items, process)
