"""pdae evaluate: what a model knows and how well its codes hold a picture, in figures."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import __version__
from ..errors import InputError, ModelError, OutOfMemory, UsageError
from . import pages
from .data import Data
from .evaluation_data import JUDGE_SEED, OUTPUTS, QUICK, USUAL, EvaluateOptions, Material, every
from .options import LikelihoodOptions, PictureInputs, numbers, split_names, takes
from .output import Output, plain
from .run.batches import Made, Run
from .run.destination import Destination
from .run.making import generators, pictures_of
from .run.recipes import recordable, told

if TYPE_CHECKING:
    from torch import Tensor

    from ..evaluation.figures import Finding

app = typer.Typer(
    no_args_is_help=True, help="Measure a model: the paper's experiments, and likelihood."
)
NOT_OF_JUDGES = ("seed", "dtype", "batch_size", "compile", "output", "pictures", "whole")
SOLVERS = ("dpmpp", "ddim", "leapfrog", "ddpm", "sde", "pc")  # known before torch is imported

JudgePath = Annotated[
    Path | None,
    typer.Option(
        help="File of `pdae evaluate judge`; without, one is trained on DATA's labels for this run."
    ),
]


@app.command()
@takes(EvaluateOptions)
def gap(data: Data, options: EvaluateOptions) -> None:
    """Posterior mean gap by t: of eps_theta, of PDAE, and with another picture's z as control.

    The sheet shows what one step makes of x_t, with and without the shift.

    Example: pdae evaluate gap faces.zip --pictures 64 -o gap/
    """
    m = options.material(data)
    deliver(m.gap(), m)


@app.command()
@takes(EvaluateOptions)
def reconstruction(
    data: Data,
    options: EvaluateOptions,
    solvers: Annotated[
        str, typer.Option(help=f"Solvers to compare, of {', '.join(SOLVERS)}.")
    ] = "dpmpp,ddim,ddpm",
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
    names, known = split_names(solvers), ", ".join(SOLVERS)
    if not names or not set(names) <= set(SOLVERS):
        raise UsageError(f"--solvers {solvers!r} takes at least one of {known}, as in dpmpp,ddim")
    ways, m = _ways(steps), options.material(data)
    given = m.judge(judge) if judge else None
    deliver(m.reconstruction(given, solvers=names, steps=ways), m)


@app.command()
@takes(EvaluateOptions)
def stages(
    data: Data,
    options: EvaluateOptions,
    edges: Annotated[
        str | None,
        typer.Option(help="Timesteps, e.g. 0,500,999; guidance goes from each to each below it."),
    ] = None,
) -> None:
    """Guide only for t1 >= t >= t2, over all pairs: reconstruction error, agreement of attributes.

    Example: pdae evaluate stages faces.zip --pictures 16 -o stages/
    """
    ends, m = None if edges is None else numbers(edges), options.material(data)
    deliver(m.stages(ends), m)


@app.command()
@takes(EvaluateOptions, without=("whole",))
def attributes(
    data: Data,
    options: EvaluateOptions,
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
    m = options.material(data)
    deliver(m.attributes(train, beside or ()), m)


@app.command()
@takes(EvaluateOptions, without=("whole",))
def samples(
    data: Data,
    options: EvaluateOptions,
    judge: JudgePath = None,
    count: Annotated[int, typer.Option("-n", "--count", min=5, help="Samples of each kind.")] = 256,
    steps: Annotated[str, typer.Option(help="Numbers of solver steps.")] = "10,20,50,100",
) -> None:
    """Quality of samples: judge-Fréchet and judge-KID to real pictures, precision and recall.

    The features are a small classifier's, trained by this project: not Inception's, so these are
    not FID and KID, and only compare with each other.

    Example: pdae evaluate samples faces.zip -n 256 -o samples/
    """
    ways, m = _ways(steps), options.material(data)
    deliver(m.samples(lambda: m.judge(judge), count=count, steps=ways), m)


@app.command()
@takes(EvaluateOptions)
def semantics(
    data: Data,
    options: EvaluateOptions,
    noises: Annotated[int, typer.Option(min=2, help="x_T that each z is decoded with.")] = 6,
) -> None:
    """What z holds and what x_T holds: every z decoded with every x_T, as variances and a sheet.

    Example: pdae evaluate semantics faces.zip --pictures 6 -o semantics/
    """
    m = options.material(data)
    deliver(m.semantics(noises), m)


@app.command("all")
@takes(EvaluateOptions, without=("output",))
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

    What the model or the data can't do is left out, and the page says why. What fails is, too, and
    then the exit code tells.

    Example: pdae evaluate all --quick faces.zip -o evaluation.html
    """
    from ..engine.computing import within_memory
    from ..evaluation.figures import Finding, needs_matplotlib
    from ..files import write_bytes

    if output.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"-o {output}: the page is a .html")
    options.free(output)
    needs_matplotlib()
    m = options.material(data, QUICK if quick else USUAL)
    pictures = _pictures(m)  # raises before all work
    findings, code, begun = [], 0, perf_counter()
    for name, measure in every(m, judge, quick).items():
        m.options.out.say(f"{name} …")
        try:
            with within_memory():
                finding = measure()
        except (InputError, ModelError, OutOfMemory, UsageError) as error:
            m.options.out.warn(f"{name} is left out: {error}")
            finding = Finding(name, f"Left out: {error}.")
            if isinstance(error, InputError | OutOfMemory):
                code = max(code, error.exit_code)
        else:
            tell(finding, m, table=False)
        findings.append((finding, files_of(finding)))
    facts = {
        "model": m.model.name,
        "digest": m.model.weights_sha,
        "data": f"{told(str(data))}: {pictures}",
        "seed": options.seed,
        "made": f"pdae {__version__} in {perf_counter() - begun:.0f} s on {m.model.device}",
    }
    title = f"{m.model.name}: experiments"
    page = pages.render("evaluation.html", title, findings=findings, facts=facts)
    write_bytes(output, page.encode())
    m.options.out.say(f"{output} shows all of them")
    if code:
        raise typer.Exit(code)


def _pictures(m: Material) -> str:
    """How many pictures are learnt from and measured on, in words. Raises UsageError where there
    are none to measure on."""
    try:
        learnt = len(m.train)
    except UsageError:  # all are held out
        learnt = 0
    return f"{learnt} pictures to learn from, {len(m.drawn_from)} to measure on"


def _ways(steps: str) -> list[int]:
    """Numbers of solver steps. Raises UsageError."""
    ways = numbers(steps)
    if not ways or not all(1 <= one <= 1000 for one in ways):
        raise UsageError(f"--steps {steps!r} takes numbers of steps, 1 to 1000, as in 10,20")
    return ways


def deliver(finding: Finding, m: Material) -> None:
    """Print a finding, and write its files where they are wanted."""
    from ..files import write_bytes

    tell(finding, m)
    if (folder := m.options.output) is not None:
        recipe = {"command": f"evaluate {finding.experiment}", **facts_of(finding, m)}
        made = files_of(finding, recipe | {"digest": m.model.weights_sha})
        for name, content in made.items():
            write_bytes(folder / name, content)
        for name in set(OUTPUTS) - set(made) if m.options.overwrite else ():  # another experiment's
            (folder / name).unlink(missing_ok=True)
        m.options.out.say(f"{folder} has the table, the plot and, if there is one, the sheet")


def files_of(finding: Finding, recipe: dict[str, Any] | None = None) -> dict[str, bytes]:
    """The content of its OUTPUTS; the sheet says how it was made where a recipe is given."""
    from ..pictures.images import encode_picture

    table = io.StringIO()
    writer = csv.DictWriter(table, finding.columns(), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(plain(finding.rows))
    plot = finding.plot.draw() if finding.plot else b""
    sheet = b"" if finding.sheet is None else encode_picture(finding.sheet, ".png", recipe)
    made = zip(OUTPUTS, (table.getvalue().encode(), plot, sheet), strict=True)
    return {name: content for name, content in made if content}


def tell(finding: Finding, m: Material, table: bool = True) -> None:
    """Print the words and, as records or as a `table`, the rows."""
    if m.options.json:
        for row in finding.rows:
            m.options.out.result(facts_of(finding, m) | row, "")
        m.options.out.say(finding.words)
        return
    if table:
        names = finding.columns()
        cells = [names, *([pages.shown(row.get(name)) for name in names] for row in finding.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for line in cells:
            m.options.out.result({}, "  ".join(map(str.rjust, line, widths)))
    m.options.out.result({}, finding.words)


def facts_of(finding: Finding, m: Material) -> dict[str, Any]:
    """What all records of an experiment say."""
    return {"experiment": finding.experiment, "model": m.model.name, "seed": m.options.seed}


@app.command()
@takes(EvaluateOptions, without=NOT_OF_JUDGES)
def judge(
    data: Data,
    options: EvaluateOptions,
    output: Annotated[Path, typer.Option("--output", "-o", help="The judge, a .safetensors.")] = (
        Path("judge.safetensors")
    ),
    epochs: Annotated[int, typer.Option(min=1, help="How often it sees each picture.")] = 4,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Height and width in pixels, instead of the model's.")
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Of all random numbers.", callback=recordable)
    ] = JUDGE_SEED,
) -> None:
    """Train a judge for --judge of the other commands: a small classifier of DATA's labels.

    It shares nothing with the models that it judges, but takes pictures of --model's size. Figures
    of two models compare where one judge measured both, so keep its file. Prints the AUROC of each
    label on held-out pictures.

    Example: pdae evaluate judge faces.zip -o judge.safetensors
    """
    from ..evaluation.judge import write_judge
    from ..training.data import split
    from ..training.judge import train_judge
    from .data import labels_of, needed, open_data

    if output.suffix.lower() != ".safetensors":
        raise UsageError(f"-o {output}: the judge is a .safetensors")
    options.free(output)
    out, model = options.out, options.load()
    size = image_size or model.config.image_size
    pictures = open_data(data, size, model.config.channels, out, options.fit)
    labels = needed(labels_of(pictures, options.labels, options.quiet), data)
    train, held_out = (part.checked() for part in split(pictures, labels))
    how: dict[str, Any] = {"seed": seed, "report": out.say, "device": model.device}
    made, auroc = train_judge(train, held_out, labels, epochs, **how)
    write_judge(output, made, auroc)
    _tell_quality(auroc, labels.matrix(train.names), labels.matrix(held_out.names), out)
    record: dict[str, Any] = {"status": "done", "input": str(data), "output": str(output)}
    record |= {"digest": made.weights_sha, "auroc": made.auroc, "image_size": size}
    record |= {"epochs": epochs, "seed": seed, "pictures": len(train), "held_out": len(held_out)}
    out.result(record, f"{output}: judge {made.weights_sha[:12]}, mean AUROC {made.auroc:.3f}")


def _tell_quality(auroc: dict[str, float], learnt: Tensor, truth: Tensor, out: Output) -> None:
    """Print each attribute's AUROC; labels (N, A) of training and of held-out pictures."""
    from ..engine.attributes import both_kinds

    wide, alike = max(map(len, auroc)), ~both_kinds(learnt)
    for (name, value), column in zip(auroc.items(), truth.T, strict=True):
        known, with_ = int((column >= 0).sum()), int((column == 1).sum())
        record = {"attribute": name, "auroc": value, "held_out": known, "held_out_with": with_}
        out.result(record, f"{name:{wide}}  AUROC {value:.3f} ({with_} of {known} have it)")
    if alike.any():
        names = [name for name, one in zip(auroc, alike.tolist(), strict=True) if one]
        out.warn(f"not learnt, since all or none of the pictures have it: {', '.join(names)}")


@app.command()
@takes(LikelihoodOptions, without=("show", "sheet", "stream", "preset", "solver", "parity"))
def likelihood(
    options: LikelihoodOptions,
    inputs: PictureInputs = None,
    conditional: Annotated[
        bool, typer.Option("--conditional", help="Of p(x | z), with each picture's own z.")
    ] = False,
    probes: Annotated[
        int, typer.Option(min=1, max=1000, help="Estimates of the divergence to average.")
    ] = 1,
) -> None:
    """Bits per dimension of pictures, by the probability-flow ODE's divergence.

    Pictures of another size than the model's are scaled to it first: their figures don't compare
    with others'.

    Example: pdae evaluate likelihood faces/ -r --inference-steps 200
    """
    from ..evaluation.likelihood import likelihood as measure

    guided = {"guidance", "guide_from", "guide_until"} & options.changes().keys()
    if guided and not conditional:
        raise UsageError("guidance is by z; add --conditional, or leave guidance, guide-… out")
    items, model = options.items("evaluate likelihood", inputs), options.load()
    sampling = options.sampling()
    nfe = probes * (2 * (len(model.trajectory(sampling).grid()) - 1) + 1)
    facts: dict[str, Any] = {"conditional": conditional, "probes": probes, "nfe": nfe}
    facts |= {"seed": options.seed, "model": model.name}
    with Run(model, options, "evaluate likelihood", Destination(""), nfe) as run:
        for batch in run.batches(items):
            with batch:
                drawn = generators(run, batch)
                pictures = pictures_of(batch)
                bits = measure(model, pictures, drawn, sampling, conditional, probes).tolist()
                records = [{"bits_per_dimension": one} | facts for one in bits]
                texts = [f"  {one:.4f} bits/dim" for one in bits]
                run.keep(batch, list(map(Made, [None] * len(bits), records, texts)))
