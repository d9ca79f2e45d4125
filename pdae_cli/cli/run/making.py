"""What commands make of a batch: codes of pictures, and pictures that say how they were made."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import __version__
from ...errors import ModelError
from .batch import Runner
from .loading import Loaded

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from ...engine.codes import Codes


def codes_of(runner: Runner, batch: list[Loaded], noise: bool = True) -> Codes:
    """The codes of a batch: as read, or encoded now."""
    import torch

    from ...engine.codes import stack

    if batch[0].codes is not None:
        codes = stack([one.codes for one in batch if one.codes is not None])
        _tell_of_changes(runner, codes)
        return codes
    pictures = torch.cat([one.picture for one in batch if one.picture is not None])
    codes = runner.model.encode(pictures, runner.options.sampling(), noise=noise)
    if noise and runner.options.dtype != "float32":
        _tell_of_precision(runner, codes[:1], pictures[:1])
    for row, source in enumerate(batch):
        if not all(codes.converged[row : row + 1]):  # empty without corrections
            runner.out.warn(
                f"{source.label}: correcting its codes doesn't converge, so they aren't exact; "
                "more --inference-steps help"
            )
    return dataclasses.replace(codes, sources=tuple(one.label for one in batch))


def _tell_of_precision(runner: Runner, codes: Codes, picture: Tensor) -> None:
    """Say, once, how much of a picture a low precision gives back."""
    from ...evaluation.metrics import equal_share, mse

    dtype = runner.options.dtype
    if runner.first_time(dtype):
        back = runner.model.decode(codes)
        runner.out.say(
            f"{dtype}: of a first picture {equal_share(picture, back).item():.1%} of "
            f"8-bit values come back exactly (MSE {mse(picture, back).item():.1e})"
        )


def _tell_of_changes(runner: Runner, codes: Codes) -> None:
    """Say, once for each difference, that codes aren't decoded as they were encoded."""
    told = [
        f"{name} {codes.sampling.get(name)}, not {value}"
        for name, value in runner.options.changes().items()
        if codes.sampling.get(name) != value and name != "corrections"
    ]
    text = "; ".join(told)
    if text and runner.command != "encode" and runner.first_time(text):
        runner.out.warn(f"these codes were made with {text}: the picture won't be quite the same")


def attribute(runner: Runner, name: str) -> str:
    """The model's own name of an attribute. Raises UsageError, ModelError."""
    known = runner.model.attributes
    if known is None:
        raise ModelError(
            f"model {runner.model.name} has no attributes; `pdae attributes fit` makes some"
        )
    return known.names[known.index(name)]


def generators(runner: Runner, batch: list[Loaded]) -> list[Generator]:
    """Each picture's own random numbers: of the seed and its content, nothing else."""
    from ...diffusion.noise import generator

    return [generator(runner.options.seed, one.digest) for one in batch]


def picture_file(
    runner: Runner,
    one: Loaded,
    picture: Tensor,
    facts: dict[str, Any],
    sources: Sequence[Loaded] | None = None,
) -> bytes:
    """A float picture (C, H, W) as a file that says how it was made; `sources`: of what, where that
    isn't `one` itself."""
    from ...pictures.images import to_pixels, with_alpha

    pixels = to_pixels(picture)
    if one.alpha is not None:  # as often as pictures stand side by side
        beside = pixels.shape[2] // one.alpha.shape[2]
        pixels = with_alpha(pixels, one.alpha.repeat(1, 1, beside))
    return pixels_file(runner, one, pixels, facts, sources)


def pixels_file(
    runner: Runner,
    one: Loaded,
    pixels: Tensor,
    facts: dict[str, Any],
    sources: Sequence[Loaded] | None = None,
) -> bytes:
    """A uint8 picture (C, H, W), with alpha or without, as such a file."""
    from ...pictures.images import encode_picture

    assert runner.destination is not None
    if one.codes is not None:
        facts = {"codes": one.codes.fingerprint(0), **facts}
    facts = {"place": one.place.as_posix(), **facts}
    made_of = [one] if sources is None else sources
    return encode_picture(
        pixels, runner.destination.suffix, recipe(runner, made_of, facts), one.exif
    )


def recipe(
    runner: Runner, sources: Sequence[Loaded], facts: dict[str, Any]
) -> dict[str, Any] | None:
    """What a written picture says of itself: enough to make it again from the same input. None
    where the user wants it to say nothing."""
    if runner.options.no_metadata:
        return None
    return {
        "version": __version__,
        "command": runner.command,
        "options": runner.job.options,
        "model": runner.model.name,
        "digest": runner.model.digest,
        "seed": runner.options.seed,
        "sources": [{"name": _told(one), "sha256": one.source} for one in sources],
        "note": "made or edited by a generative model",
        **facts,
    }


def _told(source: Loaded) -> str:
    """A source's name without what an absolute path says of its owner."""
    path = Path(source.item.name)
    return path.name if path.is_absolute() or ".." in path.parts else path.as_posix()
