"""Every command of docs/labels.md runs as it stands there, with the table that it shows."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from conftest import ROOT, Command, picture

PAGE = (ROOT / "docs" / "labels.md").read_text()
COMMANDS = [
    line.removeprefix("pdae ")
    for block in re.findall(r"```bash\n([\s\S]+?)```", PAGE)
    for line in block.splitlines()
]
FAST = ("--inference-steps", "2", "--solver", "ddim")


def test_commands_run_in_their_order(
    pdae: Command, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_folder, "mine")
    assert pdae("attributes", "remove", "-m", "mine", "smiling").code == 0
    (header, *_) = re.findall(r"```csv\n(.+)\n", PAGE)
    lines, folder = [header], tmp_path / "photos"
    folder.mkdir()
    for number in range(30):
        picture(number, (32, 32)).save(folder / f"{number}.png")
        part = "val" if number > 15 else "train"
        lines.append(f"{number}.png,{number % 2},{20 + 7 * number % 50},{part}")
    Path("faces.csv").write_text("\n".join(lines))
    assert len(COMMANDS) == 6
    said = []
    for line in COMMANDS:
        result = pdae(*shlex.split(line), *(FAST if line.startswith("manipulate") else ()))
        assert result.code == 0, (line, result.err)
        said.append(result.text)
    assert Path("smile.png").exists() and Path("older.png").exists()
    assert "age  " in said[1] and "a number, in years" in said[1]
    assert "; was AUROC" in said[4] and "; was correlation" in said[4]
