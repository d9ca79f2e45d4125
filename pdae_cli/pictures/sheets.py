"""Contact sheets: pictures in rows and columns, each with its caption below it, on white.

Pictures are uint8, (C, H, W), C = 1 or 3. Letters are those of Pillow's own font, which has few but
ASCII: an accented letter loses its accent, any other character is written as its escape.
"""

from __future__ import annotations

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
INK, PALE = 32, 112  # of captions and of titles, as shades of grey
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
    """Pictures of any sizes, row by row, as one (C, H, W) sheet, in colour if any of them is.

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
    left = max((round(_length(one, font)) + GAP for one in row_titles), default=0)
    left = GAP + min(left, cell)
    top = GAP + (LINE if titles else 0)
    canvas = Image.new(
        max((image.mode for image in images), key=("L", "RGB").index),
        (
            left + len(rows[0]) * (cell + GAP),
            top + sum(heights) + sum(lines) + GAP * len(rows),
        ),
        "white",
    )
    draw = ImageDraw.Draw(canvas)

    def write(x: int, y: int, text: str, room: int, shade: int) -> None:
        draw.text((x, y), cut(text, room, font), font=font, fill=f"rgb({shade},{shade},{shade})")

    for column, title in enumerate(titles[: len(rows[0])]):
        write(left + column * (cell + GAP), GAP - 2, title, cell, PALE)
    y = top
    for number, row in enumerate(rows):
        if number < len(row_titles):
            write(
                GAP, y + heights[number] // 2 - SIZE // 2, row_titles[number], left - 2 * GAP, PALE
            )
        for column, (image, text) in enumerate(row):
            x = left + column * (cell + GAP)
            canvas.paste(image, (x + (cell - image.width) // 2, y + heights[number] - image.height))
            for place, line in enumerate(text):
                write(x, y + heights[number] + 1 + place * LINE, line, cell, INK)
        y += heights[number] + lines[number] + GAP
    return to_tensor(canvas)


def difference(a: Tensor, b: Tensor, times: int = 4) -> Tensor:
    """How far two uint8 pictures of one shape are apart, `times` over; black where alike."""
    return ((a.int() - b.int()).abs() * times).clamp(max=255).to(torch.uint8)


def enlarged(picture: Tensor, width: int) -> Tensor:
    """The picture by the whole factor that brings it nearest to `width`, itself if it is wider."""
    factor = max(1, width // picture.shape[2])
    return picture.repeat_interleave(factor, 1).repeat_interleave(factor, 2)


def cut(text: str, room: float, font: Font) -> str:
    """What is drawn for a text in so many pixels: with an ellipsis where it doesn't fit."""
    pieces = [_drawn(character, font) for character in text]
    if font.getlength("".join(pieces)) <= room:
        return "".join(pieces)
    while pieces and font.getlength("".join(pieces) + "…") > room:
        pieces.pop()
    return "".join(pieces) + "…"


def _length(text: str, font: Font) -> float:
    return font.getlength("".join(_drawn(character, font) for character in text))


def _drawn(character: str, font: Font) -> str:
    """A character that the font has: itself, its base letter, or its escape."""
    for one in (character, unicodedata.normalize("NFKD", character)[0]):
        if one.isprintable() and (one.isspace() or _has(font, one)):
            return one
    return SPELLED.get(character) or character.encode("unicode_escape").decode()


def _has(font: Font, character: str) -> bool:
    """Whether a font draws a character as something else than its sign for those it lacks."""
    if character.isascii():
        return True
    mask, none = font.getmask(character), font.getmask("\uffff")
    return (mask.size, bytes(mask)) != (none.size, bytes(none))
