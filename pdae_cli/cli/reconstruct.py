"""pdae reconstruct: encode, decode, and measure what came back."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from ..errors import UsageError
from .options import Format, PictureInputs, PictureOptions, RandomNoise, takes
from .run.batches import Made, Run
from .run.destination import Destination
from .run.making import codes_of, generators, picture_file, pictures_of
from .run.photos import framed, wanted_squares


@takes(PictureOptions)
def reconstruct(
    options: PictureOptions,
    inputs: PictureInputs = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="File, folder, or -; none: measure only.")
    ] = None,
    random_noise: RandomNoise = False,
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

    items = options.items("reconstruct", inputs)
    destination = Destination("")
    if output is None:
        _measures_only(options, compare, format)
    else:
        destination = Destination.parse(output, f".{format}", stream=options.stream)
    model = options.load()
    to_noise, to_picture = model.trajectory(options.sampling()).evaluations()
    nfe = to_picture + (0 if random_noise else to_noise)
    facts: dict[str, Any] = {"random_noise": random_noise}
    measures = {
        "mse": metrics.mse, "psnr": metrics.psnr, "ssim": metrics.ssim, "equal": metrics.equal_share
    }  # fmt: skip
    with Run(model, options, "reconstruct", destination, nfe) as run:
        for batch in run.batches(items, wanted_squares(run)):
            with batch:
                begun = time.perf_counter()
                originals = pictures_of(batch)
                codes = codes_of(run, batch, noise=not random_noise)
                draws = generators(run, batch)
                pictures = model.decode(codes, generators=draws, random_noise=random_noise)
                seconds = (time.perf_counter() - begun) / len(batch)
                shown = torch.cat([originals, pictures], dim=3) if compare else pictures
                facts["sampling"] = codes.sampling
                made = []
                for row, one in enumerate(batch):
                    pair = originals[row : row + 1], pictures[row : row + 1]  # a batch's sums round
                    record: dict[str, Any] = {k: of(*pair).item() for k, of in measures.items()}
                    text = "  ".join(f"{name} {value:.4g}" for name, value in record.items())
                    record |= {"nfe": nfe, "seconds": seconds}
                    record |= {"seed": options.seed, "model": model.name}
                    where = framed(one)
                    data = picture_file(run, one, shown[row], facts | where) if output else None
                    record |= where
                    made.append(Made(data, record, f"  {text}", to_pixels(pictures[row])))
                run.keep(batch, made)


def _measures_only(options: PictureOptions, compare: bool, format: str) -> None:
    """Raise UsageError for what is asked of files, where none are written."""
    wanted = {
        "--compare": compare, "--format": format != "png", "--skip-existing": options.skip_existing
    }  # fmt: skip
    if not (options.sheet or options.report):  # which are files, too
        wanted |= {"--overwrite": options.overwrite, "--no-metadata": options.no_metadata}
    if given := [name for name, one in wanted.items() if one]:
        raise UsageError(f"{' and '.join(given)}: without -o nothing is written; give that too")
