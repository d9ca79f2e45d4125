"""What the experiments of `pdae evaluate` share: their options, and a model with data in its frame,
on which each is run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import UsageError
from ..files import check_writable
from .data import compare_split, labels_of, needed, open_data
from .options import PICTURES, ModelOptions, SeedOptions, option
from .run.destination import refuse_existing

if TYPE_CHECKING:
    from torch import Tensor

    from ..engine.model import Model
    from ..evaluation.figures import Finding
    from ..evaluation.judge import Judge
    from ..training.data import Pictures
    from ..training.labels import Labels

OUTPUTS = ("table.csv", "plot.svg", "sheet.png")  # of an experiment's folder
USUAL = {  # pictures that experiments measure on
    "gap": 64, "reconstruction": 16, "stages": 16, "attributes": 2000, "samples": 2000,
    "semantics": 6,
}  # fmt: skip
QUICK = {
    "gap": 8, "reconstruction": 4, "stages": 4, "attributes": 600, "samples": 500, "semantics": 4
}  # fmt: skip
JUDGE_EPOCHS = 2  # of a judge that is trained for one run
JUDGE_SEED = 1  # a judge's own: another --seed changes what is judged, and not who judges


@dataclass(frozen=True)
class EvaluateOptions(SeedOptions, ModelOptions):
    """For experiments over a data set."""

    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for table.csv, plot.svg and sheet.png."),
    ] = None
    overwrite: bool = option(False, None, "Replace existing files.", "--overwrite")
    pictures: int | None = option(
        None, PICTURES, "Pictures to measure on, at most. By default "
        + ", ".join(f"{count} for {name}" for name, count in USUAL.items()) + ".", min=1,
    )  # fmt: skip
    whole: bool = option(
        False, PICTURES, "Draw them from all of DATA, not from what is held out alone.", "--whole"
    )
    labels: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=PICTURES,
            help="Table of labels, by default labels.csv inside DATA; pictures whose `split` there "
            "isn't train are held out.",
        ),
    ] = None
    fit: Literal["crop", "pad", "stretch"] = option(
        "crop", PICTURES, "Pictures that aren't square."
    )

    def __post_init__(self) -> None:
        if self.output is not None:
            self.free(*(self.output / name for name in OUTPUTS))

    def free(self, *paths: Path) -> None:
        """Raise InputError for a file that exists and isn't to be replaced, or whose folder can't
        be written, StorageError for a full disk: before the work, not after it."""
        for path in paths:
            refuse_existing(path, self.overwrite)
        check_writable(paths[0].parent)

    def material(
        self, data: Path, sizes: Mapping[str, int] = USUAL, model: Model | None = None
    ) -> Material:
        """Bring the data into the frame of the model, by default the chosen one. What is said of
        its labels is said once, with the chosen one."""
        from ..evaluation.figures import needs_matplotlib

        if self.output is not None:
            needs_matplotlib()
        quiet = self.quiet or model is not None
        out = self.out if model is None else None  # else it is said already
        model = model or self.load()
        config = model.config
        pictures = open_data(data, config.image_size, config.channels, out, self.fit, self.output)
        labels = labels_of(pictures, self.labels, quiet)
        return Material(self, model, pictures, labels, sizes)


@dataclass(frozen=True)
class Material:
    """A model with pictures in its frame, to learn from and to measure on, and its experiments."""

    options: EvaluateOptions
    model: Model
    pictures: Pictures
    labels: Labels | None
    sizes: Mapping[str, int]  # pictures that each experiment measures on, unless --pictures says

    def _run(self, measure: Callable[..., Finding], *args: Any, **how: Any) -> Finding:
        """Run an experiment, with a bar on stderr of how far it is while someone watches."""
        with ExitStack() as bars:

            def track(parts: Sequence[Any]) -> Iterator[Any]:
                bar = bars.enter_context(self.options.out.progress(measure.__name__, len(parts)))
                self.model.evaluated = bar.evaluated
                for part in parts:
                    yield part
                    bar.advance(1)

            return measure(*args, **how, seed=self.options.seed, track=track)

    def gap(self) -> Finding:
        from ..evaluation.gap import gap

        return self._run(gap, self.model, self.measured("gap"))

    def reconstruction(self, judge: Judge | None, **how: Any) -> Finding:
        from ..evaluation.reconstruction import reconstruction

        x_0 = self.measured("reconstruction")
        return self._run(reconstruction, self.model, x_0, judge=judge, **how)

    def stages(self, edges: Sequence[int] | None = None) -> Finding:
        from ..evaluation.stages import stages

        return self._run(stages, self.model, self.measured("stages"), edges=edges)

    def attributes(self, train: int, beside: Sequence[str] = ()) -> Finding:
        """Probe z, the z of the models `beside`, pixels and PCA: learn from `train` pictures."""
        from ..evaluation.probes import attributes, pixels_and_components, standardised

        data = self.pictures.root
        labels = needed(self.labels, data)
        others = [replace(self.options, model=name).load() for name in beside]
        held_out = self._size("attributes")
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for one in (self, *(self.options.material(data, model=model) for model in others)):
            x = one.some(one.train, train), one.some(one.held_out, held_out)
            z = one.model.z_of(x[0]), one.model.z_of(x[1])
            title = f"z of {one.model.name}"
            title += f", model {len(found) + 1}" if title in found else ""
            found[title] = standardised(*z)
            if one is self:
                baselines = pixels_and_components(*x, z[0].shape[1])
        truth = [
            labels.matrix([part.names[row] for row in self.rows(part, count)])
            for part, count in ((self.train, train), (self.held_out, held_out))
        ]
        return self._run(attributes, labels.attributes, found | baselines, *truth)

    def samples(self, judge: Callable[[], Judge], **how: Any) -> Finding:
        from ..evaluation.samples import LEAST, kinds_of, samples

        kinds_of(self.model)  # refuses a model that makes none before a judge is trained
        real = self.some(self.held_out, self._size("samples"))
        if len(real) < 2 * LEAST:
            more = "more pictures, or a `split` column in the labels, hold out more"
            raise UsageError(f"{2 * LEAST} held-out pictures are needed, not {len(real)}; {more}")
        return self._run(samples, self.model, judge(), real, **how)

    def semantics(self, noises: int = 6) -> Finding:
        from ..evaluation.semantics import semantics

        return self._run(semantics, self.model, self.measured("semantics"), noises=noises)

    @cached_property
    def parts(self) -> tuple[Pictures, Pictures]:
        """The pictures to learn from, and those held out."""
        from ..training.data import split

        parts = split(self.pictures, self.labels)
        compare_split(self.model.config, parts[1], self.options.out, self.model.name)
        return parts

    @property
    def train(self) -> Pictures:
        return self.parts[0]

    @property
    def held_out(self) -> Pictures:
        return self.parts[1]

    @property
    def drawn_from(self) -> Pictures:
        """The pictures that experiments measure on, but for probes and samples."""
        return self.pictures if self.options.whole else self.held_out

    def _size(self, experiment: str) -> int:
        return self.options.pictures or self.sizes[experiment]

    def measured(self, experiment: str) -> Tensor:
        """Draw the pictures that an experiment measures on: float32 (N, C, H, W)."""
        return self.some(self.drawn_from, self._size(experiment))

    def some(self, pictures: Pictures, count: int) -> Tensor:
        """Draw at most `count` of the pictures: float32 (N, C, H, W)."""
        from ..pictures.images import to_float

        return to_float(pictures.stack(self.rows(pictures, count)))

    def rows(self, pictures: Pictures, count: int, seed: int | None = None) -> list[int]:
        """Draw at most `count` numbers of pictures that can be read, by this seed or --seed."""
        import torch

        from ..diffusion.noise import generator

        chosen = generator(self.options.seed if seed is None else seed, "evaluated")
        return pictures.readable(torch.randperm(len(pictures), generator=chosen).tolist(), count)

    def judge(
        self, path: Path | None, epochs: int = JUDGE_EPOCHS, most: int | None = None
    ) -> Judge:
        """Read the judge in a file, or train one now, on at most so many training pictures.

        Raises ModelError for a file that is none, UsageError for a judge of other pictures, and
        where there is nothing to train one on.
        """
        from ..evaluation.judge import read_judge
        from ..training.judge import train_judge

        if path is not None:
            found = read_judge(path)[0]
            found.check(self.pictures.channels, self.pictures.size)
            return found
        labels = needed(self.labels, self.pictures.root, ", or a judge's file as --judge")
        pictures, held_out = self.train, self.held_out.checked()
        rows = self.rows(pictures, len(pictures) if most is None else most, JUDGE_SEED)
        rows = rows if most is not None else sorted(rows)
        pictures = pictures.subset(rows)
        how: dict[str, Any] = {"report": self.options.out.say, "device": self.model.device}
        return train_judge(pictures, held_out, labels, epochs, JUDGE_SEED, **how)[0]


def every(m: Material, path: Path | None, quick: bool) -> dict[str, Callable[[], Finding]]:
    """Each experiment with its usual size, or `quick`: some 10,000 network evaluations in all."""
    given = m.judge(path) if path else None  # a wrong file ends the command before all work
    solved: dict[str, Any] = {"steps": (10, 20)} if quick else {}
    sampled: dict[str, Any] = {"count": 48, "steps": (10, 20, 50)} if quick else {"count": 256}

    @cache
    def judged() -> Judge:
        return given or (m.judge(None, 1, 6000) if quick else m.judge(None))

    def reconstruction() -> Finding:
        try:
            by = judged() if given or m.labels else None
        except UsageError:  # the labels tell no pictures apart; it needs none
            by = None
        return m.reconstruction(by, **solved)

    return {
        "gap": m.gap,
        "reconstruction": reconstruction,
        "stages": m.stages,
        "attributes": lambda: m.attributes(m.sizes["attributes"]),
        "samples": lambda: m.samples(judged, **sampled),
        "semantics": m.semantics,
    }
