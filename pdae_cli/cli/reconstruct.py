"""pdae reconstruct: encode, decode, and measure what came back."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from ..errors import InputError
from .options import FileOptions, Format, Inputs, takes
from .run.batch import Made, Runner
from .run.destination import Destination, picture_suffix
from .run.loading import Loaded
from .run.making import codes_of, generators, picture_file


@takes(FileOptions)
def reconstruct(
    options: FileOptions,
    inputs: Inputs = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="File, folder, or -; none: measure only.")
    ] = None,
    random_noise: Annotated[
        bool, typer.Option("--random-noise", help="From z alone: fresh x_T from --seed.")
    ] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Original and reconstruction side by side.")
    ] = False,
    format: Format = "png",
) -> None:
    """Encode and decode pictures, and say how much came back: MSE, PSNR, SSIM, equal pixels.

    Example: pdae reconstruct face.png -o back.png --compare
    """
    import torch

    from ..evaluation import metrics
    from ..pictures.images import to_pixels

    items = options.items(inputs)
    destination = Destination.parse(output, picture_suffix(format)) if output else None
    runner = Runner(options, "reconstruct", destination)
    to_noise, to_picture = runner.model.trajectory(options.sampling()).evaluations()
    runner.nfe = to_picture + (0 if random_noise else to_noise)

    def process(batch: list[Loaded]) -> Sequence[Made]:
        if any(one.picture is None for one in batch):
            raise InputError("reconstruct takes pictures; decode takes codes")
        begun = time.perf_counter()
        originals = torch.cat([one.picture for one in batch if one.picture is not None])
        codes = codes_of(runner, batch, noise=not random_noise)
        pictures = runner.model.decode(
            codes, generators=generators(runner, batch), random_noise=random_noise
        )
        seconds = (time.perf_counter() - begun) / len(batch)
        measures = {
            name: measure(originals, pictures)
            for name, measure in (
                ("mse", metrics.mse),
                ("psnr", metrics.psnr),
                ("ssim", metrics.ssim),
                ("equal", metrics.equal_share),
            )
        }
        made = []
        for row, source in enumerate(batch):
            record: dict[str, Any] = {k: values[row].item() for k, values in measures.items()}
            text = "  ".join(f"{name} {value:.4g}" for name, value in record.items())
            record |= {
                "nfe": runner.nfe,
                "seconds": seconds,
                "seed": options.seed,
                "model": runner.model.name,
            }
            picture = pictures[row]
            if compare:
                picture = torch.cat([originals[row], picture], dim=2)
            facts = {
                "sampling": codes.sampling,
                "random_noise": random_noise,
            }
            data = picture_file(runner, source, picture, facts) if destination else None
            made.append(Made(source, data, record, f"  {text}", to_pixels(pictures[row])))
        return made

    runner.run(items, process)
