"""How trajectories are solved: the settings that codes record."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from .errors import UsageError
from .parity import PROGRAMS
from .solvers import SPACINGS

SOLVERS = ("ddim", "ddpm")


@dataclass(frozen=True)
class Sampling:
    """How trajectories are solved. Codes record it, and are decoded as they were encoded."""

    inference_steps: int = 50  # solver steps, each way
    solver: str = "ddim"  # how to decode: "ddim" (deterministic) or "ddpm" (ancestral)
    spacing: str = "logsnr"  # of the time grid: see solvers.decode_grid
    iterations: int = 2  # fixed-point iterations of each encode step; 0 is the explicit inversion
    guidance: float = 1.0  # w: how much of G_psi is added
    guide_from: int | None = None  # guide only at timesteps t ≤ this; None: from the start
    guide_until: int = 0  # … and t ≥ this
    parity: str | None = None  # follow another program's procedure: see parity.PROGRAMS

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise UsageError(f"unknown solver {self.solver!r}; known: {', '.join(SOLVERS)}")
        if self.spacing not in SPACINGS:
            raise UsageError(f"unknown spacing {self.spacing!r}; known: {', '.join(SPACINGS)}")
        if self.parity is not None and self.parity not in PROGRAMS:
            raise UsageError(f"unknown parity {self.parity!r}; known: {', '.join(PROGRAMS)}")
        own = (self.solver, self.spacing, self.iterations) != ("ddim", "logsnr", 2)
        if self.parity is not None and own:
            raise UsageError(
                "parity is DDIM on the other program's own time grid; "
                "leave solver, spacing and iterations out"
            )
        if not 1 <= self.inference_steps <= 1000:
            raise UsageError(f"inference steps must be 1 to 1000, not {self.inference_steps}")

    def guides(self, t: int) -> bool:
        """Whether G_psi takes part at timestep t (PDAE fig. 3)."""
        before = self.guide_from is not None and t > self.guide_from
        return self.guidance != 0 and not before and t >= self.guide_until

    @property
    def guides_plainly(self) -> bool:
        """Whether guidance is at its default: all of G_psi, all the way."""
        return (self.guidance, self.guide_from, self.guide_until) == (1.0, None, 0)

    def changed(self, changes: dict[str, Any]) -> Sampling:
        """With other values for some fields. Raises UsageError for a field that doesn't exist."""
        unknown = set(changes) - set(asdict(self))
        if unknown:
            raise UsageError(f"unknown sampling options: {', '.join(sorted(unknown))}")
        return replace(self, **changes)
