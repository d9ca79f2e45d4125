"""From a foreign checkpoint to our model: which family it is, and what became of each tensor."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType

import torch
from accelerate import init_empty_weights

from ..engine.model import Model
from ..errors import ModelError, UsageError, check_known
from ..networks.latent import LatentDPM
from . import compvis, diffae, diffusers, guided, native, pdae
from .card import HUB
from .source import Foreign, Source
from .transfer import transfer

FAMILIES: dict[str, ModuleType] = {
    reader.NAME: reader for reader in (diffusers, pdae, compvis, diffae, guided)
}


@dataclass(frozen=True)
class Entry:
    """What became of one source of tensors."""

    what: str
    used: int
    ignored: str


@dataclass(frozen=True)
class Conversion:
    """A converted model and the account of it."""

    model: Model
    family: str
    rows: list[Entry]
    checked: str  # how the numbers were checked
    notes: list[str]  # what the user should know, without where the source lies


def family_of(source: Source) -> str:
    """Name the family that recognises the source. Raises ModelError if none does."""
    ours = native.is_native(source.path) and (source.path / native.WEIGHTS).exists()
    for name, reader in FAMILIES.items():
        if not ours and reader.recognises(source):
            return name
    if native.is_native(source.path):
        raise ModelError(f"{source.called} is a model of pdae already: use it as --model")
    raise ModelError(
        f"{source.called} is of no known family ({', '.join(FAMILIES)}); looked for "
        "model_index.json, config.yml, model.ckpt, last.ckpt, model_flags.json and tensors' names "
        "(of diffusers name the folder, not its weights); --from names the family"
    )


def read_foreign(source: Source, family: str | None = None) -> Conversion:
    """Convert in memory, float32 on the CPU. Raises ModelError for what can't be converted whole:
    every tensor must find its place, and every weight its tensor."""
    family = family or family_of(source)
    check_known("family", family, FAMILIES, UsageError)
    try:
        found: Foreign = FAMILIES[family].read(source)
        if source.hub:
            found.config = replace(found.config, source=f"{family}: {HUB}{source.hub}")
        if source.licence != "unknown":  # what is stated of these weights, not of their family
            found.config = replace(found.config, licence=source.licence)
        with init_empty_weights(include_buffers=True):
            networks = native.build_networks(found.config)
            if found.latent is not None:
                networks["latent_dpm"] = LatentDPM(found.latent)
        for part in found.parts:
            transfer(networks[part.name], part)
        rows, left = list[Entry](), list[Entry]()
        for tensors in {id(part.source): part.source for part in found.parts}.values():
            tensors.check_all_used()
            names = ", ".join(part.name for part in found.parts if part.source is tensors)
            rows.append(Entry(f"{tensors.where} → {names}", len(tensors.tensors), ""))
            left += [Entry(why, 0, f"{n} tensors") for why, n in tensors.left.items() if n]
        name = source.hub or source.folder_name
        model = native.assembled(found.config, networks, attributes=found.attributes, name=name)
        checked = "every tensor used once, every weight filled, shapes and finiteness"
        if family == diffusers.NAME:
            checked = _compared(found, model)
    except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"{source.called}: its config describes no network: {reason}") from error
    notes = [source.told(note) for note in found.notes]
    return Conversion(model, family, rows + left, checked, notes)


def _compared(found: Foreign, model: Model) -> str:
    """Compare with diffusers' own network, where it is installed, on random input. Raises
    ModelError if they differ by more than rounding."""
    try:
        from diffusers import UNet2DModel
    except ImportError:
        return "every tensor used once, every weight filled (install diffusers to compare numbers)"
    config = {
        k: v for k, v in found.settings.items() if k in diffusers.UNET.known() - {"_class_name"}
    }
    theirs = UNet2DModel.from_config(config).eval()
    theirs.load_state_dict({k: v.float() for k, v in found.parts[0].source.tensors.items()})
    x = torch.randn(2, *model.config.state_shape, generator=torch.Generator().manual_seed(0))
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
    """Write the model's folder, with a card; of a model that was there, nothing stays but what
    people wrote into its card."""
    model, config = conversion.model, conversion.model.config
    lines = [
        "## Conversion\n",
        f"- By `pdae convert` from {conversion.family}; it changes nothing about the licence.",
        f"- Checked: {conversion.checked}.",
        f"- Network: `{json.dumps(asdict(config.unet))}`",
        *(f"- {note}" for note in conversion.notes),
    ]
    told = {"converted": conversion.family}
    native.write_whole(folder, model, dtype, told, conversion="\n".join(lines))
