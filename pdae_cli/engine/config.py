"""What a model is: the content of config.json, as checked dataclasses."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from dataclasses import dataclass, field
from typing import Annotated, Any

from ..diffusion.parity import DDIM, SchedulerConfig
from ..diffusion.solvers import VARIANCES
from ..errors import Range, check_known, check_ranges
from ..networks.classifier import EmbeddingConfig
from ..networks.encoder import EncoderConfig
from ..networks.first_stage import FirstStageConfig
from ..networks.half_unet import HalfUNetConfig
from ..networks.unet import UNetConfig
from .tensors import shown

FORMAT = "pdae-model-1"
UNCOMPUTED = ("training", "licence", "source", "format")  # what no result depends on
MAX_TEXT = 8192  # characters of a name, a licence, a path
Beta = Annotated[float, Range(1e-10, 0.9999)]
Statistic = Annotated[float, Range(-1e30, 1e30)]
Deviation = Annotated[float, Range(1e-30, 1e30)]


@dataclass(frozen=True)
class ScheduleConfig:
    betas: str = "linear"
    timesteps: Annotated[int, Range(2, 100_000)] = 1000
    beta_start: Beta = 1e-4
    beta_end: Beta = 0.02

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class Normalisation:
    """Per-dimension mean and standard deviation of the training set's z."""

    mean: tuple[Statistic, ...]
    std: tuple[Deviation, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise ValueError(f"{len(self.mean)} means of z and {len(self.std)} deviations")
        check_ranges(self)

    @property
    def sha(self) -> str:
        """Compute the first 12 digits of its SHA-256: every training of E_phi makes it another, so
        what is learnt from z is known by it to be of this one."""
        numbers = json.dumps([list(map(float, part)) for part in (self.mean, self.std)])
        return hashlib.sha256(numbers.encode()).hexdigest()[:12]


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
    scheduler: SchedulerConfig = DDIM  # the rest of what it does, under parity
    source: str = ""  # what a converted model was before
    labels: EmbeddingConfig | None = None  # of a G_psi that takes labels in z's place
    first_stage: FirstStageConfig | None = None  # of a latent diffusion model
    format: str = field(default=FORMAT)

    def __post_init__(self) -> None:
        check_known("variance", self.variance, VARIANCES)
        encoder, given = self.encoder, self.normalisation and len(self.normalisation.mean)
        if encoder and given and given != encoder.z_dim:
            raise ValueError(f"statistics of {given} dimensions of z, which has {encoder.z_dim}")
        if self.labels is not None and (encoder is not None or self.unet.z_channels):
            raise ValueError("G_psi takes labels or the encoder's z, not both")
        if self.first_stage is not None:
            made, taken = self.first_stage.latent_channels, self.unet.channels
            if made != taken:
                raise ValueError(f"latents of {made} channels for an eps_theta of {taken}")
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
    def sha(self) -> str:
        """Compute the first 12 digits of the SHA-256 of all that results depend on: by another
        schedule, prediction or normalisation the same weights mean something else."""
        facts = {name: one for name, one in _said(self).items() if name not in UNCOMPUTED}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def z_sha(self) -> str:
        """Say which z is E_phi's: `Normalisation.sha`, or "" where no training recorded it."""
        return "" if self.normalisation is None else self.normalisation.sha

    @property
    def z_dim(self) -> int | None:
        """Dimensions of z, or of what labels become in its place; None without G_psi."""
        source = self.labels or self.encoder
        return None if source is None else source.z_dim


def _said(value: Any) -> Any:
    """What isn't at its default, of dataclasses within as well: a field that a later version adds
    makes no other model of it."""
    if not dataclasses.is_dataclass(value):
        return value
    said = ((one, vars(value)[one.name]) for one in dataclasses.fields(value))
    return {one.name: _said(now) for one, now in said if now != one.default}


def from_json(data: Any) -> ModelConfig:
    """Build a config from what `asdict` made of it, as parsed JSON. Raises ValueError that names
    the field that is wrong."""
    found = data.get("format") if isinstance(data, dict) else None
    if found != FORMAT:
        raise ValueError(f"format {found!r}, this version reads {FORMAT}")
    config: ModelConfig = build(ModelConfig, data, "config")
    return config


def build(kind: Any, value: Any, where: str) -> Any:
    """Build an instance of `kind` from JSON: dataclasses, tuples, optionals and scalars. Raises
    ValueError that names `where` it is wrong."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        kinds = [one for one in inner if one is not types.NoneType]
        if value is None or len(kinds) == 1:
            return None if value is None else build(kinds[0], value, where)
        names = set(value) if isinstance(value, dict) else set()  # of which dataclass they are
        fitting = [one for one in kinds if {f.name for f in dataclasses.fields(one)} == names]
        return build((fitting or kinds)[0], value, where)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{where} is {shown(value)}, not an object")
        hints, fields = typing.get_type_hints(kind), dataclasses.fields(kind)
        if unknown := value.keys() - hints.keys():
            raise ValueError(f"{where} has unknown fields: {', '.join(sorted(unknown))[:200]}")
        needed = {f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING}
        if lacking := needed - value.keys():
            raise ValueError(f"{where} lacks {', '.join(sorted(lacking))}")
        parts = {name: build(hints[name], one, f"{where}.{name}") for name, one in value.items()}
        return typing.cast(Any, kind)(**parts)
    if origin is tuple and isinstance(value, list):
        return tuple(build(inner[0], one, f"{where}[]") for one in value)
    if origin is dict and isinstance(value, dict):
        return value
    if kind is float and type(value) is int and abs(value) < 1 << 63:
        return float(value)
    if kind is str and type(value) is str and len(value) > MAX_TEXT:
        raise ValueError(f"{where} is longer than {MAX_TEXT} characters")
    if isinstance(kind, type) and type(value) is kind:
        return value
    raise ValueError(f"{where} is {shown(value)}, not a {getattr(kind, '__name__', kind)}")
