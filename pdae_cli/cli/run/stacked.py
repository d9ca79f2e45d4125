"""One file of the codes of all inputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...pictures.listing import HEIC_SUFFIXES, SUFFIXES
from .batches import Run
from .inputs import Item
from .loading import Loaded
from .making import recipe

if TYPE_CHECKING:
    from ...engine.codes import Codes


class StackedFile:
    """Codes that become one file: of each batch it is known at once whether they go with the
    others. Where pictures are among the inputs, it is other codes that don't: those take no time
    to make."""

    def __init__(self, run: Run, items: Iterable[Item], noise: bool) -> None:
        self.run = run
        self.items = items if isinstance(items, Sequence) else []  # a stream can't be read again
        self.found = of_pictures(run, self.items, noise)

    def add(self, codes: Codes) -> None:
        """Add a row a picture. Raises InputError for codes unlike the first, UsageError where all
        inputs would be more than one file can hold."""
        from ...engine.codes import require_joinable, require_room

        require_joinable([*self.found[:1], codes])
        rows = max(len(self.items), len(self.run.kept) + len(codes))
        require_room(codes, rows, 1 if recipe(self.run, [], {}) is None else 2)
        self.found.append(codes)

    def write(self, facts: dict[str, Any]) -> None:
        """Write what there is, which says what is lacking. Raises UsageError as `add`."""
        from ...engine.codes import one_file, stack

        if not self.run.kept:
            return
        sources = [one for one, _ in self.run.kept]
        if self.run.failures and self.items:  # all, so that for the same ones it isn't made again
            shas = self.run.shas
            sources = [Loaded(one, one.label, one.place, shas[one.label]) for one in self.items]
        made = recipe(self.run, sources, facts | {"failed": self.run.failures})
        self.run.write(one_file(stack(self.found), made))


def _is_picture(item: Item) -> bool:
    """Whether its name or its table says that it is one."""
    named = Path(item.name).suffix.lower() in SUFFIXES | HEIC_SUFFIXES
    return named or (item.table is not None and not item.is_codes)


def of_pictures(run: Run, items: Iterable[Item], noise: bool) -> list[Codes]:
    """Codes of no pictures, as those of pictures will be, where any are among the items."""
    import torch

    from ...engine.codes import Codes

    if not isinstance(items, Sequence) or not any(map(_is_picture, items)):
        return []
    model = run.model
    z, x_T = torch.empty(0, model.config.z_dim or 0), torch.empty(0, *model.config.state_shape)
    sampling = run.options.sampling().record()
    of_model: Any = model.name, model.weights_sha, sampling, (), model.dtype
    return [Codes(z, x_T if noise else None, None, (), (), *of_model)]
