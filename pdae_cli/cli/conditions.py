"""What `pdae sample` makes pictures of: nothing, a few pictures, a label."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError, UsageError
from .batch import Runner
from .inputs import CODES

if TYPE_CHECKING:
    from torch import Tensor

    from ..engine import Model


@dataclass(frozen=True)
class Painter:
    """How new pictures are made."""

    paint: Callable[[Sequence[int]], Tensor]  # numbers → their pictures (N, C, H, W)
    source: str = ""  # names what they are made of, where that isn't the options alone


def painter_of(
    runner: Runner, unconditional: bool, with_: str | None, without: str | None
) -> Painter:
    """What the options of `pdae sample` ask for. Raises UsageError where they don't go together."""
    if with_ is None and without is not None:
        raise UsageError("--unlike says what --like isn't; give that too")
    if unconditional and with_ is not None:
        raise UsageError("--unconditional and --like exclude each other")
    if with_ is None:
        return plain(runner, unconditional)
    return like(runner, Path(with_), None if without is None else Path(without))


def plain(runner: Runner, unconditional: bool) -> Painter:
    """Of z from the latent DPM, or of none."""
    sampling, seed = runner.options.sampling(), runner.options.seed

    def paint(numbers: Sequence[int]) -> Tensor:
        return runner.model.sample(numbers, sampling, seed=seed, unconditional=unconditional)[0]

    return Painter(paint)


def like(runner: Runner, with_: Path, without: Path | None) -> Painter:
    """Of z like those of some pictures."""
    from .. import fewshot

    model, sampling = runner.model, runner.options.sampling()
    z = _normalised(model, with_, runner)
    others = None if without is None else _normalised(model, without, runner)
    likeness = fewshot.learn(z, others, fewshot.unlabelled(model))
    kind = f"those in {without}" if without else "what the model makes"
    runner.out.say(
        f"{len(z)} pictures, told from {kind} with AUROC {likeness.auroc:.3f} on those held out; "
        f"{likeness.share:.1%} of what the model makes is like them"
    )

    def paint(numbers: Sequence[int]) -> Tensor:
        return fewshot.pictures(model, likeness, numbers, sampling, runner.options.seed)

    return Painter(paint, likeness.fingerprint())


def _normalised(model: Model, path: Path, runner: Runner) -> Tensor:
    """Normalised z (N, D) of a codes file, or of the pictures in a folder or zip."""
    from ..codes import read_codes
    from ..training.data import open_pictures
    from ..training.latent import encode_all

    if path.suffix.lower() == CODES:
        codes = read_codes(path, str(path))
        model.check(codes)
        return model.normalise(codes.z)
    if path.is_file() and path.suffix.lower() != ".zip":
        raise UsageError(f"{path} is one picture; name a folder, zip or codes file of several")
    unet = model.config.unet
    pictures = open_pictures(path, unet.image_size, unet.channels, runner.options.fit)
    with runner.out.progress("encode", len(pictures)) as bar:
        z = encode_all(model, pictures, bar.advance_to)
    if pictures.bad:
        raise InputError(next(iter(pictures.bad.values())))
    return model.normalise(z)
