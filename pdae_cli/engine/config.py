"""What a model is: the content of config.json, as checked dataclasses."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Any

from ..diffusion.solvers import VARIANCES
from ..networks.blocks import UNetConfig
from ..networks.classes import EmbeddingConfig
from ..networks.encoder import EncoderConfig
from ..networks.first_stage import FirstStageConfig
from ..networks.half_unet import HalfUNetConfig
from .tensors import shown

FORMAT = "pdae-model-1"
MAX_TIMESTEPS = 100_000  # a config mustn't make us allocate what it likes


@dataclass(frozen=True)
class ScheduleConfig:
    betas: str = "linear"
    timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02

    def __post_init__(self) -> None:
        if not 1 <= self.timesteps <= MAX_TIMESTEPS:
            raise ValueError(f"{self.timesteps} timesteps; 1 to {MAX_TIMESTEPS} can be")
        if not (0 < self.beta_start < 1 and 0 < self.beta_end < 1):
            raise ValueError(
                f"betas from {self.beta_start} to {self.beta_end}, not between 0 and 1"
            )


@dataclass(frozen=True)
class Normalisation:
    """Per-dimension mean and standard deviation of the training set's z."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise ValueError(f"{len(self.mean)} means of z and {len(self.std)} deviations")
        if not all(map(math.isfinite, self.mean)) or not all(0 < s < math.inf for s in self.std):
            raise ValueError("means of z must be finite, and its deviations positive")


@dataclass(frozen=True)
class ModelConfig:
    schedule: ScheduleConfig
    unet: UNetConfig
    prediction: str = "eps"  # what the networks' outputs mean: see heads.PREDICTIONS
    encoder: EncoderConfig | HalfUNetConfig | None = None  # None: a diffusion model alone
    normalisation: Normalisation | None = None
    training: tuple[dict[str, Any], ...] = ()  # one summary a stage, in order
    licence: str = "unknown"
    variance: str = "small"  # of ancestral sampling: see solvers.VARIANCES
    clip_sample: bool = False  # whether the source's own sampler clamps its prediction of x_0
    source: str = ""  # what a converted model was before
    labels: EmbeddingConfig | None = None  # of a G_psi that takes labels in z's place
    first_stage: FirstStageConfig | None = None  # of a latent diffusion model
    format: str = field(default=FORMAT)

    def __post_init__(self) -> None:
        if self.variance not in VARIANCES:
            raise ValueError(f"unknown variance {self.variance!r}")
        if self.encoder is not None and self.normalisation is not None:
            given, needed = len(self.normalisation.mean), self.encoder.z_dim
            if given != needed:
                raise ValueError(f"statistics of {given} dimensions of z, which has {needed}")
        if self.labels is not None and (self.encoder is not None or self.unet.z_channels):
            raise ValueError("G_psi takes labels or the encoder's z, not both")
        if self.first_stage is not None:
            made, taken = self.first_stage.latent_channels, self.unet.channels
            if made != taken:
                raise ValueError(f"latents of {made} channels for an eps_theta of {taken}")
            encoder = self.encoder
            seen = encoder and (encoder.image_size, encoder.channels)
            if seen and seen != (self.image_size, self.channels):
                raise ValueError(f"an encoder of {seen}, pictures of {self.image_size} pixels")

    @property
    def image_size(self) -> int:
        """Height and width of the pictures, in pixels."""
        return self.unet.image_size * (self.first_stage.factor if self.first_stage else 1)

    @property
    def channels(self) -> int:
        """Channels of the pictures: 3 for RGB."""
        return self.first_stage.channels if self.first_stage else self.unet.channels

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of x_T: that of the pictures, or of their latents."""
        return self.unet.channels, self.unet.image_size, self.unet.image_size

    @property
    def z_dim(self) -> int | None:
        """Dimensions of z, or of what labels become in its place; None without G_psi."""
        source = self.labels or self.encoder
        return None if source is None else source.z_dim


def to_json(config: ModelConfig) -> dict[str, Any]:
    """Plain dictionaries, lists and numbers."""
    return dataclasses.asdict(config)


def from_json(data: Any) -> ModelConfig:
    """Build a config from parsed JSON. Raises ValueError that names the field that is wrong."""
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else None
        raise ValueError(f"format {found!r}, this version reads {FORMAT}")
    config = build(ModelConfig, data, "config")
    assert isinstance(config, ModelConfig)
    return config


def build(kind: Any, value: Any, where: str) -> Any:
    """`value` as an instance of `kind`: dataclasses, tuples, optionals and scalars.

    Raises ValueError that names `where` it is wrong.
    """
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kinds = [k for k in typing.get_args(kind) if k is not type(None)]
        return None if value is None else build(_chosen(kinds, value), value, where)
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, where)
    if typing.get_origin(kind) is tuple and isinstance(value, list):
        inner = typing.get_args(kind)[0]
        return tuple(build(inner, one, f"{where}[]") for one in value)
    if typing.get_origin(kind) is dict and isinstance(value, dict):
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, type) and type(value) is kind:
        return value
    raise ValueError(f"{where} is {shown(value)}, not a {getattr(kind, '__name__', kind)}")


def _chosen(kinds: list[Any], value: Any) -> Any:
    """Of several dataclasses the one that has the value's fields."""
    for kind in kinds[1:]:
        if isinstance(value, dict) and {f.name for f in dataclasses.fields(kind)} == set(value):
            return kind
    return kinds[0]


def _build_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {shown(value)}, not an object")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    unknown = set(value) - set(fields)
    if unknown:
        raise ValueError(f"{where} has unknown fields: {', '.join(sorted(unknown))[:200]}")
    required = {
        name
        for name, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    if required - set(value):
        raise ValueError(f"{where} lacks {', '.join(sorted(required - set(value)))}")
    return kind(**{name: build(hints[name], value[name], f"{where}.{name}") for name in value})
