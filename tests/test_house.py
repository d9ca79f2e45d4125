"""The house's rules, as benchmarks/house.py reads the code: each is shown to be able to fail."""

from __future__ import annotations

import ast
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import house
import pytest
from conftest import Command, picture

from pdae_cli.cli import options as composed
from pdae_cli.cli.conditions import SampleOptions

FAST = ("--inference-steps", "2")
# Lines of each command that goes through inputs, in which all of its options are read; the first
# ends well.
LINES = {
    "encode": [("a.gif", "-o", "z/")],
    "decode": [("a.gif", "-o", "decoded/", *FAST)],
    "reconstruct": [("a.gif", "-o", "back/", *FAST)],
    "interpolate": [("a.gif", "b.png", "-o", "way/", "--steps", "2", *FAST)],
    "manipulate": [("a.gif", "--attr", "smiling=0.3", "-o", "moved/", *FAST)],
    "inpaint": [("a.gif", "--mask", "b.png", "-o", "whole/", *FAST)],
    "colourise": [("a.gif", "-o", "coloured/", *FAST)],
    "sample": [("-n", "1", "-o", "new/", *FAST), ("-n", "1", "-o", "new/", "--like", ".")],
}


def test_the_rules_can_be_broken(tmp_path: Path) -> None:
    ring = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}, "e": set[str]()}
    assert house.circles(ring) == ["b", "c"]
    up = {"pdae_cli.engine.model": {"pdae_cli.cli.app", "pdae_cli.diffusion.noise"}}
    assert house.back_arrows(up) == ["pdae_cli.engine.model → pdae_cli.cli.app"]
    beside = {"pdae_cli.networks.unet": {"pdae_cli.diffusion.noise"}}
    assert len(house.back_arrows(beside)) == 1
    assert unread(ast.parse("def f(a, b):\n    return a")) == ["b"]
    assert house.lines(Path(__file__)) > 20


def test_imports_run_one_way_and_none_go_round() -> None:
    graph = house.arrows()
    assert len(graph) > 100
    assert house.back_arrows(graph) == []
    assert house.circles(graph) == []


def test_rooms_functions_and_files_fit_in_the_head() -> None:
    assert len(house.rooms()) <= 10
    long = {name: count for name, count in house.functions(house.PACKAGE).items() if count > 60}
    assert long == {}
    tests = house.ROOT / "tests"
    files = [path for folder in (house.PACKAGE, tests) for path in folder.rglob("*.py")]
    assert [path.name for path in files if house.lines(path) > 400] == []


def test_no_two_classes_have_one_name() -> None:
    assert house.shared_names("class A: ...\nclass B: ...", "class A: ...") == ["A"]
    codes = [path.read_text() for path in house.PACKAGE.rglob("*.py")]
    assert house.shared_names(*codes) == []


def test_help_shows_what_is_common() -> None:
    commands = house.commands()
    assert len(house.shown_options(commands["encode"])) <= 20
    assert len(house.shown_options(commands["manipulate"])) <= 30


def unread(tree: ast.AST) -> list[str]:
    """Parameters of a file's public functions that these don't mention."""
    found = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            names = {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
            found += [one.arg for one in node.args.args if one.arg not in names]
    return found


def functions_of_cli() -> dict[str, ast.FunctionDef]:
    """Public functions of the commands' files, by name."""
    trees = [ast.parse(path.read_text()) for path in (house.PACKAGE / "cli").glob("*.py")]
    nodes = [node for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {node.name: node for node in nodes}


def test_commands_read_their_own_options() -> None:
    functions = [node for name, node in functions_of_cli().items() if name != "root"]
    assert len(functions) > 30
    assert unread(ast.Module([*functions], [])) == []


@pytest.mark.parametrize("command", LINES)
def test_no_command_takes_an_option_that_it_doesnt_read(
    pdae: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Each field of the options is asked for while the command runs."""
    monkeypatch.chdir(tmp_path)
    picture(1, (32, 32)).save("b.png")
    frames = [picture(seed, (32, 32)) for seed in (2, 3)]
    frames[0].save("a.gif", save_all=True, append_images=frames[1:])
    read: set[str] = set()

    def watched(self: Any, name: str) -> Any:
        read.add(name)
        return object.__getattribute__(self, name)

    kinds = [one for one in (*vars(composed).values(), SampleOptions) if is_dataclass(one)]
    for kind in kinds:
        monkeypatch.setattr(kind, "__getattribute__", watched)
    results = [pdae(command, *line) for line in LINES[command]]
    assert results[0].code == 0, results[0].err
    taken = {str(one.name) for one in house.commands()[command].params}
    own = {one.arg for one in functions_of_cli()[command].args.args}
    assert taken - own - read - {"help"} == set()
