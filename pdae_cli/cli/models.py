"""pdae models: the models that are here, without torch and without the network."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InputError, ModelError
from ..files import bundled_models, read_limited
from .complete import attributes_in
from .options import SaidOptions, takes
from .output import Output

MAX_CONFIG = 4 << 20  # bytes


@takes(SaidOptions)
def models(
    options: SaidOptions,
    folders: Annotated[
        list[Path] | None,
        typer.Argument(help="Models, or folders of models; default: the current folder."),
    ] = None,
) -> None:
    """List the models that are here: bundled, in folders, and of the Hub in its cache.

    Example: pdae models runs/
    """
    out = Output(options.json, options.quiet)
    found = [("bundled", name, folder) for name, folder in bundled_models().items()]
    for folder in folders or [Path()]:
        there = [path for path in (folder, *sorted(folder.glob("*/"))) if _config(path) is not None]
        if folders and not there:
            raise ModelError(f"{folder} is no model of pdae, and no folder of models")
        found += [("folder", os.path.normpath(path), path) for path in there]
    for place, name, folder in [*found, *_cached()]:
        try:
            record: dict[str, Any] = {"kind": "model", "name": name, "place": place}
            record |= _facts(folder)
        except (KeyError, TypeError, ValueError, OSError) as error:
            out.warn(f"{name} can't be read: {error!r}; get the model again")
            continue
        size = record["image_size"]
        text = f"{name} ({place}): {record['bytes'] / (1 << 20):.1f} MiB, {size}x{size} pixels, "
        text += f"{record['attributes']} attributes, licence: {record['licence']}"
        out.result(record, text)


def _cached() -> Iterator[tuple[str, str, Path]]:
    """Models of ours in the Hub's cache, by the names that --model takes."""
    from huggingface_hub import constants, scan_cache_dir

    if not Path(constants.HF_HUB_CACHE).is_dir():
        return
    repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    for one in sorted(repositories, key=lambda one: one.repo_id):
        for revision in sorted(one.revisions, key=lambda one: one.commit_hash):
            ref = min(revision.refs, default=revision.commit_hash)
            name = one.repo_id if "main" in revision.refs else f"{one.repo_id}@{ref}"
            if one.repo_type == "model" and _config(revision.snapshot_path) is not None:
                yield "hub", name, revision.snapshot_path


def _config(folder: Path) -> dict[str, Any] | None:
    """The config of a model of ours; None where a folder is none, or one without its weights."""
    try:
        config = json.loads(read_limited(folder / "config.json", MAX_CONFIG))
        ours = str(config["format"]).startswith("pdae-model-")
        return config if ours and (folder / "model.safetensors").is_file() else None
    except (InputError, ValueError, TypeError, KeyError, OSError, RecursionError):
        return None


def _facts(folder: Path) -> dict[str, Any]:
    """What its files say of a model. Raises KeyError, TypeError, ValueError, OSError."""
    config = _config(folder) or {}
    unet, stage = config["unet"], config.get("first_stage")
    factor = 2 ** (len(stage["widths"]) - 1) if stage else 1
    sizes = [path.stat().st_size for path in folder.iterdir() if path.is_file()]
    return {
        "bytes": sum(sizes),
        "image_size": int(unet["image_size"]) * factor,
        "licence": str(config["licence"]),
        "attributes": len(attributes_in(folder)),
    }
