"""What `pdae sample` makes pictures of: nothing, a few pictures, a label."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError, UsageError
from .options import BatchOptions
from .run.batch import Runner
from .run.inputs import CODES

if TYPE_CHECKING:
    from torch import Tensor

    from ..diffusion.sampling import Sampling
    from ..engine.model import Model

Paint = Callable[[Sequence[int]], "Tensor"]  # numbers → their pictures (N, C, H, W)


@dataclass(frozen=True)
class SampleOptions(BatchOptions):
    """For samples: of what they are, and how strongly."""

    guidance: Annotated[
        str | None,
        typer.Option(help="Strength of G_psi, or several, 0,1,2: one below the other."),
    ] = None  # type: ignore[assignment]
    unconditional: Annotated[
        bool, typer.Option("--unconditional", help="Plain eps_theta, without z.")
    ] = False
    label: Annotated[
        list[str] | None,
        typer.Option(help="Class of the pictures, of the model or --classifier; NAME=0: without."),
    ] = None
    classifier: Annotated[
        str | None, typer.Option(help="Folder of a classifier, whose gradient guides to --label.")
    ] = None
    classifier_scale: Annotated[
        str | None,
        typer.Option(help="Strength of that gradient, or several; 1, the default, is Bayes' rule."),
    ] = None
    like: Annotated[
        str | None, typer.Option(help="Make pictures like those in this folder, zip or codes file.")
    ] = None
    unlike: Annotated[
        str | None, typer.Option(help="… and unlike those; else what the model makes is unknown.")
    ] = None

    def changes(self) -> dict[str, Any]:
        """As of one strength, the first."""
        first = {"guidance": strengths("--guidance", self.guidance)[0]} if self.guidance else {}
        return super().changes() | first

    def rows(self, paint: Callable[[Sampling, Sequence[int]], Tensor]) -> list[Paint]:
        """One for each strength of G_psi. Raises UsageError."""
        sampling = self.sampling()
        guidances = strengths("--guidance", self.guidance) if self.guidance else [sampling.guidance]
        return [partial(paint, sampling.changed({"guidance": one})) for one in guidances]


def strengths(option: str, text: str) -> list[float]:
    """ "0,0.5,1" → [0.0, 0.5, 1.0]. Raises UsageError."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = [math.nan]
    if not all(map(math.isfinite, values)):
        raise UsageError(f"{option} {text!r} isn't a number, or a list like 0,0.5,1")
    return values


@dataclass(frozen=True)
class Painter:
    """How new pictures are made."""

    rows: Sequence[Paint]  # one for each strength
    source: str = ""  # names what they are made of, where that isn't the options alone


def painter_of(runner: Runner, options: SampleOptions) -> Painter:
    """What the options of `pdae sample` ask for. Raises UsageError where they don't go together."""
    if options.like is None and options.unlike is not None:
        raise UsageError("--unlike says what --like isn't; give that too")
    asked = {
        "--unconditional": options.unconditional, "--label": options.label, "--like": options.like
    }  # fmt: skip
    if len(names := [name for name, value in asked.items() if value]) > 1:
        raise UsageError(f"{' and '.join(names)} exclude each other")
    if options.classifier is not None:
        if not options.label:
            raise UsageError("--classifier guides to a --label; give that too")
        if options.guidance is not None:
            raise UsageError("--classifier guides instead of G_psi; give --classifier-scale")
        return by_gradient(runner, options, options.label, options.classifier)
    if options.classifier_scale is not None:
        raise UsageError("--classifier-scale is how strongly a --classifier guides; give that too")
    if options.label:
        return of_label(runner, options, options.label)
    if options.like is not None:
        return like(runner, options, Path(options.like))
    return plain(runner, options)


def plain(runner: Runner, options: SampleOptions) -> Painter:
    """Of z from the latent DPM, or of none."""

    def paint(sampling: Sampling, numbers: Sequence[int]) -> Tensor:
        seed, unconditional = options.seed, options.unconditional
        return runner.model.sample(numbers, sampling, seed=seed, unconditional=unconditional)[0]

    return Painter(options.rows(paint))


def of_label(runner: Runner, options: SampleOptions, labels: Sequence[str]) -> Painter:
    """Of a label, by a G_psi that takes them."""
    from ..engine.classes import chosen
    from ..engine.conditional import embedding, labelled

    y = chosen(embedding(runner.model).cfg.classes, labels)

    def paint(sampling: Sampling, numbers: Sequence[int]) -> Tensor:
        return labelled(runner.model, y, numbers, sampling, options.seed)

    return Painter(options.rows(paint))


def by_gradient(
    runner: Runner, options: SampleOptions, labels: Sequence[str], folder: str
) -> Painter:
    """Of a label, by the gradient of a classifier."""
    from ..checkpoints import read_classifier
    from ..engine.classes import chosen
    from ..engine.conditional import by_classifier

    scales = strengths("--classifier-scale", options.classifier_scale or "1")
    model, classifier, sampling = runner.model, read_classifier(Path(folder)), options.sampling()
    y = chosen(classifier.config.classes, labels)

    def paint(scale: float, numbers: Sequence[int]) -> Tensor:
        return by_classifier(model, classifier, y, scale, numbers, sampling, options.seed)

    return Painter([partial(paint, one) for one in scales], classifier.digest)


def like(runner: Runner, options: SampleOptions, with_: Path) -> Painter:
    """Of z like those of some pictures."""
    from ..engine import fewshot

    model = runner.model
    without = None if options.unlike is None else Path(options.unlike)
    z = _normalised(model, with_, runner)
    others = None if without is None else _normalised(model, without, runner)
    likeness = fewshot.learn(z, others, fewshot.unlabelled(model))
    kind = f"those in {without}" if without else "what the model makes"
    runner.out.say(
        f"{len(z)} pictures, told from {kind} with AUROC {likeness.auroc:.3f} on those held out; "
        f"{likeness.share:.1%} of what the model makes is like them"
    )

    def paint(sampling: Sampling, numbers: Sequence[int]) -> Tensor:
        return fewshot.pictures(model, likeness, numbers, sampling, options.seed)

    return Painter(options.rows(paint), likeness.fingerprint())


def _normalised(model: Model, path: Path, runner: Runner) -> Tensor:
    """Normalised z (N, D) of a codes file, or of the pictures in a folder or zip."""
    from ..engine.codes import read_codes
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
