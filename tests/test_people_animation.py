"""Animations: order and pace of frames; films that the real ffmpeg makes and reads."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pdae_cli.errors import InputError, UsageError
from pdae_cli.pictures.animation import (
    eased,
    encode_mp4,
    milliseconds_of,
    needed,
    rate_of,
    shares,
    there_and_back,
)

FFMPEG, FFPROBE = shutil.which("ffmpeg"), shutil.which("ffprobe")
needs_ffmpeg = pytest.mark.skipif(not (FFMPEG and FFPROBE), reason="ffmpeg isn't on PATH")
RATE = Fraction(25)
RED, GREEN, BLUE = (220, 40, 30), (30, 200, 60), (20, 60, 230)


def frame(colour: tuple[int, ...], height: int = 32, width: int = 48) -> Tensor:
    return torch.tensor(colour, dtype=torch.uint8)[:, None, None].expand(-1, height, width)


class TestOrder:
    def test_shares_are_even_and_begin_and_end_exactly(self) -> None:
        assert shares(5) == [0, 0.25, 0.5, 0.75, 1]

    @pytest.mark.parametrize("steps", [2, 3, 10, 101])
    def test_eased_shares_keep_ends_order_and_symmetry(self, steps: int) -> None:
        told = shares(steps, ease=True)
        assert told[0] == 0.0 and told[-1] == 1.0 and len(told) == steps
        assert all(a < b for a, b in itertools.pairwise(told))
        assert [1 - s for s in reversed(told)] == pytest.approx(told)

    def test_eased_shares_are_at_rest_at_both_ends(self) -> None:
        step = 1e-6
        assert eased(step) / step < 1e-5 and (1 - eased(1 - step)) / step < 1e-5
        assert (eased(0.5 + step) - eased(0.5)) / step == pytest.approx(1.5, rel=1e-3)

    @pytest.mark.parametrize("count", [1, 2, 3, 10])
    def test_there_and_back_repeats_without_a_jump_or_a_pause(self, count: int) -> None:
        frames = [torch.tensor(n) for n in range(count)]
        looped = [int(one) for one in there_and_back(frames)]
        assert len(looped) == max(count, 2 * count - 2) and looped[:count] == list(range(count))
        again = zip(looped, looped[1:] + looped[:1], strict=True)
        assert count < 2 or all(abs(a - b) == 1 for a, b in again)


class TestPace:
    @pytest.mark.parametrize("rate", [1, 10, 24, 25, Fraction(30000, 1001), 50])
    def test_a_frame_stands_as_long_as_the_format_can_say(self, rate: Fraction) -> None:
        assert abs(milliseconds_of(Fraction(rate), ".webp") - 1000 / rate) <= 0.5
        told = milliseconds_of(Fraction(rate), ".gif")
        assert told % 10 == 0 and abs(told - 1000 / rate) <= 5

    def test_either_way_of_telling_it(self) -> None:
        assert rate_of() == 10 and rate_of(milliseconds=40) == rate_of(fps=25) == 25
        assert rate_of(fps=29.97) == Fraction(2997, 100) and rate_of(fps=0.1) == Fraction(1, 10)
        with pytest.raises(UsageError, match="give one"):
            rate_of(fps=25, milliseconds=40)

    def test_what_viewers_of_gifs_would_slow_down_is_refused(self) -> None:
        assert milliseconds_of(Fraction(60), ".webp") == 17
        with pytest.raises(UsageError, match=r"50 frames.*\.webp or \.mp4"):
            milliseconds_of(Fraction(60), ".gif")


def probed(film: bytes, folder: Path) -> dict[str, Any]:
    """What ffprobe says of a film's pictures, and its comment."""
    path = folder / "film.mp4"
    path.write_bytes(film)
    assert FFPROBE is not None
    facts = json.loads(
        subprocess.run(
            [FFPROBE, "-v", "error", "-count_frames", "-show_streams", "-show_format",
             "-of", "json", str(path)],
            check=True, capture_output=True,
        ).stdout
    )  # fmt: skip
    assert len(facts["streams"]) == 1
    return {**facts["streams"][0], "comment": facts["format"]["tags"].get("comment")}


@needs_ffmpeg
class TestFilms:
    @pytest.mark.parametrize(("height", "width"), [(32, 48), (33, 48), (32, 47), (31, 31)])
    def test_each_frame_at_its_rate_with_even_sides(
        self, height: int, width: int, tmp_path: Path
    ) -> None:
        frames = [frame(colour, height, width) for colour in (RED, GREEN, BLUE, RED, GREEN)]
        facts = probed(encode_mp4(frames, Fraction(30000, 1001), {}, FFMPEG), tmp_path)
        assert facts["nb_read_frames"] == "5" and facts["avg_frame_rate"] == "30000/1001"
        assert (facts["height"], facts["width"]) == (height + height % 2, width + width % 2)
        assert (facts["codec_name"], facts["pix_fmt"]) == ("h264", "yuv420p")

    def test_colours_come_back(self, tmp_path: Path) -> None:
        path = tmp_path / "film.mp4"
        path.write_bytes(encode_mp4([frame(c) for c in (RED, GREEN, BLUE)], RATE, {}, FFMPEG))
        assert FFMPEG is not None
        raw = subprocess.run(
            [FFMPEG, "-v", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"],
            check=True, capture_output=True,
        ).stdout  # fmt: skip
        back = torch.frombuffer(bytearray(raw), dtype=torch.uint8).reshape(3, 32 * 48, 3)
        for told, colour in zip(back.float().mean(1), (RED, GREEN, BLUE), strict=True):
            assert told.tolist() == pytest.approx(colour, abs=4)

    def test_grey_is_grey(self, tmp_path: Path) -> None:
        film = encode_mp4([torch.full((1, 32, 32), 99, dtype=torch.uint8)], RATE, {}, FFMPEG)
        assert probed(film, tmp_path)["nb_read_frames"] == "1"

    def test_the_recipe_is_the_comment(self, tmp_path: Path) -> None:
        recipe = {"command": "interpolate", "sources": [{"name": "=;#\\\n'\"é.png"}]}
        told = probed(encode_mp4([frame(RED)], RATE, recipe, FFMPEG), tmp_path)["comment"]
        assert json.loads(told) == recipe
        film = encode_mp4([frame(RED)], RATE, None, FFMPEG)
        assert probed(film, tmp_path)["comment"] is None

    def test_the_index_comes_first_so_that_players_start_at_once(self) -> None:
        film = encode_mp4([frame(RED)], RATE, {}, FFMPEG)
        assert film.index(b"moov") < film.index(b"mdat")


def program(folder: Path, code: str) -> str:
    """A program in ffmpeg's place."""
    path = folder / "ffmpeg"
    path.write_text(f"#!{sys.executable}\n{code}\n")
    path.chmod(0o755)
    return str(path)


class TestFailures:
    def test_without_the_program_the_line_says_what_to_do(self) -> None:
        with pytest.raises(UsageError, match=r"ffmpeg.*install.*\.gif or \.webp") as failed:
            needed(None)
        assert "\n" not in str(failed.value)

    @pytest.mark.skipif(sys.platform == "win32", reason="scripts aren't programs there")
    @pytest.mark.parametrize("frames", [1, 500])
    def test_its_complaint_is_one_line_also_where_it_stops_reading(
        self, frames: int, tmp_path: Path
    ) -> None:
        ffmpeg = program(
            tmp_path, "import sys; sys.exit('\\nUnknown encoder \\'libx264\\'\\nmore')"
        )
        with pytest.raises(InputError, match="Unknown encoder 'libx264'") as failed:
            encode_mp4([frame(RED, 128, 128)] * frames, RATE, {}, ffmpeg)
        assert "\n" not in str(failed.value) and "more" not in str(failed.value)

    @pytest.mark.skipif(sys.platform == "win32", reason="scripts aren't programs there")
    def test_a_silent_failure_has_its_exit_code(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="exit code 7"):
            encode_mp4([frame(RED)], RATE, {}, program(tmp_path, "raise SystemExit(7)"))

    def test_what_isnt_a_program(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="can't be run"):
            encode_mp4([frame(RED)], RATE, {}, str(tmp_path / "none"))
