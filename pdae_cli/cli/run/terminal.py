"""A picture in a terminal, by textual-image: as sixels, by kitty's protocol or in half blocks."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from ...errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor


def way_to_show(console: Console) -> Any | None:
    """Return textual-image's class for the terminal; None where it isn't one with colours, or where
    what it can show can't be asked. Raises UsageError where textual-image isn't installed."""
    terminal = sys.stderr.isatty() and not console.is_dumb_terminal and not console.no_color
    heard = sys.stdin.isatty() or not sys.stdout.isatty()  # it asks at one, listens at the other
    if not (terminal and heard and console.encoding.startswith("utf")):
        return None
    try:
        from textual_image.renderable import HalfcellImage, Image
    except ImportError as error:
        raise UsageError("--show needs textual-image: pip install 'pdae-cli[show]'") from error
    return Image if sys.stdout.isatty() else HalfcellImage


def show(console: Console, way: Any, picture: Tensor) -> None:
    """Print a uint8 picture (C, H, W), no larger than the terminal and a column a pixel."""
    from ...pictures.images import to_image

    high, wide = picture.shape[1:]
    columns = max(1, min(wide, console.width, 2 * (console.height - 2) * wide // high, 256))
    console.print(way(to_image(picture).convert("RGB"), width=columns, height="auto"))
