"""What `pdae sample` makes pictures of: nothing, a few pictures, a label."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import UsageError, counted
from .data import refuse_both, z_of
from .options import (
    PICTURES,
    SOLVING,
    RunOptions,
    SeedOptions,
    SolvingOptions,
    StreamOptions,
    ViewOptions,
    WriteOptions,
    option,
)  # fmt: skip
from .run.batches import Run

if TYPE_CHECKING:
    from torch import Tensor

    from ..diffusion.trajectory import Sampling

Paint = Callable[[Sequence[int]], "Tensor"]  # numbers → their pictures (N, C, H, W)


@dataclass(frozen=True)
class SampleOptions(
    StreamOptions, WriteOptions, ViewOptions, SeedOptions, SolvingOptions, RunOptions
):
    """For samples: of what they are, and how strongly."""

    guidance: str | None = option(  # type: ignore[assignment]
        None, SOLVING, "Strength of G_psi, or several, 0,1,2: one below the other."
    )
    unconditional: bool = option(False, None, "Plain eps_theta, without z.", "--unconditional")
    like: str | None = option(
        None, None, "Make pictures like those in this folder, zip, table or codes file."
    )
    unlike: str | None = option(
        None, None, "… and unlike those; else what the model makes is unknown."
    )
    label: list[str] | None = option(  # noqa: RUF009, None is the default
        None, None, "Class of the pictures, of the model or --classifier; NAME=0: without."
    )
    classifier: str | None = option(
        None, None, "Folder of a classifier, whose gradient guides to --label."
    )
    classifier_scale: str | None = option(
        None,
        SOLVING,
        "Strength of the --classifier, or of that of --like; or several. 1: Bayes' rule.",
    )
    fit: Literal["crop", "pad", "stretch"] = option(
        "crop", PICTURES, "Of the pictures of --like.", rare=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.like is None and self.unlike is not None:
            raise UsageError("--unlike says what --like isn't; give that too")
        if self.like is None and self.fit != "crop":
            raise UsageError("--fit is of the pictures of --like; give that too")
        asked = {
            "--unconditional": self.unconditional, "--label": self.label, "--like": self.like
        }  # fmt: skip
        if len(names := [name for name, value in asked.items() if value]) > 1:
            raise UsageError(f"{' and '.join(names)} exclude each other")
        if self.unconditional:
            self.unguided("--unconditional is of eps_theta alone")
        if self.classifier is None and self.like is None and self.classifier_scale is not None:
            how = "--classifier-scale is of a --classifier, or of that which --like learns"
            raise UsageError(f"{how}; give one of them too")
        if self.classifier is not None:
            if not self.label:
                raise UsageError("--classifier guides to a --label; give that too")
            self.unguided("--classifier guides instead of G_psi, all along, by --classifier-scale")

    def unguided(self, why: str) -> None:
        """Raise UsageError for what is said of G_psi's guidance, where there is none, and `why`."""
        said = {
            "--guidance": self.guidance, "--guide-from": self.guide_from,
            "--guide-until": self.guide_until,
        }  # fmt: skip
        if names := [name for name, value in said.items() if value is not None]:
            raise UsageError(f"{why}; leave {' and '.join(names)} out")

    def changes(self) -> dict[str, Any]:
        """As of one strength, the first."""
        return super().changes() | (
            {} if self.guidance is None else {"guidance": self.wanted()[0][0]}
        )

    def wanted(self) -> list[tuple[float, float]]:
        """Each strength of G_psi with each of a classifier. Raises UsageError."""
        guidance = strengths("--guidance", self.guidance or "1")
        scales = strengths("--classifier-scale", self.classifier_scale or "1")
        if self.like is not None and min(scales) < 0:
            raise UsageError("--classifier-scale of --like is a power of a probability: 0 or more")
        return list(product(guidance, scales))

    def rows(self) -> list[tuple[Sampling, float]]:
        """The settings of each row, and its strength of a classifier. Raises UsageError."""
        sampling = self.sampling()
        return [
            (sampling.changed({"guidance": guidance}), scale) for guidance, scale in self.wanted()
        ]


def strengths(option: str, text: str) -> list[float]:
    """ "0,0.5,1" → [0.0, 0.5, 1.0]. Raises UsageError."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = [math.nan]
    if not all(map(math.isfinite, values)):
        raise UsageError(f"{option} {text!r} isn't a number, or a list like 0,0.5,1")
    return values


def painting(run: Run, options: SampleOptions) -> tuple[list[Paint], str]:
    """What the options of `pdae sample` ask for: one for each strength, and what names that which
    the pictures are made of, where that isn't the options alone."""
    if options.label and options.classifier is not None:
        return by_gradient(run, options, options.label, Path(options.classifier))
    if options.label:
        return of_label(run, options, options.label), ""
    if options.like is not None:
        return like(run, options, Path(options.like))
    return plain(run, options), ""


def plain(run: Run, options: SampleOptions) -> list[Paint]:
    """Of z from the latent DPM, or of none. Raises UsageError for guidance of a model without."""
    model = run.model
    alone = model.latent_dpm is None and model.gradient_estimator is None and not model.takes_z
    if alone and not options.unconditional:
        what = f"{model.name} is a diffusion model alone"
        options.unguided(f"{what}, without a G_psi to guide with")
        run.out.say(f"{what}: plain samples of eps_theta")

    unconditional = options.unconditional or alone
    if not unconditional:
        _record_latent_dpm(run)

    def paint(sampling: Sampling, numbers: Sequence[int]) -> Tensor:
        how: dict[str, Any] = {"seed": options.seed, "unconditional": unconditional}
        return model.sample(numbers, sampling, **how)[0]

    return [partial(paint, sampling) for sampling, _ in options.rows()]


def _record_latent_dpm(run: Run) -> None:
    """Trained on, it makes other pictures."""
    from ..engine.tensors import networks_sha

    if (network := run.model.latent_dpm) is not None:
        run.job.options["latent_dpm_sha256"] = networks_sha(network)


def of_label(run: Run, options: SampleOptions, labels: Sequence[str]) -> list[Paint]:
    """Of a label, by a G_psi that takes them."""
    from ..engine.guidance import chosen, embedding, labelled

    y = chosen(embedding(run.model).cfg.classes, labels)

    def paint(sampling: Sampling, numbers: Sequence[int]) -> Tensor:
        return labelled(run.model, y, numbers, sampling, options.seed)

    return [partial(paint, sampling) for sampling, _ in options.rows()]


def by_gradient(
    run: Run, options: SampleOptions, labels: Sequence[str], folder: Path
) -> tuple[list[Paint], str]:
    """Of a label, by the gradient of a classifier."""
    from ..checkpoints import read_classifier
    from ..engine.guidance import by_classifier, chosen

    classifier = read_classifier(folder)
    y = chosen(classifier.config.classes, labels)

    def paint(sampling: Sampling, scale: float, numbers: Sequence[int]) -> Tensor:
        return by_classifier(run.model, classifier, y, scale, numbers, sampling, options.seed)

    return [partial(paint, *row) for row in options.rows()], classifier.weights_sha


def like(run: Run, options: SampleOptions, with_: Path) -> tuple[list[Paint], str]:
    """Of z like those of some pictures."""
    from ..engine import guidance

    model = run.model
    _record_latent_dpm(run)
    z, others = _of_several(run, with_), None
    if options.unlike is not None:
        others = _of_several(run, Path(options.unlike))
        kinds = [{row.numpy().tobytes() for row in rows} for rows in (z, others)]
        refuse_both(kinds, with_, Path(options.unlike))
    likeness = guidance.learn(z, others, guidance.unlabelled(model))
    kind = f"those in {Path(options.unlike)}" if options.unlike else "what the model makes"
    run.out.say(
        f"{len(z)} pictures, told from {kind} with AUROC {likeness.auroc:.3f} on those held out; "
        f"{likeness.share:.1%} of what the model makes is like them"
    )

    def paint(sampling: Sampling, scale: float, numbers: Sequence[int]) -> Tensor:
        def told(tried: int, kept: int) -> None:
            run.bar.tell(f"z {kept} of {len(numbers)}, {counted(tried, 'draw')}")

        how = scale, numbers, sampling, options.seed, told
        return guidance.pictures_like(model, likeness, *how)

    return [partial(paint, *row) for row in options.rows()], likeness.sha()


def _of_several(run: Run, path: Path) -> Tensor:
    """Normalised z (N, D) of a folder, zip, table or codes file. Raises UsageError for others."""
    output = run.options.given.get("output")
    return z_of(run.model, path, run.out, run.options.fit, output and Path(output))
