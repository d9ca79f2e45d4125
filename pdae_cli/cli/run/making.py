"""What commands make of a batch: codes of pictures, and pictures that say how they were made."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ... import __version__
from ...errors import InputError
from ..options import WriteOptions
from .batches import Run
from .loading import Loaded
from .recipes import told

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from ...engine.codes import Codes


def codes_of(
    run: Run, batch: Sequence[Loaded], noise: bool = True, *, as_made: bool = False
) -> Codes:
    """Return the codes of a batch: as read, or encoded now. What is read and made in another way
    than this run is told of, unless z alone is wanted or they are decoded `as_made`."""
    from ...engine.codes import stack

    if batch[0].codes is None:
        x_0, sampling = pictures_of(batch), run.options.sampling()
        return encoded(run, batch, run.model.encode(x_0, sampling, noise=noise))
    codes = stack([one.codes for one in batch if one.codes is not None])
    if not noise:
        return dataclasses.replace(codes, x_T=None, residual_T=None, converged=())
    kept = run.command == "encode"  # as they are; others make a picture, which needs no corrections
    if not kept:
        _compare_dtype(run, {one.codes.dtype for one in batch if one.codes is not None})
    changes = {} if as_made else run.options.changes()
    text = "; ".join(
        f"{name} {codes.sampling.get(name)}, not {value}"
        for name, value in changes.items()
        if codes.sampling.get(name) != value and (kept or name != "corrections")
    )
    if text and run.first_time(text):
        anew = "they stay as they are; name their pictures to encode them anew"
        so = anew if kept else "the picture won't be quite the same"
        run.out.warn(f"these codes were made with {text}: {so}")
    return codes


def _compare_dtype(run: Run, dtypes: set[str]) -> None:
    """Warn where codes of one precision are decoded in another, which gives less of a picture back
    than encode said."""
    now = run.options.dtype
    for dtype in sorted(dtypes - {"", now}):
        if run.first_time(f"dtype {dtype}"):
            run.out.warn(
                f"these codes were made with --dtype {dtype}, not {now}: give that here too, or "
                "less of the picture comes back"
            )


def encoded(run: Run, batch: Sequence[Loaded], codes: Codes) -> Codes:
    """Return a batch's new codes with its names; say what isn't exact about them."""
    from ...evaluation.metrics import equal_share, mse

    dtype, noise = run.options.dtype, codes.x_T is not None
    if noise and dtype != "float32" and run.first_time(dtype):
        picture, back = pictures_of(batch[:1]), run.model.decode(codes[:1])
        run.out.say(
            f"{dtype}: of a first picture {equal_share(picture, back).item():.1%} of "
            f"8-bit values come back exactly (MSE {mse(picture, back).item():.1e})"
        )
    for row, one in enumerate(batch):
        if not all(codes.converged[row : row + 1]):  # empty without corrections
            run.out.warn(
                f"{one.label}: correcting its codes doesn't converge, so they aren't exact; "
                "more --inference-steps help"
            )
    return dataclasses.replace(codes, sources=tuple(map(_source, batch)))


def _source(one: Loaded) -> str:
    """What a picture is called: as its table does, or by its file."""
    name = one.item.source
    return name + one.label.removeprefix(one.item.label) if name else told(one.label)


def pictures_of(batch: Sequence[Loaded]) -> Tensor:
    """Return the pictures (N, C, H, W) of a batch. Raises InputError for codes."""
    import torch

    if any(one.picture is None for one in batch):
        raise InputError("takes pictures; `pdae decode` takes codes")
    return torch.cat([one.picture for one in batch if one.picture is not None])


def generators(run: Run, batch: Sequence[Loaded]) -> list[Generator]:
    """Return each picture's own random numbers: of the seed and its content, nothing else."""
    from ...diffusion.noise import generator

    return [generator(run.options.seed, one.picture_sha) for one in batch]


def decoded_by(run: Run, codes: Codes) -> dict[str, Any]:
    """The settings that codes are decoded by here, as a file's recipe has them."""
    from ...diffusion.trajectory import to_decode

    return to_decode(codes.sampling, run.options.changes()).record()


def picture_file(
    run: Run,
    one: Loaded,
    picture: Tensor,
    facts: dict[str, Any],
    sources: Sequence[Loaded] | None = None,
) -> bytes:
    """Return a picture (C, H, W) as a file that says how it was made: a float one with the input's
    alpha, or a uint8 one as it is; `sources`: of what, where that isn't `one` itself."""
    from ...pictures.images import encode_picture, to_pixels, with_alpha

    pixels = to_pixels(picture) if picture.is_floating_point() else picture
    if picture.is_floating_point() and one.alpha is not None:
        beside = pixels.shape[2] // one.alpha.shape[2]  # pictures side by side
        pixels = with_alpha(pixels, one.alpha.repeat(1, 1, beside))
    if one.codes is not None:
        facts = {"codes": one.codes.row_sha(0), **facts}
    made_of = [one] if sources is None else sources
    what = recipe(run, made_of, {"place": one.place.name, **facts})
    return encode_picture(pixels, run.destination.suffix, what, one.exif)


def recipe(run: Run, sources: Sequence[Loaded], facts: dict[str, Any]) -> dict[str, Any] | None:
    """Return what a written file says of itself: enough to make it again from the same input. None
    where the user wants it to say nothing."""
    if isinstance(run.options, WriteOptions) and run.options.no_metadata:
        return None
    options = run.job.options
    files = {one.item: one.input_sha for one in sources}  # of which several rows may come
    return {
        "version": __version__,
        "command": run.command,
        "options": options,
        "model": run.model.name,
        "digest": run.model.weights_sha,
        **({"seed": options["seed"]} if "seed" in options else {}),
        "sources": [
            {"name": told(item.label if item.table else item.name), "sha256": sha}
            for item, sha in files.items()
        ],
        "note": "made or edited by a generative model",
        **facts,
    }
