"""The pictures that a user names as DATA."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .output import Output
from .run.launch import launched

if TYPE_CHECKING:
    from ..training.data import Pictures


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
