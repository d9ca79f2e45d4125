"""One file of the codes of many inputs: what is odd or broken fails alone, and costs no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cli_runs import folder_of
from conftest import Command, picture

from pdae_cli.cli.run.batches import Run
from pdae_cli.engine.codes import Codes, from_bytes
from pdae_cli.engine.model import Model

FAST = ("--inference-steps", 2)
ENCODE = ("encode", *FAST)
MOVE = ("manipulate", "--attr", "smiling=0.3", "--format", "codes", *FAST)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three pictures in a folder of the current one."""
    monkeypatch.chdir(tmp_path)
    return folder_of(Path("photos"), 3)


def rows(path: str) -> Codes:
    return from_bytes(Path(path).read_bytes(), path)


@pytest.mark.parametrize("command", [ENCODE, MOVE], ids=["encode", "manipulate"])
def test_codes_unlike_those_of_pictures_fail_alone(
    pdae: Command, photos: Path, command: tuple[Any, ...]
) -> None:
    """Whichever come first: it is the pictures that cost time."""
    photos.rename("photos-2")
    folder_of(Path("photos/z"), 2).rename("old")
    assert pdae("encode", "old", "-o", "photos/codes/", "--no-noise").code == 0
    Path("photos-2").rename("photos/new")
    result = pdae(*command, "photos", "-r", "-o", "all.safetensors")
    assert result.code == 3 and "3 done, 2 failed" in result.err
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2 and all("/codes/" in one and "have x_T" in one for one in errors)
    assert [Path(one).parent.name for one in rows("all.safetensors").sources] == ["new"] * 3


@pytest.mark.parametrize("command", [ENCODE, MOVE], ids=["encode", "manipulate"])
def test_of_codes_alone_the_first_say_what_goes_with_them(
    pdae: Command, photos: Path, command: tuple[Any, ...]
) -> None:
    for name, more in (("a", ()), ("b", ("--no-noise",)), ("c", ()), ("d", ("--corrections", 1))):
        line = ("encode", photos / "0.png", *FAST, *more, "-o", f"{name}.safetensors")
        assert pdae(*line).code == 0
    result = pdae(*command, *(f"{name}.safetensors" for name in "abcd"), "-o", "all.safetensors")
    assert result.code == 3 and "2 done, 2 failed" in result.err
    assert "error: b.safetensors: some of the codes have x_T" in result.err
    assert "error: d.safetensors: codes photos/0.png (corrections 1)" in result.err
    assert len(rows("all.safetensors")) == 2


@pytest.mark.parametrize("command", [ENCODE, MOVE], ids=["encode", "manipulate"])
def test_a_file_that_lacks_an_input_isnt_made_again_for_that(
    pdae: Command, photos: Path, command: tuple[Any, ...]
) -> None:
    """The same is said again, until the input can be read."""
    (photos / "1.png").write_bytes(b"no picture")
    names = [photos / f"{number}.png" for number in (0, 1, 2, 9)]
    line = (*command, *names, "-o", "z.safetensors")
    first = pdae(*line)
    made = Path("z.safetensors").read_bytes()
    assert first.code == 3 and "2 done, 2 failed" in first.err and len(rows("z.safetensors")) == 2
    again = pdae(*line)
    assert again.code == 3 and "1 unchanged, 2 failed" in again.err
    assert Path("z.safetensors").read_bytes() == made
    for name in ("1.png: not a picture", "9.png: no such file"):
        assert f"photos/{name}" in first.err and f"photos/{name}" in again.err
    picture(9).save(photos / "9.png")
    assert "z.safetensors is made again: its input changed" in pdae(*line).err
    picture(1).save(photos / "1.png")
    mended = pdae(*line)
    assert mended.code == 0 and len(rows("z.safetensors")) == 4
    assert "1 unchanged" in pdae(*line).err


@pytest.mark.parametrize("suffix", [".safetensors", ".parquet"])
def test_what_failed_is_read_again_by_the_next_run(
    pdae: Command, photos: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """A file may have been read while it was still being copied, or before the package that decodes
    it was there."""
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    whole, late = (photos / "1.png").read_bytes(), photos / "1.png"
    late.write_bytes(whole[:-100])
    fail = Run.fail

    def copied(self: Run, *how: Any) -> None:
        fail(self, *how)
        late.write_bytes(whole)

    line = ("encode", *FAST, photos, "-o", f"z{suffix}")
    with monkeypatch.context() as patch:
        patch.setattr(Run, "fail", copied)
        assert pdae(*line).code == 3
    again = pdae(*line)
    assert again.code == 0 and "is made again" in again.err
    late.write_bytes(b"no picture")
    for _ in range(2):
        failed = pdae(*line)
        assert failed.code == 3 and "1.png: not a picture" in failed.err
    late.write_bytes(b"")
    failed = pdae(*line)
    assert "1 unchanged, 1 failed" in failed.err and "1.png: an empty file" in failed.err
    with monkeypatch.context() as patch:
        patch.setattr("pdae_cli.pictures.decoding.FORMATS", ("JPEG",))
        picture(1).save(late)
        picture(1).save(photos / "1.jpg")
        assert pdae(*line, "--overwrite").code == 3
        assert "1 unchanged, 3 failed" in pdae(*line).err
    assert pdae(*line).code == 0


def test_a_table_may_be_named_in_capitals(pdae: Command, photos: Path) -> None:
    pytest.importorskip("pyarrow")
    line = ("encode", photos, "--no-noise", "-o", "codes.PARQUET")
    assert pdae(*line).code == 0
    assert "1 unchanged" in pdae(*line).err
    assert "1 skipped" in pdae(*line, "--skip-existing").err


@pytest.mark.parametrize("name", ["1.heic", "1.png"])
def test_pictures_are_known_by_each_of_their_suffixes(
    pdae: Command, photos: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Codes unlike theirs come first, and fail alone."""
    assert pdae("encode", photos / "0.png", "-o", "0.safetensors", "--no-noise").code == 0
    monkeypatch.setattr("pdae_cli.pictures.decoding.kind_of", lambda head: "PNG")
    Path(photos / "1.png").rename(name)
    result = pdae(*ENCODE, "0.safetensors", name, "-o", "all.safetensors")
    assert result.code == 3 and "error: 0.safetensors: some of the codes" in result.err
    assert rows("all.safetensors").sources == (name,)


@pytest.mark.parametrize("limit", ["MAX_BYTES", "LARGEST_HEADER"])
def test_more_than_a_file_can_hold_is_refused_at_the_first_batch(
    pdae: Command, photos: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """What is written can be read again."""
    encode, encoded = Model.encode, list[int]()

    def counted(self: Model, x: Any, *more: Any, **how: Any) -> Codes:
        encoded.append(len(x))
        return encode(self, x, *more, **how)

    monkeypatch.setattr(Model, "encode", counted)
    assert pdae(*ENCODE, photos, "-o", "codes/").code == 0 and encoded == [3]
    most = 30_000 if limit == "MAX_BYTES" else 500
    monkeypatch.setattr(f"pdae_cli.engine.codes.{limit}", most)
    for line in (ENCODE, MOVE):
        encoded.clear()
        result = pdae(*line, photos, "--batch-size", 1, "-o", "all.safetensors")
        assert result.code == 2 and result.err.count("\n") == 1 and encoded == [1]
        assert "codes of 3 pictures are more than" in result.err and "-o codes/" in result.err
    assert pdae("codes", "merge", "codes", "-o", "all.safetensors").code != 0
    assert not Path("all.safetensors").exists()
    if limit == "MAX_BYTES":
        assert pdae(*ENCODE, photos / "0.png", "-o", "one.safetensors").code == 0
