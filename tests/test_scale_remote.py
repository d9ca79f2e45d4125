"""Tar shards behind URLs: the same pictures as on a disk, whatever servers and networks do."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import fsspec
import pytest
import torch
from conftest import Command
from safetensors.torch import load_file
from test_scale import TINY
from test_scale_shards import png, write_shard
from test_training import EVEN, OPTIONS

from pdae_cli.cli.data import cache_folder
from pdae_cli.errors import InputError, StorageError, UsageError
from pdae_cli.training import remote, shards
from pdae_cli.training.data import Pictures, open_pictures
from pdae_cli.training.loop import Batch, draw_batch, prefetched
from pdae_cli.training.remote import Blocks, RemoteShard, as_url, is_header, shown
from pdae_cli.training.shards import Shards, find_shards

TRIES = len(remote.WAITS) + 1


class Server(ThreadingHTTPServer):
    """Serves `files` with ranges and ETags, or as a test wants it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[int, int]] = []  # every range that was
        self.failures: list[int] = []  # statuses of the next answers
        self.ranges = True  # else the whole file is sent
        self.extra = 0  # bytes sent behind each range
        self.cut = 0  # of the next answers break off
        self.tags = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        content = server.files.get(self.path.partition("?")[0])
        if server.failures:
            return self.send_error(server.failures.pop(0))
        if content is None:
            return self.send_error(404)
        first, last = map(int, re.findall(r"\d+", self.headers["Range"]))
        server.asked.append((first, last + 1))
        if server.ranges:
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            part = content[first : last + 1] + bytes(server.extra)
        else:
            self.send_response(200)
            part = content
        if server.tags:
            self.send_header("ETag", f'"{hash(content)}"')
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part[: len(part) // 2] if server.cut else part)
        server.cut = max(0, server.cut - 1)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote, "WAITS", (0.0,) * len(remote.WAITS))
    with Server() as one:
        thread = Thread(target=one.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield one
        one.shutdown()
        thread.join()


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """Twelve pictures in three shards."""
    for shard in range(3):
        numbers = range(4 * shard, 4 * shard + 4)
        files = {f"{number:02}.png": png(number) for number in numbers}
        write_shard(tmp_path / "disk" / f"{shard:03}.tar", files)
    return tmp_path / "disk" / "{000..002}.tar"


@pytest.fixture
def served(server: Server, local: Path) -> Path:
    """The same behind a URL, as a command gets it."""
    for shard in local.parent.iterdir():
        server.files[f"/{shard.name}"] = shard.read_bytes()
    return Path(f"{server.url}/{{000..002}}.tar")


def rewrite(server: Server, name: str, files: dict[str, bytes]) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for member, data in files.items():
            info = tarfile.TarInfo(member)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    server.files[name] = stream.getvalue()


class TestUrls:
    @pytest.mark.parametrize(
        "url",
        ["https://host/a/0.tar?sign=1", "s3://bucket/{0..9}.tar", "hf://datasets/a/b@main/0.tar"],
    )
    def test_a_path_forgets_a_slash_and_no_more(self, url: str) -> None:
        assert as_url(Path(url)) == url

    @pytest.mark.parametrize("path", ["/disk/0.tar", "disk/0.tar", "C:/disk/0.tar", "a:b/0.tar"])
    def test_paths_are_none(self, path: str) -> None:
        assert as_url(Path(path)) is None

    def test_secrets_are_not_shown(self) -> None:
        assert shown("https://me:secret@host/0.tar?signature=secret") == "https://host/0.tar"
        assert shown("hf://datasets/a/b@main/0.tar") == "hf://datasets/a/b@main/0.tar"

    def test_braces(self) -> None:
        found = find_shards(Path("https://host/{000..009}.tar"))
        assert [one.label for one in found] == [f"https://host/00{n}.tar" for n in range(10)]

    def test_a_web_server_has_no_list(self) -> None:
        with pytest.raises(UsageError, match=r"count them: \{000\.\.099\}$"):
            find_shards(Path("https://host/*.tar"))

    def test_what_no_library_reads(self) -> None:
        with pytest.raises(UsageError, match=r"^gopher:// is no kind of URL"):
            find_shards(Path("gopher://host/0.tar"))

    @pytest.mark.parametrize(
        ("url", "advice"),
        [("https://host/0.tar", "'pdae-cli[remote]'"), ("s3://b/0.tar", "s3fs")],
    )
    def test_a_missing_package(
        self, url: str, advice: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def missing(url: str) -> None:
            raise ImportError("no")

        monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
        with pytest.raises(UsageError, match=f"pip install {re.escape(advice)}$"):
            find_shards(Path(url))

    @pytest.mark.parametrize(
        ("platform", "environment", "folder"),
        [
            ("linux", {"PDAE_CACHE": "/fast", "XDG_CACHE_HOME": "/x"}, "/fast"),
            ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/pdae"),
            ("linux", {"HOME": "/home/me"}, "/home/me/.cache/pdae"),
            ("darwin", {"HOME": "/home/me"}, "/home/me/Library/Caches/pdae"),
        ],
    )
    def test_where_indexes_are_kept(
        self,
        platform: str,
        environment: dict[str, str],
        folder: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        for name in ("PDAE_CACHE", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("sys.platform", platform)
        assert cache_folder() == Path(folder)


class TestReading:
    def test_pictures_are_those_on_a_disk(self, served: Path, local: Path) -> None:
        theirs, ours = open_pictures(served, 32), open_pictures(local, 32)
        assert theirs.names == ours.names and len(ours) == 12
        assert torch.equal(theirs.stack(range(12)), ours.stack(range(12)))

    def test_long_names(self, server: Server) -> None:
        """They stand in records of their own, before the header that is checked."""
        for name in ("d/" * 80 + "x.png", "ü.png"):
            rewrite(server, "/0.tar", {name: b"content"})
            assert open_one(server).read(f"0.tar/{name}", 9) == b"content"

    def test_a_picture_is_a_range(self, server: Server, served: Path) -> None:
        pictures = open_pictures(served, 32)
        server.asked.clear()
        pictures[5]
        member = pictures.shards.members["001.tar/05.png"] if pictures.shards else None
        assert member and server.asked == [(member.offset - 512, member.offset + member.size)]

    def test_batches_that_threads_prepare(self, served: Path, local: Path) -> None:
        """As on a GPU: several at once, each reading its pictures by several threads."""
        ours, theirs = (open_pictures(data, 32) for data in (local, served))

        def batches(pictures: Pictures) -> list[Batch]:
            def make(step: int) -> Batch:
                return draw_batch(pictures, EVEN, (3, 32, 32), OPTIONS, step, 0, 8)

            return list(prefetched(make, 0, 6))

        for one, other in zip(batches(ours), batches(theirs), strict=True):
            assert all(map(torch.equal, one.parts(), other.parts()))

    @pytest.mark.parametrize("tags", [True, False])
    def test_the_index_is_made_once_and_again_when_a_shard_changes(
        self, server: Server, served: Path, tmp_path: Path, tags: bool
    ) -> None:
        server.tags = tags
        first = open_pictures(served, 32, cache=tmp_path / "cache")
        assert len(list((tmp_path / "cache").iterdir())) == 3
        server.asked.clear()
        again = open_pictures(served, 32, cache=tmp_path / "cache")
        assert server.asked == [(0, 1)] * 3 and again.names == first.names
        rewrite(server, "/001.tar", {"new.png": png(0)})
        assert len(open_pictures(served, 32, cache=tmp_path / "cache")) == 9

    def test_an_index_outlives_a_signature(self, server: Server, tmp_path: Path) -> None:
        rewrite(server, "/0.tar", {"a.png": b"one"})
        for signature in "ab":
            server.asked.clear()
            url = Path(f"{server.url}/0.tar?signature={signature}")
            assert list(Shards(find_shards(url, tmp_path)).members) == ["0.tar/a.png"]
        assert server.asked == [(0, 1)]
        assert "signature" not in next(tmp_path.iterdir()).read_text()

    def test_headers_are_read_in_blocks(self) -> None:
        """At most one request for a block, as if the whole were at hand."""
        content, asked = bytes(range(256)) * 16384, []

        def fetch(start: int, stop: int) -> bytes:
            asked.append(stop - start)
            return content[start:stop]

        file = Blocks(fetch, len(content))
        for at in (0, 512, 70_000, 3 << 20, len(content) - 1, len(content), len(content) + 9):
            file.seek(at)
            assert file.read(512) == content[at : at + 512]
        assert file.tell() == len(content) + 9 and asked == [1 << 20] * 2

    @pytest.mark.parametrize(
        ("said", "facts"),
        [
            ({"size": 5, "ETag": '"ab"', "type": "file"}, (5, "ab")),
            ({"size": 5, "ETag": '"ab"', "StorageClass": "x"}, (5, "ab")),
            ({"size": 5, "ETag": None, "mtime": 3}, (5, "3")),
            ({"size": 5}, (5, "")),
        ],
    )
    def test_a_tag_is_what_the_store_has(
        self, said: dict[str, object], facts: tuple[int, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The same from a listing, which says more or less of a file than asking for it does."""
        store = fsspec.filesystem("memory")
        monkeypatch.setattr(store, "info", lambda path: said)
        assert remote.StoredFile(store, "/a.tar").facts() == facts

    def test_of_any_store(self, local: Path) -> None:
        """Here one that the library has itself, with a list of what it holds."""
        store, ours = fsspec.filesystem("memory"), open_pictures(local, 32)
        for shard in local.parent.iterdir():
            store.pipe(f"/bucket/{shard.name}", shard.read_bytes())
        try:
            for pattern in ("memory://bucket/{000..002}.tar", "memory://bucket/*.tar"):
                theirs = open_pictures(Path(pattern), 32, cache=local.parent / "cache")
                assert torch.equal(theirs.stack(range(12)), ours.stack(range(12)))
            store.pipe("/bucket/000.tar", store.cat("/bucket/001.tar"))
            with pytest.raises(StorageError, match=r"bucket/000\.tar: changed"):
                open_fresh(theirs)[0]
        finally:
            store.rm("/bucket", recursive=True)


def open_one(server: Server) -> Shards:
    return Shards(find_shards(Path(f"{server.url}/0.tar")))


def open_fresh(pictures: Pictures) -> Pictures:
    """The same index, and nothing decoded yet."""
    return pictures.subset(pictures.names)


class TestFailures:
    """None of them may put another picture in a picture's place."""

    @pytest.mark.parametrize("status", [500, 503, 429])
    def test_one_that_passes(self, server: Server, served: Path, status: int) -> None:
        pictures = open_pictures(served, 32)
        server.failures = [status] * (TRIES - 1)
        assert torch.equal(pictures[0], open_pictures(served, 32)[0]) and not pictures.bad

    def test_an_answer_that_breaks_off(self, server: Server, served: Path) -> None:
        pictures = open_pictures(served, 32)
        server.cut = TRIES - 1
        assert torch.equal(pictures[0], open_pictures(served, 32)[0]) and not pictures.bad

    @pytest.mark.parametrize(
        ("status", "tries", "said"),
        [
            (503, TRIES, f"can't be read in {TRIES} tries: HTTP 503; once it can, run the same"),
            (403, 1, "can't be read: HTTP 403; once it can, run the same command"),
            (404, 1, "no such shard"),
        ],
    )
    def test_one_that_stays(
        self, server: Server, served: Path, status: int, tries: int, said: str
    ) -> None:
        """Ends training, and isn't counted as a bad picture."""
        pictures = open_pictures(served, 32)
        server.failures = [status] * TRIES
        with pytest.raises(StorageError, match=re.escape(f"{server.url}/000.tar: {said}")):
            pictures[0]
        assert pictures.bad == {} and len(server.failures) == TRIES - tries

    def test_nobody_answers(self, server: Server) -> None:
        shard = RemoteShard("http://127.0.0.1:1/0.tar", None)
        with pytest.raises(StorageError, match=rf"0\.tar: can't be read in {TRIES} tries: Cannot"):
            shard.stamp()

    def test_a_server_without_ranges(self, server: Server, served: Path) -> None:
        server.ranges = False
        with pytest.raises(StorageError, match="the server gives no parts of files; fetch the"):
            open_pictures(served, 32)

    def test_a_server_that_forgets_ranges(self, server: Server, served: Path) -> None:
        pictures = open_pictures(served, 32)
        server.ranges = False
        with pytest.raises(StorageError, match="no parts of files"):
            pictures[0]

    @pytest.mark.parametrize("tags", [True, False])
    def test_a_shard_that_changes(self, server: Server, served: Path, tags: bool) -> None:
        """Also where nothing tells but what lies in it: names are swapped."""
        server.tags = tags
        pictures = open_pictures(served, 32)
        data = server.files["/000.tar"]
        server.files["/000.tar"] = swapped(data)
        with pytest.raises(StorageError, match=r"000\.tar: changed since it was indexed"):
            pictures[0]
        server.files["/000.tar"] = data
        assert len(pictures[0]) == 3

    def test_more_than_was_asked_for_is_not_read(self, server: Server, served: Path) -> None:
        expected = open_pictures(served, 32).stack(range(12))
        server.extra = 1 << 22
        assert torch.equal(open_pictures(served, 32).stack(range(12)), expected)

    def test_members_that_are_too_large_are_not_asked_for(self, server: Server) -> None:
        rewrite(server, "/0.tar", {"a.png": b"12345"})
        opened = open_one(server)
        server.asked.clear()
        with pytest.raises(InputError, match="larger than"):
            opened.read("0.tar/a.png", 4)
        assert server.asked == []

    def test_an_index_that_is_too_large(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shards, "MAX_INDEX", 1 << 20)
        rewrite(server, "/0.tar", {f"{number}.png": b"" for number in range(5300)})
        with pytest.raises(InputError, match=r"0\.tar: its index would be larger than 1 MiB"):
            open_one(server)

    def test_a_header_that_is_too_large(self, server: Server) -> None:
        """A long name's record says how long it is: here more than a reader should hold."""
        info = tarfile.TarInfo("././@LongLink")
        info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
        server.files["/0.tar"] = info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 12)
        with pytest.raises(InputError, match="can't be read as an uncompressed tar"):
            open_one(server)

    def test_what_is_no_tar(self, server: Server) -> None:
        server.files["/0.tar"] = b"<html>no tar</html>" * 100
        with pytest.raises(InputError, match="can't be read as an uncompressed tar"):
            open_one(server)

    def test_headers_are_told_apart(self) -> None:
        info = tarfile.TarInfo("a.png")
        info.size = 5
        block = info.tobuf(tarfile.USTAR_FORMAT)
        assert is_header(block, "a.png", 5)
        assert not is_header(block, "b.png", 5) and not is_header(block, "a.png", 6)
        assert not is_header(bytes(512), "a.png", 5) and not is_header(b"", "a.png", 5)
        assert not is_header(block.replace(b"a.png", b"b.png"), "b.png", 5)  # its checksum


def swapped(shard: bytes) -> bytes:
    """The same shard with its first two pictures' names exchanged; same size, same offsets."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(shard)) as old, tarfile.open(None, "w", stream) as new:
        members = old.getmembers()
        names = [member.name for member in members]
        for member, name in zip(members, (names[1], names[0], *names[2:]), strict=True):
            content = old.extractfile(member)
            member.name = name
            new.addfile(member, content)
    return stream.getvalue()


def test_training_equals_that_from_a_disk(
    pdae: Command,
    server: Server,
    served: Path,
    local: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three steps, the same weights and moments to the bit, with an answer that fails now and
    then. The index lies in the folder that was chosen."""
    monkeypatch.setenv("PDAE_CACHE", str(tmp_path / "cache"))
    states = []
    for data, out in ((local, "one"), (served, "two")):
        server.failures = [503]
        result = pdae("train", "dpm", data, "-o", tmp_path / out, "--images", 24, *TINY)
        assert result.code == 0, result.err
        assert ("indexing" in result.err) == (data is served)
        states.append(load_file(tmp_path / out / "training" / "dpm.safetensors"))
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
    kept = sorted((tmp_path / "cache" / "shards").iterdir())
    assert len(kept) == 3 and len(json.loads(kept[0].read_bytes())["members"]) == 4


def test_a_failure_is_a_line_and_training_goes_on_from_its_checkpoint(
    pdae: Command, server: Server, served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was decoded isn't asked for again: without room for that, the second step fails."""
    monkeypatch.setenv("PDAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("pdae_cli.training.data.CACHE_BYTES", 0)
    run = ("train", "dpm", served, "-o", tmp_path / "run", *TINY, "--save-every", 1, "--quiet")
    assert pdae(*run, "--images", 8).code == 0
    whole, server.files = server.files, {}
    failed = pdae(*run, "--images", 16)
    assert failed.code == 3 and len(failed.err.splitlines()) == 1
    assert "no such shard" in failed.err
    server.files = whole
    assert pdae(*run, "--images", 16).code == 0
    assert pdae("train", "dpm", served, "-o", tmp_path / "b", *TINY, "--images", 16).code == 0
    states = [load_file(tmp_path / one / "training" / "dpm.safetensors") for one in ("run", "b")]
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
