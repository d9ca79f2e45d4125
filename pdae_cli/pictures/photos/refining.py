"""A small network that sees a face about where a frame should be, and says where it should be.

`benchmarks/framing.py` trains it on aligned faces.
"""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import median

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from ...errors import InputError, ModelError
from ...files import bundled, read_limited
from ..images import to_tensor
from .frames import Frame, take

WEIGHTS = "frame/network.safetensors"
LARGEST = 1 << 22  # bytes of it
SEEN = 48  # pixels of a side of what it sees
ROOM = 1.1  # which is the frame, grown by this
CHANNELS = (1, 16, 32, 64, 128)
# From where it looks, each time in so many rounds: the frame itself, and turned (degrees), scaled.
STARTS, ROUNDS = ((0, 1), (-15, 1), (15, 1), (0, 0.8), (0, 1.25)), 4
MIDDLE = 1 + 1j  # of a square from 0 to 2


class FrameNet(nn.Sequential):
    """Grey squares (N, 1, SEEN, SEEN) → (N, 4): the map from the square to the frame, both -1 … 1
    from left to right and from top to bottom: log of the scale, turn (radians), shift."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for before, after in pairwise(CHANNELS):
            kernel = 5 if before == 1 else 3
            layers += [nn.Conv2d(before, after, kernel, 2, kernel // 2), nn.ReLU()]
        left = (SEEN >> len(CHANNELS) - 1) ** 2 * CHANNELS[-1]
        super().__init__(*layers, nn.Flatten(), nn.Linear(left, 256), nn.ReLU(), nn.Linear(256, 4))

    def forward(self, seen: Tensor) -> Tensor:
        level = seen - seen.mean((1, 2, 3), keepdim=True)
        return super().forward(level / (level.std((1, 2, 3), keepdim=True) + 0.01))


class Refiner:
    """Brings a frame that lies about right onto a photo's face."""

    def __init__(self) -> None:
        """Raises ModelError where the network's weights aren't there or damaged."""
        path = next(bundled(WEIGHTS), None)
        if path is None:
            raise ModelError(f"weights/{WEIGHTS}, which --align needs, isn't there; install anew")
        self._network = FrameNet().eval()
        try:
            self._network.load_state_dict(
                {k: v.float() for k, v in load(read_limited(path, LARGEST)).items()}
            )
        except (SafetensorError, RuntimeError, InputError) as error:
            raise ModelError(f"{path}: damaged; install anew") from error

    def __call__(self, photo: Image.Image, frame: Frame) -> tuple[Frame, float]:
        """The better frame in an RGB photo: the median of where a few starts end, and how far the
        corners of all of these but one are from it on average, in its sides. On faces they meet,
        elsewhere they rarely do."""
        grey, ends = photo.convert("L"), []
        for degrees, scale in STARTS:
            end = frame.turned(degrees, scale)
            for _ in range(ROUNDS):
                end = self.better(grey, end)
            ends.append(end)
        a, _, c, d, _, f = (
            median(values) for values in zip(*(end.matrix for end in ends), strict=True)
        )
        middle = Frame.similarity(complex(a, d), complex(c, f), frame.size, frame.outside)
        return middle, sorted(middle.off(end) for end in ends)[-2]

    def better(self, photo: Image.Image, frame: Frame) -> Frame:
        """One round in a grey photo: look, and move the frame to where the face seems to be."""
        alpha, beta = (2 / frame.size * one for one in frame.complex)
        beta -= MIDDLE
        view = Frame.similarity(
            SEEN / 2 * alpha / ROOM, SEEN / 2 * (beta / ROOM + MIDDLE), SEEN, "repeat"
        )
        grey = to_tensor(take(photo, view)).float() / 255
        with torch.inference_mode():
            log_scale, turn, x, y = self._network(grey[None])[0].tolist()
        turned = math.exp(log_scale) * complex(math.cos(turn), math.sin(turn))
        alpha, beta = turned * alpha / ROOM, turned * beta / ROOM + complex(x, y)
        half = frame.size / 2
        return Frame.similarity(half * alpha, half * (beta + MIDDLE), frame.size, frame.outside)
