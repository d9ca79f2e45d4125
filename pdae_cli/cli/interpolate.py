"""pdae interpolate: the way from one picture to another."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import InputError, UsageError
from .options import FILES, OutputPath, PictureOptions, option, takes
from .run.batches import Made, Run
from .run.destination import Destination
from .run.inputs import Item, collect
from .run.loading import Loaded, anew, numbered
from .run.making import codes_of, decoded_by, picture_file, recipe
from .run.photos import framed, wanted_squares

if TYPE_CHECKING:
    from torch import Tensor

    from ..engine.codes import Codes

ANIMATIONS = (".gif", ".webp")
HIDDEN = ("recursive", "files_from", "null", "share", "keep_alpha", "keep_exif")


@dataclass(frozen=True)
class InterpolateOptions(PictureOptions):
    """Two pictures to those between them."""

    steps: int = option(10, None, "Pictures, both ends included.", min=2, max=1000)
    mode: Literal["latent", "trajectory"] = option(
        "latent", None, "trajectory: mix the gradients in each step."
    )
    duration: int | None = option(
        None, FILES, "Milliseconds a frame; default: 100.", min=10, max=65535
    )
    fps: float | None = option(None, FILES, "Or so many frames a second.", min=0.1, max=100)
    loop: bool = option(False, FILES, "There and back.", "--loop")
    ease: bool = option(False, None, "Slower at both ends.", "--ease")


@takes(InterpolateOptions, without=HIDDEN)
def interpolate(
    options: InterpolateOptions,
    a: Annotated[str, typer.Argument(help="Picture or codes to begin with; - for stdin.")],
    b: Annotated[str, typer.Argument(help="Picture or codes to end with.")],
    output: OutputPath = None,
) -> None:
    """Make the pictures between two: a strip (.png), an animation (.gif, .webp), or a folder.

    Films: pdae interpolate a.png b.png -o - --stream png | ffmpeg -f image2pipe -i - way.mp4

    Example: pdae interpolate a.png b.png --steps 10 -o strip.png
    """
    import torch

    from ..pictures.animation import pace, shares, there_and_back
    from ..pictures.images import check_tiled, encode_frames, tile, to_pixels

    ends = list(collect([a, b]))
    stem = "-".join(end.place.name for end in ends)
    destination = Destination.parse(output, ".png", stream_out=options.stream, stem=stem)
    one_file = not (destination.folder or destination.stream)
    moves = one_file and destination.suffix in ANIMATIONS
    if not moves and (options.fps or options.duration or options.loop):
        raise UsageError(f"--fps, --duration and --loop are for {', '.join(ANIMATIONS)}")
    pause = pace(destination.suffix, options.fps, options.duration)
    model, mode, steps = options.load(), options.mode, options.steps
    if one_file and not moves:
        size = model.config.image_size
        check_tiled(steps, steps, size, size, destination.suffix)
    nfe = model.trajectory(options.sampling()).evaluations()[1]
    record = {"input": [a, b], "steps": steps, "model": model.name, "seed": options.seed}
    way, how = shares(steps, options.ease), {"seed": options.seed} | options.changes()
    frames: list[Tensor] = []
    with Run(model, options, "interpolate", destination, nfe) as run:
        found = _ends(run, f"{a} → {b}", ends)
        if found is None:
            return
        loaded, codes = found
        facts: dict[str, Any] = {"mode": mode, "sampling": decoded_by(run, codes)}
        if squares := [framed(end)["frame"] for end in loaded if end.framed]:
            facts["frames"] = squares
        load = numbered("+".join(end.input_sha for end in loaded))
        items = [Item(f"{a} → {b}", Path(f"{n:04d}"), made_of=(a, b)) for n in range(steps)]
        for batch in run.batches(items, load, whole=one_file, made_of=ends):
            with batch:
                wanted = [way[int(one.place.name)] for one in batch]
                pictures = model.interpolate(codes, wanted, mode=mode, **how)
                if one_file:
                    frames.extend(to_pixels(pictures))
                    run.keep(batch, [Made(None, record) for one in batch])
                    continue
                pairs = zip(batch, pictures, strict=True)
                files = [picture_file(run, one, each, facts, loaded) for one, each in pairs]
                run.keep(batch, [Made(data, record) for data in files])
        if frames:
            lacking = facts | {"failed": run.failures}
            strip, what = tile(torch.stack(frames), len(frames)), recipe(run, loaded, lacking)
            film = there_and_back(frames) if options.loop else frames if moves else [strip]
            data = encode_frames(film, destination.suffix, what, pause)
            run.write(data, Made(data, record, f": {steps} pictures", strip))


def _ends(run: Run, label: str, ends: list[Item]) -> tuple[list[Loaded], Codes] | None:
    """The two ends and their codes; None, and that it failed is said, where there aren't two."""
    from ..engine.codes import stack

    load = wanted_squares(run)
    try:
        loaded = [one for item in ends for one in load(item, anew)]
        if len(loaded) != 2:
            raise InputError(f"{label}: hold {len(loaded)} pictures or codes, not one each")
        alike = (loaded[0].codes is None) == (loaded[1].codes is None)
        parts = [loaded] if alike else [loaded[:1], loaded[1:]]
        return loaded, stack([codes_of(run, part) for part in parts])
    except InputError as error:
        run.fail(label, error)
        return None
