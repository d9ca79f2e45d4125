"""Contact sheets: pictures in rows and columns, each with its caption below it, on white.

Pictures are uint8, (C, H, W), C = 1 or 3. Letters are those of Pillow's own font, which has few but
ASCII: an accented letter loses its accent, any other character is written as its escape.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .images import to_image, to_tensor

SIZE = 12  # of letters, in pixels
LINE = 16  # from one line of letters to the next
GAP = 8
WIDTH = 128  # narrower pictures are enlarged: to be seen, and so that captions have room
INK, PALE = "#202020", "#707070"  # of captions and of titles
SPELLED = {"→": "->", "\N{MULTIPLICATION SIGN}": "x"}  # which the font lacks
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def sheet(
    pictures: Sequence[Tensor],
    captions: Sequence[str] = (),
    *,
    columns: int,
    titles: Sequence[str] = (),
    row_titles: Sequence[str] = (),
    width: int = WIDTH,
) -> Tensor:
    """Lay pictures of any sizes out, row by row, as one (C, H, W) sheet, in colour if any of them
    is.

    captions: one for each picture, lines separated by newlines; or none. titles: above the
    columns; row_titles: left of the rows. What is wider than a cell ends in an ellipsis. Pictures
    narrower than `width` are enlarged by a whole factor, each pixel a square. Raises ValueError
    for no pictures, or for captions that aren't as many.
    """
    if not pictures or (captions and len(captions) != len(pictures)):
        raise ValueError(f"{len(pictures)} pictures with {len(captions)} captions make no sheet")
    font = ImageFont.load_default(SIZE)
    images = [to_image(enlarged(one, width)) for one in pictures]
    texts = [caption.split("\n") for caption in captions] or [[]] * len(images)
    cells = list(zip(images, texts, strict=True))
    rows = [cells[begin : begin + columns] for begin in range(0, len(cells), columns)]
    cell = max(image.width for image in images)
    heights = [max(image.height for image, _ in row) for row in rows]
    lines = [max(len(text) for _, text in row) * LINE for row in rows]
    longest = max((font.getlength(cut(one, math.inf, font)) for one in row_titles), default=-GAP)
    left, top = GAP + min(round(longest) + GAP, cell), GAP + (LINE if titles else 0)
    across = left + len(rows[0]) * (cell + GAP)
    down = top + sum(heights) + sum(lines) + GAP * len(rows)
    mode = "RGB" if any(image.mode == "RGB" for image in images) else "L"
    canvas = Image.new(mode, (across, down), "white")
    draw = ImageDraw.Draw(canvas)
    for column, title in enumerate(titles[: len(rows[0])]):
        x = left + column * (cell + GAP)
        draw.text((x, GAP - 2), cut(title, cell, font), PALE, font)
    y = top
    for number, row in enumerate(rows):
        if number < len(row_titles):
            title = cut(row_titles[number], left - 2 * GAP, font)
            draw.text((GAP, y + heights[number] // 2 - SIZE // 2), title, PALE, font)
        for column, (image, text) in enumerate(row):
            x, below = left + column * (cell + GAP), y + heights[number]
            canvas.paste(image, (x + (cell - image.width) // 2, below - image.height))
            for place, line in enumerate(text):
                draw.text((x, below + 1 + place * LINE), cut(line, cell, font), INK, font)
        y += heights[number] + lines[number] + GAP
    return to_tensor(canvas)


def difference(a: Tensor, b: Tensor) -> Tensor:
    """How far two uint8 pictures of one shape are apart, four times over; black where alike."""
    return ((a.int() - b.int()).abs() * 4).clamp(max=255).to(torch.uint8)


def enlarged(picture: Tensor, width: int) -> Tensor:
    """The picture by the whole factor that brings it nearest to `width`, itself if it is wider."""
    factor = max(1, width // picture.shape[2])
    return picture.repeat_interleave(factor, 1).repeat_interleave(factor, 2)


def cut(text: str, room: float, font: Font) -> str:
    """What is drawn for a text in so many pixels: with an ellipsis where it doesn't fit."""
    pieces = [_letter(character, font) for character in text]
    if font.getlength("".join(pieces)) <= room:
        return "".join(pieces)
    while pieces and font.getlength("".join(pieces) + "…") > room:
        pieces.pop()
    return "".join(pieces) + "…"


def _letter(character: str, font: Font) -> str:
    """A character that the font has: itself, its base letter, or its escape."""
    for one in (character, unicodedata.normalize("NFKD", character)[0]):
        if one.isprintable() and (one.isspace() or one.isascii() or _has(font, one)):
            return one
    return SPELLED.get(character) or character.encode("unicode_escape").decode()


def _has(font: Font, character: str) -> bool:
    """Whether a font draws a character as something else than its sign for those it lacks."""
    mask, none = font.getmask(character), font.getmask("\uffff")
    return (mask.size, bytes(mask)) != (none.size, bytes(none))
