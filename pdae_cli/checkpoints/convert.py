"""From a foreign checkpoint to our model: which family it is, and what became of each tensor."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ..engine.config import to_json
from ..engine.model import Model
from ..errors import ModelError, UsageError
from ..files import write_bytes
from . import diffae, diffusers, guided, pdae
from .foreign import Found
from .hub import Announce, fetch, is_hub_id, silent
from .native import (
    ATTRIBUTES,
    LATENT_DPM,
    is_native,
    write_attributes,
    write_latent_dpm,
    write_model,
)
from .source import Source

FAMILIES: dict[str, ModuleType] = {
    reader.NAME: reader for reader in (diffusers, pdae, diffae, guided)
}


@dataclass(frozen=True)
class Row:
    """What became of one source of tensors."""

    what: str
    used: int
    ignored: str


@dataclass(frozen=True)
class Conversion:
    """A converted model and the account of it."""

    model: Model
    family: str
    rows: list[Row]
    checked: str  # how the numbers were checked
    notes: list[str]


def open_source(name: str, config: Path | None = None, announce: Announce = silent) -> Source:
    """A file, a folder, or a Hub id with an optional `@revision`. Raises ModelError."""
    if Path(name).exists():
        return Source(Path(name), config)
    if is_hub_id(name):
        folder, licence = fetch(name, announce)
        return Source(folder, config, licence)
    raise ModelError(f"{name}: no such file or folder, and not a Hub id (owner/name)")


def family_of(source: Source) -> str:
    """The family that recognises the source. Raises ModelError if none does."""
    for name, reader in FAMILIES.items():
        if reader.recognises(source):
            return name
    if is_native(source.path):
        raise ModelError(f"{source.path} is a model of pdae already: use it as --model")
    raise ModelError(
        f"{source.path} is of no known family ({', '.join(FAMILIES)}); looked for "
        "model_index.json, config.yml, last.ckpt, model_flags.json and tensors' names; "
        "--from names the family"
    )


def read_foreign(source: Source, family: str | None = None) -> Conversion:
    """Convert in memory. Raises ModelError for what can't be converted whole."""
    if family is not None and family not in FAMILIES:
        raise UsageError(f"unknown family {family!r}; known: {', '.join(FAMILIES)}")
    family = family or family_of(source)
    try:
        found: Found = FAMILIES[family].read(source)
        model = found.model(source.folder.name if source.path.is_file() else source.path.name)
    except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"{source.path}: its config describes no network: {reason}") from error
    return Conversion(model, family, _account(found), _checked(found, model), found.notes)


def _account(found: Found) -> list[Row]:
    rows = []
    for tensors in found.sources():
        latent = found.latent is not None and tensors is found.latent[1].source
        parts = ["latent_dpm"] if latent else []
        parts += [part.name for part in found.parts if part.source is tensors]
        used = len(tensors.tensors) - sum(tensors.left_out.values())
        rows.append(Row(f"{tensors.where} → {', '.join(parts)}", used, ""))
        for why, count in tensors.left_out.items():
            rows.append(Row(f"{tensors.where}, {why}", 0, f"{count} tensors"))
    return rows + [Row(why, 0, f"{count} tensors") for why, count in found.ignored.items()]


def _checked(found: Found, model: Model) -> str:
    """Compare with the source's own program where that can be imported."""
    if found.family != diffusers.NAME:
        return "every tensor used once, every weight filled, shapes and finiteness"
    try:
        from diffusers import UNet2DModel
    except ImportError:
        return "every tensor used once, every weight filled (install diffusers to compare numbers)"
    return _compared(UNet2DModel, found, model)


def _compared(program: Any, found: Found, model: Model) -> str:
    """The largest difference between diffusers' network and ours, on random input.

    Raises ModelError if it is more than rounding.
    """
    config = {k: v for k, v in found.settings.items() if not k.startswith("_")}
    theirs = program.from_config(config).eval()
    theirs.load_state_dict({k: v.float() for k, v in found.parts[0].source.tensors.items()})
    unet = model.config.unet
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, unet.channels, unet.image_size, unet.image_size, generator=generator)
    t = torch.tensor([1, model.schedule.timesteps * 3 // 4])
    with torch.no_grad():
        expected, ours = theirs(x, t).sample, model.dpm(x, t)
    difference = (ours - expected).abs().max().item() / expected.abs().max().clamp(min=1e-6).item()
    if not difference < 1e-3:
        raise ModelError(
            f"{found.config.source}: the converted network differs from diffusers' by "
            f"{difference:.1e} of its output; please report this model"
        )
    return f"same output as diffusers' UNet2DModel to {difference:.1e} of its largest value"


def write_converted(conversion: Conversion, folder: Path, dtype: torch.dtype) -> None:
    """Write the model's folder: config, weights, attributes, latent DPM and a model card.

    Of a model that was there before, nothing stays.
    """
    model = conversion.model
    for optional in (ATTRIBUTES, LATENT_DPM):
        (folder / optional).unlink(missing_ok=True)
    write_model(folder, model, dtype)
    if model.attributes is not None:
        write_attributes(folder, model.attributes)
    if model.latent_dpm is not None:
        write_latent_dpm(folder, model.latent_dpm, {"converted": conversion.family}, dtype)
    write_bytes(folder / "README.md", _card(conversion, folder.name).encode())


def _card(conversion: Conversion, name: str) -> str:
    config = conversion.model.config
    shape = json.dumps(to_json(config)["unet"])
    notes = "\n".join(f"- {note}" for note in conversion.notes)
    return f"""---
library_name: pdae
license: other
license_name: see-below
---

# {name}

Converted by `pdae convert` from a checkpoint of {conversion.family} ({config.source}).

- Licence of the source: {config.licence}. Conversion changes nothing about it.
- Checked: {conversion.checked}.
- Network: `{shape}`
{notes}
"""
