"""Which part of a picture an edit may change: one mask for all, or a folder with one of each."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import InputError, UsageError
from .batches import Run
from .inputs import Item, collect
from .loading import Loaded

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


class Masks:
    """Grey pictures, upright and in 8 bits: white is what may change, and what is transparent."""

    def __init__(self, run: Run, name: str) -> None:
        """Take a picture file of any kind, or a folder or zip in which each input's mask has its
        name, whatever the suffix. Raises UsageError, InputError."""
        self.name, self.size, self.fit = name, run.model.config.image_size, run.options.fit
        items = [item for item in collect([name], recursive=True) if not item.is_codes]
        if not items:
            raise UsageError(f"--mask {name}: holds no pictures")
        self._alone, digest = None, hashlib.sha256()
        self._known: dict[Path, list[Item]] = defaultdict(list)
        if alone := len(items) == 1 and items[0].name == name:
            data = items[0].read()
            self._alone = _grey(data, name)
            digest.update(data)
        for item in () if alone else items:
            self._known[item.place].append(item)
            digest.update(os.fsencode(item.place.as_posix()))
            with suppress(InputError):  # one that can't be read fails its picture alone, later
                digest.update(item.read())
        # Other masks make other pictures. A file is found again by its content, a folder by name.
        sha = digest.hexdigest()
        run.job.options["mask_sha256"] = sha if alone else [sha]

    def _for(self, one: Loaded) -> tuple[Image.Image, str]:
        """A picture's mask and its name: the path within the folder is as much of the end of the
        picture's own as there is. Raises InputError where there is none, or several."""
        if self._alone is not None:
            return self._alone, self.name
        path = one.item.place if one.item.name == "-" else Path(one.item.name).with_suffix("")
        ends = (Path(*path.parts[first:]) for first in range(len(path.parts)))
        found = next((self._known[end] for end in ends if end in self._known), [])
        if not found:
            raise InputError(f"{one.label}: {self.name} holds no mask of the name {path.name}")
        if len(found) > 1:
            names = " and ".join(mask.label for mask in found[:2])
            raise InputError(f"{one.label}: {names} could both be its mask; remove one")
        return _grey(found[0].read(), found[0].label), found[0].label

    def of(self, batch: Sequence[Loaded]) -> Tensor:
        """Of each picture, in the model's frame as the picture is: (N, 1, H, W), 0 … 1.

        Raises InputError for a picture without a mask, or with one of another size; codes take one
        of any size.
        """
        import torch

        from ...pictures.images import prepare
        from ...pictures.photos.frames import take

        masks = []
        for one in batch:
            mask, name = self._for(one)
            if one.size is not None and one.size != mask.size:
                width, height = one.size
                raise InputError(
                    f"{one.label} has {width}x{height} pixels and the mask {name} "
                    f"{mask.width}x{mask.height}; draw one over the picture itself"
                )
            if one.framed is not None:
                masks.append(prepare(take(mask, one.framed.frame), self.size, channels=1))
            else:
                masks.append(prepare(mask, self.size, 1, self.fit))
        return torch.stack(masks).float() / 255

    def over(self, batch: Sequence[Loaded], edited: Tensor) -> Tensor:
        """Edits (N, C, H, W) where they show, and the pictures as they came elsewhere: what goes
        back into a photo, so that it keeps its own pixels. Codes have none and keep the edits'."""
        import torch

        from ...engine.editing import by_mask

        rows = zip(batch, edited, strict=True)
        came = [two if one.picture is None else one.picture[0] for one, two in rows]
        return by_mask(self.of(batch))(torch.stack(came), edited)


def _grey(data: bytes, name: str) -> Image.Image:
    """Read a mask. Raises InputError."""
    from ...pictures.decoding import normalised, on_white, open_picture

    return on_white(normalised(open_picture(data, name))).convert("L")
