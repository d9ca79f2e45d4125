"""pdae evaluate judge: what samples and reconstructions are measured with, as a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from .evaluating import JUDGE_SEED, DataOptions, needed
from .options import DEFAULT_MODEL, takes
from .output import Output, plain

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class JudgeOptions(DataOptions):
    """Which pictures a judge takes, and where it is trained."""

    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", envvar="PDAE_MODEL", help="Whose pictures it is to judge: their size."
        ),
    ] = DEFAULT_MODEL
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Height and width in pixels, instead of the model's.")
    ] = None
    device: Annotated[
        str, typer.Option(envvar="PDAE_DEVICE", help="auto, cpu, cuda, cuda:1, mps …")
    ] = "auto"
    seed: Annotated[int, typer.Option(help="Of all random numbers.")] = JUDGE_SEED
    json: Annotated[
        bool, typer.Option("--json", help="A JSON line for each attribute, and one of the file.")
    ] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but failures.")] = False


@takes(JudgeOptions)
def judge(
    data: Annotated[Path, typer.Argument(help="Folder, zip or tar shards of labelled pictures.")],
    options: JudgeOptions,
    output: Annotated[Path, typer.Option("--output", "-o", help="The judge, a .safetensors.")] = (
        Path("judge.safetensors")
    ),
    epochs: Annotated[int, typer.Option(min=1, help="How often it sees each picture.")] = 4,
) -> None:
    """Train a judge for --judge of the other commands: a small classifier of DATA's labels.

    It shares nothing with the models that it judges. Figures of two models compare where one judge
    measured both, so keep its file. Prints the AUROC of each label on held-out pictures.

    Example: pdae evaluate judge faces.zip -o judge.safetensors
    """
    from ..checkpoints import load
    from ..evaluation.judge import write_judge
    from ..files import sha256
    from ..training.data import find_labels, split
    from ..training.judge import train_judge
    from .data import open_data

    if output.suffix.lower() != ".safetensors":
        raise UsageError(f"-o {output}: the judge is a .safetensors")
    options.free(output)
    out = Output(options.json, options.quiet)
    model = load(options.model, options.device, announce=out.say)
    size = options.image_size or model.config.image_size
    pictures = open_data(data, size, model.config.channels, options.fit, options.quiet)
    labels = needed(find_labels(data, options.labels), data)
    train, held_out = split(pictures, labels)
    how: dict[str, Any] = {"seed": options.seed, "report": out.say, "device": model.device}
    made, auroc = train_judge(train, held_out, labels, epochs, **how)
    write_judge(output, made, plain(auroc))
    _report(auroc, labels.matrix(train.names), labels.matrix(held_out.names), out)
    digest = sha256(output)
    record = {"status": "done", "input": str(data), "output": str(output), "digest": digest}
    facts = {"auroc": made.auroc, "image_size": size, "epochs": epochs, "seed": options.seed}
    counts = {"pictures": len(train), "held_out": len(held_out)}
    text = f"{output}: judge {digest[:12]}, mean AUROC {made.auroc:.3f}"
    out.result(record | facts | counts, text)


def _report(auroc: dict[str, float], learnt: Tensor, truth: Tensor, out: Output) -> None:
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
