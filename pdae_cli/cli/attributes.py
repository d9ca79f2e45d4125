"""pdae attributes: learn directions in z from labels, list them, remove them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError, ModelError, UsageError
from .options import ModelOptions, takes
from .output import Output

if TYPE_CHECKING:
    from torch import Tensor

    from ..attributes import Attributes
    from ..engine import Model
    from ..training.data import Pictures

app = typer.Typer(no_args_is_help=True, help="Attributes: learn your own, list, remove.")


@app.command()
@takes(ModelOptions)
def fit(
    options: ModelOptions,
    data: Annotated[Path | None, typer.Argument(help="Folder or zip of labelled pictures.")] = None,
    labels: Annotated[
        Path | None, typer.Option(help="CSV of labels; default: labels.csv inside DATA.")
    ] = None,
    with_: Annotated[
        Path | None, typer.Option("--with", help="Pictures that have the attribute.")
    ] = None,
    without: Annotated[Path | None, typer.Option(help="Pictures that don't.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the attribute, for --with.")] = None,
    decay: Annotated[
        float | None,
        typer.Option(min=0, help="More: edits show more, and move more else. Default: 0.01."),
    ] = None,
) -> None:
    """Learn attributes from a CSV of labels, or one from two folders; a folder model keeps them.

    Example: pdae attributes fit -m my-model --with hats/ --without bare/ --name hat
    """
    from ..checkpoints import writable_folder, write_attributes

    if (data is None) == (with_ is None) or (with_ is None) != (without is None):
        raise UsageError("give either DATA with labels, or --with and --without")
    out = Output(options.json, options.quiet)
    folder = writable_folder(options.model)
    model = options.load()
    if data is not None:
        fitted = _from_table(model, data, labels, decay, out)
    else:
        assert with_ is not None and without is not None
        fitted = _from_folders(model, with_, without, name or with_.name, decay)
    known = model.attributes
    write_attributes(folder, known.merged(fitted) if known else fitted)
    _print(fitted, out)


def _from_table(
    model: Model, data: Path, labels: Path | None, decay: float | None, out: Output
) -> Attributes:
    import torch

    from ..attributes import fit as fit_attributes
    from ..training.data import find_labels, split

    table = find_labels(data, labels)
    if table is None:
        raise UsageError(f"{data} has no labels.csv; pass --labels CSV")
    train, held_out = split(_pictures(model, data), table)
    z, z_held_out = (_normalised(model, part, out) for part in (train, held_out))
    groups = None
    if table.groups:
        sources = sorted(set(table.groups.values()))
        groups = torch.tensor([sources.index(table.groups[name]) for name in train.names])
    return fit_attributes(
        table.attributes,
        z,
        table.matrix(train.names),
        z_held_out,
        table.matrix(held_out.names),
        groups,
        decay,
    )


def _from_folders(
    model: Model, with_: Path, without: Path, name: str, decay: float | None
) -> Attributes:
    import torch

    from ..attributes import fit as fit_attributes
    from ..training.data import split

    parts = [split(_pictures(model, folder), None) for folder in (with_, without)]
    out = Output(quiet=True)
    z = [torch.cat([_normalised(model, pair[k], out) for pair in parts]) for k in (0, 1)]
    truth = [
        torch.cat([torch.ones(len(parts[0][k])), torch.zeros(len(parts[1][k]))])[:, None].to(
            torch.int8
        )
        for k in (0, 1)
    ]
    return fit_attributes([name], z[0], truth[0], z[1], truth[1], decay=decay)


def _pictures(model: Model, data: Path) -> Pictures:
    from ..training.data import open_pictures

    return open_pictures(data, model.config.unet.image_size, model.config.unet.channels)


def _normalised(model: Model, pictures: Pictures, out: Output) -> Tensor:
    """Normalised z of all pictures (N, D)."""
    from ..training.latent import encode_all

    with out.progress("encode", len(pictures)) as bar:
        return model.normalise(encode_all(model, pictures, bar.advance_to))


@app.command("list")
@takes(ModelOptions)
def list_(options: ModelOptions) -> None:
    """Print the model's attributes, with their AUROC on held-out pictures."""
    print_attributes(options)


def print_attributes(options: ModelOptions) -> None:
    """Print the attributes of the chosen model."""
    from ..checkpoints import model_folder, read_attributes

    path = model_folder(options.model) / "attributes.safetensors"
    if not path.exists():
        raise ModelError(
            f"model {options.model} has no attributes; `pdae attributes fit` makes some"
        )
    _print(read_attributes(path), Output(options.json, options.quiet))


def _print(attributes: Attributes, out: Output) -> None:
    width = max(map(len, attributes.names))
    for name in attributes.names:
        facts = attributes.facts.get(name) or {}
        auroc = facts.get("auroc")
        shown = f"AUROC {auroc:.3f} on {facts['held_out']} held out" if auroc is not None else ""
        out.result({"attribute": name, **facts}, f"{name:{width}}  {shown}".rstrip())


@app.command()
@takes(ModelOptions)
def remove(
    options: ModelOptions,
    names: Annotated[list[str], typer.Argument(help="Attributes to remove.")],
) -> None:
    """Remove attributes from a model.

    Example: pdae attributes remove -m my-model hat
    """
    from ..checkpoints import read_attributes, writable_folder, write_attributes

    folder = writable_folder(options.model)
    path = folder / "attributes.safetensors"
    if not path.exists():
        raise InputError(f"model {options.model} has no attributes")
    write_attributes(folder, read_attributes(path).without(names))
