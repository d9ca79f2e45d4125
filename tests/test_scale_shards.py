"""Tar shards: which are named, what is in them, and that training sees what it saw in a folder."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
import torch
from conftest import Command, picture
from safetensors.torch import load_file
from test_scale import TINY

from pdae_cli.errors import InputError, UsageError
from pdae_cli.training.data import open_pictures
from pdae_cli.training.shards import INDEX, LocalShard, Shards, braces, find_shards


def write_shard(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def png(number: int) -> bytes:
    stream = io.BytesIO()
    picture(number, (32, 32)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def pattern(tmp_path: Path) -> Path:
    """Twelve pictures in three shards on two disks, each with a label as WebDataset has them."""
    for shard in range(3):
        files = {}
        for number in range(4 * shard, 4 * shard + 4):
            files |= {f"{number:02}.png": png(number), f"{number:02}.cls": b"1"}
        write_shard(tmp_path / f"disk{shard % 2}" / f"{shard:03}.tar", files)
    return tmp_path / "disk{0,1}" / "*.tar"


class TestPatterns:
    def test_braces(self) -> None:
        assert braces("s/{008..011}.tar") == [f"s/{n}.tar" for n in ("008", "009", "010", "011")]
        assert braces("{a,b}{0..1}") == ["a0", "a1", "b0", "b1"]
        assert braces("plain.tar") == ["plain.tar"]

    @pytest.mark.parametrize("pattern", ["{5..1}.tar", "{0..999999999}.tar", "{0..999}{0..999}"])
    def test_those_that_name_none_or_too_many(self, pattern: str) -> None:
        with pytest.raises(UsageError, match="shards"):
            braces(pattern)

    def test_several_disks(self, pattern: Path, tmp_path: Path) -> None:
        found = [shard.label for shard in find_shards(pattern)]
        assert found == [f"{tmp_path}/disk{n % 2}/{n:03}.tar" for n in (0, 2, 1)]

    def test_one_that_is_missing(self, pattern: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"disk0/001\.tar: no such shard"):
            find_shards(tmp_path / "disk0" / "{000..002}.tar")

    def test_two_of_a_name(self, tmp_path: Path) -> None:
        for disk in ("a", "b"):
            write_shard(tmp_path / disk / "0.tar", {"x.png": b""})
        with pytest.raises(UsageError, match=r"2 shards are named 0\.tar"):
            open_pictures(tmp_path / "{a,b}" / "0.tar", 32)


class TestReading:
    def test_pictures_are_those_of_a_folder(self, pattern: Path, tmp_path: Path) -> None:
        """Also under long names, which take headers of their own."""
        long = "d/" * 80 + "x.png"
        write_shard(tmp_path / "disk0" / "003.tar", {long: png(12)})
        shards = open_pictures(pattern, 32)
        assert shards.names == sorted(shards.names) and len(shards) == 13
        assert shards.names[0] == "000.tar/00.png" and shards.names[-1] == f"003.tar/{long}"
        folder = tmp_path / "folder"
        folder.mkdir()
        for number in range(13):
            (folder / f"{number:02}.png").write_bytes(png(number))
        assert torch.equal(shards.stack(range(13)), open_pictures(folder, 32).stack(range(13)))

    def test_the_index_is_made_once_and_again_when_a_shard_changes(self, tmp_path: Path) -> None:
        shard = tmp_path / "0.tar"
        write_shard(shard, {"a.png": b"one", "b.png": b"two"})
        assert Shards([LocalShard(shard)]).read("0.tar/b.png", 9) == b"two"
        kept = shard.with_name(shard.name + INDEX)
        content = json.loads(kept.read_bytes())
        content["members"][0][0] = "c.png"  # to see that it is read
        kept.write_text(json.dumps(content))
        assert list(Shards([LocalShard(shard)]).members) == ["0.tar/c.png", "0.tar/b.png"]
        write_shard(shard, {"a.png": b"longer than it was", "b.png": b"2", "e.png": b""})
        assert len(Shards([LocalShard(shard)]).members) == 3

    @pytest.mark.parametrize("broken", ["[]", "{", '{"shard": 1}', "\0"])
    def test_an_index_that_is_none_is_made_anew(self, tmp_path: Path, broken: str) -> None:
        shard = tmp_path / "0.tar"
        write_shard(shard, {"a.png": b"one"})
        shard.with_name(shard.name + INDEX).write_text(broken)
        assert Shards([LocalShard(shard)]).read("0.tar/a.png", 9) == b"one"

    def test_links_and_folders_are_no_pictures(self, tmp_path: Path) -> None:
        with tarfile.open(tmp_path / "0.tar", "w") as archive:
            for kind, name in ((tarfile.SYMTYPE, "a.png"), (tarfile.DIRTYPE, "b.png")):
                info = tarfile.TarInfo(name)
                info.type, info.linkname = kind, "/etc/passwd"
                archive.addfile(info)
        assert Shards([LocalShard(tmp_path / "0.tar")]).members == {}

    @pytest.mark.parametrize("mode", ["w:gz", None])
    def test_what_is_no_plain_tar(self, tmp_path: Path, mode: str | None) -> None:
        shard = tmp_path / "0.tar"
        shard.write_bytes(b"no tar at all" * 100)
        if mode == "w:gz":
            with tarfile.open(shard, "w:gz") as archive:
                archive.addfile(tarfile.TarInfo("a.png"))
        with pytest.raises(InputError, match="can't be read as an uncompressed tar"):
            Shards([LocalShard(shard)])

    def test_bad_pictures_are_counted_as_in_folders(self, tmp_path: Path) -> None:
        """One is replaced by the next; a shard that is cut off counts the picture it cuts."""
        shard = tmp_path / "0.tar"
        write_shard(shard, {"a.png": b"no", "b.png": png(1), "c.png": png(2)})
        pictures = open_pictures(shard, 32)
        assert torch.equal(pictures[0], pictures[1]) and list(pictures.bad) == ["0.tar/a.png"]
        at = pictures.shards.members["0.tar/c.png"].offset if pictures.shards else 0
        shard.write_bytes(shard.read_bytes()[: at + 10])
        with pytest.raises(InputError, match=r"2 of 3 pictures can't be read"):
            pictures[2]

    def test_members_that_are_too_large(self, tmp_path: Path) -> None:
        write_shard(tmp_path / "0.tar", {"a.png": b"12345"})
        with pytest.raises(InputError, match="larger than"):
            Shards([LocalShard(tmp_path / "0.tar")]).read("0.tar/a.png", 4)


def test_training_sees_what_it_saw_in_a_folder(
    pdae: Command, pattern: Path, tmp_path: Path
) -> None:
    """The same weights to the bit: order is a function of the seed, not of how files are kept. The
    labels' CSV, which names the pictures, holds the same one out."""
    states = []
    (tmp_path / "folder").mkdir()
    for shard in find_shards(pattern):
        with tarfile.open(shard.label) as archive:
            archive.extractall(tmp_path / "folder" / shard.name, filter="data")
    names = open_pictures(pattern, 32).names
    rows = ["file,x,split", *(f"{name},1,train" for name in names[1:]), f"{names[0]},0,val"]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    for data, out in ((tmp_path / "folder", "one"), (pattern, "two")):
        args = ("-o", tmp_path / out, "--labels", tmp_path / "labels.csv", "--images", 16)
        result = pdae("train", "dpm", data, *args, *TINY, "--quiet")
        assert result.code == 0, result.err
        states.append(load_file(tmp_path / out / "training" / "dpm.safetensors"))
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
