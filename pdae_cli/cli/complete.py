"""What the shell completes, without importing torch: models here, attributes of a model."""

from __future__ import annotations

import json
import os
from pathlib import Path

import typer

from ..files import bundled_models


def models(incomplete: str) -> list[str]:
    """Bundled models, and folders here that are models."""
    here = [str(path.parent) for path in Path().glob("*/config.json")]
    return [name for name in [*bundled_models(), *here] if name.startswith(incomplete)]


def attributes(context: typer.Context, incomplete: str) -> list[str]:
    """Attributes of the model on the command line, or of the default one."""
    name = context.params.get("model") or os.environ.get("PDAE_MODEL") or "faces64"
    found = attributes_in(bundled_models().get(name, Path(name)))
    return [one for one in found if one.lower().startswith(incomplete.lower())]


def attributes_in(folder: Path) -> list[str]:
    """Names of a model's attributes, from the header of their file alone; none without one."""
    try:
        with (folder / "attributes.safetensors").open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            facts = json.loads(file.read(size) if size < 1 << 20 else b"{}")
        return [str(one) for one in json.loads(facts["__metadata__"]["pdae"])["names"]]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return []
