"""A picture in a terminal: as text of half blocks, or by the protocols of kitty and iTerm2.

Whoever writes these asks first whether a terminal reads them (`isatty`): in a file they're rubbish.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping

from PIL import Image
from rich.segment import ControlType, Segment, Segments
from rich.style import Style
from rich.text import Text
from torch import Tensor

from ...pictures.images import to_image

CHUNK = 4096  # characters of one kitty escape
KITTY, ITERM2, BLOCKS = "kitty", "iterm2", "blocks"
UPPER_HALF = "▀"  # its colour is the pixel above, its ground the one below


def protocol(environ: Mapping[str, str]) -> str | None:
    """How the terminal that these variables describe shows pictures: kitty, iterm2 or blocks.

    None where it has no colours (NO_COLOR, TERM=dumb): a picture would be nothing but blocks.
    """
    term, program = environ.get("TERM", ""), environ.get("TERM_PROGRAM", "")
    if environ.get("NO_COLOR") or term in ("dumb", "unknown"):
        return None
    if "TMUX" in environ or term.startswith(("screen", "tmux")):
        return BLOCKS  # multiplexers keep the protocols to themselves
    if "KITTY_WINDOW_ID" in environ or term in ("xterm-kitty", "xterm-ghostty"):
        return KITTY
    known = ("iTerm.app", "WezTerm", "mintty")
    if program in known or environ.get("LC_TERMINAL") == "iTerm2":  # which ssh hands on
        return ITERM2
    return BLOCKS


def half_blocks(picture: Tensor, width: int) -> Text:
    """A uint8 picture (C, H, W), C = 1 or 3, as lines of at most `width` characters, two pixels in
    each, one above the other. It is made smaller to fit, never larger."""
    image = to_image(picture).convert("RGB")
    columns = max(1, min(image.width, width))
    rows = max(1, round(image.height * columns / image.width / 2))
    if image.size != (columns, 2 * rows):
        image = image.resize((columns, 2 * rows), Image.Resampling.LANCZOS)
    colours = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in _triples(image.tobytes())]
    text = Text(no_wrap=True, end="")
    for begin in range(0, len(colours), 2 * columns):
        pair = colours[begin : begin + 2 * columns]
        for upper, lower in zip(pair[:columns], pair[columns:], strict=True):
            text.append(UPPER_HALF, Style(color=upper, bgcolor=lower))
        text.append("\n")
    return text


def kitty(png: bytes, columns: int) -> str:
    """A PNG for kitty's graphics protocol, shown `columns` characters wide, and a new line.

    The terminal is asked not to answer (q=2): nobody would read it.
    https://sw.kovidgoyal.net/kitty/graphics-protocol/
    """
    data = b64encode(png).decode()
    pieces = [data[begin : begin + CHUNK] for begin in range(0, len(data), CHUNK)]
    escapes = []
    for number, piece in enumerate(pieces):
        keys = f"a=T,f=100,q=2,c={columns}," if number == 0 else ""
        escapes.append(f"\x1b_G{keys}m={int(number < len(pieces) - 1)};{piece}\x1b\\")
    return "".join(escapes) + "\n"


def iterm2(png: bytes, columns: int) -> str:
    """A PNG for iTerm2's inline images, shown `columns` characters wide, and a new line.

    https://iterm2.com/documentation-images.html
    """
    keys = f"inline=1;size={len(png)};width={columns};preserveAspectRatio=1"
    return f"\x1b]1337;File={keys}:{b64encode(png).decode()}\x07\n"


def escapes(text: str) -> Segments:
    """Escapes to print with a rich console, which may be drawing a progress bar: they've no width
    for it, and a console that isn't a terminal leaves them out."""
    return Segments([Segment(text, None, [(ControlType.BELL,)])])


def _triples(data: bytes) -> list[tuple[int, int, int]]:
    return list(zip(data[::3], data[1::3], data[2::3], strict=True))
