"""pdae decode: codes → pictures."""

from __future__ import annotations

from typing import Any

from .options import DecodeOptions, Format, Inputs, OutputPath, RandomNoise, takes
from .run.batches import Made, Run
from .run.destination import Destination, stem_of
from .run.making import codes_of, decoded_by, generators, picture_file


@takes(DecodeOptions)
def decode(
    options: DecodeOptions,
    inputs: Inputs = None,
    output: OutputPath = None,
    random_noise: RandomNoise = False,
    format: Format = "png",
) -> None:
    """Turn codes back into pictures, with the settings they were encoded with.

    Example: pdae decode z.safetensors -o face.png
    """
    items = options.items("decode", inputs, streamed=False)
    stem = stem_of(items, "-decoded")
    destination = Destination.parse(output, f".{format}", stream_out=options.stream, stem=stem)
    model = options.load()
    nfe = model.trajectory(options.sampling()).evaluations()[1]
    record = {"model": model.name, "seed": options.seed}
    with Run(model, options, "decode", destination, nfe) as run:
        for batch in run.batches(items):
            with batch:
                codes = codes_of(run, batch, noise=not random_noise)
                how: dict[str, Any] = {"random_noise": random_noise, **options.changes()}
                pictures = model.decode(codes, generators=generators(run, batch), **how)
                facts = {"sampling": decoded_by(run, codes), "random_noise": random_noise}
                pairs = zip(batch, pictures, strict=True)
                run.keep(batch, [Made(picture_file(run, *pair, facts), record) for pair in pairs])
