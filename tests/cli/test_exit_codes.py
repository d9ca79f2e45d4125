"""The matrix: each command, how it can end, in each mode; stdout holds results and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Command, picture

FAST = ("--inference-steps", "2")
OVER_FILES = {
    "encode": ("encode", "IN", "-o", "out/", *FAST),
    "decode": ("decode", "CODES", "-o", "out/"),
    "reconstruct": ("reconstruct", "IN", "-o", "out/", *FAST),
    "manipulate": ("manipulate", "IN", "--attr", "smiling=0.3", "-o", "out/", *FAST),
    "interpolate": ("interpolate", "IN", "a.png", "-o", "out/", "--steps", "2", *FAST),
    "likelihood": ("evaluate", "likelihood", "IN", *FAST),
}
COMMANDS = OVER_FILES | {"sample": ("sample", "-n", "1", "-o", "out/", *FAST)}
ENDINGS = {
    "done": ((), 0),
    "usage": (("--solver", "none"), 2),
    "option": (("--no-such-option",), 2),
    "model": (("-m", "no-such-model"), 4),
}
MODES = {"human": (), "json": ("--json",), "quiet": ("--quiet",)}


@pytest.fixture
def files(tmp_path: Path, pdae: Command, monkeypatch: pytest.MonkeyPatch) -> Path:
    """a.png, its codes, and files that are neither, in the current folder."""
    monkeypatch.chdir(tmp_path)
    picture(1, (32, 32)).save("a.png")
    picture(2, (32, 32)).save("b.png")
    assert pdae("encode", "b.png", "-o", "b.safetensors", *FAST).code == 0
    Path("bad.png").write_bytes(b"not a picture")
    Path("bad.safetensors").write_bytes(b"{" * 100)
    return tmp_path


def told(name: str, source: str, codes: str) -> tuple[str, ...]:
    return tuple({"IN": source, "CODES": codes}.get(word, word) for word in COMMANDS[name])


def check_streams(out: str, err: str, mode: str, code: int) -> None:
    """Results on stdout, in the mode's form; a failure is on stderr in every mode."""
    lines = out.splitlines()
    if mode == "quiet" or (code not in (0, 3)):
        assert lines == []
    if mode == "json":
        assert all(isinstance(json.loads(line), dict) for line in lines)
    if mode == "human" and code == 0:
        assert lines and all("→" in line or "bits/dim" in line for line in lines)
    assert "Traceback" not in err
    assert (err != "") == (code != 0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("name", COMMANDS)
def test_commands(pdae: Command, files: Path, name: str, ending: str, mode: str) -> None:
    extra, code = ENDINGS[ending]
    result = pdae(*told(name, "b.png", "b.safetensors"), *extra, *MODES[mode])
    assert result.code == code, result.err
    check_streams(result.text, result.err, mode, code)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", OVER_FILES)
def test_a_bad_input(pdae: Command, files: Path, name: str, mode: str) -> None:
    result = pdae(*told(name, "bad.png", "bad.safetensors"), *MODES[mode])
    assert result.code == 3, result.err
    check_streams(result.text, result.err, mode, 3)
    if mode == "json":
        record = json.loads(result.text)
        assert record["status"] == "failed" and record["error"] in result.err.replace("\n", " ")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", COMMANDS)
def test_unexpected_errors(
    pdae: Command, files: Path, monkeypatch: pytest.MonkeyPatch, name: str, mode: str
) -> None:
    for error, code in ((KeyError("x"), 1), (MemoryError(), 5), (KeyboardInterrupt(), 130)):

        def fail(*args: object, error: BaseException = error, **named: object) -> None:
            raise error

        monkeypatch.setattr("pdae_cli.engine.model.Model.guided", fail)
        result = pdae(*told(name, "b.png", "b.safetensors"), *MODES[mode])
        assert result.code == code, result.err
        if code != 130:
            check_streams(result.text, result.err, mode, code)
            assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (("info", "b.safetensors"), 0),
        (("info", "bad.png"), 3),
        (("info", "nothing-of-that-name"), 4),
        (("redo", "a.png"), 3),
        (("redo", "none.png"), 3),
        (("convert", "a.png", "-o", "model"), 4),
        (("export", "-m", "none", "--to", "diffusers", "-o", "x"), 4),
        (("attributes", "list"), 0),
        (("attributes", "fit", "."), 2),
        (("attributes", "remove", "nobody", "-m", "."), 4),
        (("codes", "merge", "b.safetensors", "-o", "all.safetensors"), 0),
        (("codes", "merge", "bad.safetensors", "-o", "all.safetensors"), 3),
        (("codes", "nearest", "b.safetensors", "b.safetensors"), 0),
        (("train", "dpm", "none", "-o", "run"), 3),
        (("train", "latent", ".", "-m", "none"), 4),
        (("align", "a.png", "--landmarks", "none.json", "-o", "out/"), 3),
    ],
)
def test_the_others(pdae: Command, files: Path, command: tuple[str, ...], code: int) -> None:
    result = pdae(*command)
    assert result.code == code, result.err
    assert (result.err != "") == (code != 0) and (result.text != "") == (code == 0)
