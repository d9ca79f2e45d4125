"""pdae evaluate: what a model knows and how well its codes hold a picture, in figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer

from .. import __version__
from ..errors import InputError, ModelError, UsageError
from .evaluating import (
    QUICK,
    USUAL,
    EvaluateOptions,
    FolderOptions,
    Material,
    deliver,
    facts_of,
    listed,
)
from .options import FileOptions, numbers, takes
from .output import Output
from .run.batch import Made, Runner
from .run.loading import Loaded
from .run.making import generators

if TYPE_CHECKING:
    from ..evaluation.finding import Finding
    from ..evaluation.judge import Judge

app = typer.Typer(
    no_args_is_help=True, help="Measure a model: the paper's experiments, and likelihood."
)
STEPS = 100  # of the ODE, where the user doesn't say

Data = Annotated[Path, typer.Argument(help="Folder, zip or tar shards of pictures.")]
JudgePath = Annotated[
    Path | None,
    typer.Option(
        help="File of `pdae evaluate judge`; without, one is trained on DATA's labels for this run."
    ),
]


@app.command()
@takes(FolderOptions)
def gap(data: Data, options: FolderOptions) -> None:
    """Posterior mean gap by t: of eps_theta, of PDAE, and with another picture's z as control.

    The sheet shows what one step makes of x_t, with and without the shift.

    Example: pdae evaluate gap faces.zip --pictures 64 -o gap/
    """
    from ..evaluation.gap import gap as measure

    m = options.material(data)
    finding = m.run("gap", measure, m.model, m.measured("gap"), seed=options.seed)
    deliver(finding, options, m.model)


@app.command()
@takes(FolderOptions)
def reconstruction(
    data: Data,
    options: FolderOptions,
    solvers: Annotated[str, typer.Option(help="Solvers to compare.")] = "dpmpp,ddim,ddpm",
    steps: Annotated[str, typer.Option(help="Numbers of their steps.")] = "5,10,20,50",
    judge: Annotated[
        Path | None,
        typer.Option(help="File of `pdae evaluate judge`: adds a distance in its features."),
    ] = None,
) -> None:
    """What comes back from z and x_T, from z alone, and from neither, by solver and steps.

    The judge's distance is LPIPS's formula on features of this project's own, so it isn't LPIPS.

    Example: pdae evaluate reconstruction faces.zip --pictures 16 -o reconstruction/
    """
    from ..evaluation.reconstruction import reconstruction as measure

    ways, m = (listed(solvers), numbers(steps)), options.material(data)
    how = {"solvers": ways[0], "steps": ways[1], "judge": m.judge(judge) if judge else None}
    finding = m.run(
        "reconstruction", measure, m.model, m.measured("reconstruction"), seed=options.seed, **how
    )
    deliver(finding, options, m.model)


@app.command()
@takes(FolderOptions)
def stages(
    data: Data,
    options: FolderOptions,
    edges: Annotated[
        str | None,
        typer.Option(help="Timesteps, e.g. 0,500,999; guidance goes from each to each below it."),
    ] = None,
) -> None:
    """Guide only for t1 >= t >= t2, over all pairs: reconstruction error, agreement of attributes.

    Example: pdae evaluate stages faces.zip --pictures 16 -o stages/
    """
    from ..evaluation.stages import stages as measure

    m = options.material(data)
    how = {"edges": None if edges is None else numbers(edges), "seed": options.seed}
    finding = m.run("stages", measure, m.model, m.measured("stages"), **how)
    deliver(finding, options, m.model)


@app.command()
@takes(FolderOptions)
def attributes(
    data: Data,
    options: FolderOptions,
    train: Annotated[
        int, typer.Option(min=10, help="Labelled pictures to learn from, at most.")
    ] = 2000,
    beside: Annotated[
        list[str] | None, typer.Option(help="Another model's z beside, e.g. a Diff-AE's.")
    ] = None,
) -> None:
    """AUROC and average precision of linear probes for all labels, and by the number of labels.

    On z, beside raw pixels and PCA of the same size, and the z of other models.

    Example: pdae evaluate attributes faces.zip --beside my-diffae -o attributes/
    """
    from ..evaluation.probes import attributes as measure

    m = options.material(data)
    others = [replace(options, model=name).load() for name in beside or ()]
    finding = m.run("attributes", measure, *m.probed(train, others=others), seed=options.seed)
    deliver(finding, options, m.model)


@app.command()
@takes(FolderOptions)
def samples(
    data: Data,
    options: FolderOptions,
    judge: JudgePath = None,
    count: Annotated[int, typer.Option("-n", "--count", min=5, help="Samples of each kind.")] = 256,
    steps: Annotated[str, typer.Option(help="Numbers of solver steps.")] = "10,20,50,100",
) -> None:
    """Quality of samples: judge-Fréchet and judge-KID to real pictures, precision and recall.

    The features are a small classifier's, trained by this project: not Inception's, so these are
    not FID and KID, and only compare with each other.

    Example: pdae evaluate samples faces.zip -n 256 -o samples/
    """
    from ..evaluation.samples import kinds_of
    from ..evaluation.samples import samples as measure

    ways, m = numbers(steps), options.material(data)
    m.needs_parts("samples")
    kinds_of(m.model)  # refuses a model that makes none before a judge is trained
    real, how = m.measured("samples"), {"count": count, "steps": ways, "seed": options.seed}
    finding = m.run("samples", measure, m.model, m.judge(judge), real, **how)
    deliver(finding, options, m.model)


@app.command()
@takes(FolderOptions)
def semantics(
    data: Data,
    options: FolderOptions,
    noises: Annotated[int, typer.Option(min=2, help="x_T that each z is decoded with.")] = 6,
) -> None:
    """What z holds and what x_T holds: every z decoded with every x_T, as variances and a sheet.

    Example: pdae evaluate semantics faces.zip --pictures 6 -o semantics/
    """
    from ..evaluation.semantics import semantics as measure

    m = options.material(data)
    how = {"noises": noises, "seed": options.seed}
    finding = m.run("semantics", measure, m.model, m.measured("semantics"), **how)
    deliver(finding, options, m.model)


@app.command("all")
@takes(EvaluateOptions)
def all_(
    data: Data,
    options: EvaluateOptions,
    output: Annotated[Path, typer.Option("--output", "-o", help="The page, out.html.")] = Path(
        "evaluation.html"
    ),
    quick: Annotated[
        bool, typer.Option("--quick", help="Every experiment small: minutes on two cores.")
    ] = False,
    judge: JudgePath = None,
) -> None:
    """Every experiment, as one page that needs nothing else.

    What the model or the data can't do is left out, and the page says why.

    Example: pdae evaluate all --quick faces.zip -o evaluation.html
    """
    from ..files import write_bytes
    from .findings import Section, page

    if output.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"-o {output}: the page is a .html")
    options.free(output)
    out, m = Output(options.json, options.quiet), options.material(data)
    sections, begun = [], perf_counter()
    for name, measure in every(m, judge, quick).items():
        out.say(f"{name} …")
        try:
            finding = measure()
        except (ModelError, UsageError) as error:
            out.warn(f"{name} is left out: {error}")
            sections.append(Section(name, f"Left out: {error}."))
            continue
        for row in finding.rows if options.json else ():
            out.result(facts_of(finding, options, m.model) | row, "")
        (out.say if options.json else lambda text: out.result({}, text))(finding.words)
        rows, plot, sheet = finding.rows, finding.plot, finding.sheet
        sections.append(Section(name, finding.words, rows, plot, sheet))
    facts = {
        "model": m.model.name,
        "digest": m.model.digest,
        "data": f"{data}: {len(m.train)} pictures to learn from, {len(m.held_out)} to measure on",
        "seed": str(options.seed),
        "made": f"pdae {__version__} in {perf_counter() - begun:.0f} s on {m.model.device}",
    }
    write_bytes(output, page(f"{m.model.name}: experiments", sections, facts).encode())
    out.say(f"{output} shows all of them")


def every(m: Material, judge: Path | None, quick: bool) -> dict[str, Callable[[], Finding]]:
    """Each experiment with its usual size, or `quick`: some 10,000 network evaluations in all."""
    from ..evaluation.gap import gap
    from ..evaluation.probes import attributes
    from ..evaluation.reconstruction import STEPS as SOLVED
    from ..evaluation.reconstruction import reconstruction
    from ..evaluation.samples import STEPS as SAMPLED
    from ..evaluation.samples import samples
    from ..evaluation.semantics import semantics
    from ..evaluation.stages import stages

    model, run, seed = m.model, m.run, m.options.seed
    given = m.judge(judge) if judge else None  # a wrong file ends the command before all work
    usual, sampled = (QUICK, 48) if quick else (USUAL, 256)

    @cache
    def judged() -> Judge:
        return given or (m.judge(None, 1, 6000) if quick else m.judge(None))

    def measure_reconstruction() -> Finding:
        how = {"judge": judged() if given or m.labels else None, "seed": seed}
        steps = (10, 20) if quick else SOLVED
        x_0 = m.measured("reconstruction", usual)
        return run("reconstruction", reconstruction, model, x_0, steps=steps, **how)

    def measure_samples() -> Finding:
        m.needs_parts("samples")
        how = {"count": sampled, "steps": (10, 20, 50) if quick else SAMPLED, "seed": seed}
        return run("samples", samples, model, judged(), m.measured("samples", usual), **how)

    def measure_attributes() -> Finding:
        return run("attributes", attributes, *m.probed(usual["attributes"], usual), seed=seed)

    return {
        "gap": lambda: run("gap", gap, model, m.measured("gap", usual), seed=seed),
        "reconstruction": measure_reconstruction,
        "stages": lambda: run("stages", stages, model, m.measured("stages", usual), seed=seed),
        "attributes": measure_attributes,
        "samples": measure_samples,
        "semantics": lambda: run(
            "semantics", semantics, model, m.measured("semantics", usual), seed=seed
        ),
    }


@app.command()
@takes(FileOptions, without=("skip_existing", "keep_alpha", "keep_exif"))  # it writes no pictures
def likelihood(
    options: FileOptions,
    inputs: Annotated[
        list[str] | None, typer.Argument(help="Pictures: files, folders, or - for standard input.")
    ] = None,
    conditional: Annotated[
        bool, typer.Option("--conditional", help="Of p(x | z), with each picture's own z.")
    ] = False,
    probes: Annotated[
        int, typer.Option(min=1, max=1000, help="Estimates of the divergence to average.")
    ] = 1,
) -> None:
    """Bits per dimension of pictures, by the probability-flow ODE's divergence.

    In 100 steps of its own solver, unless --inference-steps says otherwise. Pictures of another
    size than the model's are scaled to it first: their figures don't compare with others'.

    Example: pdae evaluate likelihood faces/ -r --inference-steps 200
    """
    from dataclasses import replace

    import torch

    from ..evaluation.likelihood import likelihood as measure

    if options.solver or options.parity or options.corrections or options.preset:
        raise UsageError("likelihood has its own solver; leave solver, corrections, preset out")
    guided = (options.guidance, options.guide_from, options.guide_until)
    if not conditional and any(one is not None for one in guided):
        raise UsageError("guidance is by z; add --conditional, or leave guidance, guide-… out")
    items = options.items(inputs)
    runner = Runner(options, "evaluate likelihood")
    sampling = options.sampling()
    if options.inference_steps is None:
        sampling = replace(sampling, inference_steps=STEPS)

    steps = len(runner.model.trajectory(sampling).grid()) - 1
    runner.nfe = probes * (2 * steps + 1)

    def process(batch: list[Loaded]) -> Sequence[Made]:
        if any(one.picture is None for one in batch):
            raise InputError("a likelihood is of pictures, not of codes")
        pictures = torch.cat([one.picture for one in batch if one.picture is not None])
        bits = measure(
            runner.model, pictures, generators(runner, batch), sampling, conditional, probes
        )
        facts = {
            "conditional": conditional,
            "probes": probes,
            "nfe": runner.nfe,
            "seed": options.seed,
            "model": runner.model.name,
        }
        return [
            Made(source, None, {"bits_per_dimension": one} | facts, f"  {one:.4f} bits/dim")
            for source, one in zip(batch, bits.tolist(), strict=True)
        ]

    runner.run(items, process)
