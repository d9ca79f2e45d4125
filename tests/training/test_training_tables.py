"""Pictures in tables: what is found in them, that rows are mapped, and training on them."""

from __future__ import annotations

import io
import json
import shutil
import sys
import tarfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from conftest import Command, picture
from small_runs import TINY, assert_equal, drawn, folder_of, state

from pdae_cli.cli.run.inputs import collect
from pdae_cli.errors import InputError, UsageError
from pdae_cli.pictures.listing import MAX_PICTURE
from pdae_cli.training import tables
from pdae_cli.training.conditional import condition
from pdae_cli.training.data import open_pictures, split
from pdae_cli.training.labels import find_labels
from pdae_cli.training.tables import braces, open_table, source_of

datasets = pytest.importorskip("datasets")
# datasets leaves files open that it reads metadata from.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


KINDS = ("parquet", "tar", "imagefolder")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """datasets' cache, offline."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    yield tmp_path / "cache"
    open_table.cache_clear()


def png(number: int, side: int = 32) -> bytes:
    stream = io.BytesIO()
    picture(number, (side, side)).save(stream, "PNG")
    return stream.getvalue()


def write_shard(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def parquet(path: Path, pictures: list[Any], **columns: list[Any]) -> Path:
    """A file with a column of bytes and others."""
    rows = datasets.Dataset.from_dict({"png": pictures, **columns})
    rows.to_parquet(path)
    return path


def data_of(kind: str, folder: Path, count: int = 24) -> Path:
    """The pictures of `folder_of`, each second one labelled, in another form."""
    folder.mkdir(exist_ok=True)
    if kind == "imagefolder":
        lines = ["file_name,second", *(f"{n}.png,{n % 2}" for n in range(count))]
        (folder_of(folder / "f", count) / "metadata.csv").write_text("\n".join(lines))
        return folder / "f"
    half = count // 2
    for part in range(2):
        numbers = range(part * half, part * half + half)
        if kind == "parquet":
            seconds = [n % 2 == 1 for n in numbers]
            parquet(folder / f"{part}.parquet", [png(n) for n in numbers], second=seconds)
        else:
            files = {}
            for n in numbers:
                files |= {f"{n:02}.png": png(n), f"{n:02}.cls": str(n % 2).encode()}
                files[f"{n:02}.json"] = b'{"camera": 1}'
            write_shard(folder / f"{part:02}.tar", files)
    return folder / ("*.parquet" if kind == "parquet" else "{00..01}.tar")


class TestSources:
    @pytest.mark.parametrize("kind", KINDS)
    def test_pictures_and_labels_are_those_of_a_folder(self, kind: str, tmp_path: Path) -> None:
        data = data_of(kind, tmp_path / "t")
        pictures = open_pictures(data, 32)
        labels = find_labels(data, None, pictures.names)
        files = open_pictures(folder_of(tmp_path / "files"), 32)
        assert len(pictures) == 24 and not pictures.bad
        assert labels is not None and labels.attributes == ["cls" if kind == "tar" else "second"]
        second = [int(Path(name).stem) % 2 for name in files.names]
        theirs = zip(files.stack(range(24)), second, strict=True)
        ours = zip(pictures.stack(range(24)), labels.matrix(pictures.names)[:, 0], strict=True)
        seen = [{(one.numpy().tobytes(), int(y)) for one, y in both} for both in (ours, theirs)]
        assert seen[0] == seen[1] and len(seen[0]) == 24

    def test_a_picture_may_be_as_large_as_in_a_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        table = open_table(data_of("imagefolder", tmp_path, 2))
        monkeypatch.setattr(tables, "read_limited", lambda path, limit: b"%d" % limit)
        assert table is not None and int(table.read(0)) == MAX_PICTURE

    def test_a_tar_splits_names_at_their_first_dot(self, tmp_path: Path) -> None:
        """Numbered frames would be one row; columns that aren't taken are said."""
        told = list[str]()
        for file, names in {
            "frames.tar": [f"frame.{n:04}.png" for n in range(6)],
            "mixed.tar": ["a.x.png", "b.png"],
            "pairs.tar": ["0.mask.png", "0.png", "0.jpg"],
            "roles.tar": ["0.input.png", "0.output.png", "1.input.png", "1.output.png"],
        }.items():
            write_shard(tmp_path / file, {name: png(0) for name in names})
        with pytest.raises(UsageError, match=r"NAME.0000.png, .* one row .*; unpack it"):
            open_pictures(tmp_path / "frames.tar", 32)
        with pytest.raises(InputError, match="same types; unpack it, and name the folder"):
            open_pictures(tmp_path / "mixed.tar", 32)
        assert len(open_pictures(tmp_path / "roles.tar", 32)) == 2
        assert len(open_pictures(tmp_path / "pairs.tar", 32, say=told.append)) == 1
        collect([str(tmp_path / "pairs.tar")], say=told.append)
        assert all("left out: pictures of jpg, mask.png; png's are taken" in one for one in told)
        assert len(told) == 2

    def test_labels_by_column(self, tmp_path: Path) -> None:
        """1 / 0, bool with gaps, numbers, classes by name, a split; other texts are named."""
        path = tmp_path / "a.parquet"
        rows = datasets.Dataset.from_dict(
            {
                "image": [picture(n) for n in range(4)],
                "hat": [1, 0, 1, 0],
                "old": [True, None, False, True],
                "age": [20, 30, 40, 50],
                "caption": ["a", "b", "c", "d"],
                "kind": [0, 1, 1, 0],
                "split": ["train", "train", "val", "train"],
            },
            features=datasets.Features(
                {
                    "image": datasets.Image(),
                    "hat": datasets.Value("int64"),
                    "old": datasets.Value("bool"),
                    "age": datasets.Value("int64"),
                    "caption": datasets.Value("string"),
                    "kind": datasets.ClassLabel(names=["cat", "dog"]),
                    "split": datasets.Value("string"),
                }
            ),
        )
        rows.to_parquet(path)
        labels = find_labels(path, None, ["0", "1", "2", "3"])
        assert labels is not None and labels.attributes == ["hat", "old"]
        assert labels.matrix(["0", "1", "2", "3"]).tolist() == [[1, 1], [0, -1], [1, 0], [0, 1]]
        assert labels.values(["0", "3"]).tolist() == [[20], [50]]
        assert any("caption (string)" in one for one in labels.remarks)
        assert condition(labels, ["kind"]).classes.names == ("cat", "dog")
        train, held_out = split(open_pictures(path, 32), labels)
        assert (train.names, held_out.names) == (["0", "1", "3"], ["2"])

    @pytest.mark.parametrize("said", [["train", "val", None, "test"], [0.0, 1.0, None, 2.0]])
    def test_a_partition_holds_out(self, tmp_path: Path, said: list[Any]) -> None:
        """Whether in words or numbers, which are no labels then."""
        path = parquet(tmp_path / "a.parquet", [png(n) for n in range(4)], Partition=said)
        labels = find_labels(path, None, ["0", "1", "2", "3"])
        assert labels is not None and labels.held_out == {"1", "3"} and not labels.numbers
        (remark,) = labels.remarks
        assert "1 rows have no Partition; they are trained on" in remark

    def test_a_table_of_labels_names_rows(self, tmp_path: Path) -> None:
        """Files that are called as a row is are others."""
        data, table = data_of("parquet", tmp_path / "t"), tmp_path / "labels.csv"
        names = open_pictures(data, 32).names
        table.write_text("row,hat\n" + "".join(f"{n},{int(n > 9)}\n" for n in range(24)))
        labels = find_labels(data, table, names)
        assert labels is not None
        assert labels.matrix(names)[:, 0].tolist() == [int(n > 9) for n in range(24)]
        table.write_text("file,hat\n12.jpg,1\n3.jpg,0\n./5,1\n")
        with pytest.raises(InputError, match=r"0 of 24 pictures match.* by their row, from 0"):
            find_labels(data, table, names)

    def test_labels_beside_metadata_are_said_to_be_left(
        self, pdae: Command, tiny_folder: Path, tmp_path: Path
    ) -> None:
        """And of metadata without labels, that it has none."""
        data = data_of("imagefolder", tmp_path / "t")
        (data / "labels.csv").write_text("file,hat\n0.png,1\n1.png,0\n")
        held = ["train"] * 18 + ["test"] * 6
        lines = ["file_name,text,split", *(f"{n}.png,hello,{one}" for n, one in enumerate(held))]
        (data / "metadata.csv").write_text("\n".join(lines))
        labels = find_labels(data, None, open_pictures(data, 32).names)
        assert labels is not None and len(labels.held_out) == 6
        result = pdae("attributes", "fit", data, model=tiny_folder)
        assert result.code == 2 and "has no labels; pass --labels CSV" in result.err
        assert "columns that hold no labels: text (" in result.err
        assert "labels.csv isn't read, as metadata say" in result.err
        assert "has no labels.csv" not in result.err

    def test_a_hub_id_from_the_cache(self, tmp_path: Path, cache: Path) -> None:
        """As datasets lays it out; of another revision or split it says so."""
        commit, second = "f" * 40, [n % 2 for n in range(8)]
        path = parquet(tmp_path / "a.parquet", [png(n) for n in range(8)], second=second)
        builder = datasets.load_dataset_builder(
            "parquet", data_files={"test": [str(path)]}, cache_dir=tmp_path / "made"
        )
        builder.download_and_prepare()
        there = cache / "someone___faces" / "default" / "0.0.0" / commit
        shutil.copytree(builder.cache_dir, there)
        (there / "parquet-test.arrow").rename(there / "faces-test.arrow")
        facts = json.loads((there / "dataset_info.json").read_text())
        facts |= {"config_name": "default", "dataset_name": "faces"}
        (there / "dataset_info.json").write_text(json.dumps(facts))
        for name in ("someone/faces", "someone/faces:test", f"someone/faces@{commit}:test"):
            assert len(open_pictures(Path(name), 32)) == 8
        with pytest.raises(UsageError, match="no split val; it has test"):
            open_pictures(Path("someone/faces:val"), 32)
        with pytest.raises(InputError, match="offline, and the cache holds another revision"):
            open_pictures(Path("someone/faces@main"), 32)
        with pytest.raises(InputError, match=r"someone/cats: no folder .* Hub didn't give"):
            open_pictures(Path("someone/cats"), 32)

    def test_urls(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        data_of("tar", tmp_path / "t")
        handler = partial(QuietHandler, directory=str(tmp_path / "t"))
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            Thread(target=server.serve_forever, daemon=True).start()
            url = f"http://127.0.0.1:{server.server_port}"
            assert len(open_pictures(Path(f"{url}/{{00..01}}.tar"), 32)) == 24
            with pytest.raises(InputError, match="Unable to find"):
                open_pictures(Path(f"{url}/02.tar"), 32)
            server.shutdown()

    def test_braces(self) -> None:
        assert braces("s/{008..011}.tar") == [f"s/{n}.tar" for n in ("008", "009", "010", "011")]
        assert braces("{a,b}{0..1}") == ["a0", "a1", "b0", "b1"]
        assert braces("plain.tar") == ["plain.tar"]
        for pattern in ("{5..1}.tar", "{0..999999999}.tar", "{0..999}{0..999}"):
            with pytest.raises(UsageError, match="names no file, or more than"):
                braces(pattern)


class TestFailures:
    @pytest.mark.parametrize("name", ["a.parquet", "{0..3}.tar", "someone/faces"])
    def test_without_the_package_it_is_named(
        self, pdae: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        monkeypatch.setitem(sys.modules, "datasets", None)
        result = pdae("train", "dpm", name, "-o", tmp_path / "run", *TINY, "--quiet")
        assert result.code == 2 and "pip install 'pdae-cli[data]'" in result.err
        assert result.err.count("\n") == 1

    @pytest.mark.parametrize("name", ["none.parquet", "none*.parquet", "bad.parquet", "bad.tar"])
    def test_files_that_are_none(self, pdae: Command, tmp_path: Path, name: str) -> None:
        (tmp_path / "bad.parquet").write_bytes(b"no")
        (tmp_path / "bad.tar").write_bytes(b"no" * 1000)
        data = tmp_path / name
        result = pdae("train", "dpm", data, "-o", tmp_path / "run", *TINY, "--quiet")
        assert result.code == 3 and f"{name}: can't be loaded as a data set: " in result.err
        assert result.err.count("\n") == 1

    def test_no_column_of_pictures(self, tmp_path: Path) -> None:
        path = tmp_path / "a.parquet"
        datasets.Dataset.from_dict({"age": [1], "name": ["x"]}).to_parquet(path)
        with pytest.raises(UsageError, match="no column holds pictures; it has age, name"):
            open_pictures(path, 32)

    def test_a_class_without_a_name_is_unknown(self, tmp_path: Path) -> None:
        from pyarrow import parquet as files

        path = tmp_path / "a.parquet"
        kinds = {"png": datasets.Value("binary"), "kind": datasets.ClassLabel(names=["cat", "dog"])}
        columns = {"png": [png(n) for n in range(3)], "kind": [0, 1, None]}
        rows = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
        rows.to_parquet(path)
        written = files.read_table(path)
        facts = written.schema.metadata[b"huggingface"].replace(b', "dog"', b"")
        files.write_table(written.replace_schema_metadata({b"huggingface": facts}), path)
        table = open_table(path)
        assert table is not None and table.columns()[0]["kind"] == ["cat", "", ""]

    @pytest.mark.parametrize("cell", [{"path": None}, {"width": 3}, {"bytes": None}])
    def test_a_structure_without_bytes_is_no_picture(
        self, cell: dict[str, object], tmp_path: Path
    ) -> None:
        path = tmp_path / "a.parquet"
        datasets.Dataset.from_dict({"image": [cell]}).to_parquet(path)
        with pytest.raises(InputError, match="row 0: no picture"):
            open_pictures(path, 32).checked()

    def test_bad_pictures_are_counted_by_row(self, tmp_path: Path) -> None:
        """None takes another's place; most of them bad is too many."""
        files = [png(0), b"no", png(2), None, png(4)]
        pictures = open_pictures(parquet(tmp_path / "a.parquet", files), 32)
        assert pictures.checked().names == ["0", "2", "4"] and list(pictures.bad) == ["1", "3"]
        assert "row 1: " in pictures.bad["1"]
        most = open_pictures(parquet(tmp_path / "b.parquet", [png(0), b"no", b"no"]), 32)
        with pytest.raises(InputError, match="2 of 3 pictures can't be read"):
            most.checked()


def test_rows_are_mapped_into_memory_and_decoded_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So what a process holds doesn't grow with the set: Arrow holds none of its 4 MB."""
    import pyarrow as pa

    noise = torch.randint(0, 256, (64, 64_000), dtype=torch.uint8)
    files = [png(n, 8) + noise[n].numpy().tobytes() for n in range(64)]
    path = parquet(tmp_path / "a.parquet", files)
    open_pictures(path, 8)  # converts it
    open_table.cache_clear()
    before, decoded = pa.total_allocated_bytes(), []
    pictures = open_pictures(path, 8)
    monkeypatch.setattr(
        "pdae_cli.training.data.open_picture",
        lambda data, name: decoded.append(name) or picture(0, (8, 8)),
    )
    pictures.stack([3, 40])
    assert sorted(decoded) == ["row 3", "row 40"]
    table = open_table(path)
    assert table is not None and isinstance(table.rows.data, datasets.table.MemoryMappedTable)
    assert pa.total_allocated_bytes() - before < 500_000


def test_training_is_a_function_of_the_rows(pdae: Command, tmp_path: Path) -> None:
    """The same batches for one process and two; resumed, the same weights to the bit."""
    data = data_of("parquet", tmp_path / "t")
    pictures = open_pictures(data, 32)
    whole = drawn(pictures, 3, 0, 8)
    parts = [drawn(pictures, 3, first, 4) for first in (0, 4)]
    assert torch.equal(torch.cat([part.x_0 for part in parts]), whole.x_0)
    for name, stops in (("whole", [32]), ("broken", [16, 32])):
        for images in stops:
            args = ("-o", tmp_path / name, *TINY, "--images", images, "--quiet")
            result = pdae("train", "dpm", data, *args)
            assert result.code == 0, result.err
            open_table.cache_clear()
    assert_equal(state(tmp_path / "whole"), state(tmp_path / "broken"))


@pytest.mark.parametrize("name", ["photos/typo.png", "runs/x.safetensors", "photos/all.zip"])
def test_a_files_name_is_never_asked_for_on_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert source_of(Path(name)) is None
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user").mkdir()
    assert source_of(Path("user/faces")) is None
    assert source_of(Path("user/faces@main")) is not None
