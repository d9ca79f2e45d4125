"""The pictures that a user names as DATA: opened for other commands, and checked by pdae data."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError, UsageError, counted
from ..pictures.listing import CODES
from .options import SaidOptions, takes
from .output import Output
from .run.launch import launched
from .run.recipes import told
from .run.tables import open_codes

if TYPE_CHECKING:
    from torch import Tensor

    from ..engine.config import ModelConfig
    from ..engine.model import Model
    from ..training.data import Pictures, PictureSource
    from ..training.labels import Labels

DATA = "Folder, zip, '*.parquet', '{00..99}.tar', Hub id"
Data = Annotated[Path, typer.Argument(help=f"{DATA}.")]
SHOWN = 5  # of each kind of thing, for people; --json has all

app = typer.Typer(no_args_is_help=True, help="Your own data: look through it before a long run.")


def open_data(
    data: Path,
    size: int,
    channels: int,
    out: Output | None,
    fit: str = "crop",
    output: Path | None = None,
) -> Pictures:
    """Open pictures in a model's frame, but those that the command writes itself, to `output`; say
    where a table is kept, and what can't be read, unless `out` is None. Raises InputError,
    UsageError."""
    from ..engine.computing import ignore
    from ..training.data import open_pictures
    from ..training.tables import source_of

    say, warn = (out.say, out.warn) if out and launched()[0] == 0 else (ignore, ignore)
    if source_of(data) is not None:
        say(f"reading {data} into the cache of datasets, HF_DATASETS_CACHE, if it isn't there")
    without = [] if output is None else [os.path.realpath(output)]
    return open_pictures(data, size, channels, fit, warn=warn, say=say, without=without)


def z_of(
    model: Model, data: Path, out: Output, fit: str = "crop", output: Path | None = None
) -> Tensor:
    """Normalised z (N, D) of a file of codes, or of what can be read of a data set's pictures."""
    from ..engine.codes import MAX_BYTES, from_bytes
    from ..files import read_limited

    table = open_codes(data)
    if table is not None or data.suffix.lower() == CODES:
        content = read_limited(data, MAX_BYTES) if table is None else table.read()
        codes = from_bytes(content, str(data))
        model.check(codes)
        return model.normalise(codes.z)
    config = model.config
    pictures = open_data(data, config.image_size, config.channels, out, fit, output)
    return encoded(model, pictures.checked(), out)


def refuse_both(kinds: Sequence[set[Any]], with_: Path, without: Path) -> None:
    """Raise UsageError for pictures that are said to be of a kind and not to."""
    if both := len(kinds[0] & kinds[1]):
        are = f"{counted(both, 'picture')} {'is' if both == 1 else 'are'} in both"
        raise UsageError(f"{are} {with_} and {without}; leave out of one what isn't its kind")


def encoded(model: Model, pictures: Pictures, out: Output) -> Tensor:
    """Normalised z (N, D) of all pictures."""
    from ..training.latent import encode_all

    with out.progress("encode", len(pictures)) as bar:
        return model.normalise(encode_all(model, pictures, bar.advance_to))


def named(data: Path) -> str:
    """DATA as a model's record names it: of the Hub its id, else nothing of where it lies."""
    from ..checkpoints.card import HUB
    from ..training.tables import source_of

    if "revision" in (source_of(data) or {}):
        return f"{HUB}datasets/{data}"
    return data.name.partition("?")[0] if ":/" in str(data) else told(str(data))


def labels_of(
    pictures: Pictures | PictureSource, labels: Path | None, quiet: bool = False
) -> Labels | None:
    """Find the labels of pictures (`training.labels.find_labels`), and say what isn't taken."""
    from ..training.labels import find_labels

    found = find_labels(pictures.root, labels, pictures.names)
    out = Output(quiet=quiet or launched()[0] > 0)
    for remark in found.remarks if found else ():
        out.say(remark)
    return found


def compare_split(
    config: ModelConfig, held_out: Pictures, out: Output, who: str = "the model"
) -> None:
    """Warn where a model may have learnt from what is held out of the same data now, or learnt
    pictures in another frame."""
    from ..training.data import learnt_otherwise, learnt_with

    runs, now = config.training, held_out.fit
    told = [learnt_otherwise(runs, named(held_out.root), held_out)]
    fit = learnt_with(runs, "fit") or learnt_with(runs, "fit", ("dpm",))
    if fit not in (None, now):
        told.append(f"learnt pictures that aren't square by --fit {fit}, not {now}; choose it")
    for one in filter(None, told if launched()[0] == 0 else ()):
        out.warn(f"{who} {one}")


def needed(labels: Labels | None, data: Path, instead: str = "") -> Labels:
    """The labels. Raises UsageError where there are none."""
    if labels is None or not (labels.attributes or labels.numbers or labels.texts):
        lacking = "labels.csv" if labels is None else "labels"
        raise UsageError(f"{data} has no {lacking}; pass --labels CSV{instead}")
    return labels


@app.command()
@takes(SaidOptions)
def check(
    options: SaidOptions,
    data: Data,
    labels: Annotated[
        Path | None, typer.Option(help="Table of labels; default: labels.csv inside DATA.")
    ] = None,
) -> None:
    """Read all pictures of DATA: which can't be, sizes, modes, duplicates, labels. Exit 3 if any
    is bad.

    Example: pdae data check photos/
    """
    from ..pictures.checking import check as check_pictures
    from ..training.data import picture_source

    out = options.out
    source = picture_source(data, say=out.say)
    table = labels_of(source, labels, options.quiet)
    with out.progress("read", len(source.names)) as bar:
        found = check_pictures(source.names, source.read, source.label, bar.advance)
    bad = found.unreadable | {
        name: f"{data / name}: can't be opened: {reason}" for name, reason in source.closed.items()
    }
    for reason in bad.values():
        out.error(reason)
    balance = {} if table is None else _balance(table, source.names)
    pictures = len(source.names) - len(found.unreadable)
    record: dict[str, Any] = {"input": str(data), "pictures": pictures, "unreadable": bad}
    record |= {"formats": found.formats, "modes": found.modes, "sizes": found.sizes}
    record |= {"duplicates": found.duplicates, "labels": balance}
    for line in ("",) if options.json else _lines(record):
        out.result(record, line)
    if bad:
        raise typer.Exit(InputError.exit_code)


def _balance(labels: Labels, names: list[str]) -> dict[str, dict[str, float]]:
    """How many pictures have each attribute, don't, or aren't known to; of a number, how many have
    one, and between which."""
    columns = labels.matrix(names).T
    words = {"with": 1, "without": 0, "unknown": -1}
    found: dict[str, dict[str, float]] = {
        name: {word: int((column == value).sum()) for word, value in words.items()}
        for name, column in zip(labels.attributes, columns, strict=True)
    }
    for name, values in labels.numbers.items():
        known = [values[one] for one in names if one in values]
        if known:
            found[name] = {"known": len(known), "least": min(known), "most": max(known)}
    return found


def _lines(record: dict[str, Any]) -> Iterator[str]:
    """What was found, for people: a line for each subject."""
    bad, groups = record["unreadable"], record["duplicates"]
    yield f"{record['input']}: {record['pictures']} pictures, {len(bad)} that can't be read"
    for what in ("formats", "modes", "sizes"):
        yield f"{what}: {_most(record[what])}"
    if groups:
        shown = "; ".join(" = ".join(group[:SHOWN]) for group in groups[:SHOWN])
        yield f"duplicates: {sum(map(len, groups))} pictures are {len(groups)}: {shown}"
    for name, count in record["labels"].items():
        yield f"{name}: " + ", ".join(f"{n:g} {word}" for word, n in count.items())


def _most(counts: Counter[str]) -> str:
    """The most frequent, and how many kinds there are besides."""
    parts = [f"{name} {count}" for name, count in counts.most_common(SHOWN)]
    rest = len(counts) - SHOWN
    return ", ".join(parts) + (f" and {rest} more" if rest > 0 else "")
