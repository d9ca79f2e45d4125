"""From what a user writes after --model to a model in memory."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from ..engine.model import Model, ignore
from ..errors import ModelError, UsageError
from ..files import bundled_models, check_writable
from ..networks.first_stage import FirstStage
from .convert import read_foreign
from .first_stage import load_first_stage as read_first_stage
from .hub import Announce, fetch, is_hub_id
from .native import is_native, read_model
from .source import open_source


def model_folder(name: str, announce: Announce = ignore) -> Path:
    """Find the folder of a bundled name, a folder, or a Hub id with an optional `@revision`.

    Raises ModelError where there is no such model; `announce` is told of large downloads.
    """
    if os.path.isdir(name):  # noqa: PTH112, Path.is_dir raises on names that are too long
        return Path(name)
    bundled = bundled_models()
    if name in bundled:
        return bundled[name]
    if is_hub_id(name):
        return fetch(name, announce)[0]
    near = difflib.get_close_matches(name, bundled, n=1)
    known = f"bundled: {', '.join(sorted(bundled)) or 'none'}"
    hint = f"did you mean {near[0]}?" if near else known
    raise ModelError(f"no model {name!r}: neither a folder nor bundled; {hint}")


def writable_folder(name: str) -> Path:
    """Find the folder of a model that may be changed. Raises UsageError for a bundled one or a Hub
    id, InputError or StorageError where it can't be written."""
    if Path(name).is_dir():
        check_writable(Path(name))
        return Path(name)
    if is_hub_id(name) and name not in bundled_models():  # which needn't be fetched to say no
        get = f"hf download {name.partition('@')[0]} --local-dir mine"
        raise UsageError(f"{name} is on the Hub, not yours to change; copy it first: {get}")
    folder = model_folder(name)
    raise UsageError(f"{name} is not yours to change; copy it first: cp -r {folder} mine")


def load(
    name: str,
    device: str = "auto",
    dtype: str = "float32",
    announce: Announce = ignore,
    compile: bool = False,
) -> Model:
    """Load a model: a bundled name, a folder, or a Hub id with an optional `@revision`.

    Raises ModelError where there is no such model or it can't be read, UsageError for a device or
    dtype that can't be used, or where networks can't be compiled.
    """
    folder = model_folder(name, announce)
    shown = folder.resolve().name if Path(name).is_dir() else name
    return read_model(folder, shown).to(device, dtype, compile)


def load_dpm(name: str, announce: Announce = ignore) -> Model:
    """Load a model, ours or converted in memory, on the CPU. Raises ModelError."""
    if name in bundled_models() or is_native(Path(name)):
        return load(name, "cpu")
    source = open_source(name, announce=announce)
    if is_native(source.path):
        return read_model(source.path, name)
    made = read_foreign(source)
    for note in made.notes:
        announce(note)
    return made.model


def load_first_stage(name: str, announce: Announce = ignore) -> FirstStage:
    """Load diffusers' AutoencoderKL or VQModel, alone or a pipeline's. Raises ModelError."""
    return read_first_stage(open_source(name, announce=announce))
