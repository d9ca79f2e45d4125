"""pdae export: a model for another program."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import UsageError
from .options import ModelOptions, takes
from .run.destination import writable


@takes(ModelOptions, without=("batch_size", "compile", "device", "dtype"))
def export(
    options: ModelOptions,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to write.", callback=writable)
    ],
    to: Annotated[
        Literal["diffusers", "diffusers-unet"],
        typer.Option(help="The whole model, or eps_theta alone."),
    ],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> None:
    """Write a model as a pipeline of diffusers.

    diffusers: all of it, run by pdae; by diffusers' own blocks where it is eps_theta alone and they
    can. diffusers-unet: eps_theta of any model, by those blocks or not at all.

    Example: pdae export -m models/mine --to diffusers -o mine-diffusers
    """
    from ..checkpoints import model_folder
    from ..checkpoints.export import export as write

    if output.exists() and not overwrite:
        raise UsageError(f"{output} exists; choose another -o, or --overwrite")
    pipeline = write(options.load("cpu"), model_folder(options.model), output, to == "diffusers")
    code = ", trust_remote_code=True" if pipeline == "DiffusionPipeline" else ""
    text = f"{output}: diffusers.{pipeline}.from_pretrained({str(output)!r}{code}) runs it"
    record = {"output": str(output), "to": to, "status": "done"}
    options.out.result(record, text)
