"""Masks: which part of a picture an edit may change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import InputError
from .batch import Runner
from .loading import Loaded

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


@dataclass(frozen=True)
class Mask:
    """A grey picture, upright and in 8 bits: white is what may change."""

    image: Image.Image
    name: str
    size: int  # of the model's pictures
    fit: str

    @classmethod
    def read(cls, runner: Runner, name: str) -> Mask:
        """A picture file of any kind; what is transparent counts as white. Raises InputError."""
        from ...files import sha256
        from ...pictures.images import normalised, on_white, open_picture

        image = on_white(normalised(open_picture(Path(name), name))).convert("L")
        runner.job.options["mask_sha256"] = sha256(Path(name))  # another mask makes other pictures
        size = runner.model.config.image_size
        return cls(image, name, size, runner.options.fit)

    def of(self, batch: Sequence[Loaded]) -> Tensor:
        """Of each picture, in the model's frame as the picture is: (N, 1, H, W), 0 … 1.

        Raises InputError for a mask that isn't as large as a picture; codes take one of any size.
        """
        import torch

        return torch.stack([self._of(one) for one in batch]).float() / 255

    def over(self, batch: Sequence[Loaded], edited: Tensor) -> Tensor:
        """Edits (N, C, H, W) where they show, and the pictures as they came elsewhere: what goes
        back into a photo, so that it keeps its own pixels. Codes have none and keep the edits'."""
        import torch

        from ...engine.editing import by_mask

        rows = zip(batch, edited, strict=True)
        came = [two if one.picture is None else one.picture[0] for one, two in rows]
        return by_mask(self.of(batch))(torch.stack(came), edited)

    def _of(self, one: Loaded) -> Tensor:
        from ...pictures.images import prepare
        from ...pictures.photos.frames import take

        whole = one.size
        if whole is not None and whole != self.image.size:
            raise InputError(
                f"{one.label} has {whole[0]}x{whole[1]} pixels and the mask {self.name} "
                f"{self.image.width}x{self.image.height}; draw one over the picture itself"
            )
        if one.framed is not None:
            return prepare(take(self.image, one.framed.frame), self.size, channels=1)
        return prepare(self.image, self.size, 1, self.fit)
