"""The model as a whole: pictures to codes, codes to pictures, and everything in between.

The engine never prints, never reads argv or the environment. Pictures are float32 tensors in
[-1, 1] of shape (N, C, H, W) on the CPU; where pictures come in, Pillow pictures and paths do too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from accelerate import PartialState
from torch import Generator, Tensor, nn

from ..diffusion import parity, solvers
from ..diffusion.noise import generator, normal
from ..diffusion.sampling import Sampling
from ..diffusion.schedule import Schedule
from ..diffusion.trajectory import Inverted, Trajectory, check_finite, solve_latent
from ..errors import InputError, ModelError, UsageError
from ..networks.classes import ClassEmbedding
from ..networks.encoder import Encoder
from ..networks.first_stage import FirstStage
from ..networks.gradient import GradientEstimator
from ..networks.half_unet import HalfUNet
from ..networks.heads import Heads
from ..networks.latent import LatentDPM
from ..networks.unet import UNet
from ..pictures.images import Pictures, as_tensor, digest, to_pixels
from .attributes import Attributes, Scale
from .codes import Codes, between, stack
from .computing import PRECISIONS, T, check_compiler, computing, in_batches, joined
from .config import ModelConfig


@dataclass
class Model:
    """A diffusion model and what PDAE adds to it. Parts that a model lacks are None."""

    config: ModelConfig
    dpm: UNet  # eps_theta
    gradient_estimator: GradientEstimator | None = None  # G_psi
    encoder_network: Encoder | HalfUNet | None = None  # E_phi
    labels: ClassEmbedding | None = None  # y → z, where G_psi takes labels
    first_stage: FirstStage | None = None  # pictures → latents, which eps_theta may be of
    attributes: Attributes | None = None
    latent_dpm: LatentDPM | None = None
    name: str = "unnamed"
    digest: str = ""  # SHA-256 of the weights' file
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: str = "float32"
    batch_size: int = 64
    notify: Callable[[str], None] = lambda text: None  # told what a caller may want to say
    evaluated: Callable[[int], None] = lambda rows: None  # told of each network evaluation

    def __post_init__(self) -> None:
        self.schedule = Schedule(**asdict(self.config.schedule))
        for network in self.networks():
            network.requires_grad_(False).eval()
        self.heads = Heads(self.dpm, self.gradient_estimator, self.schedule, self.config.prediction)

    def networks(self) -> list[nn.Module]:
        """The networks that this model has."""
        coders = (self.encoder_network, self.labels, self.latent_dpm, self.first_stage)
        return [p for p in (self.dpm, self.gradient_estimator, *coders) if p is not None]

    def to(self, device: str = "auto", dtype: str = "float32", compile: bool = False) -> Model:
        """Place the networks on a device (`auto`: what accelerate finds best), choose the precision
        they compute in, and whether torch compiles them; a trajectory's state stays float32."""
        if dtype not in PRECISIONS:
            raise UsageError(f"unknown dtype {dtype!r}; known: {', '.join(PRECISIONS)}")
        try:
            self.device = PartialState().device if device == "auto" else torch.device(device)
            for network in self.networks():
                network.to(self.device)
            self.heads.schedule = self.schedule.to(self.device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"device {device!r} can't be used: {reason}; try cpu") from error
        if self.device.type == "cpu" and dtype == "float16":
            raise UsageError("float16 is too slow on a CPU to be of use; take float32 or bfloat16")
        self.dtype = dtype
        if compile:
            check_compiler(self.device)
            self.heads.compile()
        return self

    # --- The two heads ---------------------------------------------------------------------------

    def predict(self, x_t: Tensor, t: Tensor, z: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """eps_theta(x_t, t) and G_psi(x_t, z, t), in one pass over the shared input half.

        x_t: (N, C, H, W) float32; t: (N,) integers in 0 … T-1; z: (N, D), or None for eps alone.
        Returns eps and the gradient, both like x_t; the gradient is None without z.
        """
        zs = self._taken([] if z is None else [z])
        with self._computing():
            eps, gradients = self.heads(x_t.to(self.device), t.to(self.device), *zs)
        return eps, gradients[0] if gradients else None

    def _taken(self, zs: Sequence[Tensor]) -> list[Tensor]:
        """The zs on this model's device. Raises ModelError where it can't take so many."""
        if self.takes_z and len(zs) != 1:
            raise ModelError(
                f"eps_theta of {self.name} takes z itself, as a Diff-AE's does: it makes no "
                "unconditional samples and has no trajectory mode"
            )
        if zs and not self.takes_z:
            self._needs(self.gradient_estimator, "a gradient estimator")
        return [z.to(self.device) for z in zs]

    def encoder(self, x_0: Tensor) -> Tensor:
        """z = E_phi(x_0): (N, C, H, W) float32 in [-1, 1] → (N, D) float32."""
        with self._computing():
            encoder = self._needs(self.encoder_network, "an encoder")
            return encoder(x_0.to(self.device)).float()

    def _needs(self, part: Any, what: str) -> Any:
        if part is None:
            raise ModelError(f"model {self.name} lacks {what}; `pdae train` makes one")
        return part

    def _computing(self, differentiable: bool = False) -> AbstractContextManager[None]:
        return computing(self.device, self.dtype, differentiable)

    @property
    def takes_z(self) -> bool:
        """Whether eps_theta itself takes z, as a Diff-AE's does; G_psi is then None."""
        return self.config.unet.z_channels > 0

    def guided(
        self,
        sampling: Sampling,
        *zs: Tensor,
        shares: Sequence[Tensor | float] = (1.0,),
        differentiable: bool = False,
    ) -> solvers.Predict:
        """eps^ = eps_theta - sqrt(1 - alpha_bar_t) w G_psi (PDAE eq. 9, DDIM form), with G_psi the
        sum of shares of G_psi(x_t, z, t) for each z. Without z, eps_theta alone.

        It can be asked at the timesteps of the sampling's trajectory, and is `differentiable` in
        x_t where wanted.
        """
        if self.takes_z and not sampling.guides_plainly:
            raise UsageError(f"{self.name} has no G_psi to guide with; leave guidance options out")
        wanted = self._taken(zs if self.takes_z or sampling.guidance != 0 else [])
        with self._computing():
            conditions = self.heads.prepare(self.trajectory(sampling).timesteps(), *wanted)

        def predict(x: Tensor, t: int) -> Tensor:
            with self._computing(differentiable):
                eps, gradients = self.heads.at(x, t, conditions, guided=sampling.guides(t))
                self.evaluated(len(x))
                if not gradients:
                    return eps
                gradient = sum(share * one for share, one in zip(shares, gradients, strict=True))
                strength = math.sqrt(1 - self.schedule.alpha_bar[t].item()) * sampling.guidance
                return eps - strength * gradient

        return predict

    # --- Pictures and codes ----------------------------------------------------------------------

    def pictures(self, images: Pictures, fit: str = "crop") -> Tensor:
        """Bring tensors, Pillow pictures or paths into this model's frame: (N, C, H, W) float32."""
        return as_tensor(images, self.config.image_size, self.config.channels, fit)

    def latents(self, x_0: Tensor) -> Tensor:
        """What eps_theta is of: the pictures x_0 (N, C, H, W) themselves, or their latents."""
        with computing(self.device, "float32"):
            return x_0 if self.first_stage is None else self.first_stage.encode(x_0)

    def from_latents(self, latents: Tensor) -> Tensor:
        """The way back from `latents`."""
        with computing(self.device, "float32"):
            return latents if self.first_stage is None else self.first_stage.decode(latents)

    def encode(
        self,
        images: Pictures,
        sampling: Sampling | None = None,
        *,
        noise: bool = True,
        **changes: Any,
    ) -> Codes:
        """Infer the codes of pictures: z = E_phi(x_0) and, with `noise`, x_T by the inverse ODE.

        `changes` are fields of Sampling, e.g. inference_steps=20.
        """
        sampling = (sampling or Sampling()).changed(changes)
        x_0, trajectory = self.pictures(images), self.trajectory(sampling)

        def work(rows: slice) -> Codes:
            x = x_0[rows].to(self.device)
            z = self.encoder(x)
            check_finite(z=z)
            found = trajectory.to_noise(self.guided(sampling, z), x) if noise else Inverted()
            return Codes(
                z=z.cpu(),
                x_T=None if found.x_T is None else found.x_T.cpu(),
                eps_T=None if found.eps_T is None else found.eps_T.cpu(),
                sources=tuple(str(row) for row in range(len(x_0)))[rows],
                digests=tuple(digest(pixels) for pixels in to_pixels(x_0[rows])),
                model=self.name,
                digest=self.digest,
                sampling=asdict(sampling),
                converged=() if found.converged is None else tuple(found.converged.tolist()),
            )

        return stack(self.by_batches(work, len(x_0)))

    def decode(
        self,
        codes: Codes,
        sampling: Sampling | None = None,
        *,
        generators: Sequence[Generator] | None = None,
        random_noise: bool = False,
        **changes: Any,
    ) -> Tensor:
        """Codes back to pictures (N, C, H, W), with the settings they were encoded with.

        With `random_noise` x_T ~ N(0, I) takes the place of the codes' own. `generators`: one a
        picture, for random x_T and stochastic solvers (default: seed 0 and the picture's digest).
        Raises InputError for codes of another model or without x_T.
        """
        self.check(codes)
        recorded = Sampling().changed(codes.sampling)
        sampling = (sampling or recorded).changed(changes)
        generators = generators or [generator(0, name) for name in codes.digests]
        if codes.x_T is None and not random_noise:
            raise InputError("these codes hold z alone; decode them with random noise")
        x_T = self.noise(generators) if random_noise or codes.x_T is None else codes.x_T
        # The second state means something on the way that made it, and nowhere else.
        theirs = not random_noise and sampling.same_way(recorded)
        eps_T = codes.eps_T if theirs else None
        trajectory = self.trajectory(sampling)

        def work(rows: slice) -> Tensor:
            predict = self.guided(sampling, codes.z[rows].to(self.device))
            second = None if eps_T is None else eps_T[rows].to(self.device)
            x = x_T[rows].to(self.device)
            return trajectory.to_picture(predict, x, generators[rows], second)

        return joined(self.by_batches(work, len(codes)))

    def check(self, codes: Codes) -> None:
        """Raise InputError unless this model can decode the codes."""
        codes.check(self.name, self.digest, self.config.z_dim, self.config.state_shape)

    def noise(self, generators: Sequence[Generator]) -> Tensor:
        """x_T ~ N(0, I), one row a generator."""
        return normal(generators, self.config.state_shape)

    def by_batches(self, work: Callable[[slice], T], count: int) -> list[T]:
        """work(rows) over batches; a batch that memory has no room for is halved, for good."""

        def smaller(size: int) -> None:
            self.batch_size = size
            self.notify(f"{self.device} is out of memory; going on with {size} at once")

        return in_batches(work, count, self.batch_size, smaller)

    def trajectory(self, sampling: Sampling) -> Trajectory:
        """The way between noise and picture that the settings mean for this model."""
        config, ways = self.config, (self.latents, self.from_latents) if self.first_stage else ()
        return Trajectory(self.schedule, sampling, config.variance, config.clip_sample, *ways)

    # --- Edits -----------------------------------------------------------------------------------

    def interpolate(
        self,
        codes: Codes,
        count: int | Sequence[float],
        sampling: Sampling | None = None,
        *,
        mode: str = "latent",
        **changes: Any,
    ) -> Tensor:
        """`count` pictures from the first of two codes to the second, both ends included; or those
        at the given shares of the way, 0 … 1. The ends are what `decode` makes of the codes.

        `latent`: decode(Slerp(x_T), Lerp(z)); `trajectory`: each step lerps the two gradients
        G_psi(x_t, z, t) (PDAE sec. 4.4).
        """
        self.check(codes)
        if len(codes) != 2 or codes.x_T is None:
            raise InputError("interpolation takes codes of exactly two pictures, with x_T")
        if mode not in ("latent", "trajectory"):
            raise UsageError(f"unknown mode {mode!r}; known: latent, trajectory")
        sampling = (sampling or Sampling().changed(codes.sampling)).changed(changes)
        shares = torch.linspace(0, 1, count).tolist() if isinstance(count, int) else list(count)
        ends = self.decode(codes, sampling) if {0.0, 1.0} & set(shares) else None
        within = [one for one in shares if 0 < one < 1]
        inner = iter(self._between(codes, within, sampling, mode) if within else ())
        return torch.stack(
            [next(inner) if ends is None or 0 < s < 1 else ends[int(s)] for s in shares]
        )

    def _between(self, codes: Codes, shares: list[float], sampling: Sampling, mode: str) -> Tensor:
        """Pictures strictly between the two, in either mode."""
        middle = between(codes, shares)
        if mode == "latent":
            return self.decode(middle, sampling)
        generators = [generator(0, name) for name in middle.digests]
        x_T, z_ends = middle.tensors()["x_T"], codes.z.to(self.device)
        share = torch.tensor(shares, device=self.device)

        def work(rows: slice) -> Tensor:
            some, x = share[rows, None, None, None], x_T[rows].to(self.device)
            zs = (z.expand(len(some), -1) for z in z_ends)
            predict = self.guided(sampling, *zs, shares=(1 - some, some))
            return self.trajectory(sampling).to_picture(predict, x, generators[rows])

        return joined(self.by_batches(work, len(middle)))

    def normalise(self, z: Tensor) -> Tensor:
        """z to zero mean and unit variance over the training set, per dimension."""
        mean, std = self._statistics()
        return (z - mean) / std

    def denormalise(self, z: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        mean, std = self._statistics()
        return z * std + mean

    def _statistics(self) -> tuple[Tensor, Tensor]:
        statistics = self._needs(self.config.normalisation, "statistics of z")
        return torch.tensor(statistics.mean), torch.tensor(statistics.std)

    def scores(self, codes: Codes) -> Tensor:
        """Logits (N, A) of every attribute of this model."""
        attributes: Attributes = self._needs(self.attributes, "attributes")
        return attributes.scores(self.normalise(codes.z))

    def manipulate(
        self, codes: Codes, changes: Sequence[tuple[str, Scale]], keep: Sequence[str] = ()
    ) -> Codes:
        """Codes whose z is moved along attributes: pairs of name and scale (PDAE sec. 4.5), but not
        along what would change the scores of those in `keep`. x_T stays the picture's own.
        """
        self.check(codes)
        attributes: Attributes = self._needs(self.attributes, "attributes")
        z = self.normalise(codes.z)
        theirs = codes.sampling.get("parity") in ("pdae", "diffae")
        for name, scale in changes:
            z = attributes.move(z, name, scale, parity.ATTRIBUTE_LENGTH if theirs else None, keep)
        return replace(codes, z=self.denormalise(z), eps_T=None)

    # --- Samples ---------------------------------------------------------------------------------

    def sample(
        self,
        count: int | Sequence[int],
        sampling: Sampling | None = None,
        *,
        seed: int = 0,
        unconditional: bool = False,
        **changes: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """New pictures (count, C, H, W), or those of the given numbers, and their z (None when
        `unconditional`).

        z comes from the latent DPM, x_T from N(0, I); G_psi guides the first 70 % of the
        trajectory unless guide_until says otherwise. Picture i depends on (seed, i) only.
        """
        sampling = (sampling or Sampling()).changed(changes)
        numbers = range(count) if isinstance(count, int) else count
        generators = [generator(seed, "sample", number) for number in numbers]
        z = None if unconditional else self.sample_z(generators, sampling)
        if sampling.guide_until == 0 and not unconditional and not self.takes_z:
            until = self.trajectory(sampling).unguided_below()
            sampling = replace(sampling, guide_until=until)
        x_T = self.noise(generators)

        def work(rows: slice) -> Tensor:
            zs = () if z is None else (z[rows].to(self.device),)
            way, x = self.trajectory(sampling), x_T[rows].to(self.device)
            return way.to_picture(self.guided(sampling, *zs), x, generators[rows])

        return joined(self.by_batches(work, len(numbers))), z

    def sample_z(self, generators: Sequence[Generator], sampling: Sampling | None = None) -> Tensor:
        """z (N, D) from the latent DPM by DDIM, one row a generator."""
        z_dim = self._needs(self.latent_dpm, "a latent DPM").cfg.z_dim
        return self.solve_z(normal(generators, (z_dim,)), sampling or Sampling())

    def solve_z(self, z_T: Tensor, sampling: Sampling) -> Tensor:
        """z (N, D) that the latent DPM makes of noise z_T (N, D)."""
        network: LatentDPM = self._needs(self.latent_dpm, "a latent DPM")

        def predict(z: Tensor, t: int) -> Tensor:
            with self._computing():
                return network(z, torch.full((len(z),), t, device=z.device)).float()

        return self.denormalise(solve_latent(predict, z_T.to(self.device), sampling).cpu())
