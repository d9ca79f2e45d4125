"""Animations: which frames in which order and how fast, and films by the program ffmpeg.

Frames are uint8, (C, H, W), all of one shape; C = 1 or 3. GIF and WebP are `images.encode_frames`.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, UsageError
from ..files import unwritable

DURATION = 100  # milliseconds a frame
FASTEST_GIF = 50  # frames a second; faster ones are shown as 10
CRF = 16  # of x264: what nobody sees is lost
# A film that doesn't say which YCbCr it is in is shown in another by every player.
COLOURS = ("-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "iec61966-2-1",
           "-color_range", "tv")  # fmt: skip


def shares(steps: int, ease: bool = False) -> list[float]:
    """`steps` shares of the way, from exactly 0 to exactly 1: even, or slower at both ends."""
    even = [step / (steps - 1) for step in range(steps)]
    return [eased(share) for share in even] if ease else even


def eased(share: float) -> float:
    """3 s² - 2 s³: from 0 to 1 without a jolt, at rest at both ends."""
    return share * share * (3 - 2 * share)


def there_and_back(frames: Sequence[Tensor]) -> list[Tensor]:
    """The frames and back again, so that repeated they never jump: each end is there once."""
    return [*frames, *frames[-2:0:-1]]


def rate_of(fps: float | None = None, milliseconds: int | None = None) -> Fraction:
    """Frames a second, told as such or by how long each stands; DURATION where neither is told.

    Raises UsageError for both.
    """
    if fps is not None and milliseconds is not None:
        raise UsageError("--fps and --duration say the same; give one")
    if fps is not None:
        return Fraction(fps).limit_denominator(1001)
    return Fraction(1000, milliseconds or DURATION)


def milliseconds_of(rate: Fraction, suffix: str) -> int:
    """How long a frame stands, as an animation with this suffix is told: to the millisecond, in a
    GIF to ten. Raises UsageError for what a GIF's viewers slow down."""
    if suffix != ".gif":
        return round(1000 / rate)
    if rate > FASTEST_GIF:
        raise UsageError(
            f"a GIF shows {FASTEST_GIF} frames a second at most; choose fewer, or .webp or .mp4"
        )
    return 10 * round(100 / rate)


def needed(ffmpeg: str | None) -> str:
    """The path of the program ffmpeg. Raises UsageError where there is none."""
    if ffmpeg is None:
        raise UsageError(
            "films (.mp4) need the program ffmpeg, which isn't on PATH; install it "
            "(https://ffmpeg.org, or your system's package), or write .gif or .webp"
        )
    return ffmpeg


def encode_mp4(
    frames: Sequence[Tensor],
    rate: Fraction,
    recipe: dict[str, Any] | None,
    ffmpeg: str,
) -> bytes:
    """An MP4 (H.264, 4:2:0) of the frames, `rate` a second; odd sides repeat their last pixels.

    The recipe becomes the film's comment, as JSON. ffmpeg: the program's path. Raises InputError
    where it fails.
    """
    frames = [_even(one) for one in frames]
    height, width = frames[0].shape[1:]
    comment = [] if recipe is None else ["-metadata", f"comment={json.dumps(recipe)}"]
    with TemporaryDirectory() as folder:  # faststart goes back to the film's beginning: no pipe
        film = Path(folder, "film.mp4")
        command = [
            ffmpeg, "-loglevel", "error",
            "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}",
            "-framerate", str(rate), "-i", "-",
            "-vf", "scale=out_color_matrix=bt709:out_range=tv", "-pix_fmt", "yuv420p",
            "-c:v", "libx264", "-crf", str(CRF), *COLOURS,
            *comment, "-movflags", "+faststart", str(film),
        ]  # fmt: skip
        _feed(command, frames, Path(folder, "frames"))
        return film.read_bytes()


def _feed(command: list[str], frames: Sequence[Tensor], raw: Path) -> None:
    """Run a command with the frames' bytes as its input. Raises InputError with its complaint.

    They go by a file: a pipe that the program closes early would end us too, where SIGPIPE does.
    """
    try:
        with raw.open("wb") as file:
            for frame in frames:
                file.write(_bytes(frame))
    except OSError as error:
        raise unwritable(raw, error) from error
    try:
        with raw.open("rb") as file:
            done = subprocess.run(command, stdin=file, capture_output=True)
    except OSError as error:
        raise InputError(f"{command[0]}: can't be run: {error.strerror or error}") from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").split("\n")
        told = " ".join(next((line for line in lines if line.strip()), "").split())
        reason = told or f"it ended with exit code {done.returncode}"
        raise InputError(f"ffmpeg made no film: {reason}; write .gif or .webp instead")


def _even(frame: Tensor) -> Tensor:
    """4:2:0 has one colour for 2x2 pixels, so sides must be even."""
    if frame.shape[1] % 2:
        frame = torch.cat([frame, frame[:, -1:]], 1)
    if frame.shape[2] % 2:
        frame = torch.cat([frame, frame[:, :, -1:]], 2)
    return frame


def _bytes(frame: Tensor) -> bytes:
    """rgb24: row by row, three bytes a pixel."""
    rgb = frame.expand(3, -1, -1) if frame.shape[0] == 1 else frame
    return rgb.permute(1, 2, 0).contiguous().numpy().tobytes()
