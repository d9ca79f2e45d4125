"""pdae inpaint, pdae colourise: what is missing of a picture, made to fit what is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError, UsageError
from .options import EditOptions, Format, Inputs, OutputPath, takes
from .run.batches import Made, Run
from .run.destination import Destination, stem_of
from .run.inputs import collect
from .run.loading import anew
from .run.making import codes_of, generators, pictures_of
from .run.masks import Masks
from .run.photos import by_photo, faces_of, framed, row_file, wanted_squares

if TYPE_CHECKING:
    from torch import Tensor

Like = Annotated[str | None, typer.Option(help="Picture or codes whose z guides what is made.")]


@takes(EditOptions)
def inpaint(
    options: EditOptions,
    mask: Annotated[
        str, typer.Option(help="As large as the input: white is made anew; or a folder.")
    ],
    inputs: Inputs = None,
    output: OutputPath = None,
    like: Like = None,
    format: Format = "png",
) -> None:
    """Make a part of pictures anew, so that it fits the rest, which stays as it is.

    z guides what is made: by default that of a first try without z; --guidance 0 leaves it at that.
    Unless told otherwise, it samples by ddpm in 100 steps.

    Example: pdae inpaint face.png --mask scratch.png -o whole.png
    """
    _complete(options, "inpaint", "-inpainted", inputs, output, format, like, mask)


@takes(EditOptions)
def colourise(
    options: EditOptions,
    inputs: Inputs = None,
    output: OutputPath = None,
    like: Like = None,
    format: Format = "png",
) -> None:
    """Give grey pictures colours; as grey pictures they stay what they are.

    z guides what is made: by default that of a first try without z; --guidance 0 leaves it at that.
    Unless told otherwise, it samples by ddpm in 100 steps.

    Example: pdae colourise grey.png --like other.png -o coloured.png
    """
    _complete(options, "colourise", "-coloured", inputs, output, format, like)


def _complete(
    options: EditOptions,
    command: str,
    behind: str,
    inputs: list[str] | None,
    output: str | None,
    format: str,
    like: str | None,
    mask: str | None = None,
) -> None:
    """Go through the inputs; of codes, their picture and their z are taken. Without a `mask` it is
    the colours that are free."""
    from ..engine import editing
    from ..engine.codes import Z_ALONE

    items, changes = options.items(command, inputs), options.changes()
    destination = Destination.parse(
        output, f".{format}", stream=options.stream, stem=stem_of(items, behind)
    )
    model = options.load()
    parity = changes.get("parity")  # else what suits completing pictures, with what was given
    sampling = options.sampling() if parity else editing.COMPLETING.changed(changes)
    tried = like is None and sampling.guidance != 0 and not model.takes_z  # first without z
    nfe = model.trajectory(sampling).evaluations()[1] * (2 if tried else 1)
    record = {"model": model.name, "seed": options.seed}
    with Run(model, options, command, destination, nfe) as run:
        free = None if mask is None else Masks(run, mask)
        given = None if like is None else _z_of(run, like)
        for batch in run.batches(items, wanted_squares(run)):
            with batch:
                faces = faces_of(batch)
                how: dict[str, Any] = {"sampling": sampling, "generators": generators(run, faces)}
                z = None
                if batch[0].codes is None:
                    pictures = pictures_of(faces)
                else:
                    codes = codes_of(run, batch, as_made=True)
                    z = codes.z
                    if codes.x_T is None:
                        raise InputError(f"{Z_ALONE}; give the picture, or encode it with x_T")
                    pictures = model.decode(codes, generators=how["generators"]).clamp(-1, 1)
                if given is not None:
                    z = given.expand(len(faces), -1)
                if free is None:
                    made = editing.colourise(model, pictures, z, **how)
                else:
                    made = editing.inpaint(model, pictures, free.of(faces), z, **how)
                kept = []
                for one, squares in by_photo(batch, made):
                    data = row_file(run, one, [[each] for each in squares], framed(one))
                    kept.append(Made(data, record | framed(one)))
                run.keep(batch, kept)


def _z_of(run: Run, like: str) -> Tensor:
    """z (1, D) of a picture or codes; another one makes other pictures. Raises UsageError where
    there isn't exactly one, InputError for one that can't be read."""
    load = wanted_squares(run)
    loaded = [one for item in collect([like]) for one in load(item, anew)]
    if len(loaded) != 1:
        raise UsageError(
            f"--like takes one picture or one row of codes, {like} holds {len(loaded)}"
        )
    run.job.options["like_sha256"] = loaded[0].input_sha
    return codes_of(run, loaded, noise=False).z
