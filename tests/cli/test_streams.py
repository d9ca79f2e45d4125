"""Standard streams that are closed, full or left by their reader; Ctrl-C while all is loaded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cli_runs import folder_of, outputs
from conftest import ROOT, Command

from pdae_cli.errors import STOPPING

PDAE = f"{sys.executable} -m pdae_cli"
pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")


def shell(script: str, folder: Path, model: Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a line of bash."""
    variables = {"PDAE_MODEL": str(model), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", script],
        cwd=folder, env=os.environ | variables, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("arguments", ["--help", "info in/0.png"])
def test_a_full_disk_as_standard_output_is_a_line(
    arguments: str, tmp_path: Path, tiny_folder: Path
) -> None:
    folder_of(tmp_path / "in", 1)
    code, _, err = shell(f"{PDAE} {arguments} > /dev/full", tmp_path, tiny_folder)
    assert code == 3 and err.count("\n") == 1
    assert "can't write standard output: No space left on device; make room" in err


def test_records_that_cant_be_written_end_the_run(tmp_path: Path, tiny_folder: Path) -> None:
    """They are no input's failure, after which its batch would be tried again without a word."""
    folder_of(tmp_path / "in", 8)
    line = f"ulimit -f 1; {PDAE} reconstruct in --inference-steps 2 --json > log.jsonl"
    code, _, err = shell(line, tmp_path, tiny_folder)
    assert code == 3 and err.count("\n") == 1
    assert "can't write standard output: File too large; make room, or send it elsewhere" in err


def test_closed_and_full_streams_stop_no_work(tmp_path: Path, tiny_folder: Path) -> None:
    """As of cron, daemons and readers that left: the files are made, and the exit code is right."""
    folder_of(tmp_path / "in", 2)
    encode = f"{PDAE} encode in --no-noise -o"
    for number, streams in enumerate(("<&- >&- 2>&-", "2> /dev/full", "2>&1 >&- | true")):
        code, _, err = shell(f"{encode} {number}/ {streams}", tmp_path, tiny_folder)
        assert (code, err) == (0, "")
        assert len(outputs(tmp_path / str(number))) == 2
    code, _, _ = shell(f"{encode} 4/ nothing.png 2> /dev/full", tmp_path, tiny_folder)
    assert code == 3


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("encode in --no-noise -o - > /dev/full", "No space left on device"),
        ("encode in --no-noise -o - >&-", "standard output is closed; name a file"),
        ("encode - --no-noise -o z.safetensors <&-", "standard input is empty"),
    ],
)
def test_what_a_command_needs_of_them_is_said(
    line: str, words: str, tmp_path: Path, tiny_folder: Path
) -> None:
    folder_of(tmp_path / "in", 1)
    code, out, err = shell(f"{PDAE} {line}", tmp_path, tiny_folder)
    assert code == 3 and not out and words in err.splitlines()[0]


def test_streams_that_a_parent_set_not_to_block(tmp_path: Path, tiny_folder: Path) -> None:
    """As event loops do: what isn't there yet is no end of the list."""
    folder_of(tmp_path / "in", 2)
    unset = "import os, sys; os.set_blocking(0, False); os.set_blocking(1, False)"
    unset += "; os.execv(sys.executable, [sys.executable, '-m', 'pdae_cli', *sys.argv[1:]])"
    line = f'{sys.executable} -c "{unset}" encode --files-from - --no-noise -o'
    names = "(sleep 3; echo in/0.png; sleep 1; echo in/1.png)"
    code, _, err = shell(f"{names} | {line} z/ | cat", tmp_path, tiny_folder)
    assert (code, err) == (0, "") and len(outputs(tmp_path / "z")) == 2


@pytest.mark.parametrize("sent", STOPPING)
def test_interrupted_while_a_module_is_loaded(sent: signal.Signals, tmp_path: Path) -> None:
    """Whatever the module makes of exceptions."""
    (tmp_path / "slow.py").write_text(
        "import os, signal\n"
        "try:\n"
        f"    os.kill(os.getpid(), {int(sent)}); [None for _ in range(1000)]\n"
        "except BaseException:\n"
        "    raise ImportError('no symbol')\n"
    )
    program = (
        "import sys, signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"signal.signal({int(sent)}, signal.default_int_handler)  # which a shell may ignore\n"
        "from pdae_cli import cli\n"
        "sys.modules['pdae_cli.cli.app'] = None\n"
        "import builtins; plain = builtins.__import__\n"
        "def load(name, *rest): import_ = plain('slow') if name == 'app' else None; "
        "return plain(name, *rest)\n"
        "builtins.__import__ = load\n"
        "cli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_interrupted_at_work_is_a_line(
    pdae: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in commands that keep nothing to go on with."""

    def stop(*args: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("pdae_cli.checkpoints.load", stop)
    folder_of(tmp_path / "in", 1)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background: ignored
    try:
        for line in (("encode", tmp_path / "in"), ("evaluate", "gap", tmp_path / "in", "--whole")):
            result = pdae(*line, "-o", tmp_path / "o")
            assert (result.code, result.err) == (130, "interrupted\n")
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    "line",
    [
        "encode in -o BAD", "reconstruct in -o BAD/a/b", "interpolate in/0.png in/1.png -o BAD.gif",
        "sample -n 1 -o BAD.png", "encode in --no-noise -o ok --report BAD.html",
        "codes merge z.safetensors -o BAD.safetensors", "codes split z.safetensors -o BAD/",
        "export --to diffusers -o BAD", "convert in -o BAD", "redo s.png -o BAD.png",
        "evaluate gap in -o BAD", "evaluate all in -o BAD.html", "align in -o BAD",
        "evaluate judge in -o BAD.safetensors", "train dpm in -o BAD",
        "attributes discover in -o BAD.png",
    ],
)  # fmt: skip
def test_outputs_are_tried_before_anything_is_loaded(
    line: str, pdae: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every command that writes, in a place that can't be written."""

    def load(*args: object) -> None:
        raise AssertionError("loaded before the output was tried")

    monkeypatch.setattr("pdae_cli.checkpoints.load", load)
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "in", 2)
    (tmp_path / "file").touch()
    result = pdae(*line.replace("BAD", "file/x").split())
    assert result.code == 3 and result.err.count("\n") == 1
    assert "can't write file" in result.err and "Not a directory" in result.err
