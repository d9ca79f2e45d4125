"""Files are written whole or not at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import tiny_model

from pdae_cli.checkpoints import write_model
from pdae_cli.errors import InputError
from pdae_cli.files import replacing, write_bytes


class TestAtomicWrites:
    def test_a_failure_leaves_the_old_file_and_no_other(self, tmp_path: Path) -> None:
        path = tmp_path / "it"
        write_bytes(path, b"old")
        with pytest.raises(RuntimeError), replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError
        assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]

    def test_what_dead_processes_left_is_removed(self, tmp_path: Path) -> None:
        code = (
            "import os, sys; from pathlib import Path; from pdae_cli.files import replacing\n"
            "with replacing(Path(sys.argv[1])) as temporary:\n"
            "    temporary.write_bytes(b'half'); os.kill(os.getpid(), 9)"
        )
        path = tmp_path / "x.bin"
        for _ in range(2):
            subprocess.run([sys.executable, "-c", code, str(path)])
            assert len(list(tmp_path.iterdir())) == 1
        with replacing(path) as mine:
            mine.write_bytes(b"whole")
            write_bytes(tmp_path / "y.bin", b"")
            assert len(list(tmp_path.iterdir())) == 2  # the dead one's is gone, mine is there
        assert sorted(p.name for p in tmp_path.iterdir()) == ["x.bin", "y.bin"]

    def test_unwritable_places_are_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match="can't write"):
            write_bytes(tmp_path / "file" / "below", b"")
        (tmp_path / "folder").mkdir()
        with pytest.raises(InputError, match="can't write"):
            write_bytes(tmp_path / "folder", b"")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]

    def test_others_may_read_what_they_may_read_of_this_user(self, tmp_path: Path) -> None:
        """safetensors' own writing leaves files that nobody else can read."""
        write_model(tmp_path, tiny_model())
        (tmp_path / "plain").touch()
        usual = (tmp_path / "plain").stat().st_mode
        assert {path.stat().st_mode for path in tmp_path.iterdir()} == {usual}
