"""Runs over folders: what is done once isn't done again, and several processes share the work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from conftest import Command, picture

from pdae_cli.cli.run.manifest import Job, Manifest
from pdae_cli.errors import InputError, StorageError

FAST = ("--inference-steps", "3")
JOB = Job("encode", "m" * 64, {"seed": 0})


def folder_of(path: Path, count: int) -> Path:
    """A folder of pictures."""
    path.mkdir(parents=True)
    for number in range(count):
        picture(number).save(path / f"{number}.png")
    return path


def outputs(folder: Path) -> dict[str, bytes]:
    """Every file of an output folder but the manifest's, by its place."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in files
        if ".pdae" not in path.parts
    }


def records(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


class TestManifest:
    """What is done is what a line says and the file's own content confirms."""

    def test_an_output_is_done_when_its_line_and_its_content_agree(self, tmp_path: Path) -> None:
        manifest = Manifest(tmp_path, JOB)
        out = tmp_path / "a.png"
        assert not manifest.state(out, "s").done and manifest.state(out, "s").reason == ""
        manifest.add([(out, "s", b"content", {"seed": 0})])
        manifest.refresh()
        assert manifest.state(out, "s").reason == "it is missing"
        out.write_bytes(b"content")
        assert manifest.state(out, "s").done and manifest.state(out, "s").record == {"seed": 0}
        assert manifest.state(out, "t").reason == "its input changed"
        out.write_bytes(b"conte")
        assert manifest.state(out, "s").reason == "it isn't what was written"
        manifest.close()

    def test_other_jobs(self, tmp_path: Path) -> None:
        with_line = Manifest(tmp_path, JOB)
        out = tmp_path / "a.png"
        with_line.add([(out, "s", b"content", {})])
        out.write_bytes(b"content")
        with_line.close()
        for job, reason, foreign in [
            (Job("encode", "m" * 64, {"seed": 1}), "--seed was 0, is 1", False),
            (Job("encode", "n" * 64, {"seed": 0}), "another model", False),
            (Job("decode", "m" * 64, {"seed": 0}), "", True),
        ]:
            manifest = Manifest(tmp_path, job)
            state = manifest.state(out, "s")
            assert (state.done, state.reason, state.foreign) == (False, reason, foreign)
            manifest.close()

    def test_options_that_werent_given_dont_count(self) -> None:
        more = Job("encode", "m" * 64, {"seed": 0, "new": None, "other": False, "more": []})
        assert more.digest == JOB.digest != Job("encode", "m" * 64, {"seed": 1}).digest

    def test_files_that_nobody_recorded_are_somebody_elses(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(b"mine")
        manifest = Manifest(tmp_path, JOB)
        assert manifest.state(tmp_path / "a.png", "s").foreign
        manifest.close()

    def test_every_line_may_be_torn(self, tmp_path: Path) -> None:
        out = tmp_path / "a.png"
        first = Manifest(tmp_path, JOB)
        first.add([(out, "s", b"content", {})])
        first.close()
        out.write_bytes(b"content")
        path = tmp_path / ".pdae" / "manifest.jsonl"
        whole = path.read_bytes()
        for length in range(len(whole)):
            path.write_bytes(whole[:length])
            after = Manifest(tmp_path, JOB)  # goes on in the same file
            after.add([(tmp_path / "b.png", "s", b"other", {})])
            after.refresh()
            assert not after.state(out, "s").done or length >= len(whole) - 1
            (tmp_path / "b.png").write_bytes(b"other")
            assert after.state(tmp_path / "b.png", "s").done
            (tmp_path / "b.png").unlink()
            after.close()

    @pytest.mark.parametrize(
        "line", [b"[]", b"1", b'{"output": 1}', b'{"output": "a.png", "sha256": []}', b"\xff{",
                 b'{"job": {}}', b"[" * 5000],
    )  # fmt: skip
    def test_damage_is_as_good_as_nothing(self, tmp_path: Path, line: bytes) -> None:
        (tmp_path / ".pdae").mkdir()
        (tmp_path / ".pdae" / "manifest.jsonl").write_bytes(line + b"\n")
        (tmp_path / "a.png").write_bytes(b"")
        manifest = Manifest(tmp_path, JOB)
        assert not manifest.state(tmp_path / "a.png", "s").done
        manifest.close()

    def test_a_claim_is_one_process_own_until_it_ends(self, tmp_path: Path) -> None:
        code = (
            "import sys, time; from pathlib import Path\n"
            "from pdae_cli.cli.running.manifest import Job, Manifest\n"
            "m = Manifest(Path(sys.argv[1]), Job('encode', 'm', {}))\n"
            "print(m.claim(Path(sys.argv[1], 'a.png')), flush=True); time.sleep(60)"
        )
        other = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        with other:
            assert other.stdout is not None and other.stdout.readline() == "True\n"
            manifest = Manifest(tmp_path, JOB)
            assert not manifest.claim(tmp_path / "a.png") and manifest.claim(tmp_path / "b.png")
            other.kill()
            other.wait()
            assert manifest.claim(tmp_path / "a.png")
            manifest.close()


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
        assert pdae("encode", path, "-o", tmp_path / "o").code == 2
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.png", os.urandom(400))
            picture().save(tmp_path / "x.png")
            archive.write(tmp_path / "x.png", "b.png")
        data = bytearray(path.read_bytes())
        data[60] ^= 255  # within a.png's content
        path.write_bytes(bytes(data))
        result = pdae("encode", path, "-o", tmp_path / "o", "--no-noise")
        assert result.code == 3 and "the zip is damaged" in result.err
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
        from io import BytesIO

        from pdae_cli.cli.run.pngs import split_pngs

        data = self.stream(tmp_path, 3)
        command = ("reconstruct", "-", "-o", "-", "--stream", "png", *FAST)
        result = pdae(*command, stdin=data)
        assert result.code == 0
        frames = list(split_pngs(BytesIO(result.out), 1 << 20))
        out = tmp_path / "out"
        assert pdae("reconstruct", tmp_path / "stream", "-o", out, *FAST).code == 0
        from PIL import Image

        for number, frame in enumerate(frames):
            with Image.open(BytesIO(frame)) as ours, Image.open(out / f"{number}.png") as theirs:
                assert ours.tobytes() == theirs.tobytes()
        assert len(frames) == 3

    def test_a_stream_to_a_folder(self, pdae: Command, tmp_path: Path) -> None:
        data, out = self.stream(tmp_path, 2), tmp_path / "o"
        command = ("encode", "-", "--stream", "png", "-o", out, "--no-noise")
        assert pdae(*command, stdin=data).code == 0
        assert sorted(outputs(out)) == ["000000.safetensors", "000001.safetensors"]

    @pytest.mark.parametrize("cut", [1, 7, 20, 60, -1])
    def test_a_stream_that_breaks_off(self, pdae: Command, tmp_path: Path, cut: int) -> None:
        data = self.stream(tmp_path, 2)
        first = len((tmp_path / "stream" / "0.png").read_bytes())
        broken = data[: first + cut] if cut > 0 else data[:first] + b"something else"
        command = ("encode", "-", "--stream", "png", "-o", tmp_path / "o", "--no-noise")
        result = pdae(*command, stdin=broken)
        assert result.code == 3 and "standard input" in result.err
        assert list(outputs(tmp_path / "o")) == ["000000.safetensors"]

    def test_wrong_usage(self, pdae: Command, tmp_path: Path) -> None:
        assert pdae("encode", "a.png", "--stream", "png").code == 2
        assert pdae("encode", "-", "--stream", "jpg").code == 2


def running(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    """The command as a process of its own, on one thread."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    environment = os.environ | {"PDAE_MODEL": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "pdae_cli", *map(str, arguments)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


class TestProcesses:
    def test_two_processes_make_what_one_makes(self, tiny_folder: Path, tmp_path: Path) -> None:
        source = folder_of(tmp_path / "in", 5)
        command = ("reconstruct", source, "--json", *FAST, "-o")
        code, out, err = ended(running(tiny_folder, *command, tmp_path / "one"))
        assert (code, err) == (0, "")
        two = ended(running(tiny_folder, *command, tmp_path / "two", "--num-processes", 2))
        assert two[0] == 0 and two[2] == ""
        assert outputs(tmp_path / "two") == outputs(tmp_path / "one")
        assert len(records(two[1])) == len(records(out)) == 5
        parts = {path.name for path in (tmp_path / "two" / ".pdae").glob("manifest*")}
        assert parts == {"manifest-0.jsonl", "manifest-1.jsonl"}

    def test_under_a_launcher(self, tiny_folder: Path, tmp_path: Path) -> None:
        source, out = folder_of(tmp_path / "in", 4), tmp_path / "o"
        (source / "bad.png").write_bytes(b"")
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
             "-m", "pdae_cli", "encode", str(source), "-o", str(out), "--no-noise"],
            env=os.environ | {"PDAE_MODEL": str(tiny_folder), "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode != 0 and "bad.png" in done.stderr
        assert len(outputs(out)) == 4  # the one that failed waited for the other

    def test_two_at_once_dont_do_work_twice(self, tiny_folder: Path, tmp_path: Path) -> None:
        source, out = folder_of(tmp_path / "in", 6), tmp_path / "o"
        command = ("encode", source, "-o", out, "--json", "--batch-size", 1, *FAST)
        both = [running(tiny_folder, *command) for _ in range(2)]
        results = [ended(process) for process in both]
        assert [code for code, _, _ in results] == [0, 0]
        statuses = [r["status"] for _, text, _ in results for r in records(text)]
        assert statuses.count("done") == 6 and statuses.count("unchanged") == 6

    @pytest.mark.parametrize("extra", [("-o", "-"), ("-o", "z.safetensors")])
    def test_shares_need_a_folder(self, pdae: Command, tmp_path: Path, extra: tuple[str]) -> None:
        source = folder_of(tmp_path / "in", 2)
        result = pdae("encode", source, "--num-processes", 2, *extra)
        assert result.code == 2 and "need a folder" in result.err

    @pytest.mark.parametrize("share", ["0/2", "3/2", "a/b", "1", "1/"])
    def test_shares_are_numbered_from_one(self, pdae: Command, tmp_path: Path, share: str) -> None:
        source = folder_of(tmp_path / "in", 2)
        result = pdae("encode", source, "-o", tmp_path / "o", "--share", share)
        assert result.code == 2 and "2/8" in result.err


class TestInterruptions:
    @pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
    def test_interrupted_runs_say_how_to_go_on(
        self, tiny_folder: Path, tmp_path: Path, sent: signal.Signals
    ) -> None:
        source, out = folder_of(tmp_path / "in", 30), tmp_path / "o"
        command = ("encode", source, "-o", out, "--batch-size", 1, "--inference-steps", 100)
        process = running(tiny_folder, *command)
        while not list(out.glob("*.safetensors")):
            time.sleep(0.05)
        process.send_signal(sent)
        code, _, err = ended(process)
        assert code == 130 and "the same command goes on where it stopped" in err
        assert 0 < len(outputs(out)) < 30
        assert not [name for name in outputs(out) if name.endswith(".tmp")]

    def test_a_full_disk_ends_the_run_and_the_same_command_goes_on(
        self, pdae: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import errno

        source = folder_of(tmp_path / "in", 4)
        command = ("encode", source, "--no-noise", "--batch-size", 1, "-o")
        assert pdae(*command, tmp_path / "whole").code == 0
        writes = 0
        real_write, real_bytes = os.write, Path.write_bytes

        def full() -> bool:
            nonlocal writes
            writes += 1
            return writes == limit

        def write(handle: int, data: bytes) -> int:
            if len(data) > 60 and full():
                real_write(handle, data[: len(data) // 2])
                raise OSError(errno.ENOSPC, "No space left on device")
            return real_write(handle, data)

        def write_bytes(path: Path, data: bytes) -> int:
            if full():
                real_bytes(path, data[: len(data) // 2])
                raise OSError(errno.ENOSPC, "No space left on device")
            return real_bytes(path, data)

        for limit in range(1, 10):
            out, writes = tmp_path / str(limit), 0
            with monkeypatch.context() as patch:
                patch.setattr(os, "write", write)
                patch.setattr(Path, "write_bytes", write_bytes)
                result = pdae(*command, out)
            assert result.code == 3 and "No space left" in result.err and "again" in result.err
            assert not [name for name in outputs(out) if name.endswith(".tmp")]
            assert pdae(*command, out).code == 0
            assert outputs(out) == outputs(tmp_path / "whole")

    def test_errors_have_their_class(self) -> None:
        assert StorageError.exit_code == InputError.exit_code == 3
