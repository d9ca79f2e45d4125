"""What a reader of a foreign family hands over, and how it becomes a model.

A reader is a module with `NAME`, `recognises(source)` and `read(source)`; it knows where
the family keeps things and which of our modules its tensors belong to. Adding a family means
adding one such file, and a line in `convert`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from accelerate import init_empty_weights
from torch import Tensor

from ..engine.attributes import Attributes
from ..engine.config import ModelConfig
from ..engine.model import Model
from ..errors import ModelError
from ..networks.latent import LatentConfig, LatentDPM
from .names import Table
from .native import MAX_CONFIG_BYTES, build_networks
from .transfer import Tensors, transfer

WEIGHT_SUFFIXES = {".pt", ".pth", ".ckpt", ".bin", ".pkl"}


@dataclass
class Part:
    """One of our networks, and where its weights come from."""

    name: str  # of the network in our weights' file
    source: Tensors
    table: Table
    new_attention_order: bool = False  # see transfer.transfer


@dataclass
class Found:
    """All that a source has for us."""

    family: str
    config: ModelConfig
    parts: list[Part]
    latent: tuple[LatentConfig, Part] | None = None
    attributes: Attributes | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)  # the source's own config
    ignored: dict[str, int] = field(default_factory=dict)  # why → how many tensors
    notes: list[str] = field(default_factory=list)  # what the user should know

    def model(self, name: str) -> Model:
        """The model, float32 on the CPU. Raises ModelError unless every tensor finds its place."""
        with init_empty_weights(include_buffers=True):
            networks = build_networks(self.config)
            latent = LatentDPM(self.latent[0]) if self.latent else None
        for part in self.parts:
            transfer(networks[part.name], part.table, part.source, part.new_attention_order)
        if latent is not None and self.latent is not None:
            transfer(latent, self.latent[1].table, self.latent[1].source)
        for source in self.sources():
            source.check_all_used()
        ours: Any = dict(networks.named_children())
        return Model(
            config=self.config,
            dpm=ours["dpm"],
            gradient_estimator=ours.get("gradient"),
            encoder_network=ours.get("encoder"),
            first_stage=ours.get("first_stage"),
            attributes=self.attributes,
            latent_dpm=latent,
            name=name,
        )

    def sources(self) -> list[Tensors]:
        """Each source of tensors once."""
        parts = [*self.parts, *([self.latent[1]] if self.latent else [])]
        return list({id(part.source): part.source for part in parts}.values())


def read_settings(path: Path) -> dict[str, Any]:
    """A JSON file, or a YAML file by `safe_load`, that holds an object. Raises ModelError."""
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ModelError(f"{path}: larger than {MAX_CONFIG_BYTES >> 20} MiB, no config is")
        text = path.read_text()
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing; it says how the networks are built") from error
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"{path} can't be read as a config: {reason}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} is no config: it holds {type(content).__name__}, not an object")
    return content


@dataclass
class Settings:
    """A config's fields, read with checks; what is missing or odd is one clear error."""

    where: str
    values: Mapping[str, Any]

    def get(self, name: str, kind: type | tuple[type, ...], default: Any = ...) -> Any:
        """A field of that type. Raises ModelError if it's missing (without default) or another."""
        value = self.values.get(name, default)
        if value is ...:
            raise ModelError(f"{self.where} lacks {name}")
        wrong = not isinstance(value, kind) or (isinstance(value, bool) and kind is int)
        if wrong and value is not default:
            raise ModelError(f"{self.where}: {name} is {value!r}, which can't be")
        return value

    def below(self, name: str) -> Settings:
        """A nested object."""
        return Settings(f"{self.where}, {name}", self.get(name, dict))

    def numbers(self, name: str) -> tuple[Any, ...]:
        """A list of numbers."""
        values = self.get(name, (list, tuple))
        if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in values):
            raise ModelError(f"{self.where}: {name} is {values!r}, not numbers")
        return tuple(values)

    def refuse(self, name: str, *usual: Any) -> None:
        """Raise ModelError where a field has a value that our networks can't follow."""
        if name in self.values and self.values[name] not in usual:
            raise ModelError(f"{self.where}: {name} {self.values[name]!r} isn't supported")


def impossible(where: str, error: Exception) -> ModelError:
    """A shape that our networks refuse, as an error of the source's config."""
    return ModelError(f"{where}: {error}")


def vector(value: Any, where: str, length: int) -> tuple[float, ...]:
    """A tensor of `length` finite numbers, of shape (length,) or (1, length). Raises ModelError."""
    if not isinstance(value, Tensor) or value.numel() != length or not value.isfinite().all():
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ModelError(f"{where} is {shape}, not {length} finite numbers")
    return tuple(value.double().flatten().tolist())
