"""pdae attributes: directions in z, learnt from labels or found without; list, rename, remove."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError, ModelError, UsageError
from .data import open_data
from .options import EncodingOptions, ModelOptions, SeedOptions, takes
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
NO_NETWORKS = ("device", "dtype", "batch_size", "compile", "seed")  # options of what computes none

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
    import torch

    from ..checkpoints import writable_folder, write_attributes
    from ..engine.attributes import fit as fit_attributes
    from ..training.data import split

    if (data is None) == (with_ is None) or (with_ is None) != (without is None):
        raise UsageError("give either DATA with labels, or --with and --without")
    out, folder = Output(options.json, options.quiet), writable_folder(options.model)
    model, groups = options.load(), None
    if with_ is not None and without is not None:
        kinds = [split(_pictures(model, one), None) for one in (with_, without)]
        parts = list(zip(*kinds, strict=True))  # training and held-out pictures, of both kinds
        truth = [
            torch.tensor([1] * len(one) + [0] * len(other), dtype=torch.int8)[:, None]
            for one, other in parts
        ]
        names = [name or with_.name]
    else:
        names, truth, groups, parts = _labelled(model, Path(str(data)), labels, out)
    z = [torch.cat([_normalised(model, one, out) for one in part]) for part in parts]
    fitted = fit_attributes(names, z[0], truth[0], z[1], truth[1], groups, decay)
    whole = model.attributes.merged(fitted) if model.attributes else fitted
    write_attributes(folder, whole)
    _report(fitted, whole, torch.cat(z), out)


def _labelled(model: Model, data: Path, labels: Path | None, out: Output) -> tuple[Any, ...]:
    """The attributes that a table tells apart, what it says (N, A) of the training and held-out
    pictures, the training ones' sources as numbers, and the pictures."""
    import torch

    from ..engine.attributes import both_kinds
    from ..training.data import split
    from ..training.labels import find_labels

    table = find_labels(data, labels)
    if table is None:
        raise UsageError(f"{data} has no labels.csv; pass --labels CSV")
    parts = split(_pictures(model, data), table)
    truth = [table.matrix(part.names) for part in parts]
    whole = both_kinds(truth[0])
    names = [name for name, one in zip(table.attributes, whole.tolist(), strict=True) if one]
    if not names:
        raise UsageError(f"{data}: no label tells the pictures apart")
    if left := [name for name in table.attributes if name not in names]:
        out.warn(f"not learnt, since all or none of the pictures have it: {', '.join(left)}")
    groups = None
    if table.groups:
        sources = sorted(set(table.groups.values()))
        groups = torch.tensor([sources.index(table.groups[name]) for name in parts[0].names])
    return names, [one[:, whole] for one in truth], groups, [[part] for part in parts]


def _pictures(model: Model, data: Path) -> Pictures:
    return open_data(data, model.config.image_size, model.config.channels)


def _normalised(model: Model, pictures: Pictures, out: Output) -> Tensor:
    """Normalised z of all pictures (N, D)."""
    from ..training.latent import encode_all

    with out.progress("encode", len(pictures)) as bar:
        return model.normalise(encode_all(model, pictures, bar.advance_to))


def _report(fitted: Attributes, whole: Attributes, z: Tensor, out: Output) -> None:
    """Print what was learnt, how it does, and which other attributes it goes with over z (N, D)."""
    from ..engine.attributes import correlations

    together, few = correlations(whole, z), []
    width = max(map(len, fitted.names))
    for name in fitted.names:
        facts = fitted.facts[name]
        row = zip(whole.names, together[whole.index(name)].tolist(), strict=True)
        others = {other: r for other, r in row if other != name}
        nearest = sorted(others, key=lambda other: -abs(others[other]))[:3]
        text = _line(name, facts, width)
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


@app.command("list")
@takes(ModelOptions, without=NO_NETWORKS)
def list_(options: ModelOptions) -> None:
    """Print the model's attributes, with their AUROC on held-out pictures.

    Example: pdae attributes list -m faces64
    """
    print_attributes(options)


def print_attributes(options: ModelOptions) -> None:
    """Print the attributes of the chosen model."""
    from ..checkpoints import model_folder

    known = _read(model_folder(options.model), options.model)
    _print(known, Output(options.json, options.quiet))


def _read(folder: Path, model: str) -> Attributes:
    """A model's attributes. Raises ModelError, also where it has none."""
    from ..checkpoints import read_attributes

    path = folder / "attributes.safetensors"
    if path.exists():
        return read_attributes(path)
    raise ModelError(f"model {model} has no attributes; `pdae attributes fit` makes some")


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


@dataclass(frozen=True)
class DiscoverOptions(SeedOptions, EncodingOptions, ModelOptions):
    """For directions and the sheet that shows them."""


@app.command()
@takes(DiscoverOptions)
def discover(
    options: DiscoverOptions,
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
    out, folder = Output(options.json, options.quiet), writable_folder(options.model)
    model = options.load()
    if data.suffix.lower() == CODES:
        z = model.normalise(_read_codes(model, data).z)
    else:
        z = _normalised(model, _pictures(model, data), out)
    found = whole = principal(z, count)
    if known := model.attributes:
        old = [name for name in known.names if re.fullmatch(r"pca_\d+", name)]
        whole = known.without(old).merged(found)
    model.attributes = whole
    if output is not None:
        _write_sheet(output, model, found, _first(model, picture or data, options), options)
        out.say(f"{output} shows them")
    write_attributes(folder, whole)
    _print(found, out)


def _read_codes(model: Model, path: Path) -> Codes:
    from ..engine.codes import MAX_BYTES, from_bytes
    from ..files import read_limited

    codes = from_bytes(read_limited(path, MAX_BYTES), str(path))
    model.check(codes)
    return codes


def _first(model: Model, source: Path, options: DiscoverOptions) -> Codes:
    """Codes of a picture, or of the first in a codes file, folder or zip."""
    from ..pictures.images import to_float

    if source.suffix.lower() == CODES:
        return _read_codes(model, source)[:1]
    if source.suffix.lower() in PICTURES:
        return model.encode([source], options.sampling())
    return model.encode(to_float(_pictures(model, source).stack([0])), options.sampling())


def _write_sheet(
    path: Path, model: Model, found: Attributes, original: Codes, options: DiscoverOptions
) -> None:
    """A row of pictures for each direction: the original moved along it, DEVIATIONS far."""
    from ..engine.attributes import Deviations
    from ..engine.codes import stack
    from ..files import write_bytes
    from ..pictures.images import encode_picture, to_pixels
    from ..pictures.sheets import sheet

    edits = [[(name, Deviations(count))] for name in found.names for count in DEVIATIONS]
    moved = stack([model.manipulate(original, edit) for edit in edits])
    nfe = model.trajectory(options.sampling()).evaluations()[1]
    with Output(options.json, options.quiet).progress("sheet", len(moved), nfe) as bar:
        model.evaluated = bar.evaluated
        pictures = model.decode(moved, random_noise=moved.x_T is None, **options.changes())
    pixels = sheet(
        list(to_pixels(pictures)),
        columns=len(DEVIATIONS),
        titles=[f"{count:+g} sd" if count else "as it is" for count in DEVIATIONS],
        row_titles=[f"{name} {found.facts[name]['explained']:.1%}" for name in found.names],
    )
    recipe = {"command": "attributes discover", "seed": options.seed}
    recipe |= {"model": model.name, "digest": model.weights_sha}
    write_bytes(path, encode_picture(pixels, ".png", recipe))


@app.command()
@takes(ModelOptions, without=(*NO_NETWORKS, "json", "quiet"))
def remove(
    options: ModelOptions,
    names: Annotated[list[str], typer.Argument(help="Attributes to remove.")],
) -> None:
    """Remove attributes from a model.

    Example: pdae attributes remove -m my-model hat
    """
    from ..checkpoints import writable_folder, write_attributes

    folder = writable_folder(options.model)
    write_attributes(folder, _read(folder, options.model).without(names))


@app.command()
@takes(ModelOptions, without=(*NO_NETWORKS, "json", "quiet"))
def rename(
    options: ModelOptions,
    old: Annotated[str, typer.Argument(help="Attribute.")],
    new: Annotated[str, typer.Argument(help="Its new name.")],
) -> None:
    """Give an attribute of a model another name.

    Example: pdae attributes rename -m my-model pca_1 light
    """
    from ..checkpoints import writable_folder, write_attributes

    folder = writable_folder(options.model)
    write_attributes(folder, _read(folder, options.model).renamed(old, new))
