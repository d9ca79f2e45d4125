"""pdae export: a model's eps_theta for another program."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import UsageError
from .options import ModelOptions, takes
from .output import Output
from .run.destination import writable


@takes(ModelOptions, without=("batch_size", "compile"))
def export(
    options: ModelOptions,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to write.", callback=writable)
    ],
    to: Annotated[Literal["diffusers"], typer.Option(help="The program that shall read it.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> None:
    """Write a model's eps_theta as another program's.

    Example: pdae export -m models/mine --to diffusers -o mine-diffusers
    """
    from ..checkpoints.export import write_diffusers

    if output.exists() and not overwrite:
        raise UsageError(f"{output} exists; choose another -o, or --overwrite")
    pipeline = write_diffusers(options.load(), output)
    text = f"{output}: diffusers.{pipeline}.from_pretrained({str(output)!r}) runs it"
    record = {"output": str(output), "to": to, "status": "done"}
    Output(options.json, options.quiet).result(record, text)
