"""What `pdae sample` makes pictures of: nothing, a few pictures, a label."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError, UsageError
from .running.batch import Runner
from .running.inputs import CODES

if TYPE_CHECKING:
    from torch import Tensor

    from ..engine import Model
    from ..sampling import Sampling


@dataclass(frozen=True)
class Painter:
    """How new pictures are made."""

    paint: Callable[[Sequence[int], Sampling], Tensor]  # numbers → their pictures (N, C, H, W)
    source: str = ""  # names what they are made of, where that isn't the options alone


def painter_of(
    runner: Runner,
    unconditional: bool,
    labels: Sequence[str],
    classifier: tuple[str, float] | None,
    with_: str | None,
    without: str | None,
) -> Painter:
    """What the options of `pdae sample` ask for. Raises UsageError where they don't go together."""
    if with_ is None and without is not None:
        raise UsageError("--unlike says what --like isn't; give that too")
    asked = {"--unconditional": unconditional, "--label": labels, "--like": with_}
    if len(names := [name for name, value in asked.items() if value]) > 1:
        raise UsageError(f"{' and '.join(names)} exclude each other")
    if classifier is not None:
        if not labels:
            raise UsageError("--classifier guides to a --label; give that too")
        return by_gradient(runner, labels, *classifier)
    if labels:
        return of_label(runner, labels)
    if with_ is not None:
        return like(runner, Path(with_), None if without is None else Path(without))
    return plain(runner, unconditional)


def plain(runner: Runner, unconditional: bool) -> Painter:
    """Of z from the latent DPM, or of none."""
    model, seed = runner.model, runner.options.seed

    def paint(numbers: Sequence[int], sampling: Sampling) -> Tensor:
        return model.sample(numbers, sampling, seed=seed, unconditional=unconditional)[0]

    return Painter(paint)


def of_label(runner: Runner, labels: Sequence[str]) -> Painter:
    """Of a label, by a G_psi that takes them."""
    from ..classes import chosen
    from ..conditional import embedding, labelled

    model = runner.model
    y = chosen(embedding(model).cfg.classes, labels)

    def paint(numbers: Sequence[int], sampling: Sampling) -> Tensor:
        return labelled(model, y, numbers, sampling, runner.options.seed)

    return Painter(paint)


def by_gradient(runner: Runner, labels: Sequence[str], folder: str, scale: float) -> Painter:
    """Of a label, by the gradient of a classifier."""
    from ..checkpoints import read_classifier
    from ..classes import chosen
    from ..conditional import by_classifier

    model, classifier = runner.model, read_classifier(Path(folder))
    y = chosen(classifier.config.classes, labels)

    def paint(numbers: Sequence[int], sampling: Sampling) -> Tensor:
        return by_classifier(model, classifier, y, scale, numbers, sampling, runner.options.seed)

    return Painter(paint, classifier.digest)


def like(runner: Runner, with_: Path, without: Path | None) -> Painter:
    """Of z like those of some pictures."""
    from .. import fewshot

    model = runner.model
    z = _normalised(model, with_, runner)
    others = None if without is None else _normalised(model, without, runner)
    likeness = fewshot.learn(z, others, fewshot.unlabelled(model))
    kind = f"those in {without}" if without else "what the model makes"
    runner.out.say(
        f"{len(z)} pictures, told from {kind} with AUROC {likeness.auroc:.3f} on those held out; "
        f"{likeness.share:.1%} of what the model makes is like them"
    )

    def paint(numbers: Sequence[int], sampling: Sampling) -> Tensor:
        return fewshot.pictures(model, likeness, numbers, sampling, runner.options.seed)

    return Painter(paint, likeness.fingerprint())


def _normalised(model: Model, path: Path, runner: Runner) -> Tensor:
    """Normalised z (N, D) of a codes file, or of the pictures in a folder or zip."""
    from ..codes import read_codes
    from ..training.latent import encode_all
    from .data import open_data

    if path.suffix.lower() == CODES:
        codes = read_codes(path, str(path))
        model.check(codes)
        return model.normalise(codes.z)
    if path.is_file() and path.suffix.lower() != ".zip":
        raise UsageError(f"{path} is one picture; name a folder, zip or codes file of several")
    config = model.config
    options = runner.options
    pictures = open_data(path, config.image_size, config.channels, options.fit, options.quiet)
    with runner.out.progress("encode", len(pictures)) as bar:
        z = encode_all(model, pictures, bar.advance_to)
    if pictures.bad:
        raise InputError(next(iter(pictures.bad.values())))
    return model.normalise(z)
