"""From what a user writes after --model to a model in memory."""

from __future__ import annotations

import difflib
from pathlib import Path

from ..engine import Model
from ..errors import ModelError, UsageError
from .native import CONFIG, FILES, read_model


def bundled_folders() -> list[Path]:
    """Where bundled models lie: in an installed wheel, or beside the package in a checkout."""
    package = Path(__file__).parents[1]
    return [
        folder for folder in (package / "weights", package.parent / "weights") if folder.is_dir()
    ]


def bundled_models() -> dict[str, Path]:
    """Name → folder of each model that comes with the package."""
    found: dict[str, Path] = {}
    for weights in bundled_folders():
        for config in sorted(weights.glob(f"*/{CONFIG}")):
            found.setdefault(config.parent.name, config.parent)
    return found


def model_folder(name: str) -> Path:
    """The folder of a model: a bundled name, a folder, or a Hub id with an optional `@revision`.

    Raises ModelError where there is no such model.
    """
    if Path(name).is_dir():
        return Path(name)
    bundled = bundled_models()
    return bundled[name] if name in bundled else download(name, bundled)


def writable_folder(name: str) -> Path:
    """The folder of a model that may be changed: one that the user named as a folder.

    Raises UsageError for a bundled model or a Hub id.
    """
    if Path(name).is_dir():
        return Path(name)
    folder = model_folder(name)
    raise UsageError(f"{name} is not yours to change; copy it first: cp -r {folder} mine")


def load(name: str, device: str = "auto", dtype: str = "float32") -> Model:
    """Load a model: a bundled name, a folder, or a Hub id with an optional `@revision`.

    Raises ModelError where there is no such model or it can't be read, UsageError for a device or
    dtype that can't be used.
    """
    folder = model_folder(name)
    shown = folder.resolve().name if Path(name).is_dir() else name
    return read_model(folder, shown).to(device, dtype)


def download(name: str, bundled: dict[str, Path]) -> Path:
    """Fetch a model from the Hub (or its cache; HF_HOME and HF_HUB_OFFLINE are respected)."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")
    known = f"bundled: {', '.join(sorted(bundled)) or 'none'}"
    if repository.count("/") != 1 or repository.startswith((".", "/", "~")):
        near = difflib.get_close_matches(name, bundled, n=1)
        hint = f"did you mean {near[0]}?" if near else known
        raise ModelError(f"no model {name!r}: neither a folder nor bundled; {hint}")
    try:
        files = list(FILES)
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=files))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"no model {name!r}: not a folder, not bundled ({known}), "
            f"and the Hub didn't give it: {reason}"
        ) from error
