"""Codes of many pictures: Parquet files, data sets as inputs, the engines of docs/scaling.md."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_runs import files_in, folder_of, outputs, pixels_of, records
from conftest import ROOT, Command, picture
from drawn import saved
from random_codes import codes_of

from pdae_cli import from_table, to_table
from pdae_cli.cli.run import parts, tables
from pdae_cli.cli.run.inputs import Items, collect
from pdae_cli.cli.run.tables import CodesTable, CodesWriter
from pdae_cli.engine.codes import Codes, from_bytes
from pdae_cli.errors import InputError
from pdae_cli.training.tables import open_table

datasets, pa = pytest.importorskip("datasets"), pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
FAST = ("--inference-steps", "2")
RECIPES = re.findall(r"```python\n([\s\S]+?)```", (ROOT / "docs" / "scaling.md").read_text())


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    yield
    open_table.cache_clear()


def photos(path: Path, count: int, bad: int | None = None, **columns: list[object]) -> Path:
    """A Parquet file of pictures, as datasets writes them; one may be none."""
    data = [b"no" if number == bad else saved(picture(number)) for number in range(count)]
    files = [{"bytes": one, "path": f"{number}.png"} for number, one in enumerate(data)]
    features = datasets.Features({"image": datasets.Image()})
    features |= {name: datasets.Value("string") for name in columns}
    rows = datasets.Dataset.from_dict({"image": files, **columns}, features=features)
    rows.to_parquet(path)
    return path


def same(one: Codes, other: Codes) -> bool:
    """Whether codes are the same to the bit, with all that is said of them."""
    (a, these), (b, those) = (
        (codes.tensors(), replace(codes, z=None, x_T=None, residual_T=None))  # type: ignore[arg-type]
        for codes in (one, other)
    )
    return these == those and a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def codes_in(path: Path | str) -> Codes:
    """What a file of codes holds, be it a table or not."""
    path = Path(path)
    table = path.suffix == tables.TABLE
    return from_bytes(CodesTable(path).read() if table else path.read_bytes(), str(path))


def interrupted(
    file: CodesWriter, metadata: dict[str, str], finish: Any = CodesWriter.finish
) -> None:
    """In place of CodesWriter.finish: Ctrl-C before the second part has its name."""
    finish(file, metadata)
    if file.path.name.startswith("part-00001"):
        raise KeyboardInterrupt


class TestTables:
    @pytest.mark.parametrize("states", [(), ("x_T",), ("x_T", "residual_T")])
    def test_codes_come_back(self, states: tuple[str, ...]) -> None:
        given = codes_of(3, converged=(True, False, True) if states else ())
        given = replace(given, **{"x_T": None, **dict.fromkeys(states, given.x_T)})  # type: ignore[arg-type]
        table = to_table(given)
        assert same(from_table(table), given)
        assert same(from_table(table.filter(pa.array([False, True, False]))), given[1:2])
        loose = table.set_column(
            2, "z", table["z"].cast(pa.list_(pa.float32()))
        )  # of other programs
        assert same(from_table(loose), given)

    @pytest.mark.parametrize(
        ("column", "values", "words"),
        [
            ("z", [[1.0] * 6] * 3, "z is double"),
            ("z", pa.array([[1.0], [1.0, 2.0], [1.0]], pa.list_(pa.float32())), "one length"),
            ("x_T", pa.array([[1.0]] * 3, pa.list_(pa.float32())), r"x_T is"),
            ("model", ["a", "b", "b"], "one model"),
            ("weights_sha", ["no"] * 3, "no SHA-256"),
            ("sampling", ['{"inference_steps": -1}'] * 3, "inference steps"),
            ("sampling", [{"inference_steps": 2}] * 3, "struct"),
        ],
    )
    def test_what_is_none_is_told(self, column: str, values: object, words: str) -> None:
        table = to_table(codes_of(3))
        at = table.column_names.index(column)
        with pytest.raises(InputError, match=words) as error:
            from_table(table.set_column(at, column, pa.array(values)), "t.parquet")
        assert str(error.value).startswith("t.parquet: ")

    @pytest.mark.parametrize("limit", ["MAX_BYTES", "LARGEST_HEADER"])
    def test_too_many_rows_are_told_as_that(
        self, monkeypatch: pytest.MonkeyPatch, limit: str
    ) -> None:
        """Nothing is wrong with the table, and encoding them again would make the same."""
        table = to_table(codes_of(30))
        monkeypatch.setattr(f"pdae_cli.engine.codes.{limit}", 2000)
        with pytest.raises(InputError, match=r"^t: codes of 30 pictures are more than can be read"):
            from_table(table, "t")

    def test_rows_are_written_and_read_by_groups(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """So that neither holds more than a group or two, however many pictures there are."""
        monkeypatch.setattr(tables, "GROUP_BYTES", 20_000)  # a row takes 3,300
        codes = codes_of(30)
        with CodesWriter(tmp_path / "a.parquet") as file:
            for row in range(0, 30, 2):
                file.add(codes[row : row + 2])
                assert sum(len(one) for one in file._rows) < 8
            with pytest.raises(InputError, match="with and without x_T"):
                file.add(replace(codes, x_T=None))
            file.finish({})
        assert pq.ParquetFile(tmp_path / "a.parquet").num_row_groups == 4
        table = CodesTable(tmp_path / "a.parquet")
        for row in (29, 0, 8, 7):
            assert same(from_bytes(table.read(row), ""), codes[row : row + 1])
        assert table._group.cache_info().currsize == 2


class TestEncoding:
    def test_one_file_read_back_to_equal_bits(self, pdae: Command, tmp_path: Path) -> None:
        source = folder_of(tmp_path / "in", 3)
        assert pdae("encode", source, "-o", "z.safetensors", *FAST).code == 0
        first = pdae("encode", source, "-o", "c.parquet", *FAST, "--json")
        (record,) = records(first.text)
        assert first.code == 0 and (record["pictures"], record["output"]) == (3, "c.parquet")
        whole = codes_in("z.safetensors")
        assert same(codes_in("c.parquet"), whole)
        again = pdae("encode", source, "-o", "c.parquet", *FAST)
        assert again.code == 0 and "1 unchanged" in again.err
        made = []
        for name in ("c.parquet", "z.safetensors"):
            assert pdae("decode", name, "-o", f"{name[0]}/").code == 0
            assert pdae("manipulate", name, "--attr", "smiling=1", "-o", f"{name[0]}/").code == 0
            made.append([pixels_of(path) for path in sorted(Path(name[0]).glob("*.png"))])
        moved = [codes_in(f"{one}.safetensors") for one in ("c/c-0002", "z/z-2")]
        assert made[0] == made[1] and len(made[0]) == 3 and same(*moved)
        assert pdae("codes", "export", "z.safetensors", "-o", "d.parquet").code == 0
        assert pdae("codes", "merge", "d.parquet", "-o", "e.safetensors").code == 0
        assert same(codes_in("e.safetensors"), whole)
        told = pdae("info", "c.parquet", "--json")
        assert told.text == pdae("info", "z.safetensors", "--json").text and told.code == 0

    def test_parts_are_made_once_whoever_makes_them(
        self, pdae: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(parts, "PART", 2)
        source = folder_of(tmp_path / "in", 5)
        (source / "3.png").write_bytes(b"no")
        how = ("encode", source, "--no-noise", "--format", "parquet", "--json", "-o")
        alone = pdae(*how, "alone/")
        assert alone.code == 3 and files_in(tmp_path / "alone") == [
            f"part-{part:05d}-of-00003.parquet" for part in range(3)
        ]
        with monkeypatch.context() as patch:
            patch.setattr(CodesWriter, "finish", interrupted)
            result = pdae(*how, "two/")
        assert result.code == 130 and "the same command goes on" in result.err
        assert files_in(tmp_path / "two") == ["part-00000-of-00003.parquet"]
        codes = [pdae(*how, "two/", "--share", f"{share}/2").code for share in (1, 2)]
        assert codes == [0, 3] and outputs(tmp_path / "two") == outputs(tmp_path / "alone")
        Path("two/part-00000-of-00003.parquet").unlink()
        again = pdae(*how, "two/")  # the bad one is told again, and costs itself alone
        statuses = [(one["status"], str(one["input"])[-5:]) for one in records(again.text)]
        assert again.code == 3 and [one for one, _ in statuses].count("unchanged") == 2
        assert ("failed", "3.png") in statuses and "3.png" in again.err
        assert outputs(tmp_path / "two") == outputs(tmp_path / "alone")
        picture(9).save(source / "4.png")
        assert "3 skipped" in pdae(*how, "two/", "--skip-existing").err
        assert "its input changed" in pdae(*how, "two/").err
        (source / "4.png").unlink()
        cut = pdae(*how, "two/")
        assert cut.code == 2 and "one of 3 parts, where these inputs and shares make 2" in cut.err
        assert pdae("decode", "two", "-o", "back/", "--random-noise").code == 0
        assert len(outputs(tmp_path / "back")) == 4

    def test_codes_that_pictures_wont_be_like_are_what_is_left_out(
        self, pdae: Command, tmp_path: Path
    ) -> None:
        """Also where they come first: each picture took its time, and failed."""
        source, codes = folder_of(tmp_path / "in", 2), tmp_path / "z.safetensors"
        assert pdae("encode", source / "0.png", "-o", codes, "--no-noise").code == 0
        result = pdae("encode", codes, source, "-o", "c.parquet", *FAST)
        assert result.code == 3 and f"error: {codes}: some of the codes have x_T" in result.err
        assert codes_in("c.parquet").sources == ("0.png", "1.png")

    def test_a_picture_that_is_replaced_meanwhile_is_encoded_by_the_next_run(
        self, pdae: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What the file says that it was made of is what was encoded."""
        source, add = folder_of(tmp_path / "in", 2), CodesWriter.add

        def replaced(file: CodesWriter, codes: Codes) -> None:
            add(file, codes)
            picture(9).save(source / "0.png")

        line = ("encode", source, "--no-noise", "-o", "c.parquet")
        with monkeypatch.context() as patch:
            patch.setattr(CodesWriter, "add", replaced)
            assert pdae(*line).code == 0
        before = codes_in("c.parquet")
        assert "c.parquet is made again: its input changed" in pdae(*line).err
        after = codes_in("c.parquet")
        assert before.picture_shas[0] != after.picture_shas[0] and "1 unchanged" in pdae(*line).err

    def test_data_sets_are_inputs(self, pdae: Command, tmp_path: Path) -> None:
        """Names come from a column, the pictures' files or the row; shares are disjoint."""
        photos(tmp_path / "a.parquet", 4, bad=1)
        result = pdae("encode", "a.parquet", "-o", "c.parquet", "--no-noise")
        assert result.code == 3 and "error: a.parquet:1: not a picture" in result.err
        assert codes_in("c.parquet").sources == ("0.png", "2.png", "3.png")
        files = folder_of(tmp_path / "in", 4)
        assert pdae("encode", files, "-o", "f.parquet", "--no-noise").code == 0
        assert torch.equal(codes_in("f.parquet").z[[0, 2, 3]], codes_in("c.parquet").z)
        photos(tmp_path / "b.parquet", 4, name=["x", "y", "", "w"])
        for share in ("1/2", "2/2"):
            more = ("--format", "parquet", "--no-noise", "--share", share)
            assert pdae("encode", "b.parquet", "-o", "parts", *more).code == 0
        found = [codes_in(path).sources for path in sorted(Path("parts").glob("*.parquet"))]
        assert found == [("x", "y"), ("2", "w")]
        items = collect(["in/0.png", "b.parquet", "in/1.png"])  # made when they are asked for
        assert isinstance(items, Items) and isinstance(items[1::2], Items)
        labels = [one.label for one in items]
        assert labels == ["in/0.png", *(f"b.parquet:{row}" for row in range(4)), "in/1.png"]
        assert [one.label for one in items[1::2]] == labels[1::2]

    @pytest.mark.parametrize(
        ("given", "code", "words"),
        [
            (("in", "-o", "-", "--format", "parquet"), 2, "a file or a folder"),
            (("-", "--stream", "png", "-o", "o/", "--format", "parquet"), 2, "a stream can't be"),
            (("none.parquet", "-o", "c.parquet"), 3, "can't be loaded"),
            (("in", "-o", "theirs.parquet"), 3, "theirs.parquet exists"),
        ],
    )
    def test_mistakes_are_a_line(
        self, pdae: Command, tmp_path: Path, given: tuple[str, ...], code: int, words: str
    ) -> None:
        folder_of(tmp_path / "in", 1)
        photos(tmp_path / "theirs.parquet", 1)
        result = pdae("encode", *given, "--no-noise", "--quiet")
        assert result.code == code and words in result.err and result.err.count("\n") == 1
        assert files_in(tmp_path)[-1] == "theirs.parquet" and "Traceback" not in result.err

    def test_codes_without_rows_are_refused_as_an_empty_folder_is(self, pdae: Command) -> None:
        """Alone or beside others, by name or in their folder."""
        for folder in ("empty", "around"):
            Path(folder).mkdir()
        for place in ("none.parquet", "around/none.parquet"):
            pq.write_table(to_table(codes_of(1)).slice(0, 0), place)
        picture().save("a.png")
        for inputs in (("empty",), ("around",), ("none.parquet",), ("a.png", "none.parquet")):
            result = pdae("reconstruct", *inputs, "-o", "out/", *FAST)
            assert result.code == 2 and result.err.count("\n") == 1
            assert f"{inputs[-1]} holds no pictures or codes" in result.err
        assert not Path("out").exists()

    def test_without_pyarrow(self, pdae: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
        picture().save("a.png")
        for command in (("encode", "a.png", "-o", "c.parquet"), ("info", "c.parquet")):
            result = pdae(*command)
            assert result.code == 2 and "pip install 'pdae-cli[data]'" in result.err


@pytest.mark.parametrize("engine", ["datasets", "ray"])
def test_the_pages_recipes_run_as_they_stand(
    pdae: Command, tiny_folder: Path, tmp_path: Path, engine: str
) -> None:
    """And make what the command makes, to the bit."""
    pytest.importorskip(engine)
    (recipe,) = (one for one in RECIPES if re.search(rf"^import {engine}$", one, re.MULTILINE))
    photos(tmp_path / "photos.parquet", 4)
    folder_of(tmp_path / "photos", 4)
    done = subprocess.run(
        [sys.executable, "-c", recipe.replace('"faces64"', repr(str(tiny_folder)))],
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_DATASETS_CACHE": str(tmp_path / "cache")},
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert pdae("encode", "photos", "-o", "ours.parquet", "--no-noise").code == 0
    made = [codes_in(path) for path in [*Path().glob("codes/*"), *Path().glob("codes.*")]]
    rows = {sha: z.tolist() for one in made for sha, z in zip(one.picture_shas, one.z, strict=True)}
    ours = codes_in("ours.parquet")
    assert rows == dict(zip(ours.picture_shas, ours.z.tolist(), strict=True)) and len(rows) == 4
