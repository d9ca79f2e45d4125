"""pdae convert: a pre-trained model of another program becomes one of ours."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import UsageError
from .options import SaidOptions, takes
from .run.destination import writable


@takes(SaidOptions)
def convert(
    options: SaidOptions,
    source: Annotated[
        str, typer.Argument(help="Checkpoint, folder, release root, or Hub id[@revision].")
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder of the new model.", callback=writable),
    ],
    family: Annotated[
        str | None,
        typer.Option(
            "--from", help="diffusers, pdae, latent-diffusion, diffae or guided-diffusion."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Of the checkpoint, where it isn't beside it: YAML, JSON or flags."),
    ] = None,
    weights_dtype: Annotated[
        Literal["float32", "float16", "bfloat16"], typer.Option(help="How weights are stored.")
    ] = "float32",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model there.")] = False,
) -> None:
    """Convert a pre-trained model of another program; what it holds, whole or not at all.

    Prints what was used, what was left out, and how it was checked.

    Example: pdae convert pdae-release/trained-models/autoencoder/ffhq128 -o models/ffhq128
    """
    from ..checkpoints.convert import read_foreign, write_converted
    from ..checkpoints.source import open_source
    from ..engine.computing import PRECISIONS

    place = Path(source) if os.path.isdir(source) else Path(source).parent  # noqa: PTH112
    if os.path.exists(source) and output.exists() and output.samefile(place):  # noqa: PTH110
        raise UsageError(f"{output} is the source's own folder; choose another -o")
    if output.exists() and any(output.iterdir() if output.is_dir() else [output]) and not overwrite:
        raise UsageError(f"{output} exists; choose another -o, or --overwrite")
    out = options.out
    made = read_foreign(open_source(source, config, out.say), family)
    write_converted(made, output, PRECISIONS[weights_dtype])
    model = made.model
    record = {
        "model": str(output),
        "family": made.family,
        "tensors": [vars(row) for row in made.rows],
        "checked": made.checked,
        "attributes": len(model.attributes.names) if model.attributes else 0,
        "licence": model.config.licence,
        "notes": made.notes,
    }
    lines = [f"{output}: a model of {made.family}; tensors used:"]
    lines += [f"{row.used:6}  {row.what}" for row in made.rows if row.used]
    lines += [f"   left  {row.what}: {row.ignored}" for row in made.rows if not row.used]
    lines += [f"checked: {made.checked}", f"licence: {model.config.licence}"]
    for line in [""] if out.json else [*lines, *(f"note: {note}" for note in made.notes)]:
        out.result(record, line)
