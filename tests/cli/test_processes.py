"""Several processes at one folder: launchers, job arrays, interruptions."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from cli_runs import ended, folder_of, outputs, records, running
from conftest import ROOT, Command

from pdae_cli.cli.run.launch import NAMES

FAST = ("--inference-steps", "3")
SLOW = ("--inference-steps", "60", "--batch-size", "1")
LAUNCHERS = {
    "torchrun": ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"),
    "accelerate": ("accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "-m"),
}


def launch(launcher: str, model: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """The command as two processes."""
    return subprocess.run(
        [sys.executable, "-m", *LAUNCHERS[launcher], "pdae_cli", *command],
        env=os.environ | {"PDAE_MODEL": str(model), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


class TestShares:
    @pytest.mark.parametrize("launcher", LAUNCHERS)
    def test_launched_processes_share_a_folder_out(
        self, launcher: str, tiny_folder: Path, tmp_path: Path
    ) -> None:
        """Each input is done once, with the bytes of one process; one that fails stops no other."""
        source, one, two = folder_of(tmp_path / "in", 5), tmp_path / "one", tmp_path / "two"
        (source / "bad.png").write_bytes(b"")
        command = ("encode", str(source), "--json", "--no-noise", "-o")
        alone = ended(running(tiny_folder, *command, one))
        done = launch(launcher, tiny_folder, *command, str(two))
        assert alone[0] == 3 and done.returncode != 0
        assert "exitcode: 3" in done.stderr.replace(" ", "").replace("exitcode:", "exitcode: ")
        assert outputs(two) == outputs(one) and len(outputs(two)) == 5
        said = [line for line in done.stdout.splitlines() if line.startswith("{")]
        assert len(records("\n".join(said))) == len(records(alone[1])) == 6
        parts = {path.name for path in (two / ".pdae").glob("manifest*")}
        assert parts == {"manifest-0.jsonl", "manifest-1.jsonl"}

    def test_a_share_that_fails_at_once_lets_the_other_finish(
        self, tiny_folder: Path, tmp_path: Path
    ) -> None:
        """Its launcher would kill the other where it ended first."""
        source, out = folder_of(tmp_path / "in", 8), tmp_path / "o"
        for number in range(0, 8, 2):
            (source / f"{number}.png").write_bytes(b"")
        done = launch("torchrun", tiny_folder, "encode", str(source), *SLOW, "-o", str(out))
        assert done.returncode != 0 and len(outputs(out)) == 4

    @pytest.mark.parametrize("numbers", [range(1, 5), range(4)], ids=["from 1", "from 0"])
    def test_job_arrays_count_as_schedulers_do(
        self, pdae: Command, tmp_path: Path, numbers: range
    ) -> None:
        source, out = folder_of(tmp_path / "in", 6), tmp_path / "o"
        done = []
        for number in numbers:
            share = ("--share", f"{number}/4", "--json", "--no-noise")
            result = pdae("encode", source, "-o", out, *share)
            assert result.code == 0
            done += [one["input"] for one in records(result.text)]
        assert sorted(map(str, done)) == sorted(str(path) for path in source.glob("*.png"))

    @pytest.mark.parametrize("more", [(), ("--format", "parquet")], ids=["files", "parts"])
    def test_shares_of_a_list_in_other_orders(
        self, pdae: Command, tmp_path: Path, more: tuple[str, ...]
    ) -> None:
        """As `find` lists a folder on two machines."""
        names = [str(path) for path in folder_of(tmp_path / "in", 6).glob("*.png")]
        done = []
        for share, order in (("1/2", sorted(names)), ("2/2", sorted(names, reverse=True))):
            listed = "\n".join(order).encode()
            line = ("encode", "--files-from", "-", "-o", tmp_path / "o", "--no-noise", *more)
            assert pdae(*line, "--share", share, stdin=listed).code == 0
        if more:
            pq = pytest.importorskip("pyarrow.parquet")
            tables = [pq.read_table(path) for path in (tmp_path / "o").glob("*.parquet")]
            done = [name for table in tables for name in table["name"].to_pylist()]
        done += [path.stem for path in (tmp_path / "o").glob("*.safetensors")]
        assert sorted(Path(name).stem for name in done) == [str(number) for number in range(6)]

    def test_a_stream_cant_be_shared_out(
        self, pdae: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nobody but the one who reads it has it."""
        data = (folder_of(tmp_path / "in", 1) / "0.png").read_bytes()
        line = ("reconstruct", "-", "--stream", "png", *FAST)
        for share in (("--share", "1/2"), ("--share", "2/2", "-o", tmp_path / "o")):
            result = pdae(*line, *share, stdin=data)
            assert result.code == 2 and not result.out and not (tmp_path / "o" / ".pdae").exists()
            assert "a stream has no shares" in result.err and result.err.count("\n") == 1
        for name, value in zip(NAMES, ("0", "2", "0", "localhost", "0"), strict=True):
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("pdae_cli.cli.options.join", lambda *_: None)  # waits for the other
        for reading in (line, ("encode", "-"), ("encode", "--files-from", "-")):
            result = pdae(*reading, "-o", tmp_path / "o", stdin=data)
            assert result.code == 2 and result.err.count("\n") == 1
            assert "launched processes share standard input" in result.err

    @pytest.mark.parametrize(
        "left", [{"WORLD_SIZE": "2"}, {"RANK": "1"}, {"WORLD_SIZE": "2", "RANK": "1"},
                 {"WORLD_SIZE": ""}, dict.fromkeys(NAMES, "x"), dict.fromkeys(NAMES, "2"),
                 {"LOCAL_RANK": "1"}, {"LOCAL_RANK": "x"},
                 dict(zip(NAMES, ("0", "2", "x", "localhost", "0"), strict=True))],
        ids=str,
    )  # fmt: skip
    def test_what_a_launcher_left_in_the_environment_is_nothing(
        self, pdae: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: dict[str, str]
    ) -> None:
        source = folder_of(tmp_path / "in", 3)
        AcceleratorState._reset_state(reset_partial_state=True)
        for name, value in left.items():
            monkeypatch.setenv(name, value)
        result = pdae("encode", "-o", tmp_path / "o")
        assert result.code == 2 and "no input" in result.err
        result = pdae("encode", source, "-o", tmp_path / "o", "--no-noise")
        assert result.code == 0 and len(outputs(tmp_path / "o")) == 3

    def test_so_it_is_in_a_process_of_its_own(
        self, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Which asks accelerate for the device before anything else does."""
        monkeypatch.setenv("LOCAL_RANK", "0")
        source, z = folder_of(tmp_path / "in", 1) / "0.png", tmp_path / "z.safetensors"
        assert ended(running(tiny_folder, "encode", source, *FAST, "-o", z))[0] == 0

    @pytest.mark.parametrize(
        ("variables", "share", "words"),
        [
            ({"SLURM_NTASKS": "8", "SLURM_PROCID": "3"}, (), "--share $SLURM_PROCID/8"),
            ({"OMPI_COMM_WORLD_SIZE": "2"}, (), "--share $OMPI_COMM_WORLD_RANK/2"),
            ({"OMPI_COMM_WORLD_SIZE": "2"}, ("--share", "1/2"), ""),
            ({"SLURM_NTASKS": "8"}, (), ""),
            ({"RANK": "1", "WORLD_SIZE": "2"}, (), "WORLD_SIZE is 2: each of these tasks does all"),
            ({"PMI_SIZE": "8", "RANK": "0"}, (), "--share $PMI_RANK/8"),
            ({"WORLD_SIZE": "2"}, (), ""),
            ({"ACCELERATE_MIXED_PRECISION": "bf16"}, (), "mixed precision bf16 is set aside"),
            ({"ACCELERATE_MIXED_PRECISION": "bf16"}, ("--dtype", "bfloat16"), ""),
        ],
    )
    def test_what_else_launchers_say_is_answered(
        self, pdae: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        variables: dict[str, str], share: tuple[str, ...], words: str,
    ) -> None:  # fmt: skip
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        source = folder_of(tmp_path / "in", 1)
        result = pdae("encode", source, "-o", tmp_path / "o", "--no-noise", *share)
        assert result.code == 0 and words in result.err
        assert result.err.count("\n") == (1 if words else 0)

    def test_two_at_once_write_the_same_bytes(self, tiny_folder: Path, tmp_path: Path) -> None:
        source, out = folder_of(tmp_path / "in", 6), tmp_path / "o"
        command = ("encode", source, "--json", "--batch-size", 1, *FAST, "-o")
        both = [running(tiny_folder, *command, out) for _ in range(2)]
        assert [ended(process)[0] for process in both] == [0, 0]
        assert ended(running(tiny_folder, *command, tmp_path / "alone"))[0] == 0
        assert outputs(out) == outputs(tmp_path / "alone")


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

    @pytest.mark.parametrize("command", ["encode in -o o", "train dpm in -o run --device cpu"])
    def test_waiting_for_the_other_process(
        self, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
    ) -> None:
        """Which never comes; and a place where none can meet."""
        folder_of(tmp_path / "in", 2)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        with socket.create_server(("localhost", 0)) as free:
            port = str(free.getsockname()[1])
        for name, value in zip(NAMES, ("0", "2", "0", "localhost", port), strict=True):
            monkeypatch.setenv(name, value)
        process = running(tiny_folder, *command.split())
        there = 1
        while there != 0:
            assert process.poll() is None
            time.sleep(0.1)
            with socket.socket() as probe:
                there = probe.connect_ex(("localhost", int(port)))
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == -signal.SIGINT
        monkeypatch.setenv("MASTER_PORT", "nowhere")
        code, _, err = ended(running(tiny_folder, *command.split()))
        assert code == 2 and "can't meet at MASTER_ADDR localhost, MASTER_PORT nowhere: " in err
        ended(process)

    def test_waiting_for_standard_input(self, tiny_folder: Path, tmp_path: Path) -> None:
        """Of which nothing comes."""
        command = ("encode", "-", "-o", tmp_path / "z.safetensors")
        process = running(tiny_folder, *command, stdin=subprocess.PIPE)
        time.sleep(5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 130
        assert ended(process)[2] == "interrupted\n"

    def test_a_full_disk_ends_the_run_and_the_same_command_goes_on(
        self, pdae: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import errno

        source = folder_of(tmp_path / "in", 4)
        command = ("encode", source, "--no-noise", "--batch-size", 1, "-o")
        assert pdae(*command, tmp_path / "whole").code == 0
        writes, sync = 0, os.fsync

        def full(handle: int) -> None:
            nonlocal writes
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                return sync(handle)
            writes += 1
            if writes == limit:  # its end isn't there
                os.ftruncate(handle, os.fstat(handle).st_size - 50)
                raise OSError(errno.ENOSPC, "No space left on device")
            return sync(handle)

        for limit in range(1, 10):
            out, writes = tmp_path / str(limit), 0
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", full)
                result = pdae(*command, out)
            assert result.code == 3 and "No space left" in result.err and "again" in result.err
            assert not [name for name in outputs(out) if name.endswith(".tmp")]
            assert pdae(*command, out).code == 0
            assert outputs(out) == outputs(tmp_path / "whole")
