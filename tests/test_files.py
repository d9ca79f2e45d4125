"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import tiny_model

from pdae_cli import files
from pdae_cli.checkpoints import write_model
from pdae_cli.errors import InputError, StorageError
from pdae_cli.files import _sweep, append, check_writable, replacing, write_bytes


class Full(io.BytesIO):
    """A file on a full disk."""

    def write(self, data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


class TestAtomicWrites:
    def test_a_failure_leaves_the_old_file_and_no_other(self, tmp_path: Path) -> None:
        path = tmp_path / "it"
        write_bytes(path, b"old")
        with pytest.raises(RuntimeError), replacing(path) as file:
            file.write(b"half")
            raise RuntimeError
        assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]

    def test_what_dead_processes_left_is_removed(self, tmp_path: Path) -> None:
        code = (
            "import os, sys; from pathlib import Path; from pdae_cli.files import replacing\n"
            "with replacing(Path(sys.argv[1])) as file:\n"
            "    file.write(b'half'); os.kill(os.getpid(), 9)"
        )
        path = tmp_path / "x.bin"
        names = [".pdae-0.tmp", ".tmpAbCdEf", ".x.bin.1a.tmp", f".pdae-{'g' * 16}.tmp"]
        for name in names:  # somebody's
            (tmp_path / name).touch()
        left = set[str]()
        for _ in range(2):
            subprocess.run([sys.executable, "-c", code, str(path)])
            (new,) = {one.name for one in tmp_path.iterdir()} - {*names}
            assert new not in left
            left.add(new)
        with replacing(path) as mine:
            mine.write(b"whole")
            write_bytes(tmp_path / "y.bin", b"")
            (mine_too,) = {p.name for p in tmp_path.iterdir()} - {*names, "y.bin"}
            assert mine_too not in left
            _sweep.cache_clear()
            write_bytes(tmp_path / "y.bin", b"")  # what is in work is locked
        assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*names, "x.bin", "y.bin"])

    def test_what_was_left_while_a_place_was_tried_is_removed_by_the_next(
        self, tmp_path: Path
    ) -> None:
        stray, another = (tmp_path / f".pdae-{name}.tmp" for name in ("0123456789abcdef", "mine"))
        stray.touch()
        another.touch()
        check_writable(tmp_path / "not" / "yet")
        assert [path.name for path in tmp_path.iterdir()] == [another.name]

    def test_no_link_leads_elsewhere(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Neither one that has the temporary's name, were it foreseen, nor one at the final name or
        the log's."""
        keys, folder = tmp_path / "keys", tmp_path / "shared"
        keys.write_text("precious")
        folder.mkdir()
        (folder / f".pdae-{'0' * 16}.tmp").symlink_to(keys)
        for name in ("a", "log"):
            (folder / name).symlink_to(keys)
        foreseen = iter(["0" * 16, "1" * 16])
        monkeypatch.setattr("secrets.token_hex", lambda count: next(foreseen))
        with pytest.raises(InputError, match="File exists"):
            write_bytes(folder / "a", b"new")
        write_bytes(folder / "a", b"new")
        with pytest.raises(InputError, match="can't write"):
            append(folder / "log", b"more")
        assert keys.read_text() == "precious" and (folder / "a").read_bytes() == b"new"
        assert not (folder / "a").is_symlink()

    def test_unwritable_places_are_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match="can't write"):
            write_bytes(tmp_path / "file" / "below", b"")
        (tmp_path / "folder").mkdir()
        with pytest.raises(InputError, match="can't write"):
            write_bytes(tmp_path / "folder", b"")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]

    @pytest.mark.parametrize("refused", ["open", "fsync"])
    def test_a_file_in_its_place_is_written_whatever_its_folder_refuses(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
    ) -> None:
        """One that can't be listed, or a disk that syncs no folders."""
        ask = vars(os)[refused]

        def refuse(what: str | int, *how: int) -> object:
            if os.path.isdir(what):  # noqa: PTH112, it may be a number
                raise OSError(errno.EINVAL, "Invalid argument")
            return ask(what, *how)

        monkeypatch.setattr(os, refused, refuse)
        write_bytes(tmp_path / "it", b"whole")
        assert (tmp_path / "it").read_bytes() == b"whole"

    def test_places_are_tried_before_the_work(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nothing stays behind, and folders aren't made yet."""
        (tmp_path / "file").touch()
        check_writable(tmp_path / "to" / "be" / "made")
        with pytest.raises(InputError, match="Not a directory"):
            check_writable(tmp_path / "file" / "below")
        with pytest.raises(StorageError, match=r"No space left for \d+ MiB.+make room"):
            check_writable(tmp_path, 1 << 60)
        monkeypatch.setattr(files, "_temporary", lambda folder: (tmp_path / "t", Full()))
        (tmp_path / "t").touch()
        with pytest.raises(StorageError, match="No space left on device"):
            check_writable(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    def test_a_place_may_be_tried_by_several_at_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Who is swept by another, once the trial's file is closed, has tried it all the same."""

        class Swept(io.BytesIO):
            def close(self) -> None:
                (tmp_path / "t").unlink()
                super().close()

        (tmp_path / "t").touch()
        monkeypatch.setattr(files, "_temporary", lambda folder: (tmp_path / "t", Swept()))
        check_writable(tmp_path)

    def test_others_may_read_what_they_may_read_of_this_user(self, tmp_path: Path) -> None:
        """Temporary files of other programs are often their owner's alone."""
        write_model(tmp_path, tiny_model())
        (tmp_path / "plain").touch()
        usual = (tmp_path / "plain").stat().st_mode
        assert {path.stat().st_mode for path in tmp_path.iterdir()} == {usual}
