"""--report, --sheet, --show and animations, from the command line to the file."""

from __future__ import annotations

import base64
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pytest
import torch
from conftest import Command, picture
from drawn import found, pixels
from html_pages import Page, column
from PIL import Image, ImageSequence
from torch import Tensor

from pdae_cli.cli.run.inputs import split_pngs
from pdae_cli.pictures.images import open_picture, prepare

FAST = ("--inference-steps", "3")


def page(path: Path) -> Page:
    return Page(path.read_text("utf-8"))


def alts(told: Page) -> list[str]:
    return [str(one["alt"]).split(":")[0] for one in told.named("img")]


class TestReport:
    def test_a_folder_with_a_broken_file_and_a_hostile_name(
        self, pdae: Command, tmp_path: Path
    ) -> None:
        names = ["a.png", "<script>alert(1)<|script>.png"]
        for seed, name in enumerate(names):
            picture(seed).save(tmp_path / name)
        (tmp_path / "broken.png").write_text("no picture")
        done = pdae("reconstruct", tmp_path, "-o", tmp_path / "out", *FAST, "--json",
                    "--report", tmp_path / "r.html")  # fmt: skip
        assert done.code == 3 and "report → " in done.err
        records = [json.loads(line) for line in done.text.splitlines()]
        told = page(tmp_path / "r.html")
        failures, figures, results = told.tables
        assert column(failures, "inputs") == ["broken.png"]  # and no folder of ours
        assert [Path(one).name for one in column(results, "input")] == sorted(names)
        assert alts(told) == ["source", "result", "difference x4"] * 2
        assert len(told.named("script")) == 1
        psnr = [record["psnr"] for record in records if record["status"] == "done"]
        assert [float(one) for one in column(results, "psnr")] == pytest.approx(psnr, rel=1e-3)
        assert {row[0] for row in figures[1:]} >= {"mse", "psnr"}

    def test_measures_without_outputs_have_pictures_too(
        self, pdae: Command, pictures: list[Path], tmp_path: Path
    ) -> None:
        assert pdae("reconstruct", *pictures, *FAST, "--report", tmp_path / "r.html").code == 0
        assert alts(page(tmp_path / "r.html")) == ["source", "result", "difference x4"] * 3

    def test_the_picture_shown_is_the_one_written(self, pdae: Command, tmp_path: Path) -> None:
        picture().save(tmp_path / "a.png")
        args = ("reconstruct", tmp_path / "a.png", "-o", tmp_path / "b.png", *FAST)
        pdae(*args, "--report", tmp_path / "r.html")
        data = str(page(tmp_path / "r.html").named("img")[1]["src"]).split(",")[1]
        assert torch.equal(pixels(base64.b64decode(data)), pixels(tmp_path / "b.png"))

    def test_a_run_with_nothing_left_to_do_still_tells_all(
        self, pdae: Command, pictures: list[Path], tmp_path: Path
    ) -> None:
        args = ("reconstruct", *pictures, "-o", tmp_path / "out", *FAST)
        assert pdae(*args, "--sheet", tmp_path / "first.png").code == 0
        for _ in range(2):  # what an earlier run told may be replaced
            again = pdae(*args, "--report", tmp_path / "r.html", "--sheet", tmp_path / "s.png")
            assert again.code == 0 and "3 unchanged" in again.err
        told = page(tmp_path / "r.html")
        assert alts(told) == ["source", "result", "difference x4"] * 3
        assert len(column(told.tables[-1], "psnr")) == 3
        assert (tmp_path / "s.png").read_bytes() == (tmp_path / "first.png").read_bytes()
        assert pixels(tmp_path / "s.png").shape[1] > 3 * 128

    def test_codes_have_no_picture_of_a_result_and_decoded_ones_none_of_a_source(
        self, pdae: Command, pictures: list[Path], tmp_path: Path
    ) -> None:
        assert pdae("encode", *pictures, "-o", tmp_path / "z", *FAST,
                    "--report", tmp_path / "e.html").code == 0  # fmt: skip
        assert alts(page(tmp_path / "e.html")) == ["source"] * 3
        assert pdae("decode", tmp_path / "z", "-o", tmp_path / "out",
                    "--report", tmp_path / "d.html").code == 0  # fmt: skip
        assert alts(page(tmp_path / "d.html")) == ["result"] * 3

    def test_the_ends_of_a_way_are_told_without_their_folders(
        self, pdae: Command, pictures: list[Path], tmp_path: Path
    ) -> None:
        for end, code in ((pictures[1], 0), (tmp_path / "none.png", 3)):
            line = ("interpolate", pictures[0], end, "--steps", 2, *FAST, "-o", tmp_path / "w.png")
            assert pdae(*line, "--report", tmp_path / "r.html").code == code
            text = (tmp_path / "r.html").read_text()
            assert "a.png" in text and end.name in text and str(tmp_path) not in text

    def test_edits_tell_their_scores(
        self, pdae: Command, pictures: list[Path], tmp_path: Path
    ) -> None:
        line = ("manipulate", *pictures[:2], "--attr", "smiling=0.3", *FAST, "-o", tmp_path / "out")
        assert pdae(*line, "--report", tmp_path / "r.html").code == 0
        results = page(tmp_path / "r.html").tables[-1]
        assert len(column(results, "attributes Smiling before")) == 2

    def test_its_time_is_the_builds_where_that_is_set(
        self, pdae: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
        pages = []
        for name in ("a.html", "b.html"):
            pdae("sample", "-n", "1", "-o", tmp_path / "out", *FAST, "--report", tmp_path / name)
            pages.append((tmp_path / name).read_text("utf-8").replace("unchanged", "done"))
        assert pages[0] == pages[1] and "1970-01-02T00:00:00+00:00" in pages[0]

    @pytest.mark.parametrize("epoch", ["", "now", "9" * 30])
    def test_a_time_that_is_none_is_told_before_any_work(
        self, pdae: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: str
    ) -> None:
        monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
        line = ("sample", "-n", "1", "-o", tmp_path / "out", *FAST)
        result = pdae(*line, "--report", tmp_path / "r.html")
        assert result.code == 2 and "SOURCE_DATE_EPOCH" in result.err
        assert not [*tmp_path.iterdir()] and pdae(*line).code == 0


class TestRefusals:
    @pytest.mark.parametrize(("option", "name"), [("--report", "r.html"), ("--sheet", "s.png")])
    def test_what_isnt_ours_is_kept(
        self, pdae: Command, tmp_path: Path, option: str, name: str
    ) -> None:
        theirs = tmp_path / name
        if option == "--sheet":
            picture().save(theirs)
        else:
            theirs.write_text("<html>")
        before = theirs.read_bytes()
        args = ("sample", "-n", "1", "-o", tmp_path / "out", *FAST, option, theirs)
        done = pdae(*args)
        assert done.code == 2 and "--overwrite" in done.err and theirs.read_bytes() == before
        assert pdae(*args, "--overwrite").code == 0 and theirs.read_bytes() != before

    def test_a_result_isnt_a_sheet(self, pdae: Command, tmp_path: Path) -> None:
        args = ("sample", "-n", "1", *FAST, "-o", tmp_path / "out")
        assert pdae(*args).code == 0
        assert pdae(*args, "--sheet", tmp_path / "out" / "00000.png").code == 2

    @pytest.mark.parametrize(
        ("output", "option", "name"),
        [("out.png", "--sheet", "out.png"), ("out.png", "--sheet", "link/out.png"),
         ("out/", "--sheet", "out/a.png"), ("link/out/", "--sheet", "out/a.png"),
         ("out.html/", "--report", "link/out.html")],
    )  # fmt: skip
    def test_neither_is_a_result_of_its_own_run(
        self, pdae: Command, pictures: list[Path], tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch, output: str, option: str, name: str,
    ) -> None:  # fmt: skip
        monkeypatch.chdir(tmp_path)
        Path("link").symlink_to(".")
        line = ("reconstruct", pictures[0], *FAST, "-o", output, "--overwrite")
        done = pdae(*line, option, name)
        assert done.code == 2 and option in done.err and "rename one" in done.err
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "link"]
        assert pdae(*line, "--sheet", "sheet.png", "--report", "report.html").code == 0

    def test_a_frame_isnt_written_where_the_sheet_goes(
        self, pdae: Command, pictures: list[Path], tmp_path: Path
    ) -> None:
        frames = [picture(seed) for seed in range(2)]
        film, out = tmp_path / "x.gif", tmp_path / "out"
        frames[0].save(film, save_all=True, append_images=frames[1:])
        args = ("reconstruct", film, "--frames", "all", *FAST, "-o", out)
        done = pdae(*args, "--sheet", out / "x-0001.png")
        assert done.code == 3 and "x-0001.png is that of --sheet too; rename one" in done.err
        assert "sheet of 1" in done.err and (out / "x-0000.png").exists()


class TestSheet:
    def test_sources_and_results_side_by_side(
        self, pdae: Command, pictures: list[Path], tmp_path: Path
    ) -> None:
        args = ("reconstruct", *pictures, "-o", tmp_path / "out", *FAST)
        done = pdae(*args, "--sheet", tmp_path / "s.png")
        assert done.code == 0 and "sheet of 3" in done.err
        whole = pixels(tmp_path / "s.png")
        for path in pictures:
            source = prepare(open_picture(path, "x"), 32).int()
            result = pixels(tmp_path / "out" / f"{path.stem}.png")
            for one in (source, result):
                large = one.repeat_interleave(4, 1).repeat_interleave(4, 2)
                assert found(whole, large) == 1

    def test_many_stand_side_by_side(self, pdae: Command, tmp_path: Path) -> None:
        """Pairs in as many columns as make it no ribbon; results alone in rows of eight."""
        for number in range(14):
            picture(number).save(tmp_path / f"{number}.png")
        pairs, alone = tmp_path / "out" / "p.png", tmp_path / "out" / "a.png"
        pdae("reconstruct", tmp_path, *FAST, "--sheet", pairs)
        pdae("sample", "-n", "9", *FAST, "-o", tmp_path / "s", "--sheet", alone)
        for path, columns, lowest, highest in ((pairs, 6, 7 * 128, 8 * 256), (alone, 8, 256, 384)):
            _, height, width = pixels(path).shape
            assert width == columns * (128 + 8) + 8 and lowest < height < highest

    def test_what_has_no_room_is_counted(
        self, pdae: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("pdae_cli.cli.run.viewing.ON_A_SHEET", 2)
        args = ("sample", "-n", "5", *FAST, "-o", tmp_path / "out")
        done = pdae(*args, "--sheet", tmp_path / "s.png")
        assert "sheet of 2" in done.err and "; 3 more have no room" in done.err

    def test_captions_are_the_names_of_files(
        self, pdae: Command, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        said: list[Sequence[str]] = []

        def heard(pictures: Sequence[Tensor], captions: Sequence[str], **more: object) -> Tensor:
            said.append(captions)
            return pictures[0]

        monkeypatch.setattr("pdae_cli.pictures.sheets.sheet", heard)
        sheet = ("--sheet", tmp_path / "s.png", "--overwrite")
        pdae("interpolate", *pictures[:2], "--steps", 2, *FAST, "-o", tmp_path / "a.gif", *sheet)
        assert said[0] == ["a.png → b.jpg\n2 pictures"]
        pdae("reconstruct", pictures[0], *FAST, *sheet)
        lines = [caption.split("\n") for caption in said[1]]
        assert lines[0] == ["a.png"] and lines[1][0].startswith("mse ") and lines[2] == [""]


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch, **environ: str) -> Iterator[Callable[[], str]]:
    """A terminal as standard error, described by these variables; yields what it was sent."""
    pty = pytest.importorskip("pty")
    keeper, slave = pty.openpty()
    sent = bytearray()

    def listen() -> None:
        while True:
            try:
                data = os.read(keeper, 65536)
            except OSError:  # how a terminal says that it was closed
                return
            sent.extend(data)
            if data.endswith(b"\0"):
                return

    reader = threading.Thread(target=listen)
    reader.start()
    for name in ("NO_COLOR", "TMUX", "KITTY_WINDOW_ID", "TERM_PROGRAM", "LC_TERMINAL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"COLORTERM": "truecolor", **environ}.items():
        monkeypatch.setenv(name, value)
    stderr = os.fdopen(slave, "w", encoding="utf-8")
    monkeypatch.setattr(sys, "stderr", stderr)

    def told() -> str:
        stderr.write("\0")
        stderr.flush()
        reader.join(10)
        return sent.decode().replace("\r\n", "\n").removesuffix("\0")

    try:
        yield told
    finally:
        monkeypatch.undo()
        stderr.close()
        os.close(keeper)
        reader.join(10)


# textual-image 0.12 asks Pillow 13 in the old way.
@pytest.mark.filterwarnings("ignore:Image.Image.getdata:DeprecationWarning")
class TestShow:
    def test_without_a_terminal_nothing_but_a_line(
        self, pdae: Command, pictures: list[Path]
    ) -> None:
        done = pdae("reconstruct", *pictures[:1], *FAST, "--show")
        assert done.code == 0 and "nothing is shown" in done.err
        assert "\x1b" not in done.err + done.text and "▀" not in done.err + done.text

    def test_half_blocks_of_source_and_result(
        self, pdae: Command, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with terminal(monkeypatch, TERM="xterm-256color", LINES="50") as told:
            done = pdae("reconstruct", *pictures[:2], *FAST, "--show")
            text = told()
        assert done.code == 0 and "▀" not in done.text, text
        assert done.text.count("psnr") == 2 and "psnr" not in text  # results stay on stdout
        lines = [line for line in text.splitlines() if "▀" in line]
        assert {line.count("▀") for line in lines} == {2 * 32 + 2} and len(lines) == 2 * 16
        assert all("38;2;" in line and "48;2;" in line for line in lines)

    def test_no_colours_no_pictures(
        self, pdae: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with terminal(monkeypatch, TERM="xterm-kitty", NO_COLOR="1") as told:
            assert pdae("sample", "-n", "1", *FAST, "-o", tmp_path / "out", "--show").code == 0
            text = told()
        assert "nothing is shown" in text and "\x1b_G" not in text and "▀" not in text


class TestAnimations:
    def test_there_and_back_at_a_pace(
        self, pdae: Command, pictures: list[Path], tmp_path: Path
    ) -> None:
        line = ("interpolate", *pictures[:2], "--steps", 4, "--loop", "--fps", 25, *FAST)
        assert pdae(*line, "-o", tmp_path / "a.webp").code == 0
        with Image.open(tmp_path / "a.webp") as image:
            frames = [frame.convert("RGB").tobytes() for frame in ImageSequence.Iterator(image)]
            assert image.info["duration"] == 40
        assert len(frames) == 6
        shown = torch.tensor([list(frame) for frame in frames]).float()
        assert (shown[1] - shown[5]).abs().mean() < (shown[1] - shown[2]).abs().mean()

    def test_eased_pictures_keep_their_ends(
        self, pdae: Command, pictures: list[Path], tmp_path: Path
    ) -> None:
        for folder, more in (("even", ()), ("eased", ("--ease",))):
            assert pdae("interpolate", *pictures[:2], "--steps", 4, *more, *FAST,
                        "-o", tmp_path / folder).code == 0  # fmt: skip
        alike = [
            torch.equal(pixels(tmp_path / "even" / name), pixels(tmp_path / "eased" / name))
            for name in ("0000.png", "0001.png", "0002.png", "0003.png")
        ]
        assert alike == [True, False, False, True]

    def test_films_are_for_ffmpeg(
        self, pdae: Command, pictures: list[Path], tmp_path: Path
    ) -> None:
        args = ("interpolate", *pictures[:2], "--steps", 3, *FAST)
        frames = pdae(*args, "-o", "-", "--stream", "png").out
        assert pdae(*args, "-o", tmp_path / "way").code == 0
        for number, frame in enumerate(split_pngs(BytesIO(frames), 1 << 20)):
            assert torch.equal(pixels(frame), pixels(tmp_path / "way" / f"{number:04d}.png"))
        assert number == 2
