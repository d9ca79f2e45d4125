"""pdae convert: a pre-trained model of another program becomes one of ours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from .output import Output

if TYPE_CHECKING:
    from ..checkpoints.convert import Conversion

DTYPES = ("float32", "float16", "bfloat16")


def convert(
    source: Annotated[
        str, typer.Argument(help="Checkpoint, folder, release root, or Hub id[@revision].")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the new model.")],
    family: Annotated[
        str | None,
        typer.Option("--from", help="diffusers, pdae, diffae or guided-diffusion, if not clear."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Of the checkpoint, where it isn't beside it: YAML, JSON or flags."),
    ] = None,
    weights_dtype: Annotated[
        str, typer.Option(help="Stored weights: float32, float16 or bfloat16.")
    ] = "float32",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but failures.")] = False,
) -> None:
    """Convert a pre-trained model of another program; what it holds, whole or not at all.

    Example: pdae convert pdae-release/trained-models/autoencoder/ffhq128 -o models/ffhq128
    """
    from ..checkpoints.convert import open_source, read_foreign, write_converted

    if weights_dtype not in DTYPES:
        raise UsageError(f"unknown --weights-dtype {weights_dtype!r}; known: {', '.join(DTYPES)}")
    if output.exists() and any(output.iterdir() if output.is_dir() else [output]) and not overwrite:
        raise UsageError(f"{output} exists; choose another -o, or --overwrite")
    out = Output(as_json, quiet)
    import torch

    conversion = read_foreign(open_source(source, config, out.say), family)
    dtypes = dict(zip(DTYPES, (torch.float32, torch.float16, torch.bfloat16), strict=True))
    write_converted(conversion, output, dtypes[weights_dtype])
    _report(conversion, output, out)


def _report(conversion: Conversion, output: Path, out: Output) -> None:
    """A short table: what was used, what was left out, how it was checked."""
    model = conversion.model
    record = {
        "model": str(output),
        "family": conversion.family,
        "tensors": [vars(row) for row in conversion.rows],
        "checked": conversion.checked,
        "attributes": len(model.attributes.names) if model.attributes else 0,
        "licence": model.config.licence,
        "notes": conversion.notes,
    }
    lines = [f"{row.used:6}  {row.what}" for row in conversion.rows if row.used]
    lines += [f"   left  {row.what}: {row.ignored}" for row in conversion.rows if not row.used]
    lines += [f"checked: {conversion.checked}", f"licence: {model.config.licence}"]
    lines += [f"note: {note}" for note in conversion.notes]
    if out.json:
        return out.result(record, "")
    for line in [f"{output}: a model of {conversion.family}; tensors used:", *lines]:
        out.result(record, line)
