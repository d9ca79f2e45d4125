"""Pictures as users bring them, through commands; pdae data check; docs/data.md."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
from cli_runs import folder_of, outputs
from conftest import ROOT, Command, picture
from labelled import labelled
from small_runs import TINY, assert_equal, state

from pdae_cli.pictures import decoding, listing

FAST = ("--inference-steps", "2")
PAGE = (ROOT / "docs" / "data.md").read_text()
BAD = b"no picture"


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three pictures below the current folder, one of them deeper."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("a.png", "b.png", "sub/c.png")):
        Path("photos", name).parent.mkdir(parents=True, exist_ok=True)
        picture(number, (32, 32)).save(Path("photos", name))
    return Path("photos")


def test_the_commands_of_the_page(pdae: Command, photos: Path) -> None:
    lines = re.findall(r"^pdae .*$", PAGE, re.MULTILINE)
    assert len(lines) >= 4
    said = ""
    for line in lines:
        words = shlex.split(re.sub(r"#.*|>.*", "", line))
        result = pdae(*words[1:])
        assert result.code == 0, (line, result.err)
        said = result.err
    assert "3 unchanged" in said
    assert len(outputs(photos / "codes")) == 3


class TestOutputsAreNoInputs:
    def test_below_the_input(self, pdae: Command, photos: Path) -> None:
        args = ("reconstruct", photos, "-r", "-o", photos / "out", "--sheet", photos / "s.png")
        for status in ("", "3 unchanged", "3 unchanged"):
            result = pdae(*args, *FAST)
            assert result.code == 0 and status in result.err
        assert len(outputs(photos / "out")) == 3

    def test_beside_the_input(
        self, pdae: Command, photos: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(photos)
        for status in ("", "3 unchanged"):
            result = pdae("encode", ".", "-r", "-o", ".", "--no-noise")
            assert result.code == 0 and status in result.err
        # What another command made is an input as any other.
        assert pdae("decode", "a.safetensors", "-o", "x.png", "--random-noise", *FAST).code == 0
        Path("z").mkdir()
        Path("a.safetensors").rename("z/a.safetensors")
        assert pdae("decode", "z", "-o", "z", "--random-noise", *FAST).code == 0
        assert Path("z/a.png").exists()

    def test_one_file(self, pdae: Command, photos: Path) -> None:
        out = photos / "z.safetensors"
        for status in ("", "unchanged"):
            result = pdae("encode", photos, "-o", out, "--no-noise")
            assert result.code == 0 and status in result.err
        assert pdae("codes", "merge", photos, "-o", photos / "all.safetensors").code == 0
        again = pdae("codes", "merge", photos, "-o", photos / "all.safetensors", "--overwrite")
        assert again.code == 0 and b"of 2 pictures" in again.out


def test_what_is_left_out_is_said_once(
    pdae: Command, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for home in (listing, decoding):
        monkeypatch.setattr(home, "reads_heic", lambda: False)
    (photos / "d.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(80))
    (photos / "e.jpg").write_bytes((photos / "d.heic").read_bytes())
    (photos / "._a.png").write_bytes(b"AppleDouble")
    (photos / "notes.txt").write_text("no picture")
    picture(4).save(photos / "f.jfif", "JPEG")
    result = pdae("encode", photos, "-o", "out", "--no-noise")
    assert result.code == 3 and "e.jpg: a HEIC picture; pip install" in result.err
    assert sorted(outputs(Path("out"))) == ["a.safetensors", "b.safetensors", "f.safetensors"]
    (line,) = [line for line in result.err.splitlines() if "left out" in line]
    for part in ("1 hidden", "1 no pictures (.txt)", "1 HEIC, which `pip install"):
        assert part in line
    assert "1 more lies in its folders; -r" in result.err


def test_same_stems_and_frames_are_refused_before_the_work(pdae: Command, photos: Path) -> None:
    picture(5).save(photos / "a.jpg")
    result = pdae("encode", photos, "-r", "-o", "out", "--no-noise")
    assert result.code == 2 and "pass -r" not in result.err and not Path("out").exists()
    frames = [picture(seed) for seed in range(3)]
    frames[0].save("f.gif", save_all=True, append_images=frames[1:])
    result = pdae("reconstruct", "f.gif", "--frames", "all", "-o", "out.gif", *FAST)
    assert result.code == 2 and "3 pictures of f.gif need a folder" in result.err
    assert not Path("out.gif").exists()


def test_names_of_dots_and_great_length(pdae: Command, photos: Path) -> None:
    picture().save("x.png")
    Path("x.png").rename("..png")
    assert pdae("encode", "./..png", "-o", "o/", "--no-noise").code == 0
    long = "n" * 300
    assert pdae("encode", photos, "-o", "p/", "--no-noise", "--report", f"{long}.html").code == 3
    assert pdae("attributes", "fit", long).code == 3
    assert pdae("convert", long, "-o", "c").code == 4


class TestBadPicturesOfDATA:
    def test_training_goes_on_without_and_resumes_to_the_bit(
        self, pdae: Command, tmp_path: Path
    ) -> None:
        """As if the bad one, which isn't held out, weren't there; the run lies in the data."""
        data = folder_of(tmp_path / "data", 16)
        args = (*TINY, "--quiet", "--images")
        assert pdae("train", "dpm", data, "-o", tmp_path / "run", *args, 32).code == 0
        (data / "15x.png").write_bytes(BAD)
        for images in (16, 32):
            result = pdae("train", "dpm", data, "-o", data / "run", *args, images)
            assert result.code == 0 and result.err.count("15x.png") == 1
        assert_equal(state(tmp_path / "run"), state(data / "run"))

    def test_labels_stay_with_their_pictures(
        self, pdae: Command, tmp_path: Path, tiny_folder: Path
    ) -> None:
        data = labelled(tmp_path / "data", 24, 16)
        (data / "04.png").write_bytes(BAD)
        (data / "20.png").write_bytes(BAD)
        result = pdae("evaluate", "attributes", data, "--pictures", 30, "--json")
        assert result.code == 0, result.err
        assert [result.err.count(f"{name}.png: not a picture") for name in ("04", "20")] == [1, 1]
        records = [json.loads(line) for line in result.out.splitlines()]
        assert {one["held_out"] for one in records if "held_out" in one} == {7}


class TestCheck:
    def test_all_of_it(self, pdae: Command, tmp_path: Path) -> None:
        data = labelled(tmp_path / "data", 8, 6)
        (data / "twin.png").write_bytes((data / "03.png").read_bytes())
        picture(9, (40, 20)).save(data / "wide.jpg")
        good = pdae("data", "check", data, "--json")
        facts = json.loads(good.out)
        assert good.code == 0 and facts["unreadable"] == {} and facts["pictures"] == 10
        assert facts["duplicates"] == [["03.png", "twin.png"]]
        assert facts["sizes"] == {"32x32": 9, "40x20": 1} and facts["modes"] == {"RGB": 10}
        assert facts["labels"]["red"] == {"with": 4, "without": 4, "unknown": 2}
        (data / "bad.png").write_bytes(BAD)
        bad = pdae("data", "check", data)
        assert bad.code == 3 and "error: bad.png: not a picture" in bad.err
        assert b"10 pictures, 1 that can't be read" in bad.out and b"03.png = twin.png" in bad.out
        facts = json.loads(pdae("data", "check", data, "--json").out)
        assert list(facts["unreadable"]) == ["bad.png"]

    def test_what_is_no_data(self, pdae: Command, tmp_path: Path) -> None:
        (tmp_path / "a.zip").write_bytes(b"no")
        for name, code in (("a.zip", 3), ("none", 3), (".", 3)):
            result = pdae("data", "check", tmp_path / name)
            assert result.code == code and result.err.count("\n") <= 2, name

    def test_a_closed_folder_is_told_as_that(
        self, pdae: Command, photos: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nothing was to be written."""

        def refusing(name: str, ask: Callable[..., Any]) -> None:
            @wraps(ask)
            def asked(path: Any, *rest: Any, **how: Any) -> Any:
                if not isinstance(path, int) and name in Path(path).parts:
                    raise PermissionError(errno.EACCES, "Permission denied", str(path))
                return ask(path, *rest, **how)

            monkeypatch.setattr(os, ask.__name__, asked)

        refusing("labels.csv", os.stat)
        result = pdae("data", "check", photos, "--labels", photos / "labels.csv")
        assert result.code == 3 and "photos/labels.csv: no such file" in result.err
        assert pdae("data", "check", photos).code == 0
        refusing("metadata.csv", os.stat)
        refusing("photos", os.scandir)
        result = pdae("data", "check", photos)
        assert result.code == 3 and "photos: can't be opened: Permission denied" in result.err
