"""pdae interpolate: the way from one picture to another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError, UsageError
from .batch import Destination, Runner, recipe
from .inputs import collect, load_item
from .options import BatchOptions, OutputPath, takes

if TYPE_CHECKING:
    from torch import Tensor


@takes(BatchOptions)
def interpolate(
    options: BatchOptions,
    a: Annotated[str, typer.Argument(help="Picture or codes to begin with; - for stdin.")],
    b: Annotated[str, typer.Argument(help="Picture or codes to end with.")],
    output: OutputPath = "-",
    steps: Annotated[int, typer.Option(min=2, max=1000, help="Pictures, both ends included.")] = 10,
    mode: Annotated[
        str, typer.Option(help="latent, or trajectory: mix the gradients in each step.")
    ] = "latent",
    duration: Annotated[
        int, typer.Option(min=10, max=65535, help="Milliseconds a frame of an animation.")
    ] = 100,
) -> None:
    """Make the pictures between two: a strip (.png), an animation (.gif, .webp), or a folder.

    Example: pdae interpolate a.png b.png --steps 10 -o strip.png
    """
    from ..codes import stack

    if mode not in ("latent", "trajectory"):
        raise UsageError(f"unknown --mode {mode!r}; known: latent, trajectory")
    items = collect([a, b], None, recursive=False)
    destination = Destination.parse(output, ".png")
    runner = Runner(options, "interpolate", destination)
    targets = [destination.path(Path(f"{n:04d}")) for n in range(steps)]
    if not runner.may_write(sorted(set(targets)), f"{a} → {b}"):
        runner.finish()
        return
    try:
        ends = [loaded for item in items for loaded in load_item(item, runner.model, options.fit)]
        if len(ends) != 2:
            raise InputError(f"{a}, {b}: hold {len(ends)} codes, not one each")
        alike = (ends[0].codes is None) == (ends[1].codes is None)
        codes = stack([runner.codes(batch) for batch in ([ends] if alike else [[e] for e in ends])])
    except InputError as error:
        runner.fail(f"{a} → {b}", error)
        runner.finish()
        return
    pictures = runner.model.interpolate(codes, steps, mode=mode, **options.changes())
    facts = {"steps": steps, "mode": mode, "sampling": codes.sampling}
    _write(runner, destination, pictures, facts, duration)
    record = {"status": "done", "input": [a, b], "output": output, "steps": steps}
    runner.out.result(
        record | {"model": runner.model.name, "seed": options.seed},
        f"{a} → {b}: {steps} pictures in {output}",
    )


def _write(
    runner: Runner,
    destination: Destination,
    pictures: Tensor,
    facts: dict[str, object],
    duration: int,
) -> None:
    """Frames in a folder, an animation, or a strip."""
    from ..images import encode_frames, encode_picture, tile, to_pixels

    pixels = to_pixels(pictures)
    what = recipe(runner.options, runner.model, "interpolate", facts)
    if destination.folder:
        for number, frame in enumerate(pixels):
            data = encode_picture(frame, destination.suffix, what)
            destination.write(Path(f"{number:04d}"), data)
    elif destination.suffix in (".gif", ".webp"):
        frames = encode_frames(list(pixels), destination.suffix, what, duration)
        destination.write(Path(), frames)
    else:
        strip = tile(pixels, columns=len(pixels))
        destination.write(Path(), encode_picture(strip, destination.suffix, what))
