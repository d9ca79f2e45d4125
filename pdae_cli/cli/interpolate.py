"""pdae interpolate: the way from one picture to another."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError, UsageError
from .options import BatchOptions, OutputPath, takes
from .run.batch import Made, Runner
from .run.destination import PICTURE_SUFFIXES, Destination
from .run.inputs import Item, collect
from .run.loading import Loaded, numbered, pictures_and_codes
from .run.making import codes_of, picture_file, recipe
from .run.manifest import State

if TYPE_CHECKING:
    from torch import Tensor

ANIMATIONS = (".gif", ".webp", ".mp4")


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
        int | None, typer.Option(min=10, max=65535, help="Milliseconds a frame; default: 100.")
    ] = None,
    fps: Annotated[
        float | None, typer.Option(min=0.1, max=100, help="Or so many frames a second.")
    ] = None,
    loop: Annotated[bool, typer.Option("--loop", help="An animation there and back.")] = False,
    ease: Annotated[bool, typer.Option("--ease", help="Slower at both ends.")] = False,
) -> None:
    """Make the pictures between two: a strip (.png), an animation (.gif, .webp, .mp4), or a folder.

    Example: pdae interpolate a.png b.png --steps 10 -o strip.png
    """
    import torch

    from ..engine.codes import stack
    from ..pictures.animation import (
        encode_mp4,
        milliseconds_of,
        needed,
        rate_of,
        shares,
        there_and_back,
    )
    from ..pictures.images import encode_frames, encode_picture, tile, to_pixels

    if mode not in ("latent", "trajectory"):
        raise UsageError(f"unknown --mode {mode!r}; known: latent, trajectory")
    items = list(collect([a, b]))
    destination = Destination.parse(output, ".png", PICTURE_SUFFIXES | {".mp4"})
    rate = rate_of(fps=fps, milliseconds=duration)
    moves = not destination.folder and destination.suffix in ANIMATIONS
    if not moves and (fps or duration or loop):
        raise UsageError(f"--fps, --duration and --loop are for {', '.join(ANIMATIONS)}")
    pause = milliseconds_of(rate, destination.suffix)
    ffmpeg = needed(shutil.which("ffmpeg")) if destination.suffix == ".mp4" else None
    runner = Runner(options, "interpolate", destination)
    decoding = runner.model.trajectory(options.sampling()).evaluations()[1]
    runner.nfe = decoding * (1 if mode == "latent" else 2)
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
    way = shares(steps, ease)

    def process(batch: list[Loaded]) -> Sequence[Made]:
        wanted = [way[int(one.place.name)] for one in batch]
        pictures = runner.model.interpolate(codes, wanted, mode=mode, **options.changes())
        if not destination.folder:
            frames.extend(to_pixels(pictures))
            return [Made(one, None, record) for one in batch]
        return [
            Made(one, picture_file(runner, one, picture, facts, ends), record)
            for one, picture in zip(batch, pictures, strict=True)
        ]

    def gather(made: list[Made]) -> tuple[bytes, list[Made]]:
        what = recipe(runner, ends, facts)
        strip = tile(torch.stack(frames), columns=len(frames))
        shown = there_and_back(frames) if loop else frames
        if ffmpeg:
            data = encode_mp4(shown, rate, what, ffmpeg)
        elif moves:
            data = encode_frames(shown, destination.suffix, what, pause)
        else:
            data = encode_picture(strip, destination.suffix, what)
        return data, [Made(made[0].source, data, record, f": {steps} pictures", strip)]

    label = f"{a} → {b}"
    frame_items = [Item(label, Path(f"{number:04d}")) for number in range(steps)]
    load = numbered("+".join(end.source for end in ends))
    runner.run(frame_items, process, None if destination.folder else gather, load)
