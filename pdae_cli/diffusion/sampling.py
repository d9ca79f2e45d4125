"""How trajectories are solved: the settings that codes record."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..errors import UsageError
from .grids import SPACINGS
from .parity import PROGRAMS
from .solvers import SOLVERS

# Measured in docs/solvers.md. What a preset leaves out is Sampling's default.
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},  # 40 NFE both ways
    "exact": {"inference_steps": 12, "corrections": 1},  # 48 NFE, and codes fit for editing
    "archival": {"inference_steps": 10, "solver": "leapfrog"},  # 21 NFE, codes of twice the size
}


@dataclass(frozen=True)
class Sampling:
    """How trajectories are solved. Codes record it, and are decoded as they were encoded."""

    inference_steps: int = 20  # solver steps, each way
    solver: str = "dpmpp"  # see solvers.SOLVERS
    spacing: str = "asinh"  # of the time grid: see grids.SPACINGS
    corrections: int = 0  # of encoding, through the decode map: see solvers.corrected
    guidance: float = 1.0  # w: how much of G_psi is added
    guide_from: int | None = None  # guide only at timesteps t ≤ this; None: from the start
    guide_until: int = 0  # … and t ≥ this
    parity: str | None = None  # follow another program's procedure: see parity.PROGRAMS

    def __post_init__(self) -> None:
        for name, value, known in (
            ("solver", self.solver, SOLVERS),
            ("spacing", self.spacing, SPACINGS),
            ("parity", self.parity, (None, *PROGRAMS)),
        ):
            if value not in known:
                names = ", ".join(str(one) for one in known if one)
                raise UsageError(f"unknown {name} {value!r}; known: {names}")
        own = (self.solver, self.spacing, self.corrections) != ("dpmpp", "asinh", 0)
        if self.parity is not None and own:
            raise UsageError(
                "parity is DDIM on the other program's own time grid; "
                "leave solver, spacing and corrections out"
            )
        if not 1 <= self.inference_steps <= 1000:
            raise UsageError(f"inference steps must be 1 to 1000, not {self.inference_steps}")
        if not math.isfinite(self.guidance):
            raise UsageError(f"guidance must be a finite number, not {self.guidance}")
        if not 0 <= self.corrections <= 20:
            raise UsageError(f"corrections must be 0 to 20, not {self.corrections}")
        if self.corrections and SOLVERS[self.solver].kind != "ode":
            why = "is exact without" if SOLVERS[self.solver].kind == "pair" else "decodes by chance"
            raise UsageError(f"{self.solver} {why}; leave corrections out")

    def guides(self, t: int) -> bool:
        """Whether G_psi takes part at timestep t (PDAE fig. 3)."""
        before = self.guide_from is not None and t > self.guide_from
        return self.guidance != 0 and not before and t >= self.guide_until

    def same_way(self, other: Sampling) -> bool:
        """Whether the other visits the same states: all but corrections, which only encode."""
        return replace(self, corrections=0) == replace(other, corrections=0)

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
