"""pdae attributes: directions in z, learnt from labels or found without; list, rename, remove."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError, ModelError, UsageError
from .data import DATA, compare_split, encoded, labels_of, needed, open_data, refuse_both, z_of
from .options import EncodingOptions, ModelOptions, ReadOptions, SeedOptions, takes
from .output import Output
from .run.destination import refuse_existing, writable
from .run.inputs import collect
from .run.loading import anew, pictures_and_codes
from .run.making import pictures_of

if TYPE_CHECKING:
    from torch import Tensor

    from ..checkpoints import PretrainedModel
    from ..engine.attributes import Attributes
    from ..engine.codes import Codes
    from ..engine.model import Model
    from ..training.data import Pictures
    from ..training.lesson import Lesson

FIGURES = {"auroc": "AUROC", "balanced_accuracy": "balanced accuracy", "correlation": "correlation",
           "mean_error": "mean error"}  # fmt: skip
FEW = 5  # held-out pictures of one kind: what is measured on fewer is chance
DEVIATIONS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)  # columns of the sheet of a direction
NO_NETWORKS = ("device", "dtype", "batch_size", "compile", "seed")  # options of what computes none

app = typer.Typer(no_args_is_help=True, help="Attributes: learn or find your own, list, rename.")


@app.command()
@takes(ModelOptions)
def fit(
    options: ModelOptions,
    data: Annotated[Path | None, typer.Argument(help=f"{DATA}, with labels.")] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Table of labels; default: labels.csv inside DATA.")
    ] = None,
    with_: Annotated[
        Path | None, typer.Option("--with", help="Pictures that have the attribute.")
    ] = None,
    without: Annotated[Path | None, typer.Option(help="Pictures that don't.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the attribute, for --with.")] = None,
    decay: Annotated[
        float | None,
        typer.Option(
            min=0, max=1000, help="More: edits show more, and move more else. Default: 0.01."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace attributes of the same name.")
    ] = False,
) -> None:
    """Learn attributes from a table of labels, or one from two folders; a folder model keeps them.

    Columns of 1 and 0 become attributes that pictures have or haven't, columns of numbers such as
    have more or less of it: `manipulate --attr age=+10u` moves by ten of its units.

    Example: pdae attributes fit -m my-model --with hats/ --without bare/ --name hat
    """
    if (data is None) == (with_ is None) or (with_ is None) != (without is None):
        raise UsageError("give either DATA with labels, or --with and --without")
    if data is None and labels is not None:
        raise UsageError("--labels is for DATA; --with and --without are labels, leave it out")
    if data is not None and name is not None:
        raise UsageError("--name is for --with; DATA's labels name their attributes, leave it out")
    import torch

    from ..checkpoints import change_attributes
    from ..training.lesson import of_two

    out, (folder, model) = options.out, _own(options)
    if with_ is not None and without is not None:
        kinds = _pictures(model, with_, out), _pictures(model, without, out)
        lesson = of_two(*kinds, name or with_.name)
        refuse_both(_shas(lesson), with_, without)
    else:
        lesson = _lesson(model, Path(str(data)), labels, out)
    if lesson.left:
        out.warn(f"not learnt, since all or none of the pictures have it: {', '.join(lesson.left)}")
    refuse = partial(_replaced, [*lesson.names, *lesson.numbers], overwrite, options.model)
    replaced = refuse(model.attributes)  # before the work, and again where they are written
    z = [torch.cat([encoded(model, one, out) for one in part]) for part in lesson.parts]
    fitted = lesson.learnt(z, decay)
    fitted.of = model.config.z_sha

    def change(known: Attributes | None) -> Attributes:
        replaced.update(refuse(known))
        return known.merged(fitted) if known else fitted

    _report(fitted, change_attributes(folder, change), replaced, torch.cat(z), out)


def _lesson(model: Model, data: Path, labels: Path | None, out: Output) -> Lesson:
    """What the labels of a data set teach."""
    from ..training.data import split
    from ..training.lesson import of_labels

    pictures = _pictures(model, data, out)
    known = needed(labels_of(pictures, labels, out.quiet), data)
    compare_split(model.config, split(pictures, known)[1], out)
    return of_labels(pictures, known)


def _shas(lesson: Lesson) -> list[set[str]]:
    """SHA-256 of the pixels of those with the attribute, and of those without it."""
    from ..pictures.images import picture_sha

    return [
        {picture_sha(part[number]) for part in parts for number in range(len(part))}
        for parts in zip(*lesson.parts, strict=True)
    ]


def _own(options: ModelOptions) -> tuple[Path, PretrainedModel]:
    """A model, and its folder, which takes attributes and a card that tells of them. Raises
    UsageError, InputError, StorageError, ModelError."""
    from ..checkpoints import read_card, writable_folder

    folder = writable_folder(options.model)
    read_card(folder)  # or the error, before the work
    return folder, options.load()


def _replaced(
    names: list[str], overwrite: bool, model: str, known: Attributes | None
) -> dict[str, Any]:
    """The facts of those that a model has of these names. Raises InputError where there are such
    and they aren't to be replaced."""
    found = known.of_names(names) if known else {}
    if found and not overwrite:
        told = "; ".join(_line(name, facts, 0) for name, facts in list(found.items())[:FEW])
        raise InputError(
            f"{model} has {len(found)} of them already ({told}); pass --overwrite to replace what "
            "it has, or rename it first"
        )
    return found


def _pictures(model: Model, data: Path, out: Output) -> Pictures:
    return open_data(data, model.config.image_size, model.config.channels, out, _fit(model))


def _fit(model: Model) -> Any:
    """How pictures that aren't square were brought into the frame where the z was learnt."""
    from ..training.data import learnt_with

    return learnt_with(model.config.training, "fit") or "crop"


def _report(
    fitted: Attributes, whole: Attributes, replaced: dict[str, Any], z: Tensor, out: Output
) -> None:
    """Print what was learnt, how it does, what it did before, and which other attributes it goes
    with over z (N, D)."""
    from ..engine.attributes import correlations, simplified

    together, few = correlations(whole, z), []
    width = max(map(len, fitted.names))
    before = {simplified(name): facts for name, facts in replaced.items()}
    for name in fitted.names:
        facts = fitted.facts[name]
        row = zip(whole.names, together[whole.index(name)].tolist(), strict=True)
        others = {other: r for other, r in row if other != name}
        nearest = sorted(others, key=lambda other: -abs(others[other]))[:3]
        record, text = {"attribute": name, **facts}, _line(name, facts, width)
        if (old := before.get(simplified(name))) is not None:
            record["replaced"] = old
            text += f"; was {_figures(old)}"
        if nearest:
            text += f"; goes with {', '.join(f'{one} {others[one]:+.2f}' for one in nearest)}"
        out.result({**record, "correlations": others}, text)
        with_ = facts.get("held_out_with", facts["held_out"] // 2)  # of numbers, each tells
        if min(with_, facts["held_out"] - with_) < FEW:
            on = f"{with_} with it of " if "held_out_with" in facts else ""
            few.append(f"{name} ({on}{facts['held_out']})")
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
    from ..checkpoints import model_folder, read_attributes

    path = model_folder(options.model) / "attributes.safetensors"
    known = read_attributes(path) if path.exists() else None
    _print(had(known, options.model), options.out)


def had(known: Attributes | None, model: str) -> Attributes:
    """A model's attributes. Raises ModelError where it has none."""
    if known is None:
        raise ModelError(f"model {model} has no attributes; `pdae attributes fit` makes some")
    return known


def _print(attributes: Attributes, out: Output) -> None:
    width = max(map(len, attributes.names), default=0)
    for name in attributes.names:
        facts = attributes.facts.get(name) or {}
        out.result({"attribute": name, **facts}, _line(name, facts, width))


def _line(name: str, facts: dict[str, Any], width: int) -> str:
    """An attribute for people."""
    return f"{name:{width}}  {_figures(facts)}".rstrip()


def _figures(facts: dict[str, Any]) -> str:
    """How well an attribute tells, or how much of z it explains."""
    told = {key: facts[key] for key in FIGURES if isinstance(facts.get(key), float)}
    text = ", ".join(f"{FIGURES[key]} {x:.3f}" for key, x in told.items())
    if "held_out" in facts:
        text = f"{text or 'nothing known'} on {facts['held_out']} held out"
    if isinstance(unit := facts.get("unit"), str):
        text += f"; a number, in {unit or 'units'}"
        if isinstance(facts.get("value_sd"), float) and isinstance(facts.get("value_mean"), float):
            text += f": {facts['value_mean']:.3g} ± {facts['value_sd']:.2g}"
    if isinstance(facts.get("explained"), float):
        text = f"{facts['explained']:.1%} of the variance of {facts.get('codes')} codes"
    return text or "nothing known"


@dataclass(frozen=True)
class DiscoverOptions(SeedOptions, EncodingOptions, ModelOptions):
    """For directions and the sheet that shows them."""


@app.command()
@takes(DiscoverOptions)
def discover(
    options: DiscoverOptions,
    data: Annotated[Path, typer.Argument(help=f"{DATA}, or a codes file.")],
    count: Annotated[int, typer.Option("-k", "--count", min=1, help="Directions to find.")] = 10,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Sheet (.png), to name them by.", callback=writable),
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
    from ..checkpoints import change_attributes
    from ..engine.attributes import principal

    if output is None and picture is not None:
        raise UsageError("--picture is what a sheet shows directions on; give one as -o")
    if output is not None:
        if output.suffix.lower() != ".png":
            raise UsageError(f"-o {output}: the sheet is a .png")
        refuse_existing(output, overwrite)
    out, (folder, model) = options.out, _own(options)
    original = None if output is None else _first(model, picture or data, options, output)
    found = principal(z_of(model, data, out, _fit(model), output), count)
    found.of = model.config.z_sha

    def change(known: Attributes | None) -> Attributes:
        old = [name for name in known.names if re.fullmatch(r"pca_\d+", name)] if known else []
        return known.without(old).merged(found) if known else found

    model.attributes = change(model.attributes)
    if output is not None and original is not None:
        _write_sheet(output, model, found, original, options)
        out.say(f"{output} shows them")
    change_attributes(folder, change)
    _print(found, out)


def _first(model: Model, source: Path, options: DiscoverOptions, output: Path) -> Codes:
    """Codes of the first picture that can be read, or the first codes, of what a user names."""
    load, failures = pictures_and_codes(model, ReadOptions(fit=_fit(model))), list[InputError]()
    for item in collect([str(source)], recursive=True, without={os.path.realpath(output)}):
        try:
            for one in load(item, anew):
                return one.codes or model.encode(pictures_of([one]), options.sampling())
        except InputError as error:
            failures.append(error)
    raise failures[0]


def _write_sheet(
    path: Path, model: Model, found: Attributes, original: Codes, options: DiscoverOptions
) -> None:
    """A row of pictures for each direction: the original moved along it, DEVIATIONS far."""
    from ..diffusion.noise import generator
    from ..engine.attributes import Scale
    from ..engine.codes import stack
    from ..files import write_bytes
    from ..pictures.images import encode_picture, to_pixels
    from ..pictures.sheets import sheet

    edits = [[(name, Scale(count, "sd"))] for name in found.names for count in DEVIATIONS]
    moved = stack([model.manipulate(original, edit) for edit in edits])
    nfe = model.trajectory(options.sampling()).evaluations()[1]
    with options.out.progress("sheet", len(moved), nfe) as bar:
        model.evaluated = bar.evaluated
        own = [generator(options.seed, sha) for sha in moved.picture_shas]
        random_noise, changes = moved.x_T is None, options.changes()
        pictures = model.decode(moved, generators=own, random_noise=random_noise, **changes)
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
    from ..checkpoints import change_attributes, writable_folder

    folder = writable_folder(options.model)
    change_attributes(folder, lambda known: had(known, options.model).without(names))


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
    from ..checkpoints import change_attributes, writable_folder

    folder = writable_folder(options.model)
    change_attributes(folder, lambda known: had(known, options.model).renamed(old, new))
