"""pdae align: faces in photos into the frame that a model knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from ..errors import InputError
from .options import FileOptions, Format, Inputs, LandmarksFile, OutputPath, takes
from .run.batch import Made, Runner
from .run.destination import Destination, picture_suffix
from .run.loading import Loaded
from .run.making import pixels_file
from .run.photos import squares_of_photos


@takes(FileOptions)
def align(
    options: FileOptions,
    inputs: Inputs = None,
    output: OutputPath = "-",
    size: Annotated[int, typer.Option(min=1, max=8192, help="Pixels of a side.")] = 256,
    landmarks: LandmarksFile = None,
    format: Format = "png",
) -> None:
    """Cut the largest face out of each photo, turned and scaled as the model's training faces were.

    Example: pdae align photos/ -r -o aligned/

    Faces are found by OpenCV (pip install 'pdae-cli[align]') or given: --landmarks takes a JSON
    file {"FILE": {"left_eye": [x, y], "right_eye": [x, y], "mouth": [x, y]}, …} in pixels.
    """
    items = options.items(inputs)
    runner = Runner(options, "align", Destination.parse(output, picture_suffix(format)))

    def process(batch: list[Loaded]) -> Sequence[Made]:
        return [cut_out(runner, one, size) for one in batch]

    runner.run(items, process, load=squares_of_photos(runner, True, landmarks))


def cut_out(runner: Runner, one: Loaded, size: int) -> Made:
    """A photo's face as a picture of `size` pixels."""
    from ..pictures.images import on_white, to_tensor, with_alpha
    from ..pictures.photos.frames import take

    if one.framed is None:
        raise InputError("align takes photos, not codes")
    frame, photo = one.framed.frame.resized(size), one.framed.photo()
    record: dict[str, Any] = {"frame": frame.to_json(), "found": one.framed.found}
    pixels = to_tensor(take(on_white(photo), frame))
    if one.alpha is not None:
        pixels = with_alpha(pixels, to_tensor(take(photo.getchannel("A"), frame)))
    facts = record | {"note": "cut out of a photo"}
    return Made(one, pixels_file(runner, one, pixels, facts), record, f"  {one.framed.found}")
