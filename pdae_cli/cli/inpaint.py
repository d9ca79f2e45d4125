"""pdae inpaint, pdae colourise: what is missing of a picture, made to fit what is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from .manipulate import row_file
from .options import Format, Inputs, OutputPath, PhotoOptions, takes
from .run.batch import Made, Runner
from .run.destination import Destination, picture_suffix
from .run.inputs import collect
from .run.loading import Loaded, pictures_and_codes
from .run.making import codes_of, generators
from .run.manifest import State
from .run.masks import Mask
from .run.photos import wanted_squares

if TYPE_CHECKING:
    from torch import Tensor

    from ..diffusion.sampling import Sampling

Like = Annotated[str | None, typer.Option(help="Picture or codes whose z guides what is made.")]
Make = Callable[..., "Tensor"]  # (batch, pictures, z, sampling, generators=) → pictures


@takes(PhotoOptions)
def inpaint(
    options: PhotoOptions,
    mask: Annotated[str, typer.Option(help="Picture as large as the input: white is made anew.")],
    inputs: Inputs = None,
    output: OutputPath = "-",
    like: Like = None,
    format: Format = "png",
) -> None:
    """Make a part of pictures anew, so that it fits the rest, which stays as it is.

    z guides what is made: by default that of a first try without z; --guidance 0 leaves it at that.
    Unless told otherwise, it samples by ddpm in 100 steps.

    Example: pdae inpaint face.png --mask scratch.png -o whole.png
    """
    from ..engine import editing

    runner = _runner(options, "inpaint", output, format)
    free = Mask.read(runner, mask)

    def make(batch: list[Loaded], pictures: Tensor, z: Tensor | None, **how: Any) -> Tensor:
        return editing.inpaint(runner.model, pictures, free.of(batch), z, **how)

    _complete(runner, inputs, make, like)


@takes(PhotoOptions)
def colourise(
    options: PhotoOptions,
    inputs: Inputs = None,
    output: OutputPath = "-",
    like: Like = None,
    format: Format = "png",
) -> None:
    """Give grey pictures colours; as grey pictures they stay what they are.

    z guides what is made: by default that of a first try without z; --guidance 0 leaves it at that.
    Unless told otherwise, it samples by ddpm in 100 steps.

    Example: pdae colourise grey.png --like other.png -o coloured.png
    """
    from ..engine import editing

    runner = _runner(options, "colourise", output, format)

    def make(batch: list[Loaded], pictures: Tensor, z: Tensor | None, **how: Any) -> Tensor:
        return editing.colourise(runner.model, pictures, z, **how)

    _complete(runner, inputs, make, like)


def _runner(options: PhotoOptions, command: str, output: str, format: str) -> Runner:
    destination = Destination.parse(output, picture_suffix(format), stream=options.stream)
    return Runner(options, command, destination)


def _complete(
    runner: Runner,
    inputs: list[str] | None,
    make: Make,
    like: str | None,
) -> None:
    """Go through the inputs; of codes, their picture and their z are taken."""
    import torch

    assert isinstance(runner.options, PhotoOptions)
    options, model = runner.options, runner.model
    items = options.items(inputs)
    given = None if like is None else _z_of(runner, like)
    sampling = _sampling(options)
    first = like is None and sampling.guidance != 0  # a try without z
    runner.nfe = model.trajectory(sampling).evaluations()[1] * (2 if first else 1)

    def process(batch: list[Loaded]) -> Sequence[Made]:
        draws = generators(runner, batch)
        if batch[0].codes is not None:
            codes = codes_of(runner, batch)
            z, pictures = codes.z, model.decode(codes, generators=draws)
        else:
            pictures = torch.cat([one.picture for one in batch if one.picture is not None])
            z = None
        if given is not None:
            z = given.expand(len(batch), -1)
        made = make(batch, pictures, z, sampling=sampling, generators=draws)
        record = {"model": model.name, "seed": options.seed}
        return [
            Made(one, row_file(runner, one, [picture], _frame(one), options.paste_back), record)
            for one, picture in zip(batch, made, strict=True)
        ]

    runner.run(items, process, load=wanted_squares(runner))


def _sampling(options: PhotoOptions) -> Sampling:
    """What suits completing pictures, with what was given."""
    from ..engine.editing import COMPLETING

    changes = options.changes()
    return options.sampling() if "parity" in changes else COMPLETING.changed(changes)


def _frame(one: Loaded) -> dict[str, Any]:
    return {} if one.framed is None else {"frame": one.framed.frame.to_json()}


def _z_of(runner: Runner, like: str) -> Tensor:
    """z (1, D) of a picture or codes; another one makes other pictures. Raises UsageError where
    there isn't exactly one, InputError for one that can't be read."""
    loaded: list[Loaded] = []
    for item in collect([like]):
        loaded += pictures_and_codes(runner.model, runner.options)(item, lambda *of: State())
    if len(loaded) != 1:
        raise UsageError(
            f"--like takes one picture or one row of codes, {like} holds {len(loaded)}"
        )
    runner.job.options["like_sha256"] = loaded[0].source
    return codes_of(runner, loaded, noise=False).z
