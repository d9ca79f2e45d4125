"""pdae export: a model's eps_theta for another program."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from .options import ModelOptions, takes
from .output import Output


@takes(ModelOptions)
def export(
    options: ModelOptions,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    to: Annotated[str, typer.Option(help="The program that shall read it: diffusers.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> None:
    """Write a model's eps_theta as another program's.

    Example: pdae export -m models/mine --to diffusers -o mine-diffusers
    """
    from ..checkpoints.export import write_diffusers

    if to != "diffusers":
        raise UsageError(f"unknown --to {to!r}; known: diffusers")
    if output.exists() and not overwrite:
        raise UsageError(f"{output} exists; choose another -o, or --overwrite")
    out = Output(options.json, options.quiet)
    pipeline = write_diffusers(options.load(), output)
    text = f"{output}: diffusers.{pipeline}.from_pretrained({str(output)!r}) runs it"
    out.result({"output": str(output), "to": to, "status": "done"}, text)
