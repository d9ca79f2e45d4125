"""pdae codes: codes files joined, split, summed, compared and exported, without a model."""

from __future__ import annotations

import csv
import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_runs import pixels_of, records, without
from conftest import Command
from random_codes import codes_of, rows

from pdae_cli.cli.codes import term
from pdae_cli.cli.run.loading import own_names
from pdae_cli.engine.codes import Codes, from_bytes, to_bytes
from pdae_cli.errors import UsageError


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """a and b of one picture, many of three, other of another model, in a folder."""
    folder = tmp_path / "codes"
    made = {
        "a": codes_of(1, seed=1),
        "b": codes_of(1, seed=2),
        "many": codes_of(3),
        "other": codes_of(1, seed=3, model="other", weights_sha="e" * 64),
    }
    folder.mkdir()
    paths = {name: folder / f"{name}.safetensors" for name in made}
    for name, path in paths.items():
        path.write_bytes(to_bytes(made[name]))
    return paths


def read(path: Path) -> Codes:
    return from_bytes(path.read_bytes(), str(path))


class TestMergeAndSplit:
    def test_merging_undoes_splitting(
        self, pdae: Command, files: dict[str, Path], tmp_path: Path
    ) -> None:
        split, back = tmp_path / "split", tmp_path / "back.safetensors"
        assert pdae("codes", "split", files["many"], "-o", split).code == 0
        paths = [split / f"0-{row}.safetensors" for row in range(3)]
        assert sorted(split.iterdir()) == paths
        for path, one in zip(paths, rows(codes_of(3)), strict=True):
            assert path.read_bytes() == to_bytes(one)
        assert pdae("codes", "merge", split, "-o", back).code == 0
        assert back.read_bytes() == to_bytes(codes_of(3))

    def test_a_file_that_is_named_twice_is_there_twice(
        self,
        pdae: Command,
        files: dict[str, Path],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        one = next(iter(files.values()))
        assert pdae("codes", "merge", one, "-o", "once.safetensors").code == 0
        assert pdae("codes", "merge", one, one, "-o", "twice.safetensors").code == 0
        once, twice = (
            from_bytes(Path(f"{name}.safetensors").read_bytes(), name) for name in ("once", "twice")
        )
        assert len(twice) == 2 * len(once)
        assert pdae("codes", "mix", one, f"{one}=0.5", "-o", "mixed.safetensors").code == 0

    def test_files_folders_lists_and_streams(
        self, pdae: Command, files: dict[str, Path], tmp_path: Path
    ) -> None:
        files["other"].unlink()
        (files["a"].parent / "picture.png").write_bytes(b"not codes, and not asked for")
        out, names = tmp_path / "all.safetensors", tmp_path / "names.txt"
        assert pdae("codes", "merge", files["a"].parent, "-o", out).code == 0
        assert read(out).sources == ("1-0.png", "2-0.png", "0-0.png", "0-1.png", "0-2.png")
        names.write_text(f"{files['b']}\n")
        data = files["a"].read_bytes()
        result = pdae("codes", "merge", "-", "--files-from", names, "-o", "-", stdin=data)
        piped = from_bytes(result.out, "piped")
        assert piped.sources == ("1-0.png", "2-0.png") and result.code == 0

    def test_what_is_named_is_read_whatever_its_suffix(
        self, pdae: Command, files: dict[str, Path], tmp_path: Path
    ) -> None:
        """Also by a list or a pattern; of a folder's files those that say that they are codes."""
        odd, out = tmp_path / "a.codes", tmp_path / "all.safetensors"
        files["a"].rename(odd)
        names = f"{odd}\n{files['b']}\n".encode()
        for line in (("--files-from", "-"), (tmp_path / "*.codes", files["b"])):
            assert pdae("codes", "merge", *line, "-o", out, "--overwrite", stdin=names).code == 0
            assert read(out).sources == ("1-0.png", "2-0.png")
        odd.write_bytes(b"no codes")
        result = pdae("codes", "split", "--files-from", "-", "-o", tmp_path / "z", stdin=names)
        assert result.code == 3 and f"{odd}: not a codes file" in result.err

    def test_other_models_are_refused_with_names_and_digests(
        self, pdae: Command, files: dict[str, Path], tmp_path: Path
    ) -> None:
        for command in ("merge", "average", "mix", "export"):
            out = tmp_path / f"{command}.{'csv' if command == 'export' else 'safetensors'}"
            result = pdae("codes", command, files["a"], files["other"], "-o", out)
            assert result.code == 3 and not out.exists()
            for part in (files["a"], files["other"], "tiny, weights dddddddddddd", "eeeeeeeeeeee"):
                assert str(part) in result.err
        assert pdae("codes", "nearest", files["a"], files["other"]).code == 3

    def test_existing_files_stay(self, pdae: Command, files: dict[str, Path]) -> None:
        before = files["b"].read_bytes()
        for command in ("merge", "mix", "average"):
            result = pdae("codes", command, files["a"], "-o", files["b"])
            assert result.code == 3 and "--overwrite" in result.err
        (files["a"].parent / "0-2.safetensors").write_bytes(to_bytes(codes_of(1)))
        result = pdae("codes", "split", files["many"], "-o", files["a"].parent)
        assert result.code == 3 and not (files["a"].parent / "0-0.safetensors").exists()
        assert files["b"].read_bytes() == before
        assert pdae("codes", "merge", files["a"], "-o", files["b"], "--overwrite").code == 0
        assert read(files["b"]).sources == ("1-0.png",)


class TestFileNames:
    def test_a_pictures_own_name(self) -> None:
        assert own_names(["in/a.png", "b.JPG", "c.d.webp", "C:\\x\\e"]) == ["a", "b", "c.d", "e"]
        assert own_names(["a.png + 0.3 b.png"]) == ["a.png + 0.3 b"]

    @pytest.mark.parametrize("clash", [["a.png", "x/a.jpg"], ["a", "A"], ["a", ""], ["..", "a"]])
    def test_numbers_where_names_clash_or_are_none(
        self, pdae: Command, tmp_path: Path, clash: list[str]
    ) -> None:
        assert own_names(clash) is None
        for sources, wanted in ((clash, ["1", "2"]), ([*clash, *"bcdefghi"], ["01", "10"])):
            codes = replace(codes_of(len(sources)), sources=tuple(sources))
            stack, out = tmp_path / "s.safetensors", tmp_path / f"{len(sources)}"
            stack.write_bytes(to_bytes(codes))
            assert pdae("codes", "split", stack, "-o", out).code == 0
            made = [path.stem for path in sorted(out.iterdir())]
            assert [made[0], made[-1]] == wanted

    @pytest.mark.parametrize(
        "name", ["../../etc/x", "/abs/x", "a\x1b[31m\n", "..", "-rf", "x" * 999, "a/\0"]
    )
    def test_no_name_leads_elsewhere(self, name: str) -> None:
        (made,) = own_names([name]) or ("1",)
        assert made.isprintable() and len(made) <= 100
        assert not set("/\\\0") & set(made) and made.strip(".") and not made.startswith("-")


class TestSums:
    def test_weights(self, pdae: Command, files: dict[str, Path], tmp_path: Path) -> None:
        out = tmp_path / "m.safetensors"
        terms = (f"{files['many']}=0.5", f"{files['a']}=0.75", f"{files['b']}=-0.25")
        result = pdae("codes", "mix", *terms, "-o", out, "--json")
        (record,) = records(result.text)
        assert record["weights"] == [0.5, 0.75, -0.25] and record["pictures"] == 3
        expected = 0.5 * codes_of(3).z + 0.75 * codes_of(1, 1).z - 0.25 * codes_of(1, 2).z
        assert torch.allclose(read(out).z, expected, atol=1e-6)

    @pytest.mark.parametrize(
        ("noise", "std"), [("sphere", 1), ("plain", 0.5**0.5), ("first", 1), ("none", None)]
    )
    def test_noise(
        self, pdae: Command, files: dict[str, Path], tmp_path: Path, noise: str, std: float | None
    ) -> None:
        out = tmp_path / "out.safetensors"
        halves = (f"{files['a']}=0.5", f"{files['b']}=0.5")
        assert pdae("codes", "mix", *halves, "--noise", noise, "-o", out).code == 0
        x_T = read(out).x_T
        assert (None if x_T is None else x_T.std().item()) == pytest.approx(std, abs=0.05)
        assert pdae("codes", "mix", files["a"], "--noise", "loud", "-o", out).code == 2

    def test_a_pipe_of_directions(
        self, pdae: Command, files: dict[str, Path], tmp_path: Path
    ) -> None:
        """with - without | face + 0.3 of it: what manipulation is."""
        way = pdae("codes", "mix", files["a"], f"{files['b']}=-1", "-o", "-")
        direction = tmp_path / "way.safetensors"
        direction.write_bytes(way.out)
        face = files["many"].read_bytes()
        edited = pdae("codes", "mix", "-", f"{direction}=0.3", "-o", "-", stdin=face)
        codes, original = from_bytes(edited.out, "edited"), codes_of(3)
        assert torch.equal(codes.tensors()["x_T"], original.tensors()["x_T"])
        assert codes.picture_shas == original.picture_shas

    def test_averages(self, pdae: Command, files: dict[str, Path], tmp_path: Path) -> None:
        out = tmp_path / "mean.safetensors"
        result = pdae("codes", "average", files["a"], files["many"], "-o", out)
        assert result.code == 0 and "of 4 pictures" in result.text
        expected = torch.cat([codes_of(1, 1).z, codes_of(3).z]).mean(0, keepdim=True)
        assert torch.allclose(read(out).z, expected, atol=1e-6)

    def test_codes_in_sub_folders_are_counted_or_taken(
        self, pdae: Command, files: dict[str, Path], tmp_path: Path
    ) -> None:
        folder, out = files["a"].parent, tmp_path / "mean.safetensors"
        files["other"].unlink()
        for name, kept in (("deep/b", "b"), ("deep/er/many", "many")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            files[kept].rename(folder / f"{name}.safetensors")
        alone = pdae("codes", "average", folder, "-o", out)
        assert "of 1 picture\n" in alone.text and "2 more lie in its folders" in alone.err
        whole = pdae("codes", "average", "-r", folder, "-o", out, "--overwrite")
        assert "of 5 pictures" in whole.text and not whole.err
        for command, target in (("split", "s"), ("merge", "m.safetensors"), ("export", "e.csv")):
            result = pdae("codes", command, folder, "-r", "-o", tmp_path / target)
            assert result.code == 0 and not result.err

    def test_terms(
        self, pdae: Command, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert term("a.safetensors") == ("a.safetensors", 1.0)
        assert term("a=b.safetensors=-2.5e-1") == ("a=b.safetensors", -0.25)
        Path("c=1").touch()
        assert term("c=1") == ("c=1", 1.0)
        for wrong in ("", "x", "nan", "inf"):
            with pytest.raises(UsageError, match=f"'a=b={wrong}'"):
                term(f"a=b={wrong}")
        assert pdae("codes", "mix", files["a"].parent, "-o", "-").code == 2  # a folder


class TestNearest:
    def test_itself_first(self, pdae: Command, files: dict[str, Path]) -> None:
        library = (files["a"], files["b"], files["many"])
        for metric in ("cosine", "euclidean"):
            how = ("-k", 2, "--json", "--metric", metric)
            result = pdae("codes", "nearest", files["many"], *library, *how)
            found = records(result.text)
            assert len(found) == 6 and result.code == 0
            for row, record in enumerate(found[::2]):
                assert record["rank"] == 1 and record["distance"] == 0
                assert record["input"] == record["source"] == f"0-{row}.png"
                assert (record["file"], record["row"]) == (str(files["many"]), row)
        text = pdae("codes", "nearest", files["a"], *library, "-k", 1).text
        assert text == "1-0.png  0.0000  1-0.png\n"

    def test_usage(self, pdae: Command, files: dict[str, Path]) -> None:
        folder = files["a"].parent
        for args in ((folder, files["a"]), (files["a"], folder, "--metric", "x"), (files["a"],)):
            assert pdae("codes", "nearest", *args).code == 2


class TestExport:
    def test_each_format(self, pdae: Command, files: dict[str, Path], tmp_path: Path) -> None:
        codes = codes_of(3)
        for suffix in ("csv", "npy", "npz"):
            assert pdae("codes", "export", files["many"], "-o", tmp_path / f"c.{suffix}").code == 0
        lines = list(csv.reader((tmp_path / "c.csv").read_text().splitlines()))
        assert len(lines) == 4 and lines[1][0] == "0-0.png"
        assert np.array_equal(np.load(tmp_path / "c.npy"), codes.z.numpy())
        with np.load(tmp_path / "c.npz") as archive:
            assert np.array_equal(archive["x_T"], codes.tensors()["x_T"].numpy())

    def test_what_is_of_z_alone_doesnt_ask_how_x_T_was_made(
        self, pdae: Command, files: dict[str, Path], tmp_path: Path
    ) -> None:
        other = codes_of(1, seed=2, x_T=None, sampling={"inference_steps": 9})
        files["b"].write_bytes(to_bytes(other))
        assert pdae("codes", "nearest", files["a"], files["b"]).code == 0
        for suffix, code in (("csv", 0), ("npy", 0), ("npz", 3)):
            out = tmp_path / f"c.{suffix}"
            assert pdae("codes", "export", files["a"], files["b"], "-o", out).code == code

    def test_stdout(self, pdae: Command, files: dict[str, Path]) -> None:
        assert pdae("codes", "export", files["a"]).text.startswith("source,z0,")
        numbers = pdae("codes", "export", "-", "--format", "npy", stdin=files["a"].read_bytes())
        assert np.load(io.BytesIO(numbers.out)).shape == (1, 6)
        for wrong in (("--json",), ("--format", "xls"), ("-o", "a.xls")):
            assert pdae("codes", "export", files["a"], *wrong).code == 2


class TestFailures:
    def test_damaged_files_are_one_line(self, pdae: Command, files: dict[str, Path]) -> None:
        files["b"].write_bytes(files["b"].read_bytes()[:-5])
        for command in ("merge", "split", "average", "mix", "export"):
            result = pdae("codes", command, files["a"], files["b"], "-o", files["a"].parent / "x/")
            assert result.code in (2, 3) and result.err.count("\n") == 1 and not result.out

    def test_nothing_there(self, pdae: Command, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(b"")
        assert pdae("codes", "merge", tmp_path).code == 2
        assert pdae("codes", "merge", tmp_path / "no.safetensors", "-o", "-").code == 3
        assert pdae("codes", "merge").code == 2


def test_a_picture_is_told_as_no_codes(
    pdae: Command, pictures: list[Path], files: dict[str, Path], tmp_path: Path
) -> None:
    """Also one that is piped, and one that is damaged."""
    a, out = pictures[0], tmp_path / "out.safetensors"
    for line in (("merge", a, "-o", out), ("mix", f"{a}=1", "-o", out), ("nearest", a, files["a"])):
        result = pdae("codes", *line)
        assert result.code == 3 and f"{a}: not a codes file" in result.err
        assert "see `pdae encode`" in result.err
    result = pdae("codes", "merge", "-", "-o", out, stdin=pictures[1].read_bytes())
    assert result.code == 3 and "-: not a codes file" in result.err
    a.write_bytes(a.read_bytes()[:20])
    result = pdae("codes", "merge", a, "-o", out)
    assert result.code == 3 and "not a codes file" in result.err and not out.exists()


def test_no_command_loads_a_model(files: dict[str, Path], tmp_path: Path) -> None:
    """They import torch and what reads files, and not the engine or accelerate."""
    line = ("codes", "mix", files["a"], "-o", tmp_path / "m.safetensors")
    without("accelerate PIL pdae_cli.engine.model", "", line)
    assert len(read(tmp_path / "m.safetensors")) == 1


def test_z_alone_is_edited_with_fresh_noise(pdae: Command, pictures: list[Path]) -> None:
    """`manipulate --random-noise` is `decode --random-noise` of the moved z; without it the message
    names the option, and commands that have none name another way."""
    here, fast = pictures[0].parent, ("--inference-steps", 2, "-q")
    z, moved = here / "z.safetensors", here / "moved.safetensors"
    assert pdae("encode", *pictures[:2], "--no-noise", "-o", z, "-q").code == 0
    edit, fresh = ("--attr", "smiling=0.3"), ("--random-noise", "--seed", 5)
    for command in (("decode", z), ("manipulate", z, *edit)):
        refused = pdae(*command, "-o", here / "out", "--format", "png", *fast)
        assert refused.code == 3 and "--no-noise" in refused.err and "--random-noise" in refused.err
    for command in (("interpolate", z, z), ("colourise", z)):
        refused = pdae(*command, "-o", here / "out", *fast)
        assert refused.code == 3 and "--random-noise" not in refused.err, refused.err
    assert pdae("manipulate", z, *edit, "-o", moved, "-q").code == 0
    assert pdae("decode", moved, *fresh, "-o", here / "decoded/", *fast).code == 0
    shown = ("manipulate", z, *edit, *fresh, "--format", "png", "-o", here / "edited/", *fast)
    assert pdae(*shown).code == 0
    for name in ("z-a.png", "z-b.png"):
        decoded = here / "decoded" / name.replace("z-", "moved-")
        assert pixels_of(here / "edited" / name) == pixels_of(decoded)
    assert pdae("manipulate", z, *edit, *fresh, "-o", here / "noisy.safetensors", "-q").code == 0
    noisy = read(here / "noisy.safetensors")
    assert noisy.x_T is not None and len(noisy) == 2 and noisy.z.equal(read(moved).z)
    # What is known of the picture's own noise says nothing of another.
    assert pdae("encode", *pictures[:2], "-o", z, "--solver", "leapfrog", *fast).code == 0
    assert read(z).residual_T is not None
    assert pdae("manipulate", z, *edit, *fresh, "-o", moved, "-q").code == 0
    assert read(moved).residual_T is None


def test_rows_of_one_file_are_edited_into_one_file(pdae: Command, pictures: list[Path]) -> None:
    here, fast, edit = pictures[0].parent, ("--inference-steps", 2, "-q"), ("--attr", "smiling=1")
    z, moved = here / "z.safetensors", here / "moved.safetensors"
    assert pdae("encode", *pictures, "-o", z, *fast).code == 0
    command = ("manipulate", z, *edit, "-o", moved)
    result = pdae(*command)
    assert result.code == 0 and len(result.text.splitlines()) == 3
    assert pdae("manipulate", z, *edit, "-o", here / "each/", "-q").code == 0
    for row, path in enumerate(sorted((here / "each").glob("*.safetensors"))):
        alone, together = read(path), read(moved)[row : row + 1]
        assert torch.equal(alone.z, together.z) and alone.sources == together.sources
    assert "1 unchanged" in pdae(*command).err
    for picture in ("decode", "manipulate"):  # found before any work, not after the first
        more = edit if picture == "manipulate" else ()
        refused = pdae(picture, z, *more, "-o", here / "one.png")
        assert refused.code == 2 and "3 pictures of" in refused.err
        assert not (here / "one.png").exists()


def test_one_is_not_said_as_several(pdae: Command, pictures: list[Path]) -> None:
    here = pictures[0].parent
    assert pdae("encode", pictures[0], "--no-noise", "-o", here / "a.safetensors").code == 0
    (here / "deep").mkdir()
    shutil.copy(here / "a.safetensors", here / "deep")
    result = pdae("codes", "average", here, "-o", here / "mean.safetensors")
    assert result.code == 0 and "of 1 picture\n" in result.text
    assert "1 more lies in its folders; -r takes" in result.err
    assert "-r" not in pdae("codes", "average", here, "-r", "-o", here / "all.safetensors").err
