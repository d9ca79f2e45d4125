"""The model as a whole: pictures to codes, codes to pictures, and everything in between. Pictures
are float32 (N, C, H, W) in [-1, 1] on the CPU; Pillow pictures and paths come in too. What is
made of codes is about [-1, 1], not clamped; `to_pixels` clamps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from accelerate import PartialState
from torch import Generator, Tensor, nn

from ..diffusion import parity, solvers
from ..diffusion.noise import generator, normal
from ..diffusion.schedule import Schedule
from ..diffusion.trajectory import (
    Inverted,
    Sampling,
    Trajectory,
    check_finite,
    settings,
    solve_latent,
    to_decode,
)
from ..errors import InputError, ModelError, UsageError, check_known
from ..networks.classifier import ClassEmbedding
from ..networks.first_stage import FirstStage
from ..networks.gradient import GradientEstimator
from ..networks.heads import Heads
from ..networks.latent import LatentDPM
from ..networks.unet import UNet
from ..pictures.images import Images, as_tensor, check_pictures, in_range, picture_sha, to_pixels
from . import arguments
from .attributes import Attributes, Scale
from .codes import Z_ALONE, Codes, between, stack
from .computing import PRECISIONS, Batching, Say, check_compiler, computing, ignore
from .config import ModelConfig
from .tensors import networks_sha


@dataclass
class Model(Batching):
    """A diffusion model and what PDAE adds to it. Parts that a model lacks are None."""

    config: ModelConfig
    dpm: UNet  # eps_theta
    gradient_estimator: GradientEstimator | None = None  # G_psi
    encoder: nn.Module | None = None  # E_phi: (N, C, H, W) in [-1, 1] → z (N, D)
    labels: ClassEmbedding | None = None  # y → z, where G_psi takes labels
    first_stage: FirstStage | None = None  # pictures → latents, which eps_theta may be of
    attributes: Attributes | None = None
    latent_dpm: LatentDPM | None = None
    name: str = "unnamed"
    weights_sha: str = ""  # SHA-256 of the weights' file
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: str = "float32"
    batch_size: int = 64
    notify: Say = ignore  # told what a caller may want to say
    evaluated: Callable[[int], None] = ignore  # told the rows of each network evaluation

    def __post_init__(self) -> None:
        self.schedule = Schedule(**asdict(self.config.schedule))
        for network in self.networks():
            network.requires_grad_(False).eval()
        parts = self.dpm, self.gradient_estimator, self.schedule.alpha_bar
        self.heads = Heads(*parts, self.config.prediction)

    def networks(self) -> list[nn.Module]:
        """The networks that this model has."""
        coders = (self.encoder, self.labels, self.latent_dpm, self.first_stage)
        return [p for p in (self.dpm, self.gradient_estimator, *coders) if p is not None]

    def to(self, device: str = "auto", dtype: str = "float32", compile: bool = False) -> Model:
        """Place the networks on a device (`auto`: accelerate's choice), choose the precision that
        they compute in, and whether torch compiles them; a trajectory's state stays float32."""
        check_known("dtype", dtype, PRECISIONS, UsageError)
        try:
            there = PartialState().device if device == "auto" else torch.device(device)
            if there.type == "cpu" and dtype == "float16":
                raise UsageError("float16 is too slow on a CPU; take float32 or bfloat16")
            for network in self.networks():
                network.to(there)
            self.heads.alpha_bar = self.schedule.to(there).alpha_bar
        except (RuntimeError, AssertionError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"device {device!r} can't be used: {reason}; try cpu") from error
        self.device, self.dtype = there, dtype
        if compile:
            check_compiler(self.device)
            self.heads.compile()
        return self

    @property
    def takes_z(self) -> bool:
        """Whether eps_theta itself takes z, as a Diff-AE's does; G_psi is then None."""
        return self.config.unet.z_channels > 0

    def predict(self, x_t: Tensor, t: Tensor, z: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Evaluate eps_theta(x_t, t) and G_psi(x_t, z, t) in one pass: both float32, (N, C, H, W)
        as x_t, for t (N,) of 0 … T-1 and z (N, D); without z the gradient is None. Raises
        UsageError for others."""
        arguments.check_states(x_t, t, z, self.config.state_shape[0])
        arguments.check_timesteps(t.tolist(), self.schedule.timesteps)
        zs = self._taken([] if z is None else [z])
        with computing(self.device, self.dtype):
            x = x_t.to(self.device, torch.float32)
            eps, gradients = self.heads(x, t.to(self.device, torch.long), *zs)
        return eps, gradients[0] if gradients else None

    def guided(
        self,
        sampling: Sampling,
        *zs: Tensor,
        shares: Sequence[Tensor | float] = (1.0,),
        differentiable: bool = False,
    ) -> solvers.Predict:
        """eps^ = eps_theta - sqrt(1 - alpha_bar_t) w G_psi (PDAE eq. 9, DDIM form), with G_psi the
        sum of shares of G_psi(x_t, z, t) for each z; without z, eps_theta alone. It is
        `differentiable` in x_t where wanted."""
        if self.takes_z and not sampling.guides_plainly:
            raise UsageError(f"{self.name} has no G_psi to guide with; leave guidance options out")
        wanted = self._taken(zs if self.takes_z or sampling.guidance != 0 else [])
        with computing(self.device, self.dtype):
            prepared = self.heads.prepare(self.trajectory(sampling).timesteps(), wanted)

        def predict(x: Tensor, t: int) -> Tensor:
            with computing(self.device, self.dtype, differentiable):
                eps, gradients = self.heads.at(x, t, prepared, guided=sampling.guides(t))
                self.evaluated(len(x))
                if not gradients:
                    return eps
                parts = [share * one for share, one in zip(shares, gradients, strict=True)]
                gradient = sum(parts[1:], parts[0])
                return self.schedule.level(t).guided(eps, gradient, sampling.guidance)

        return predict

    def _taken(self, zs: Sequence[Tensor]) -> list[Tensor]:
        """The zs on this model's device. Raises ModelError where it can't take so many."""
        if self.takes_z and len(zs) != 1:
            what = f"eps_theta of {self.name} takes z itself, as a Diff-AE's does"
            raise ModelError(f"{what}: it makes no unconditional samples, has no trajectory mode")
        if zs and not self.takes_z:
            self._needs(self.gradient_estimator, "a gradient estimator")
        for z in zs:
            arguments.check_z(z, self.config.z_dim)
        return [z.to(self.device, torch.float32) for z in zs]

    def _needs(self, part: Any, what: str) -> Any:
        if part is None:
            known = [] if self.labels is None else self.labels.cfg.classes.names[:12]
            of_labels = f"G_psi takes labels, not z: sample with --label ({', '.join(known)})"
            todo = of_labels if known else "`pdae train` makes one"
            raise ModelError(f"model {self.name} lacks {what}; {todo}")
        return part

    def encode_z(self, x_0: Tensor) -> Tensor:
        """z = E_phi(x_0): (N, C, H, W) in [-1, 1] → (N, D) float32 on the model's device. Raises
        InputError for pictures of another shape."""
        check_pictures(x_0, self.config.image_size, self.config.channels)
        with computing(self.device, self.dtype):
            z: Tensor = self._needs(self.encoder, "an encoder")(x_0.to(self.device).float())
            return z.float()

    def z_of(self, images: Images) -> Tensor:
        """Encode any number of pictures to z (N, D) on the CPU. Raises InputError for pictures out
        of range, and where numbers aren't finite."""
        return self.encode(images, noise=False).z

    @cached_property
    def first_stage_sha(self) -> str:
        """Compute what the first stage, and so its latents, are known again by; "" without one."""
        return "" if self.first_stage is None else networks_sha(self.first_stage)

    def latents(self, x_0: Tensor) -> Tensor:
        """What eps_theta is of: the pictures x_0 (N, C, H, W) themselves, or their latents."""
        with computing(self.device, "float32"):
            return x_0 if self.first_stage is None else self.first_stage.encode(x_0)

    def from_latents(self, latents: Tensor) -> Tensor:
        """The way back from `latents`."""
        with computing(self.device, "float32"):
            return latents if self.first_stage is None else self.first_stage.decode(latents)

    def pictures(self, images: Images, fit: str = "crop") -> Tensor:
        """Bring tensors, Pillow pictures or paths into this model's frame: (N, C, H, W) float32."""
        return as_tensor(images, self.config.image_size, self.config.channels, fit)

    def encode(
        self,
        images: Images,
        sampling: Sampling | None = None,
        *,
        noise: bool = True,
        **changes: Any,
    ) -> Codes:
        """Infer the codes of pictures: z = E_phi(x_0) and, with `noise`, x_T by the inverse ODE.
        `changes` are fields of Sampling, e.g. inference_steps=20."""
        sampling = settings(sampling, changes)
        x_0, trajectory = in_range(self.pictures(images)), self.trajectory(sampling)
        of_model, made = (self.name, self.weights_sha, sampling.record()), list[Codes]()
        for rows in self.parts(len(x_0)):
            with self.within(rows):
                x = x_0[rows].to(self.device)
                z = self.encode_z(x)
                check_finite(z=z)
                found = trajectory.to_noise(self.guided(sampling, z), x) if noise else Inverted()
                sources = tuple(map(str, range(len(x_0))[rows]))
                shas = tuple(picture_sha(pixels) for pixels in to_pixels(x_0[rows]))
                converged = () if found.converged is None else tuple(found.converged.tolist())
                of_rows = sources, shas, *of_model, converged, self.dtype
                made.append(Codes(z, found.x_T, found.residual_T, *of_rows))
        return stack(made)

    def decode(
        self,
        codes: Codes,
        sampling: Sampling | None = None,
        *,
        generators: Sequence[Generator] | None = None,
        random_noise: bool = False,
        **changes: Any,
    ) -> Tensor:
        """Decode codes to pictures (N, C, H, W) as they were encoded, or with `random_noise` from
        x_T ~ N(0, I). `generators`: one a picture, for that and for stochastic solvers (default:
        seed 0 and its SHA). Raises InputError for codes of another model or without x_T."""
        self.check(codes)
        sampling = to_decode(codes.sampling, changes, sampling)
        generators = generators or [generator(0, name) for name in codes.names()]
        arguments.check_rows(len(codes), generators)
        if random_noise:
            return self.to_pictures(self.noise(generators), [codes.z], generators, sampling)
        if codes.x_T is None:
            raise InputError(f"{Z_ALONE}; decode with --random-noise, or encode with x_T")
        residual_T = codes.residual_of(sampling)
        return self.to_pictures(codes.x_T, [codes.z], generators, sampling, residual_T=residual_T)

    def to_pictures(
        self,
        x_T: Tensor,
        zs: Sequence[Tensor],
        generators: Sequence[Generator],
        sampling: Sampling,
        *,
        shares: Sequence[Tensor] | None = None,
        residual_T: Tensor | None = None,
    ) -> Tensor:
        """Solve from x_T (N, C, H, W), and residual_T, to pictures, guided by `shares` (N, 1, 1, 1)
        of each z (N, D) of zs. The generators, one a row, are for a stochastic solver's noise."""
        trajectory = self.trajectory(sampling)

        def make(rows: slice) -> Tensor:
            some = [share[rows].to(self.device) for share in shares] if shares else (1.0,)
            predict = self.guided(sampling, *(z[rows] for z in zs), shares=some)
            residual = None if residual_T is None else residual_T[rows].to(self.device)
            x = x_T[rows].to(self.device, torch.float32)
            return trajectory.to_picture(predict, x, generators[rows], residual)

        return self.by_rows(len(x_T), make)

    def check(self, codes: Codes) -> None:
        """Raise InputError unless this model can decode the codes, UsageError for what are none."""
        arguments.check_codes(codes)
        arguments.check_fit(codes, self.config, self.name, self.weights_sha)

    def noise(self, generators: Sequence[Generator]) -> Tensor:
        """x_T ~ N(0, I), one row a generator."""
        return normal(generators, self.config.state_shape)

    def trajectory(self, sampling: Sampling) -> Trajectory:
        """The way between noise and picture that the settings mean for this model."""
        config, ways = self.config, (self.latents, self.from_latents) if self.first_stage else ()
        theirs = config.variance, config.clip_sample, config.scheduler, config.prediction
        return Trajectory(self.schedule, sampling, *theirs, *ways)

    def interpolate(
        self,
        codes: Codes,
        count: int | Sequence[float],
        sampling: Sampling | None = None,
        *,
        mode: str = "latent",
        seed: int = 0,
        **changes: Any,
    ) -> Tensor:
        """Make `count` pictures from the first of two codes to the second, or those at the given
        shares of the way, 0 … 1; the ends as `decode` does. `latent`: decode(Slerp(x_T), Lerp(z));
        `trajectory`: each step lerps the two gradients G_psi(x_t, z, t) (PDAE sec. 4.4). `seed`: of
        stochastic solvers."""
        self.check(codes)
        if len(codes) != 2:
            raise InputError(f"interpolation takes codes of two pictures, not of {len(codes)}")
        if codes.x_T is None:
            raise InputError(f"{Z_ALONE}; encode the two with x_T to go from one to the other")
        check_known("mode", mode, ("latent", "trajectory"), UsageError)
        sampling = to_decode(codes.sampling, changes, sampling)
        way = arguments.shares_of(count)
        found: dict[float, Tensor] = {}
        if {0.0, 1.0} & set(way):
            own = [generator(seed, name) for name in codes.names()]
            found |= zip((0.0, 1.0), self.decode(codes, sampling, generators=own), strict=True)
        if within := [share for share in way if 0 < share < 1]:
            middle, share = between(codes, within), torch.tensor(within)[:, None, None, None]
            zs, shares = [middle.z], None
            if mode == "trajectory":
                zs, shares = [z.expand(len(within), -1) for z in codes.z], [1 - share, share]
            own = [generator(seed, *codes.names(), name) for name in middle.sources]
            x_T, residual_T = middle.tensors()["x_T"], middle.residual_of(sampling)
            made = self.to_pictures(x_T, zs, own, sampling, shares=shares, residual_T=residual_T)
            found |= zip(within, made, strict=True)
        return torch.stack([found[share] for share in way])

    def normalise(self, z: Tensor) -> Tensor:
        """Bring z to zero mean and unit variance over the training set, per dimension."""
        mean, std = self._statistics(z)
        return (z - mean) / std

    def denormalise(self, z: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        mean, std = self._statistics(z)
        return z * std + mean

    def _statistics(self, z: Tensor) -> list[Tensor]:
        """Mean and standard deviation of z (…, D) by dimension. Raises UsageError for another D."""
        known = self._needs(self.config.normalisation, "statistics of z")
        arguments.check_z(z, len(known.mean))
        return [torch.tensor(one, device=z.device) for one in (known.mean, known.std)]

    def scores(self, codes: Codes) -> Tensor:
        """Score codes by every attribute of this model: (N, A), logits, or numbers of numbers.
        Raises InputError for codes of another model."""
        self.check(codes)
        attributes: Attributes = self._needs(self.attributes, "attributes")
        return attributes.scores(self.normalise(codes.z))

    def manipulate(
        self, codes: Codes, changes: Sequence[tuple[str, Scale | float]], keep: Sequence[str] = ()
    ) -> Codes:
        """Move z along attributes: pairs of name and scale (PDAE sec. 4.5), but not along what
        would change the scores of those in `keep`. x_T stays the picture's own."""
        self.check(codes)
        attributes: Attributes = self._needs(self.attributes, "attributes")
        z = self.normalise(codes.z)
        theirs = codes.sampling.get("parity") in parity.OF_PICTURES
        for name, scale in arguments.pairs_of(changes, keep):
            z = attributes.move(z, name, scale, parity.ATTRIBUTE_LENGTH if theirs else None, keep)
        return replace(codes, z=self.denormalise(z))

    def sample(
        self,
        count: int | Sequence[int],
        sampling: Sampling | None = None,
        *,
        seed: int = 0,
        unconditional: bool = False,
        **changes: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Make new pictures (count, C, H, W), or those of the given numbers, and their z (None when
        `unconditional`): z from the latent DPM, x_T from N(0, I). Picture i depends on (seed, i).
        G_psi guides the first 70 % of the way unless guide_until says otherwise (PDAE sec. 4.8)."""
        sampling = settings(sampling, changes)
        generators = [generator(seed, "sample", one) for one in arguments.numbers_of(count)]
        zs = [] if unconditional else [self.sample_z(generators, sampling)]
        sampling = sampling if unconditional else self.guided_in_part(sampling)
        made = self.to_pictures(self.noise(generators), zs, generators, sampling)
        return made, zs[0] if zs else None

    def guided_in_part(self, sampling: Sampling) -> Sampling:
        """Guide the first 70 % of the way alone (sec. 4.8), unless told where guidance ends, or to
        begin after that."""
        if sampling.guide_until is not None or self.takes_z:
            return sampling
        until = self.trajectory(sampling).unguided_below()
        later = sampling.guide_from is not None and sampling.guide_from < until
        return sampling if later else replace(sampling, guide_until=until)

    def sample_z(self, generators: Sequence[Generator], sampling: Sampling | None = None) -> Tensor:
        """Draw z (N, D) from the latent DPM, one row a generator."""
        z_dim = self._needs(self.latent_dpm, "a latent DPM").cfg.z_dim
        return self.solve_z(normal(generators, (z_dim,)), sampling or Sampling())

    def solve_z(self, z_T: Tensor, sampling: Sampling) -> Tensor:
        """z (N, D) that the latent DPM makes of noise z_T (N, D)."""
        network: LatentDPM = self._needs(self.latent_dpm, "a latent DPM")

        def predict(z: Tensor, t: int) -> Tensor:
            with computing(self.device, self.dtype):
                return network(z, torch.full((len(z),), t, device=z.device)).float()

        return self.denormalise(solve_latent(predict, z_T.to(self.device), sampling).cpu())
