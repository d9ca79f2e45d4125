"""--show: the right pixels where a terminal shows them, nothing where none does."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable

import pytest
import torch
from conftest import picture
from rich.console import Console

from pdae_cli.cli.run.terminal import show, way_to_show
from pdae_cli.errors import UsageError
from pdae_cli.pictures.images import prepare

# textual-image 0.12 asks Pillow 13 in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:Image.Image.getdata:DeprecationWarning")


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


Opened = Callable[..., Console]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Opens a terminal as standard error alone: what pictures are piped through still shows."""

    def opened(width: int = 80, **environ: str) -> Console:
        for name in ("NO_COLOR", "TERM"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "stderr", Terminal())
        monkeypatch.setattr(sys, "stdout", io.StringIO())
        return Console(
            file=sys.stderr, force_terminal=True, color_system="truecolor", width=width, height=60
        )

    return opened


def colours(text: str) -> list[list[tuple[int, ...]]]:
    """The pixels that 24-bit escapes paint: rows of RGB, the upper of each character, the lower."""
    rows: list[list[tuple[int, ...]]] = []
    for line in text.splitlines():
        pairs = re.findall(r"\x1b\[38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m(▀+)", line)
        pixels = [tuple(map(int, pair[:6])) for pair in pairs for _ in pair[6]]
        if pixels:
            rows += [[one[:3] for one in pixels], [one[3:] for one in pixels]]
    return rows


def shown(on: Console, pixels: torch.Tensor) -> list[list[tuple[int, ...]]]:
    pytest.importorskip("textual_image", reason="--show needs pdae-cli[show]")
    show(on, way_to_show(on), pixels)
    return colours(on.file.getvalue())  # type: ignore[attr-defined]


def test_half_blocks_paint_the_picture(terminal: Opened) -> None:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (3, 8, 5), dtype=torch.uint8, generator=generator)
    assert torch.equal(torch.tensor(shown(terminal(), pixels)), pixels.permute(1, 2, 0))
    grey = torch.tensor([[[0, 128], [255, 3]]], dtype=torch.uint8)
    assert shown(terminal(), grey) == [[(0,) * 3, (128,) * 3], [(255,) * 3, (3,) * 3]]


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 200), (500, 30)])
def test_pictures_are_no_larger_than_the_terminal_nor_enlarged(
    height: int, width: int, terminal: Opened
) -> None:
    for room in (20, 80):
        told = shown(terminal(room), torch.zeros(3, height, width, dtype=torch.uint8))
        assert len(told[0]) <= min(room, width) and len(told) <= min(height, 2 * 60)


def test_a_photo_keeps_its_look(terminal: Opened) -> None:
    """What is made smaller is averaged, not picked at random."""
    pixels = prepare(picture(3, (256, 256)), 256)
    told = torch.tensor(shown(terminal(32), pixels)).float()
    wanted = torch.nn.functional.avg_pool2d(pixels.float()[None], 8)[0].permute(1, 2, 0)
    assert (told - wanted).abs().mean() < 3


def test_nothing_is_shown_without_colours_a_terminal_or_its_answer(
    terminal: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """textual-image would read a terminal's answer from what is piped into us."""
    assert way_to_show(terminal(NO_COLOR="1")) is None
    assert way_to_show(terminal(TERM="dumb")) is None
    console = terminal()
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert way_to_show(console) is None
    console = terminal()
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert way_to_show(console) is None


def test_without_the_package_the_line_says_what_to_install(
    terminal: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "textual_image.renderable", None)
    with pytest.raises(UsageError, match=r"pip install 'pdae-cli\[show\]'") as failed:
        way_to_show(terminal())
    assert "\n" not in str(failed.value)
