"""Runs over folders: what is done once isn't done again, and several processes share the work."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from cli_runs import folder_of, outputs, pixels_of, records
from conftest import Command, picture

from pdae_cli.cli.run.batches import Run
from pdae_cli.cli.run.inputs import split_pngs
from pdae_cli.diffusion.trajectory import Sampling

FAST = ("--inference-steps", "3")


class TestAgain:
    """The same command does only what is missing or changed, and says why."""

    def test_what_is_done_stays(self, pdae: Command, tmp_path: Path) -> None:
        source, out = folder_of(tmp_path / "in", 3), tmp_path / "out"
        command = ("reconstruct", source, "-o", out, *FAST)
        first = pdae(*command, "--json")
        assert first.code == 0
        before = {path: path.stat().st_mtime_ns for path in out.glob("*.png")}
        again = pdae(*command, "--json")
        assert again.code == 0 and [r["status"] for r in records(again.text)] == ["unchanged"] * 3
        assert [r["mse"] for r in records(again.text)] == [r["mse"] for r in records(first.text)]
        assert {path: path.stat().st_mtime_ns for path in out.glob("*.png")} == before
        assert pdae(*command).err == "3 unchanged\n"
        assert [r["status"] for r in records(pdae(*command, "--json", "--overwrite").text)] == [
            "done"
        ] * 3

    def test_what_is_missing_or_changed_is_made_again(self, pdae: Command, tmp_path: Path) -> None:
        source, out = folder_of(tmp_path / "in", 5), tmp_path / "out"
        command = ("encode", source, "-o", out, "--no-noise")
        assert pdae(*command).code == 0
        whole = outputs(out)
        (out / "0.safetensors").unlink()
        (out / "1.safetensors").write_bytes(whole["1.safetensors"][:100])
        (out / "2.safetensors").write_bytes(b"")
        picture(99).save(source / "3.png")
        result = pdae(*command)
        assert result.code == 0
        said = result.err.splitlines()
        for line, (number, reason) in zip(said, enumerate(
            ["it is missing", "it isn't what was written", "it isn't what was written",
             "its input changed"]
        ), strict=False):  # fmt: skip
            assert line == f"{source / f'{number}.png'} is made again: {reason}"
        assert said[-1] == "4 done, 1 unchanged"
        now = outputs(out)
        changed = {name for name in whole if now[name] != whole[name]}
        assert changed == {"3.safetensors"}

    def test_other_options_or_another_model_make_it_again(
        self, pdae: Command, tmp_path: Path, tiny_folder: Path
    ) -> None:
        source, out = folder_of(tmp_path / "in", 1), tmp_path / "out"
        assert pdae("reconstruct", source, "-o", out, *FAST).code == 0
        result = pdae("reconstruct", source, "-o", out, *FAST, "--seed", 3)
        assert result.code == 0 and "made again: --seed was 0, is 3" in result.err
        assert "1 unchanged" in pdae("reconstruct", source, "-o", out, *FAST, "--seed", 3,
                                     "--batch-size", 7, "--device", "cpu").err  # fmt: skip

    def test_another_config_of_the_same_weights_makes_it_again(
        self, pdae: Command, tmp_path: Path, tiny_folder: Path
    ) -> None:
        """Converted anew with another schedule, say: the weights are the same to the byte."""
        model = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
        source, out = folder_of(tmp_path / "in", 1), tmp_path / "out"
        command = ("reconstruct", source, "-o", out, *FAST)
        assert pdae(*command, model=model).code == 0
        before = outputs(out)
        for change, same in (({"licence": "mine"}, True), ({"prediction": "v"}, False)):
            config = json.loads((model / "config.json").read_text()) | change
            (model / "config.json").write_text(json.dumps(config))
            result = pdae(*command, model=model)
            assert result.code == 0 and (outputs(out) == before) == same
            assert ("again: of other settings in the model's config.json" in result.err) != same
            assert pdae("redo", out / "0.png", "-i", source, "-m", model).code == 0
        (out / "0.png").write_bytes(before["0.png"])
        told = pdae("redo", out / "0.png", "-i", source, "-m", model)
        assert told.code == 4 and "made with other settings in the model's" in told.err

    def test_other_defaults_make_it_again(
        self, pdae: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A later version's, say: one folder doesn't hold pictures of both."""
        source, out = folder_of(tmp_path / "in", 2), tmp_path / "out"
        first, command = next(source.iterdir()), ("reconstruct", source, "-o", out)
        assert pdae("reconstruct", first, "-o", f"{out}/").code == 0
        before = outputs(out)
        monkeypatch.setattr(Sampling, "__repr__", lambda self: "of a later version")
        told = pdae("redo", out / f"{first.stem}.png", "-i", source)
        assert told.code == 4 and "made with other default settings than now" in told.err
        result = pdae(*command)
        assert result.code == 0 and "made again: of other default settings than now" in result.err
        assert "2 unchanged" in pdae(*command).err and before.items() - outputs(out).items()

    def test_other_commands_and_other_peoples_files_are_left_alone(
        self, pdae: Command, tmp_path: Path
    ) -> None:
        source, out = folder_of(tmp_path / "in", 2), tmp_path / "out"
        assert pdae("reconstruct", source, "-o", out, *FAST).code == 0
        before = outputs(out)
        edit = ("manipulate", source, "-o", out, "--attr", "smiling=0.3", *FAST)
        refused = pdae(*edit)
        assert refused.code == 3 and "--overwrite or --skip-existing" in refused.err
        assert pdae(*edit, "--skip-existing").code == 0 and outputs(out) == before
        assert pdae(*edit, "--overwrite").code == 0
        assert all(outputs(out)[name] != before[name] for name in before)

    def test_what_was_retouched_is_somebodys(self, pdae: Command, tmp_path: Path) -> None:
        """A whole picture, or codes, in the place of an output is kept; a damaged one isn't."""
        source, out = folder_of(tmp_path / "in", 2), tmp_path / "out"
        command = ("reconstruct", source, "-o", out, *FAST)
        assert pdae(*command).code == 0
        picture(7).save(out / "0.png")
        (out / "1.png").write_bytes((out / "1.png").read_bytes()[:-40])
        retouched = (out / "0.png").read_bytes()
        for options in ((), ("--seed", 3)):
            result = pdae(*command, *options)
            assert result.code == 3 and (out / "0.png").read_bytes() == retouched
            assert "0.png exists and was changed since it was written; pass --ov" in result.err
        assert "1.png is made again" in result.err
        assert pdae(*command, "--overwrite").code == 0
        assert (out / "0.png").read_bytes() != retouched
        codes = ("encode", source, "-o", out, "--no-noise")
        assert pdae(*codes).code == 0
        (out / "0.safetensors").write_bytes(other := (out / "1.safetensors").read_bytes())
        assert pdae(*codes).code == 3 and (out / "0.safetensors").read_bytes() == other

    def test_failures_are_tried_again(self, pdae: Command, tmp_path: Path) -> None:
        source, out = folder_of(tmp_path / "in", 1), tmp_path / "out"
        for name in ("x.png", "y.png"):
            (source / name).write_bytes(b"not a picture")
        first = pdae("encode", source, "-o", out, "--no-noise")
        assert first.code == 3 and "1 done, 2 failed" in first.err
        assert "2 times: not a picture" in first.err  # by cause
        picture(5).save(source / "x.png")
        second = pdae("encode", source, "-o", out, "--no-noise")
        assert second.code == 3 and "1 done, 1 unchanged, 1 failed" in second.err

    def test_samples_and_frames_too(self, pdae: Command, tmp_path: Path) -> None:
        out = tmp_path / "s"
        assert pdae("sample", "-n", 2, "-o", out, *FAST).code == 0
        more = pdae("sample", "-n", 4, "-o", out, *FAST)
        assert more.code == 0 and "2 done, 2 unchanged" in more.err
        assert sorted(outputs(out)) == [f"{number:05d}.png" for number in range(4)]
        folder = folder_of(tmp_path / "in", 2)
        ends = [folder / "0.png", folder / "1.png"]
        way = ("interpolate", *ends, "-o", tmp_path / "way", "--steps", 5, *FAST)
        assert pdae(*way).code == 0
        before = outputs(tmp_path / "way")
        (tmp_path / "way" / "0002.png").unlink()
        assert "1 done, 4 unchanged" in pdae(*way).err and outputs(tmp_path / "way") == before

    def test_inputs_are_never_changed(self, pdae: Command, tmp_path: Path) -> None:
        source = folder_of(tmp_path / "in", 2)
        before = outputs(source)
        inside = pdae("reconstruct", source, "-o", source / "sub", *FAST)
        assert inside.code == 0
        same = pdae("reconstruct", source, "-o", source, *FAST)
        assert same.code == 3 and "exists" in same.err
        assert {k: v for k, v in outputs(source).items() if "/" not in k} == before


class TestNames:
    def test_zips_mirror_their_folders(self, pdae: Command, tmp_path: Path) -> None:
        path = tmp_path / "p.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name in ("a.png", "sub/a.png", "../../evil.png", "/abs.png", "notes.txt"):
                picture().save(tmp_path / "x.png")
                archive.write(tmp_path / "x.png", name)
        assert pdae("encode", path, "-o", tmp_path / "o", "--no-noise").code == 0
        assert sorted(outputs(tmp_path / "o")) == [
            "a.safetensors", "abs.safetensors", "evil.safetensors", "sub/a.safetensors",
        ]  # fmt: skip
        assert not list(tmp_path.parent.glob("evil*"))

    def test_damaged_zips(self, pdae: Command, tmp_path: Path) -> None:
        path = tmp_path / "p.zip"
        path.write_bytes(b"PK not a zip")
        picture().save(tmp_path / "x.png")
        result = pdae("encode", path, tmp_path / "x.png", "-o", tmp_path / "o0", "--no-noise")
        assert result.code == 3 and "can't be read as a zip" in result.err
        assert list(outputs(tmp_path / "o0")) == ["x.safetensors"]
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.png", os.urandom(400))
            archive.write(tmp_path / "x.png", "b.png")
        data = bytearray(path.read_bytes())
        data[60] ^= 255  # within a.png's content
        path.write_bytes(bytes(data))
        result = pdae("encode", path, "-o", tmp_path / "o", "--no-noise")
        assert result.code == 3 and "p.zip/a.png: can't be unpacked" in result.err
        assert list(outputs(tmp_path / "o")) == ["b.safetensors"]

    def test_named_files_mirror_their_paths_with_r(
        self, pdae: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for name in ("x", "y"):
            folder_of(tmp_path / name, 1)
        names = "x/0.png\0y/0.png\0"
        flat = pdae("encode", "--files-from", "-", "-0", "-o", "o", stdin=names.encode())
        assert flat.code == 2 and "would both become" in flat.err and not Path("o").exists()
        command = ("encode", "--files-from", "list", "-0", "-r", "-o", "o", "--no-noise")
        Path("list").write_text(names)
        assert pdae(*command).code == 0
        assert sorted(outputs(Path("o"))) == ["x/0.safetensors", "y/0.safetensors"]

    @pytest.mark.parametrize("output", ["o/", "z.safetensors"])
    def test_a_file_that_is_named_twice_is_done_once(
        self, pdae: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
    ) -> None:
        monkeypatch.chdir(folder_of(tmp_path / "in", 2).parent)
        Path("link").symlink_to("in")
        for names, said in (
            (["in", "./in/0.png"], "in/0.png: named"),
            (["in", "link"], " and 1 m"),
        ):
            result = pdae("encode", *names, "--no-noise", "-o", output, "--overwrite", "--json")
            assert result.code == 0 and len(records(result.text)) == 2
            assert said in result.err and "more than once, done once" in result.err
        assert pdae("interpolate", *["in/0.png"] * 2, "--steps", 2, "-o", "x.png").code == 0

    @pytest.mark.parametrize("of", ["frames", "rows"])
    def test_of_two_inputs_for_one_output_the_second_fails(
        self, pdae: Command, tmp_path: Path, of: str
    ) -> None:
        """Also where an output gets its name once its input is read; and again in another run."""
        source, out = folder_of(tmp_path / "in", 2), tmp_path / "o"
        command: tuple[object, ...] = ("encode", source, "--frames", "all", "--no-noise", "-o", out)
        if of == "frames":
            films = [picture(seed) for seed in range(2)]
            films[0].save(source / "x.gif", save_all=True, append_images=films[1:])
            (source / "0.png").rename(source / "x-0000.png")
        else:
            for names, stem in (("01", "x"), ("0", "x-0")):
                pictures = [source / f"{name}.png" for name in names]
                codes = tmp_path / "codes" / f"{stem}.safetensors"
                assert pdae("encode", *pictures, "-o", codes, *FAST).code == 0
            command = ("decode", tmp_path / "codes", "-o", out, *FAST)
        for status in ("done", "unchanged"):
            result = pdae(*command, "--json")
            told = records(result.text)
            (failed,) = [one for one in told if one["status"] == "failed"]
            assert result.code == 3 and {one["status"] for one in told} == {status, "failed"}
            assert f"its output {'x-0000' if of == 'frames' else 'x-0'}." in str(failed["error"])
            assert "rename one" in str(failed["error"])
            assert len(outputs(out)) == len(told) - 1

    def test_patterns_that_the_shell_left_alone(self, pdae: Command, tmp_path: Path) -> None:
        source = folder_of(tmp_path / "in", 11)
        z = tmp_path / "z.safetensors"
        result = pdae("encode", source / "*.png", "-o", z, "--no-noise", "--json")
        names = [Path(str(r["input"])).name for r in records(result.text)]
        assert names == [f"{number}.png" for number in range(11)]  # 10 after 9

    def test_loops_of_links_end(self, pdae: Command, tmp_path: Path) -> None:
        source = folder_of(tmp_path / "in", 1)
        (source / "loop").symlink_to(source)
        assert pdae("encode", "-r", source, "-o", tmp_path / "o", "--no-noise").code == 0
        assert list(outputs(tmp_path / "o")) == ["0.safetensors"]


class TestStreams:
    def stream(self, tmp_path: Path, count: int) -> bytes:
        source = folder_of(tmp_path / "stream", count)
        return b"".join((source / f"{number}.png").read_bytes() for number in range(count))

    def test_pngs_in_pngs_out(self, pdae: Command, tmp_path: Path) -> None:
        data, out = self.stream(tmp_path, 3), tmp_path / "out"
        result = pdae("reconstruct", "-", "-o", "-", "--stream", "png", *FAST, stdin=data)
        assert result.code == 0
        frames = [pixels_of(BytesIO(one)) for one in split_pngs(BytesIO(result.out), 1 << 20)]
        assert pdae("reconstruct", tmp_path / "stream", "-o", out, *FAST).code == 0
        assert frames == [pixels_of(out / f"{number}.png") for number in range(3)]

    @pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "PPM"])
    def test_pictures_behind_the_first_are_told_where_no_stream_is_asked_for(
        self, pdae: Command, tmp_path: Path, format: str
    ) -> None:
        files = [BytesIO(), BytesIO()]
        for number, file in enumerate(files):
            picture(number).save(file, format)
        one, both = files[0].getvalue(), b"".join(file.getvalue() for file in files)
        line = ("encode", "-", "--no-noise", "-o", tmp_path / "z.safetensors")
        result = pdae(*line, stdin=both)
        said = "-: the first of its pictures alone; --stream png takes each"
        assert result.code == 0 and said in result.err
        assert "alone" not in pdae(*line, "--overwrite", stdin=one).err

    def test_codes_behind_the_first_are_refused(self, pdae: Command, tmp_path: Path) -> None:
        source, codes = folder_of(tmp_path / "in", 1), tmp_path / "z.safetensors"
        assert pdae("encode", source, "--no-noise", "-o", codes).code == 0
        line, stdin = ("decode", "-", "--random-noise", "-o", tmp_path / "x"), codes.read_bytes()
        assert pdae(*line, stdin=stdin * 2).code == 3 and not outputs(tmp_path / "x")
        assert pdae(*line, stdin=stdin).code == 0

    def test_a_stream_to_a_folder(self, pdae: Command, tmp_path: Path) -> None:
        data, out = self.stream(tmp_path, 2), tmp_path / "o"
        command = ("encode", "-", "--stream", "png", "-o", out, "--no-noise")
        assert pdae(*command, stdin=data).code == 0
        assert sorted(outputs(out)) == ["000000.safetensors", "000001.safetensors"]

    def test_one_file_of_a_stream_holds_none_of_it(
        self, pdae: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data, write, kept = self.stream(tmp_path, 2), Run.write, []

        def seen(run: Run, *args: Any) -> None:
            kept.extend(one for one, _ in run.kept)
            write(run, *args)

        monkeypatch.setattr(Run, "write", seen)
        command = ("encode", "-", "--stream", "png", "-o", tmp_path / "z.safetensors")
        assert pdae(*command, "--no-noise", stdin=data).code == 0
        assert [one.label for one in kept] == ["-:0", "-:1"]
        assert all(one.picture is None and not one.item.read() for one in kept)

    @pytest.mark.parametrize("cut", [1, 7, 20, 60, -1])
    def test_a_stream_that_breaks_off(self, pdae: Command, tmp_path: Path, cut: int) -> None:
        data = self.stream(tmp_path, 2)
        first = len((tmp_path / "stream" / "0.png").read_bytes())
        broken = data[: first + cut] if cut > 0 else data[:first] + b"something else"
        command = ("encode", "-", "--stream", "png", "-o", tmp_path / "o", "--no-noise")
        result = pdae(*command, stdin=broken)
        assert result.code == 3 and "standard input" in result.err
        assert list(outputs(tmp_path / "o")) == ["000000.safetensors"]
