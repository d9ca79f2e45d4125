"""From what a user writes after --model to a model in memory."""

from __future__ import annotations

from pathlib import Path

from ..engine import Model
from ..errors import ModelError
from .native import CONFIG, FILES, read_model


def bundled_folders() -> list[Path]:
    """Where bundled models lie: in an installed wheel, or beside the package in a checkout."""
    package = Path(__file__).parents[1]
    return [folder for folder in (package / "weights", package.parent / "weights") if folder.is_dir()]


def bundled_models() -> dict[str, Path]:
    """Name → folder of each model that comes with the package."""
    found = {}
    for weights in bundled_folders():
        for config in sorted(weights.glob(f"*/{CONFIG}")):
            found.setdefault(config.parent.name, config.parent)
    return found


def load(name: str, device: str = "auto", dtype: str = "float32") -> Model:
    """Load a model: a bundled name, a folder, or a Hub id with an optional `@revision`.

    Raises ModelError where there is no such model or it can't be read, UsageError for a device or
    dtype that can't be used.
    """
    folder = Path(name)
    bundled = bundled_models()
    if name in bundled:
        folder = bundled[name]
    elif not folder.is_dir():
        folder = download(name, bundled)
    return read_model(folder, name=folder.resolve().name if folder == Path(name) else name).to(
        device, dtype
    )


def download(name: str, bundled: dict[str, Path]) -> Path:
    """Fetch a model from the Hub (or its cache; HF_HOME and HF_HUB_OFFLINE are respected)."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, HfHubHTTPError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")
    known = f"bundled: {', '.join(sorted(bundled)) or 'none'}"
    if repository.count("/") != 1 or repository.startswith((".", "/", "~")):
        raise ModelError(f"no model {name!r}: not a folder, not bundled ({known})")
    try:
        files = list(FILES)
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=files))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"no model {name!r}: not a folder, not bundled ({known}), "
            f"and the Hub didn't give it: {reason}"
        ) from error
