"""pdae interpolate: the way from one picture to another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError, UsageError
from .batch import Made, Runner
from .destination import Destination
from .inputs import Item, collect
from .loading import Loaded, numbered, pictures_and_codes
from .making import codes_of, picture_file, recipe
from .manifest import State
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
    import torch

    from ..codes import stack
    from ..images import to_pixels

    if mode not in ("latent", "trajectory"):
        raise UsageError(f"unknown --mode {mode!r}; known: latent, trajectory")
    items = list(collect([a, b]))
    destination = Destination.parse(output, ".png")
    runner = Runner(options, "interpolate", destination)
    runner.nfe = runner.model.evaluations(options.sampling())[1] * (2 if mode != "latent" else 1)
    load = pictures_and_codes(runner.model, options)
    try:
        ends = [one for item in items for one in load(item, lambda place, source: State())]
        if len(ends) != 2:
            raise InputError(f"{a}, {b}: hold {len(ends)} codes, not one each")
        alike = (ends[0].codes is None) == (ends[1].codes is None)
        parts = [ends] if alike else [ends[:1], ends[1:]]
        codes = stack([codes_of(runner, part) for part in parts])
    except InputError as error:
        runner.fail(f"{a} → {b}", error)
        return runner.finish()
    facts = {"mode": mode, "sampling": codes.sampling}
    record = {"input": [a, b], "steps": steps, "model": runner.model.name, "seed": options.seed}
    frames: list[Tensor] = []

    def process(batch: list[Loaded]) -> Sequence[Made]:
        shares = [int(one.place.name) / (steps - 1) for one in batch]
        pictures = runner.model.interpolate(codes, shares, mode=mode, **options.changes())
        if not destination.folder:
            frames.extend(to_pixels(pictures))
            return [Made(one, None, record) for one in batch]
        return [
            Made(one, picture_file(runner, one, picture, facts, ends), record)
            for one, picture in zip(batch, pictures, strict=True)
        ]

    def gather(made: list[Made]) -> tuple[bytes, list[Made]]:
        what = recipe(runner, ends, facts)
        data = _one_file(torch.stack(frames), destination.suffix, what, duration)
        return data, [Made(made[0].source, data, record, f": {steps} pictures")]

    label = f"{a} → {b}"
    frame_items = [Item(label, Path(f"{number:04d}")) for number in range(steps)]
    load = numbered("+".join(end.source for end in ends))
    runner.run(frame_items, process, None if destination.folder else gather, load)


def _one_file(frames: Tensor, suffix: str, what: dict[str, Any] | None, duration: int) -> bytes:
    """An animation, or a strip."""
    from ..images import encode_frames, encode_picture, tile

    if suffix in (".gif", ".webp"):
        return encode_frames(list(frames), suffix, what, duration)
    return encode_picture(tile(frames, columns=len(frames)), suffix, what)
