"""pdae models: the models that are here, without torch and without the network."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InputError, ModelError
from ..files import bundled_models, read_limited
from .complete import attributes_in
from .options import SaidOptions, takes

CLASSIFIER = "classifier.safetensors"  # as `checkpoints` writes it
MAX_SIDE = 1 << 20  # pixels of a model that is taken for whole


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
    out = options.out
    found = [("bundled", name, folder) for name, folder in bundled_models().items()]
    for folder in folders or [Path()]:
        there = [one for one in (folder, *sorted(folder.glob("*/"))) if _facts(one)]
        if folders and not there:
            use = f"a classifier, no model; `pdae sample --classifier {folder}` takes it"
            what = use if (folder / CLASSIFIER).is_file() else "no model, nor a folder of models"
            raise ModelError(f"{folder} is {what}")
        found += [("folder", os.path.normpath(one), one) for one in there]
    for place, name, folder in [*found, *_cached()]:
        if facts := _facts(folder):
            text = "{bytes:,} bytes, {image_size} pixels, {attributes} attributes, {licence}"
            record = {"kind": "model", "name": name, "place": place, **facts}
            out.result(record, f"{name} ({place}): {text.format(**facts)}")


def _cached() -> Iterator[tuple[str, str, Path]]:
    """Models in the Hub's cache, by the names that --model takes."""
    from huggingface_hub import constants, scan_cache_dir

    if Path(constants.HF_HUB_CACHE).is_dir():
        for one in sorted(
            scan_cache_dir(constants.HF_HUB_CACHE).repos, key=lambda one: one.repo_id
        ):
            for revision in sorted(one.revisions, key=lambda one: one.commit_hash):
                ref = f"@{min(revision.refs, default=revision.commit_hash)}"
                name = one.repo_id + ("" if "main" in revision.refs else ref)
                yield "hub", name, revision.snapshot_path


def _facts(folder: Path) -> dict[str, Any] | None:
    """What its files say of a model of ours, None where they are none or not whole."""
    with suppress(
        InputError, OSError, ValueError, KeyError, TypeError, RecursionError, ArithmeticError
    ):
        config = json.loads(read_limited(folder / "config.json", 4 << 20))
        if config["format"] == "pdae-model-1" and (folder / "model.safetensors").is_file():
            stage = config.get("first_stage")
            factor = 2 ** (len(stage["widths"]) - 1) if stage else 1
            if not 0 < (side := int(config["unet"]["image_size"]) * factor) <= MAX_SIDE:
                return None
            return {
                "bytes": sum(path.stat().st_size for path in folder.iterdir() if path.is_file()),
                "image_size": side,
                "licence": str(config["licence"]),
                "attributes": len(attributes_in(folder)),
            }
    return None
