"""pdae align: faces in photos into the frame that a model knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from ..errors import InputError
from .options import (
    FaceOptions,
    FileOptions,
    Format,
    OutputPath,
    PictureInputs,
    RunOptions,
    ViewOptions,
    WriteOptions,
    takes,
)  # fmt: skip
from .run.batches import Made, Run
from .run.destination import Destination, stem_of
from .run.loading import Loaded
from .run.making import picture_file
from .run.photos import framed, in_colour, squares_of_photos


@dataclass(frozen=True)
class AlignOptions(FaceOptions, FileOptions, WriteOptions, ViewOptions, RunOptions):
    """Photos to faces."""


@takes(AlignOptions, without=("fit", "align"))
def align(
    options: AlignOptions,
    inputs: PictureInputs = None,
    output: OutputPath = None,
    size: Annotated[int, typer.Option(min=1, max=8000, help="Pixels of a side.")] = 256,
    format: Format = "png",
) -> None:
    """Cut the largest face out of each photo, turned and scaled as the model's training faces were.

    Example: pdae align photos/ -r -o aligned/

    Example: pdae align group.jpg --face all -o faces/

    Faces are found by OpenCV (pip install 'pdae-cli[align]') or given: --landmarks takes a JSON
    file {"FILE": {"left_eye": [x, y], "right_eye": [x, y], "mouth": [x, y]}, …} in pixels.
    """
    items = options.items("align", inputs)
    stem = stem_of(items, "-aligned")
    destination = Destination.parse(output, f".{format}", stream=options.stream, stem=stem)
    with Run(options.load(), options, "align", destination) as run:
        for batch in run.batches(items, squares_of_photos(run)):
            with batch:
                run.keep(batch, [cut_out(run, one, size) for one in batch])


def cut_out(run: Run, one: Loaded, size: int) -> Made:
    """A photo's face as a picture of `size` pixels."""
    from ..pictures.decoding import on_white
    from ..pictures.images import to_tensor, with_alpha
    from ..pictures.photos.frames import take

    if one.framed is None or one.photo is None:
        raise InputError("align takes photos, not codes")
    frame, photo = one.framed.frame.resized(size), in_colour(one.photo())
    record: dict[str, Any] = framed(one) | {"frame": frame.to_json()}
    pixels = to_tensor(take(on_white(photo), frame))
    if one.alpha is not None:
        pixels = with_alpha(pixels, to_tensor(take(photo.getchannel("A"), frame)))
    facts = record | {"note": "cut out of a photo"}
    return Made(picture_file(run, one, pixels, facts), record, f"  {one.framed.how}")
