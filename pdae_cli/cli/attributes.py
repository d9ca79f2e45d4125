"""pdae attributes: directions in z, learnt from labels or found without; list, rename, remove."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError, ModelError, UsageError
from .options import ModelOptions, SamplingOptions, takes
from .output import Output
from .run.inputs import CODES, PICTURES

if TYPE_CHECKING:
    from torch import Tensor

    from ..engine.attributes import Attributes
    from ..engine.codes import Codes
    from ..engine.model import Model
    from ..training.data import Pictures

FEW = 5  # held-out pictures of one kind: what is measured on fewer is chance
DEVIATIONS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)  # columns of the sheet of a direction

app = typer.Typer(no_args_is_help=True, help="Attributes: learn or find your own, list, rename.")


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
        fitted, z = _from_table(model, data, labels, decay, out)
    else:
        assert with_ is not None and without is not None
        fitted, z = _from_folders(model, with_, without, name or with_.name, decay, out)
    whole = model.attributes.merged(fitted) if model.attributes else fitted
    write_attributes(folder, whole)
    _report(fitted, whole, z, out)


def _from_table(
    model: Model, data: Path, labels: Path | None, decay: float | None, out: Output
) -> tuple[Attributes, Tensor]:
    """Attributes of a table, and the normalised z (N, D) of all its pictures."""
    import torch

    from ..engine.attributes import both_kinds
    from ..engine.attributes import fit as fit_attributes
    from ..training.data import find_labels, split

    table = find_labels(data, labels)
    if table is None:
        raise UsageError(f"{data} has no labels.csv; pass --labels CSV")
    train, held_out = split(_pictures(model, data), table)
    truth, truth_held_out = table.matrix(train.names), table.matrix(held_out.names)
    whole = both_kinds(truth).tolist()
    if not all(whole):
        names = [name for name, one in zip(table.attributes, whole, strict=True) if not one]
        out.warn(f"not learnt, since all or none of the pictures have it: {', '.join(names)}")
    names = [name for name, one in zip(table.attributes, whole, strict=True) if one]
    if not names:
        raise UsageError(f"{data}: no label tells the pictures apart")
    groups = None
    if table.groups:
        sources = sorted(set(table.groups.values()))
        groups = torch.tensor([sources.index(table.groups[name]) for name in train.names])
    z, z_held_out = (_normalised(model, part, out) for part in (train, held_out))
    fitted = fit_attributes(
        names, z, truth[:, whole], z_held_out, truth_held_out[:, whole], groups, decay
    )
    return fitted, torch.cat([z, z_held_out])


def _from_folders(
    model: Model, with_: Path, without: Path, name: str, decay: float | None, out: Output
) -> tuple[Attributes, Tensor]:
    """One attribute of two folders, and the normalised z (N, D) of all pictures in them."""
    import torch

    from ..engine.attributes import fit as fit_attributes
    from ..training.data import split

    parts = [split(_pictures(model, folder), None) for folder in (with_, without)]
    z = [torch.cat([_normalised(model, pair[k], out) for pair in parts]) for k in (0, 1)]
    truth = [
        torch.cat([torch.ones(len(parts[0][k])), torch.zeros(len(parts[1][k]))])[:, None].to(
            torch.int8
        )
        for k in (0, 1)
    ]
    return fit_attributes([name], z[0], truth[0], z[1], truth[1], decay=decay), torch.cat(z)


def _report(fitted: Attributes, whole: Attributes, z: Tensor, out: Output) -> None:
    """Print what was learnt, how it does, and which other attributes it goes with over z (N, D)."""
    from ..engine.attributes import correlations

    together, few = correlations(whole, z), []
    for name in fitted.names:
        facts = fitted.facts[name]
        row = together[whole.index(name)].tolist()
        others = {other: r for other, r in zip(whole.names, row, strict=True) if other != name}
        nearest = sorted(others, key=lambda other: -abs(others[other]))[:3]
        text = _line(name, facts, max(map(len, fitted.names)))
        if nearest:
            text += f"; goes with {', '.join(f'{one} {others[one]:+.2f}' for one in nearest)}"
        out.result({"attribute": name, **facts, "correlations": others}, text)
        if min(facts["held_out_with"], facts["held_out"] - facts["held_out_with"]) < FEW:
            few.append(f"{name} ({facts['held_out_with']} with it of {facts['held_out']})")
    if few:
        out.warn(
            f"too few pictures are held out to tell how well these do: {', '.join(few)}; more "
            "pictures, or a `split` column in the labels, hold out more"
        )


def _pictures(model: Model, data: Path) -> Pictures:
    from .data import open_data

    return open_data(data, model.config.image_size, model.config.channels)


def _normalised(model: Model, pictures: Pictures, out: Output) -> Tensor:
    """Normalised z of all pictures (N, D)."""
    from ..training.latent import encode_all

    with out.progress("encode", len(pictures)) as bar:
        return model.normalise(encode_all(model, pictures, bar.advance_to))


@app.command("list")
@takes(ModelOptions)
def list_(options: ModelOptions) -> None:
    """Print the model's attributes, with their AUROC on held-out pictures.

    Example: pdae attributes list -m faces64
    """
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
    width = max(map(len, attributes.names), default=0)
    for name in attributes.names:
        facts = attributes.facts.get(name) or {}
        out.result({"attribute": name, **facts}, _line(name, facts, width))


def _line(name: str, facts: dict[str, Any], width: int) -> str:
    """An attribute for people: how well it tells, or how much of z it explains."""
    told = {"AUROC": facts.get("auroc"), "balanced accuracy": facts.get("balanced_accuracy")}
    text = ", ".join(f"{what} {x:.3f}" for what, x in told.items() if isinstance(x, float))
    if "held_out" in facts:
        text = f"{text or 'nothing known'} on {facts['held_out']} held out"
    if isinstance(facts.get("explained"), float):
        text = f"{facts['explained']:.1%} of the variance of {facts.get('codes')} codes"
    return f"{name:{width}}  {text}".rstrip()


@app.command()
@takes(SamplingOptions)
def discover(
    options: SamplingOptions,
    data: Annotated[Path, typer.Argument(help="Folder or zip of pictures, or a codes file.")],
    count: Annotated[int, typer.Option("-k", "--count", min=1, help="Directions to find.")] = 10,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Sheet (.png) that shows them, to name them by."),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Picture or codes to show them on; default: DATA's first.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the sheet.")] = False,
) -> None:
    """Find the directions in which z varies most, without labels: attributes pca_1, pca_2 …

    The sheet has a row for each, from -3 to 3 standard deviations. A folder model keeps them, in
    place of those found before; `pdae attributes rename` gives them the names that they deserve.

    Example: pdae attributes discover photos/ -m my-model -k 10 -o sheet.png
    """
    from ..checkpoints import writable_folder, write_attributes
    from ..engine.attributes import principal

    if output is not None and output.suffix.lower() != ".png":
        raise UsageError(f"-o {output}: the sheet is a .png")
    if output is not None and output.exists() and not overwrite:
        raise InputError(f"{output} exists; pass --overwrite")
    out = Output(options.json, options.quiet)
    folder = writable_folder(options.model)
    model = options.load()
    if data.suffix.lower() == CODES:
        z = model.normalise(_read_codes(model, data).z)
    else:
        z = _normalised(model, _pictures(model, data), out)
    found = principal(z, count)
    known = model.attributes
    if known is not None:
        old = [name for name in known.names if re.fullmatch(r"pca_\d+", name)]
        model.attributes = known.without(old).merged(found)
    else:
        model.attributes = found
    if output is not None:
        _write_sheet(output, model, found, _first(model, picture or data, options), options, out)
    write_attributes(folder, model.attributes)
    _print(found, out)


def _read_codes(model: Model, path: Path) -> Codes:
    from ..engine.codes import read_codes

    codes = read_codes(path, str(path))
    model.check(codes)
    return codes


def _first(model: Model, source: Path, options: SamplingOptions) -> Codes:
    """Codes of a picture, or of the first in a codes file, folder or zip."""
    from ..pictures.images import to_float

    if source.suffix.lower() == CODES:
        return _read_codes(model, source)[:1]
    if source.suffix.lower() in PICTURES:
        return model.encode([source], options.sampling())
    return model.encode(to_float(_pictures(model, source).stack([0])), options.sampling())


def _write_sheet(
    path: Path,
    model: Model,
    found: Attributes,
    original: Codes,
    options: SamplingOptions,
    out: Output,
) -> None:
    """A row of pictures for each direction: the original moved along it, DEVIATIONS far."""
    from ..engine.attributes import Deviations
    from ..engine.codes import stack
    from ..files import write_bytes
    from ..pictures.images import encode_picture, to_pixels
    from ..pictures.sheets import sheet

    moved = stack(
        [
            model.manipulate(original, [(name, Deviations(count))])
            for name in found.names
            for count in DEVIATIONS
        ]
    )
    nfe = model.trajectory(options.sampling()).evaluations()[1]
    with out.progress("sheet", len(moved), nfe) as bar:
        model.evaluated = bar.evaluated
        pictures = model.decode(moved, random_noise=moved.x_T is None, **options.changes())
    pixels = sheet(
        list(to_pixels(pictures)),
        columns=len(DEVIATIONS),
        titles=[f"{count:+g} sd" if count else "as it is" for count in DEVIATIONS],
        row_titles=[f"{name} {found.facts[name]['explained']:.1%}" for name in found.names],
    )
    recipe = {
        "command": "attributes discover",
        "model": model.name,
        "digest": model.digest,
        "seed": options.seed,
    }
    write_bytes(path, encode_picture(pixels, ".png", recipe))
    out.say(f"{path} shows them")


@app.command()
@takes(ModelOptions)
def remove(
    options: ModelOptions,
    names: Annotated[list[str], typer.Argument(help="Attributes to remove.")],
) -> None:
    """Remove attributes from a model.

    Example: pdae attributes remove -m my-model hat
    """
    _change(options.model, lambda known: known.without(names))


@app.command()
@takes(ModelOptions)
def rename(
    options: ModelOptions,
    old: Annotated[str, typer.Argument(help="Attribute.")],
    new: Annotated[str, typer.Argument(help="Its new name.")],
) -> None:
    """Give an attribute of a model another name.

    Example: pdae attributes rename -m my-model pca_1 light
    """
    _change(options.model, lambda known: known.renamed(old, new))


def _change(model: str, change: Callable[[Attributes], Attributes]) -> None:
    """Write a folder model's attributes anew."""
    from ..checkpoints import read_attributes, writable_folder, write_attributes

    folder = writable_folder(model)
    path = folder / "attributes.safetensors"
    if not path.exists():
        raise InputError(f"model {model} has no attributes")
    write_attributes(folder, change(read_attributes(path)))
