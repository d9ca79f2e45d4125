"""The pictures that a user names as DATA."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from .output import Output
from .run.launch import launched

if TYPE_CHECKING:
    from ..training.data import Pictures
    from ..training.labels import Labels


def open_data(
    data: Path, size: int, channels: int, fit: str = "crop", quiet: bool = False
) -> Pictures:
    """Open pictures as `training.data.open_pictures`; say where a table is kept."""
    from ..training.data import open_pictures
    from ..training.tables import source_of

    if source_of(data) is not None:
        out = Output(quiet=quiet or launched()[0] > 0)
        out.say(f"reading {data} into the cache of datasets, HF_DATASETS_CACHE, if it isn't there")
    return open_pictures(data, size, channels, fit)


def labels_of(pictures: Pictures, labels: Path | None, quiet: bool = False) -> Labels | None:
    """Find the labels of pictures (`training.labels.find_labels`), and say what isn't taken."""
    from ..training.labels import find_labels

    found = find_labels(pictures.root, labels, pictures.names)
    out = Output(quiet=quiet or launched()[0] > 0)
    for remark in found.remarks if found else ():
        out.say(remark)
    return found


def needed(labels: Labels | None, data: Path, instead: str = "") -> Labels:
    """The labels. Raises UsageError where there are none."""
    if labels is None:
        raise UsageError(f"{data} has no labels.csv; pass --labels CSV{instead}")
    return labels
