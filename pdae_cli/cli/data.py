"""The pictures that a user names as DATA."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .output import Output
from .run.processes import launched

if TYPE_CHECKING:
    from ..training.data import Pictures


def cache_folder() -> Path:
    """Where what can be made again is kept: PDAE_CACHE, or `pdae` in the platform's own folder."""
    if chosen := os.environ.get("PDAE_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        root = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        root = "~/Library/Caches"
    else:
        root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "pdae"


def open_data(
    data: Path, size: int, channels: int, fit: str = "crop", quiet: bool = False
) -> Pictures:
    """`training.data.open_pictures`, with indexes of remote shards kept in the user's cache."""
    from ..training.data import open_pictures
    from ..training.remote import as_url, shown

    shards = cache_folder() / "shards"
    if url := as_url(data):
        out = Output(quiet=quiet or launched()[0] > 0)
        out.say(f"indexing {shown(url)}: each shard once, kept in {shards}")
    return open_pictures(data, size, channels, fit, shards)
