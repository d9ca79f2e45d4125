"""Pictures in a terminal: the right pixels in the right places, and the protocols as specified."""

from __future__ import annotations

import io
import re
from base64 import b64decode

import pytest
import torch
from conftest import picture
from PIL import Image
from rich.console import Console

from pdae_cli.cli.run.terminal import (
    CHUNK,
    UPPER_HALF,
    escapes,
    half_blocks,
    iterm2,
    kitty,
    protocol,
)


def colours(text: str) -> list[list[tuple[int, ...]]]:
    """The pixels that 24-bit escapes paint: rows of RGB, the upper of each character, the lower."""
    rows: list[list[tuple[int, ...]]] = []
    for line in text.splitlines():
        pairs = re.findall(r"\x1b\[38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m(▀+)", line)
        pixels = [tuple(map(int, pair[:6])) for pair in pairs for _ in pair[6]]
        rows += [[one[:3] for one in pixels], [one[3:] for one in pixels]]
    return rows


def printed(text: object, width: int = 80) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system="truecolor", width=width)
    console.print(text, end="")
    return file.getvalue()


def test_half_blocks_paint_the_picture() -> None:
    pixels = torch.randint(
        0, 256, (3, 8, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    told = torch.tensor(colours(printed(half_blocks(pixels, 80))))
    assert torch.equal(told, pixels.permute(1, 2, 0))


def test_grey_is_painted_grey() -> None:
    pixels = torch.tensor([[[0, 128], [255, 3]]], dtype=torch.uint8)
    assert colours(printed(half_blocks(pixels, 9))) == [
        [(0, 0, 0), (128, 128, 128)],
        [(255, 255, 255), (3, 3, 3)],
    ]


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 200), (1, 1), (7, 90), (500, 3)])
@pytest.mark.parametrize("room", [1, 20, 80])
def test_lines_are_never_wider_than_the_terminal_nor_than_the_picture(
    height: int, width: int, room: int
) -> None:
    pixels = torch.zeros(3, height, width, dtype=torch.uint8)
    lines = half_blocks(pixels, room).plain.splitlines()
    assert {len(line) for line in lines} == {min(room, width)}
    assert len(lines) == max(1, round(height * min(room, width) / width / 2))
    assert set("".join(lines)) == {UPPER_HALF}


def png() -> bytes:
    buffer = io.BytesIO()
    Image.radial_gradient("L").resize((160, 120)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def test_kitty_gets_the_file_in_small_pieces() -> None:
    text = kitty(png(), columns=30)
    pieces = re.findall(r"\x1b_G([^;\x1b]*);([A-Za-z0-9+/=]*)\x1b\\", text)
    assert b64decode("".join(data for _, data in pieces)) == png()
    assert len(pieces) > 1 and all(len(data) <= CHUNK for _, data in pieces)
    assert all(len(data) % 4 == 0 for _, data in pieces[:-1])
    assert pieces[0][0].split(",") == ["a=T", "f=100", "q=2", "c=30", "m=1"]
    assert [keys for keys, _ in pieces[1:]] == ["m=1"] * (len(pieces) - 2) + ["m=0"]
    assert text.endswith("\x1b\\\n")


def test_iterm2_gets_the_file_with_its_size() -> None:
    text = iterm2(png(), columns=30)
    match = re.fullmatch(r"\x1b\]1337;File=([^:]*):([A-Za-z0-9+/=]*)\x07\n", text)
    assert match is not None and b64decode(match[2]) == png()
    keys = dict(pair.split("=") for pair in match[1].split(";"))
    assert keys == {
        "inline": "1", "size": str(len(png())), "width": "30", "preserveAspectRatio": "1",
    }  # fmt: skip


def test_escapes_reach_a_terminal_as_they_are_and_nothing_else() -> None:
    for text in (kitty(png(), 30), iterm2(png(), 30)):
        assert printed(escapes(text), width=20) == text
        file = io.StringIO()
        Console(file=file, force_terminal=False).print(escapes(text), end="")
        assert file.getvalue() == ""


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"TERM": "xterm-256color"}, "blocks"),
        ({}, "blocks"),
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-ghostty"}, "kitty"),
        ({"TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"TERM_PROGRAM": "WezTerm"}, "iterm2"),
        ({"TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"}, "iterm2"),
        ({"TERM": "tmux-256color", "KITTY_WINDOW_ID": "1"}, "blocks"),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/tmux-0/default,1,0"}, "blocks"),
        ({"TERM": "screen", "TERM_PROGRAM": "iTerm.app"}, "blocks"),
        ({"TERM": "dumb"}, None),
        ({"TERM": "xterm-kitty", "NO_COLOR": "1"}, None),
        ({"TERM": "xterm-kitty", "NO_COLOR": ""}, "kitty"),
        ({"TERM_PROGRAM": "Apple_Terminal", "TERM": "xterm-256color"}, "blocks"),
    ],
)
def test_the_protocol_is_the_terminals(environ: dict[str, str], told: str | None) -> None:
    assert protocol(environ) == told


def test_a_photo_keeps_its_look() -> None:
    """What is made smaller is averaged, not picked at random."""
    from pdae_cli.pictures.images import prepare

    pixels = prepare(picture(3, (256, 256)), 256)
    told = torch.tensor(colours(printed(half_blocks(pixels, 32)))).float()
    wanted = torch.nn.functional.avg_pool2d(pixels.float()[None], 8)[0].permute(1, 2, 0)
    assert (told - wanted).abs().mean() < 3
