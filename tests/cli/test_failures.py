"""Each failure that a user can cause: one line, the right exit code, the others still done."""

from __future__ import annotations

import shlex
import zipfile
from pathlib import Path

import pytest
import torch
from cli_runs import files_in
from conftest import Command, picture
from drawn import png_claiming

from pdae_cli.cli.run import inputs
from pdae_cli.engine.codes import from_bytes

FAST = ("--inference-steps", "3")


class TestFailures:
    """One line each, the right exit code, the others still done, nothing half-written."""

    @pytest.mark.parametrize(
        ("name", "data", "message"),
        [
            ("missing.png", None, "no such file"),
            ("text.png", b"not a picture at all", "not a picture"),
            ("huge.png", png_claiming(50_000, 50_000), "limit of 64 million"),
            ("none.png", png_claiming(0, 0), "not a picture"),
            ("cut.png", png_claiming(64, 64), "can't be read"),
            ("x.safetensors", b"{}", "not a codes file"),
        ],
    )
    def test_a_bad_input_among_good_ones(
        self, pdae: Command, pictures: list[Path], tmp_path: Path, name: str, data: bytes | None,
        message: str,
    ) -> None:  # fmt: skip
        bad = tmp_path / name
        if data is not None:
            bad.write_bytes(data)
        out = tmp_path / "out"
        result = pdae("reconstruct", pictures[0], bad, pictures[1], "-o", out, *FAST)
        assert result.code == 3
        assert files_in(out) == ["a.png", "b.png"]
        lines = result.err.splitlines()
        assert len(lines) == 2 and lines[1] == "2 done, 1 failed"
        assert lines[0].startswith(f"error: {bad}") and message in lines[0]

    def test_unwritable_output(self, pdae: Command, pictures: list[Path], tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        for target in (tmp_path / "file" / "x.png", tmp_path / "file" / "sub/"):
            result = pdae("reconstruct", pictures[0], "-o", target, *FAST)
            assert result.code == 3 and "can't write" in result.err
        z = tmp_path / "file" / "z.safetensors"
        result = pdae("encode", pictures[0], "-o", z, *FAST)
        assert result.code == 3 and "can't write" in result.err

    def test_names_cant_steer_the_terminal(self, pdae: Command, tmp_path: Path) -> None:
        result = pdae("reconstruct", tmp_path / "\x1b[31mred\x07.png")
        assert result.code == 3 and "\x1b" not in result.err and "\x07" not in result.err

    def test_a_long_name_costs_a_short_line_and_itself_alone(
        self, pdae: Command, pictures: list[Path], tmp_path: Path
    ) -> None:
        name = "a" * 300
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            for inside in (f"{name}.png", "b.png"):
                archive.write(pictures[0], inside)
        (tmp_path / "list.txt").write_text(name * 20)
        for more in ((), ("--skip-existing",)):
            out = tmp_path / f"out{len(more)}"
            line = ("encode", tmp_path / "a.zip", "-o", out, "--no-noise", *more)
            result = pdae(*line, "--files-from", tmp_path / "list.txt")
            assert result.code == 3 and files_in(out) == ["b.safetensors"]
            long, short = result.err.splitlines()[:2]
            assert "File name too long" in long + short
            assert max(map(len, result.err.splitlines())) < 2000

    def test_unexpected_errors_are_a_line_and_exit_1(
        self, pdae: Command, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from pdae_cli.engine.model import Model

        def broken(self: Model, x: object) -> object:
            raise RuntimeError("the sky fell")

        monkeypatch.setattr(Model, "encode_z", broken)
        result = pdae("reconstruct", pictures[0])
        assert result.code == 1 and "the sky fell" in result.err and "PDAE_DEBUG" in result.err
        monkeypatch.setenv("PDAE_DEBUG", "1")
        with pytest.raises(RuntimeError):
            pdae("reconstruct", pictures[0])

    def test_debugging_changes_no_exit_code(
        self, pdae: Command, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where all of an expected failure is wanted, that comes before its line."""
        for line, code in ((("encode",), 2), (("redo", "none"), 3), (("info", "none"), 4)):
            monkeypatch.delenv("PDAE_DEBUG", raising=False)
            plain = pdae(*line)
            monkeypatch.setenv("PDAE_DEBUG", "1")
            result = pdae(*line)
            assert result.code == plain.code == code
            assert result.err.startswith("Traceback") and result.err.endswith(plain.err)
            monkeypatch.setenv("PDAE_DEBUG", "0")
            assert pdae(*line).err == plain.err

    @pytest.mark.parametrize(
        "error",
        [torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate"),
         MemoryError()],
    )  # fmt: skip
    def test_wherever_memory_runs_out_it_is_a_line_and_exit_5(
        self, pdae: Command, pictures: list[Path], monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        def full(*args: object) -> None:
            raise error

        monkeypatch.setattr("pdae_cli.engine.model.Model.encode_z", full)
        result = pdae("encode", pictures[0], "-o", "-")
        assert result.code == 5 and result.err.count("\n") == 1
        assert "out of memory; choose a smaller --batch-size" in result.err


class TestInputs:
    def test_more_samples_than_memory_knows_of(self, pdae: Command, tmp_path: Path) -> None:
        result = pdae("sample", "-n", 10**12, "-o", tmp_path / "x/")
        assert result.code == 2 and "less than or equal to 1000000" in result.err

    def test_files_from_a_list(self, pdae: Command, pictures: list[Path], tmp_path: Path) -> None:
        names = "\n".join(map(str, pictures)).encode()
        result = pdae(
            "encode", "--files-from", "-", "-o", tmp_path / "z", "--no-noise", stdin=names
        )
        assert result.code == 0 and len(files_in(tmp_path / "z")) == 3
        (tmp_path / "list.txt").write_bytes(names)
        args = ("--files-from", tmp_path / "list.txt", "-o", tmp_path / "y", "--no-noise")
        assert pdae("encode", *args).code == 0
        (tmp_path / "list.txt").write_text("\n".join(map(str, pictures)) + "\r\n", "utf-16")
        assert "3 unchanged" in pdae("encode", *args).err

    @pytest.mark.parametrize(
        "line",
        [
            "reconstruct a.png -o ''", "encode a.png -o ''", "encode '' -o z/",
            "encode a.png '' -o z/", "encode a.png -o z/ --report ''", "encode --files-from ''",
            "decode z -o x/ --sheet ''", "inpaint a.png --mask '' -o x.png",
            "manipulate a.png --attr smiling=1 --mask '' -o x.png",
            "manipulate a.png --attr smiling=1 --landmarks '' -o x.png",
            "sample --like '' -o x.png", "codes merge '' -o all.safetensors",
            "interpolate a.png '' -o x.png", "train dpm a.png -o ''", "train dpm '' -o x",
            "train autoencoder a.png --dpm x --labels '' -o x", "evaluate gap a.png -o ''",
            "evaluate all a.png -o ''", "evaluate judge '' -o x.safetensors", "redo a.png -o ''",
            "convert a.pt -o ''", "export --to diffusers -o ''", "attributes fit '' --labels a.csv",
            "attributes discover a.png -o ''", "data check ''",
        ],
    )  # fmt: skip
    def test_no_name_is_empty(
        self, pdae: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
    ) -> None:
        """As of a script's variable that isn't set: it isn't the current folder, nor nothing."""
        monkeypatch.chdir(tmp_path)
        picture().save("a.png")
        result = pdae(*shlex.split(line), model="nowhere")
        assert result.code == 2 and not result.out and files_in(tmp_path) == ["a.png"]
        assert "is empty, as of a variable that isn't set" in result.err
        assert result.err.count("\n") == 1

    def test_a_list_has_a_size(
        self, pdae: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(inputs, "MAX_LIST", 1 << 20)
        result = pdae("encode", "--files-from", "/dev/zero", "-o", tmp_path / "y", "--no-noise")
        assert result.code == 2 and "larger than 1 MiB" in result.err

    def test_a_list_may_begin_as_windows_begins_texts(
        self, pdae: Command, pictures: list[Path], tmp_path: Path
    ) -> None:
        (tmp_path / "list.txt").write_text(f"{pictures[0]}\r\n", encoding="utf-8-sig")
        args = ("--files-from", tmp_path / "list.txt", "-o", tmp_path / "y", "--no-noise")
        assert pdae("encode", *args).code == 0

    def test_folders_come_in_natural_order(self, pdae: Command, tmp_path: Path) -> None:
        folder = tmp_path / "in"
        folder.mkdir()
        for name in ("p10.png", "p9.png", "P1.png"):
            picture().save(folder / name)
        pdae("encode", folder, "-o", tmp_path / "z.safetensors", "--no-noise")
        codes = from_bytes((tmp_path / "z.safetensors").read_bytes(), "z")
        assert [Path(source).name for source in codes.sources] == ["P1.png", "p9.png", "p10.png"]

    def test_an_empty_folder_says_so(self, pdae: Command, tmp_path: Path) -> None:
        (tmp_path / "in" / "sub").mkdir(parents=True)
        picture().save(tmp_path / "in" / "sub" / "a.png")
        result = pdae("encode", tmp_path / "in", "-o", tmp_path / "z")
        assert result.code == 2 and "1 lies deeper, -r looks there" in result.err

    def test_quiet_says_nothing(self, pdae: Command, pictures: list[Path], tmp_path: Path) -> None:
        result = pdae("encode", pictures[0], "-o", tmp_path / "z", "-q", "--no-noise")
        assert (result.code, result.out, result.err) == (0, b"", "")
