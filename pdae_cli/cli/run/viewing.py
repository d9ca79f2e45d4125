"""Results for people to look at, beside what is written: --show, --sheet and --report."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import __version__
from ...errors import InputError, UsageError, printable
from ...files import read_limited, write_bytes
from ..options import SharedOptions, ViewOptions
from ..output import Output
from .destination import PICTURE_SUFFIXES, Destination
from .loading import Load, Loaded, anew
from .manifest import Job, given
from .recipes import told

if TYPE_CHECKING:
    from torch import Tensor

    from ...engine.model import Model

PAGES, SHEETS = (".html", ".htm"), (".png", ".jpg", ".jpeg", ".webp")
ON_A_SHEET = 1000  # inputs, at most; those after them aren't on it
SHEET_BYTES = 256 << 20  # of their pictures, at most
SHEET = "sheet"  # the command, as its recipe says
COLUMNS = 8  # of results alone, where they are few
WAY = " → "  # between the names of two ends
TITLES = ("source", "result", "difference x4")
GENERATOR = b'<meta name="generator" content="pdae'


@dataclass(frozen=True)
class Seen:
    """One input on a sheet: its pictures by title, uint8 (C, H, W), and what is said of it."""

    name: str
    text: str
    pictures: dict[str, Tensor]


def time_said() -> datetime | None:
    """Read when a page is to say that it was made (https://reproducible-builds.org), if anything
    says so. Raises UsageError for what is no time."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        return None if epoch is None else datetime.fromtimestamp(int(epoch), UTC)
    except (ValueError, OverflowError, OSError) as error:
        what = f"SOURCE_DATE_EPOCH={printable(epoch or '')[:40]} is no number of seconds since 1970"
        raise UsageError(f"{what}; set it to one, or unset it") from error


class Viewer:
    """Sees each record of a run once, with its pictures; `finish` writes the sheet and the page."""

    def __init__(
        self, options: SharedOptions, command: str, out: Output, destination: Destination
    ) -> None:
        """Raises UsageError for names that a sheet or a page can't have."""
        from .report import Report
        from .terminal import way_to_show

        self.options = options if isinstance(options, ViewOptions) else ViewOptions()
        self.command, self.out = command, out
        self.overwrite = bool(options.given.get("overwrite"))
        self._silent = bool(options.given.get("no_metadata"))
        self.load: Load | None = None  # how inputs are read
        self._writes_pictures = destination.suffix in PICTURE_SUFFIXES
        self._check(self.options.report, "--report", PAGES)
        self._check(self.options.sheet, "--sheet", SHEETS)
        self._way = way_to_show(out.console) if self.options.show else None
        if self.options.show and self._way is None:
            out.say("--show needs a terminal with colours as standard error: nothing is shown")
        both = {"--report": self.options.report, "--sheet": self.options.sheet}
        # What is made of all results together, by option; whether what is seen matters at all.
        self.files = {option: name for option, name in both.items() if name}
        self.looks = bool(self.files or self._way)
        self._said = time_said() if self.options.report else None
        self._report = Report(f"pdae {command}")
        self._sheet: list[Seen] = []
        self._bytes = self._left_out = 0

    def _check(self, name: str | None, option: str, suffixes: tuple[str, ...]) -> None:
        """A name's suffix, and that nothing is lost that isn't ours."""
        if name is None:
            return
        path = Path(name)
        if path.suffix.lower() not in suffixes:
            raise UsageError(f"{option} {name}: its name ends in {' or '.join(suffixes)}")
        # Path.exists raises on names that are too long.
        if os.path.exists(path) and not self.overwrite and not _ours(path):  # noqa: PTH110
            raise UsageError(f"{option} {name} exists and isn't one of ours; pass --overwrite")

    def see(
        self,
        record: Mapping[str, Any],
        text: str = "",
        source: Loaded | None = None,
        result: Tensor | bytes | Path | None = None,
    ) -> None:
        """One input's record, and what it says for people; its result is a uint8 picture (C, H, W),
        or the file that was written."""
        if not self.looks:
            return
        if isinstance(result, bytes | Path) and not self._writes_pictures:
            result = None
        try:
            if source is not None and source.state.done and self.load is not None:  # read it again
                again = self.load(source.item, anew)
                source = next((one for one in again if one.place == source.place), source)
            pictures = _by_title(source.picture if source else None, result)
        except InputError as error:  # it was there before; its record still counts
            self.out.warn(f"{error}: not shown")
            pictures = {}
        if self._way and record.get("status") == "done" and pictures:
            self._show(pictures)
        if self.options.report:
            self._report.add(_without_folders(record), pictures)
        if self.options.sheet and pictures:
            if len(self._sheet) == ON_A_SHEET or self._bytes > SHEET_BYTES:
                self._left_out += 1
            else:
                ends = [label] if isinstance(label := record["input"], str) else label
                name = WAY.join(Path(one).name for one in ends)  # an input's, or a way's two
                self._sheet.append(Seen(name, text.strip(": "), pictures))
                self._bytes += sum(picture.numel() for picture in pictures.values())

    def _show(self, pictures: Mapping[str, Tensor]) -> None:
        """The source, if it is of the same size, and the result on the terminal."""
        import torch

        from ...pictures.images import tile
        from .terminal import show

        shown = [one for title, one in pictures.items() if title in TITLES[:2]]
        alike = all(one.shape == shown[-1].shape for one in shown)
        show(self.out.console, self._way, tile(torch.stack(shown if alike else shown[-1:]), 2))

    def finish(self, model: Model, job: Job) -> None:
        """Write what was asked for. Raises InputError."""
        if self.options.report:
            options = {k: v for k, v in job.options.items() if given(v) and v != ""}
            self._report.facts = {
                "pdae": __version__,
                "model": model.name,
                "model digest": model.weights_sha,
                **{f"--{name.replace('_', '-')}": str(value) for name, value in options.items()},
            }
            page = self._report.page(self._said or datetime.now(UTC))
            write_bytes(Path(self.options.report), page.encode())
            self.out.say(f"report → {self.options.report}")
        if self.options.sheet and self._sheet:
            self._write_sheet(Path(self.options.sheet))

    def _write_sheet(self, path: Path) -> None:
        import torch

        from ...pictures.images import encode_picture
        from ...pictures.sheets import sheet

        titles = [title for title in TITLES if any(title in one.pictures for one in self._sheet)]
        pictures, captions = [], []
        for one in self._sheet:
            empty = torch.full_like(next(iter(one.pictures.values())), 255)
            for title in titles:
                pictures.append(one.pictures.get(title, empty))
                said = [one.name] if title == titles[0] else []
                said += [part for part in one.text.split("  ") if part] if title == "result" else []
                captions.append("\n".join(said))
        # So many side by side that a sheet of many isn't a ribbon.
        count, wide = len(self._sheet), len(titles)
        beside = max(COLUMNS, round(math.sqrt(count)))
        if wide > 1:
            beside = max(1, round(math.sqrt(count / (2 * wide))))
        heads = titles * beside if wide > 1 else []
        whole = sheet(pictures, captions, columns=beside * wide, titles=heads)
        recipe = None if self._silent else {"command": SHEET, "of": self.command}
        write_bytes(path, encode_picture(whole, path.suffix.lower(), recipe))
        rest = f"; {self._left_out} more have no room" if self._left_out else ""
        self.out.say(f"sheet of {count} → {path}{rest}")


def _without_folders(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record for others to see: without what absolute paths say."""
    names = list[str]()
    for named in (record.get("input"), record.get("output")):
        names += named if isinstance(named, list) else str(named or "").split(WAY)

    def without(value: Any) -> Any:
        if isinstance(value, list):
            return [without(one) for one in value]
        for full in filter(None, names if isinstance(value, str) else ()):
            value = value.replace(full, told(full))
        return value

    return {key: without(value) for key, value in record.items()}


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


def _ours(path: Path) -> bool:
    """Whether an earlier run made this page or sheet."""
    from ...pictures.decoding import open_picture
    from ...pictures.listing import MAX_PICTURE
    from ...pictures.metadata import read_recipe

    if path.suffix.lower() in PAGES:
        return GENERATOR in read_limited(path, MAX_PICTURE, 2000)
    try:
        recipe = read_recipe(open_picture(path, str(path)))
    except InputError:
        return False
    return recipe is not None and recipe.get("command") == SHEET
