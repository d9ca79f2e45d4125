"""Which files are pictures, of folders and zips, and zips that are damaged."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from conftest import picture
from drawn import saved

from pdae_cli.cli.run.inputs import collect
from pdae_cli.errors import InputError
from pdae_cli.pictures import listing
from pdae_cli.pictures.archives import Archive
from pdae_cli.pictures.listing import Listing, kind_of, list_pictures, natural

PNG = saved(picture(0, (8, 8)))
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(80)
FORMATS = {
    "PNG": "PNG", "JPEG": "JPEG", "MPO": "JPEG", "GIF": "GIF", "TIFF": "TIFF", "WEBP": "WEBP",
    "BMP": "BMP", "PPM": "PPM", "AVIF": "AVIF",
}  # fmt: skip
# Name → why it is left out; nothing for what is taken.
FILES = {
    "a2.png": "", "a10.PNG": "", "b.jfif": "", "sub/c": "", "sub/deep/d.5": "", "e.safetensors": "",
    ".f.png": listing.HIDDEN, "__MACOSX/._a2.png": listing.HIDDEN, "@eaDir/a/g.png": listing.HIDDEN,
    "sub/.ipynb_checkpoints/h.png": listing.HIDDEN, "i.txt": listing.OTHER, "j.dng": listing.OTHER,
    "sub/l.csv": listing.OTHER, "m.heic": listing.NO_HEIC, "n": listing.NO_HEIC,
}  # fmt: skip


def content(name: str) -> bytes:
    return HEIC if name in ("m.heic", "n") else PNG


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in FILES:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(name))
    return tmp_path / "in"


def zipped(path: Path, *names: str, method: int = zipfile.ZIP_DEFLATED) -> bytearray:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name in names:
            archive.writestr(name, content(name))
    return bytearray(path.read_bytes())


def reasons(found: Listing) -> Counter[str]:
    return Counter(reason for _, reason in found.left_out)


def test_names_sort_by_their_numbers() -> None:
    """Of any length; zeros in front count for nothing."""
    names = ["a", "a0", "a1.png", "a2", "a009", "a10", "a10b", "a10b2", "a" + "9" * 4299]
    names += [f"a{9 * '0'}1{4300 * '0'}", f"a2{4300 * '0'}", "b1"]
    mixed = [*names[1::2], *names[::2]]
    assert sorted(mixed, key=natural) == names
    assert natural("a007") == natural("A7")


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_the_same_files_of_folders_and_zips(
    folder: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "reads_heic", lambda: False)
    zipped(tmp_path / "in.zip", *FILES)
    root = folder if kind == "folder" else tmp_path / "in.zip"
    found = list_pictures(root, {".safetensors"})
    taken = [name for name, reason in FILES.items() if not reason]
    assert sorted(found.names) == sorted(taken)
    assert found.names.index("a2.png") < found.names.index("a10.PNG")
    assert all(found.read(name) == content(name) for name in taken)
    assert reasons(found).keys() == set(FILES.values()) - {""}
    assert "3 no pictures (.csv, .dng, .txt)" in found.told() and "HEIC" in found.told()
    assert "e.safetensors" not in list_pictures(root).names
    monkeypatch.setattr(listing, "reads_heic", lambda: True)
    assert {"m.heic", "n"} <= set(list_pictures(root).names)


@pytest.mark.parametrize("format", FORMATS)
def test_formats_are_known_by_their_first_bytes(format: str) -> None:
    assert kind_of(saved(picture(), format)[: listing.HEAD]) == FORMATS[format]


@pytest.mark.parametrize(
    "head", [b"", b"BMW is a car, and no picture", b"P6", b"PK\3\4", b"\0" * 64]
)
def test_other_beginnings_are_none(head: bytes) -> None:
    assert kind_of(head) == "" and kind_of(HEIC) == "HEIC"


def test_links_are_followed_and_loops_guarded(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "p.png").write_bytes(PNG)
    for name, target in {
        "away": tmp_path / "far", "again": tmp_path / "far", "up": tmp_path, "here": folder,
        "asub": folder / "sub", "far.png": tmp_path / "far" / "p.png",
    }.items():  # fmt: skip
        (folder / name).symlink_to(target)
    (tmp_path / "far" / "back").symlink_to(folder)
    found = list_pictures(folder)
    assert {"again/p.png", "far.png", "sub/c"} <= set(found.names)
    assert not [name for name in found.names if name.startswith(("away", "up", "here", "asub"))]
    assert reasons(found)[listing.ROUND] == 5


def test_what_pdae_makes_is_no_data(folder: Path) -> None:
    for name in (
        "out/x.png", "run/training/dpm.jsonl", "run/training/dpm.safetensors",
        "run/training/dpm-00000002.png", "training/y.png", "training/meta.jsonl",
    ):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(PNG)
    out = os.path.realpath(folder / "out")
    names = list_pictures(folder, without={out}).names
    assert "training/y.png" in names and not [n for n in names if n.startswith(("out", "run"))]
    assert "out/x.png" in list_pictures(folder).names
    inner = "run/training/dpm.jsonl", "run/training/dpm.safetensors", "run/training/s.png"
    zipped(folder / "x.zip", "a.png", *inner)
    assert list_pictures(folder / "x.zip").names == ["a.png"]
    sheet = os.path.realpath(folder / "a2.png")
    assert "a2.png" not in list_pictures(folder, without={sheet}).names


def test_a_folder_that_cant_be_opened_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = os.scandir

    def scandir(path: Path) -> object:
        if Path(path).name in ("sub", "in"[closed:]):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    closed = 2  # of the two, sub alone
    monkeypatch.setattr(os, "scandir", scandir)
    assert list_pictures(folder).closed == {"sub": "Permission denied"}
    closed = 0
    with pytest.raises(InputError, match="in: can't be opened: Permission denied"):
        list_pictures(folder)


METHODS = {"stored": 0, "deflated": 8, "bzip2": 12, "lzma": 14}


@pytest.mark.parametrize("method", METHODS)
def test_a_damaged_member_costs_itself_alone(tmp_path: Path, method: str) -> None:
    """Every byte of the first member and of its entry in the table, one after the other."""
    path = tmp_path / "a.zip"
    whole = zipped(path, "a.png", "b.png", method=METHODS[method])
    second, table = whole.index(b"PK\3\4", 4), whole.index(b"PK\1\2")
    failed = good = 0
    for at in [*range(0, second, 3), *range(table, table + 50)]:
        data = bytearray(whole)
        data[at] ^= 0xFF
        path.write_bytes(data)
        try:
            archive = Archive(path)
            names = archive.names()
        except InputError as error:
            assert str(error).startswith(f"{path}: can't be read as a zip") and at >= table
            continue
        for name in names:
            try:
                good += archive.read(name, 1 << 20) == PNG
            except InputError as error:
                assert str(path) in str(error) and name != "b.png"
                failed += 1
    assert failed > 20 and good > failed


def test_hostile_members(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    data = zipped(path, "a.png")
    data[data.index(b"PK\1\2") + 8] |= 1  # says that it is encrypted
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a.png: can't be unpacked: .*password"):
        Archive(path).read("a.png", 1 << 20)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("big.png", b"\0" * 100_000)
        archive.writestr("dir/", b"")
    assert Archive(path).names() == ["big.png"]
    assert Archive(path).read("big.png", 1 << 20, head=5) == bytes(5)
    with pytest.raises(InputError, match="unpacks to more than 0 MiB"):
        Archive(path).read("big.png", 1000)
    with pytest.raises(InputError, match="isn't in the zip"):
        Archive(path).read("b.png", 1000)
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\1\2") + 24  # its size: less than it unpacks to
    data[at : at + 4] = struct.pack("<I", 500)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"big.png: can't be unpacked"):
        Archive(path).read("big.png", 1000)


def test_lzma_sets_aside_no_more_than_packers_need(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    data = zipped(path, "a.png", method=METHODS["lzma"])
    assert Archive(path).read("a.png", 1 << 20) == PNG
    at = data.index(b"PK\3\4") + 30 + len("a.png") + 5
    assert data[at : at + 4] == struct.pack("<I", 8 << 20)  # Python's own
    data[at : at + 4] = struct.pack("<I", (4 << 30) - 1)
    path.write_bytes(data)
    for head in (None, 16):
        with pytest.raises(InputError, match="needs more than 64 MiB to be unpacked"):
            Archive(path).read("a.png", 1 << 20, head)


def test_names_that_other_programs_write_into_zips(tmp_path: Path) -> None:
    """macOS sets no flag for UTF-8, .NET wrote backslashes: both mean what a folder would hold, and
    no hidden folder is hidden behind them. A Unix name may have a backslash, a DOS one letters of
    code page 437."""
    meant = {
        "Köln.png".encode(): 3, rb"sub\a.png": 0, rb"__MACOSX\b.png": 0, rb"..\..\c.png": 0,
        rb"d\e.png": 3, "Schön.png".encode("cp437"): 0,
    }  # fmt: skip
    path, begun = tmp_path / "a.zip", {name: b"%d" % n * len(name) for n, name in enumerate(meant)}
    with zipfile.ZipFile(path, "w") as archive:
        for name, system in meant.items():
            member = zipfile.ZipInfo(begun[name].decode())
            member.create_system = system
            archive.writestr(member, PNG)
    data = path.read_bytes()
    for name in meant:
        data = data.replace(begun[name], name)
    path.write_bytes(data)
    found = list_pictures(path)
    assert set(found.names) == {"Köln.png", "Schön.png", "sub/a.png", "../../c.png", "d\\e.png"}
    assert found.left_out == [("__MACOSX/b.png", listing.HIDDEN)]
    assert {found.read(name) for name in found.names} == {PNG}
    assert {item.place.as_posix() for item in collect([str(path)])} >= {"Köln", "sub/a", "c"}


def test_empty_and_missing_zips(tmp_path: Path) -> None:
    for data in (b"", b"PK", io.BytesIO().getvalue()):
        (tmp_path / "a.zip").write_bytes(data)
        with pytest.raises(InputError, match="can't be read as a zip"):
            list_pictures(tmp_path / "a.zip")
