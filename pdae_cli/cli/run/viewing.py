"""Results for people to look at, beside what is written: --show, --sheet and --report."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import __version__
from ...errors import InputError, UsageError
from ...files import read_limited, write_bytes
from ..options import BatchOptions
from ..output import Output
from .destination import PICTURE_SUFFIXES, Destination
from .loading import Load, Loaded
from .manifest import Job, State

if TYPE_CHECKING:
    from torch import Tensor

    from ...engine.model import Model
    from .report import Report

PAGES, SHEETS = (".html", ".htm"), (".png", ".jpg", ".jpeg", ".webp")
ON_A_SHEET = 1000  # inputs, at most; those after them aren't on it
SHEET_BYTES = 256 << 20  # of their pictures, at most
SHEET = "sheet"  # the command, as its recipe says
COLUMNS = 8  # of results alone, where they are few
TITLES = ("source", "result", "difference x4")
GENERATOR = b'<meta name="generator" content="pdae'


@dataclass(frozen=True)
class Seen:
    """One input on a sheet: its pictures by title, uint8 (C, H, W), and what is said of it."""

    name: str
    text: str
    pictures: dict[str, Tensor]


class Viewer:
    """Sees each record of a run once, with its pictures; `finish` writes the sheet and the page."""

    def __init__(
        self, options: BatchOptions, command: str, out: Output, destination: Destination | None
    ) -> None:
        """Raises UsageError for names that a sheet or a page can't have."""
        self.options, self.command, self.out = options, command, out
        self.load: Load | None = None  # how inputs are read
        self._writes_pictures = destination is not None and destination.suffix in PICTURE_SUFFIXES
        self._check(options.report, "--report", PAGES)
        self._check(options.sheet, "--sheet", SHEETS)
        self.protocol = self._protocol() if options.show else None
        self._report: Report | None = None
        self._sheet: list[Seen] = []
        self._bytes = self._left_out = 0

    def _check(self, name: str | None, option: str, suffixes: tuple[str, ...]) -> None:
        """A name's suffix, and that nothing is lost that isn't ours."""
        if name is None:
            return
        path = Path(name)
        if path.suffix.lower() not in suffixes:
            raise UsageError(f"{option} {name}: its name ends in {' or '.join(suffixes)}")
        if path.exists() and not self.options.overwrite and not _ours(path):
            raise UsageError(f"{option} {name} exists and isn't one of ours; pass --overwrite")

    def _protocol(self) -> str | None:
        """How the terminal shows pictures; None, and a line that says so, where it can't."""
        from .terminal import BLOCKS, protocol

        told = protocol(os.environ) if sys.stderr.isatty() else None
        if told is None or (told == BLOCKS and not self.out.console.encoding.startswith("utf")):
            self.out.say("--show needs a terminal with colours as standard error: nothing is shown")
            return None
        return told

    def see(
        self,
        record: Mapping[str, Any],
        text: str = "",
        source: Loaded | None = None,
        result: Tensor | bytes | Path | None = None,
    ) -> None:
        """One input's record, and what it says for people; its result is a uint8 picture (C, H, W),
        or the file that was written."""
        if not (self.options.report or self.options.sheet or self.protocol):
            return
        if isinstance(result, bytes | Path) and not self._writes_pictures:
            result = None
        try:
            pictures = _by_title(self._picture(source) if source else None, result)
        except InputError as error:  # it was there before; its record still counts
            self.out.warn(f"{error}: not shown")
            pictures = {}
        if self.protocol and record.get("status") == "done" and pictures:
            self._show(pictures)
        if self.options.report:
            self._page().add(record, pictures)
        if self.options.sheet and pictures:
            self._lay(Seen(_name(record["input"]), text.strip(": "), pictures))

    def _lay(self, one: Seen) -> None:
        """Put an input on the sheet while there is room."""
        if len(self._sheet) == ON_A_SHEET or self._bytes > SHEET_BYTES:
            self._left_out += 1
            return
        self._sheet.append(one)
        self._bytes += sum(picture.numel() for picture in one.pictures.values())

    def _picture(self, source: Loaded) -> Tensor | None:
        """An input's picture, float32 (1, C, H, W); read again where its output was done before."""
        if source.state.done and self.load is not None:
            again = self.load(source.item, lambda place, digest: State())
            source = next((one for one in again if one.place == source.place), source)
        return source.picture

    def finish(self, model: Model, job: Job) -> None:
        """Write what was asked for. Raises InputError."""
        if self.options.report:
            page = self._page()
            page.facts = {"pdae": __version__, "model": model.name, "model digest": model.digest}
            for name, value in job.options.items():
                if value not in (None, False, [], ""):
                    page.facts[f"--{name.replace('_', '-')}"] = str(value)
            write_bytes(Path(self.options.report), page.page(_now()).encode())
            self.out.say(f"report → {self.options.report}")
        if self.options.sheet and self._sheet:
            self._write_sheet(Path(self.options.sheet))

    def _page(self) -> Report:
        from .report import Report

        if self._report is None:
            self._report = Report(f"pdae {self.command}")
        return self._report

    def _show(self, pictures: Mapping[str, Tensor]) -> None:
        """The source, if it is of the same size, and the result on the terminal."""
        import torch

        from ...pictures.images import encode_picture, tile
        from .terminal import BLOCKS, KITTY, escapes, half_blocks, iterm2, kitty

        shown = [one for title, one in pictures.items() if title in TITLES[:2]]
        alike = all(one.shape == shown[-1].shape for one in shown)
        picture = tile(torch.stack(shown if alike else shown[-1:]), columns=2)
        console = self.out.console
        height, width = picture.shape[1:]
        columns = max(1, min(console.width, 2 * (console.height - 2) * width // height))
        if self.protocol == BLOCKS:
            console.print(half_blocks(picture, columns), end="", soft_wrap=True)
            return
        escape = kitty if self.protocol == KITTY else iterm2
        png = encode_picture(picture, ".png", None)
        console.print(escapes(escape(png, columns)), end="")

    def _write_sheet(self, path: Path) -> None:
        import torch

        from ...pictures.images import encode_picture
        from ...pictures.sheets import sheet

        titles = [title for title in TITLES if any(title in one.pictures for one in self._sheet)]
        pictures, captions = [], []
        for one in self._sheet:
            for title in titles:
                picture = one.pictures.get(title)
                empty = torch.full_like(next(iter(one.pictures.values())), 255)
                pictures.append(empty if picture is None else picture)
                said = [one.name] if title == titles[0] else []
                said += [part for part in one.text.split("  ") if part] if title == "result" else []
                captions.append("\n".join(said))
        beside = _beside(len(self._sheet), len(titles))
        heads = titles * beside if len(titles) > 1 else []
        whole = sheet(pictures, captions, columns=beside * len(titles), titles=heads)
        recipe = None if self.options.no_metadata else {"command": SHEET, "of": self.command}
        write_bytes(path, encode_picture(whole, path.suffix.lower(), recipe))
        rest = f"; {self._left_out} more have no room" if self._left_out else ""
        self.out.say(f"sheet of {len(self._sheet)} → {path}{rest}")


def _by_title(source: Tensor | None, result: Tensor | bytes | Path | None) -> dict[str, Tensor]:
    """What there is of source, result and their difference, as uint8 (C, H, W)."""
    from ...pictures.images import normalised, on_white, open_picture, to_pixels, to_tensor
    from ...pictures.sheets import difference

    pictures = {}
    if source is not None:
        pictures[TITLES[0]] = to_pixels(source[0])
    if isinstance(result, bytes | Path):
        result = to_tensor(on_white(normalised(open_picture(result, "result"))))
    if result is not None:
        pictures[TITLES[1]] = result
    if len(pictures) == 2 and pictures[TITLES[0]].shape == pictures[TITLES[1]].shape:
        pictures[TITLES[2]] = difference(pictures[TITLES[0]], pictures[TITLES[1]])
    return pictures


def _beside(count: int, pictures: int) -> int:
    """How many of `count` inputs stand side by side, so that a sheet of many isn't a ribbon."""
    if pictures == 1:
        return max(COLUMNS, round(math.sqrt(count)))
    return max(1, round(math.sqrt(count / (2 * pictures))))


def _name(label: Any) -> str:
    """What a caption says of an input, or of the two ends of a way: the files' names."""
    return " → ".join(Path(one).name for one in ([label] if isinstance(label, str) else label))


def _ours(path: Path) -> bool:
    """Whether an earlier run made this page or sheet."""
    from ...pictures.images import MAX_BYTES, open_picture
    from ...pictures.metadata import read_recipe

    if path.suffix.lower() in PAGES:
        return GENERATOR in read_limited(path, MAX_BYTES)[:2000]
    try:
        recipe = read_recipe(open_picture(path, str(path)))
    except InputError:
        return False
    return recipe is not None and recipe.get("command") == SHEET


def _now() -> datetime:
    """When the page is made, or when https://reproducible-builds.org's variable says."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    return datetime.now(UTC) if epoch is None else datetime.fromtimestamp(int(epoch), UTC)
