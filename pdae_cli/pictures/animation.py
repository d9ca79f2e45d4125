"""Animations: which frames, in which order, and how long each stands.

Films are made elsewhere: pipe `--stream png` into ffmpeg.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ..errors import UsageError

DURATION = 100  # milliseconds a frame
FASTEST_GIF = 20  # milliseconds; what stands shorter is shown for 100


def shares(steps: int, ease: bool = False) -> list[float]:
    """`steps` shares of the way, from exactly 0 to exactly 1: even, or slower at both ends by
    3 s² - 2 s³, which is at rest there."""
    even = [step / (steps - 1) for step in range(steps)]
    return [share * share * (3 - 2 * share) for share in even] if ease else even


def there_and_back(frames: Sequence[Tensor]) -> list[Tensor]:
    """The frames and back again, so that repeated they never jump: each end is there once."""
    return [*frames, *frames[-2:0:-1]]


def pace(suffix: str, fps: float | None = None, duration: float | None = None) -> int:
    """Milliseconds that a frame stands in an animation with this suffix: to one, in a GIF to ten.

    Told by frames a second or by milliseconds, else DURATION. Raises UsageError for both, for what
    is no number, and for what a GIF's viewers slow down.
    """
    if fps is not None and not math.isfinite(fps):
        raise UsageError(f"--fps {fps} is no number; give frames a second, as in 25")
    if fps is not None and duration is not None:
        raise UsageError("--fps and --duration say the same; give one")
    exact = 1000 / fps if fps is not None else duration or DURATION
    if suffix != ".gif":
        return round(exact)
    if exact < FASTEST_GIF:
        raise UsageError(
            f"a GIF shows {1000 // FASTEST_GIF} frames a second at most; choose fewer, or .webp"
        )
    return 10 * round(exact / 10)
