"""pdae decode: codes → pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from .options import FileOptions, Format, Inputs, OutputPath, takes
from .run.batch import Made, Runner
from .run.destination import Destination, picture_suffix
from .run.loading import Loaded
from .run.making import codes_of, generators, picture_file


@takes(FileOptions)
def decode(
    options: FileOptions,
    inputs: Inputs = None,
    output: OutputPath = "-",
    random_noise: Annotated[
        bool, typer.Option("--random-noise", help="Fresh x_T from --seed.")
    ] = False,
    format: Format = "png",
) -> None:
    """Turn codes back into pictures, with the settings they were encoded with.

    Example: pdae decode z.safetensors -o face.png
    """
    items = options.items(inputs, streamed=False)
    destination = Destination.parse(output, picture_suffix(format), stream=options.stream)
    runner = Runner(options, "decode", destination)
    runner.nfe = runner.model.trajectory(options.sampling()).evaluations()[1]

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
