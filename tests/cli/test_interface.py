"""What users rely on: the set of commands and options, and how errors read."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

import commands_page
import pytest
from conftest import ROOT, Command

import pdae_cli
from pdae_cli import errors

COMMANDS = commands_page.everything()
LEAVES = [(name, one) for name, one in COMMANDS if not hasattr(one, "commands")]
KINDS = {
    name
    for name, one in vars(errors).items()
    if isinstance(one, type) and errors.PdaeError in one.__bases__
}


def test_the_package_lists_what_it_offers() -> None:
    """Also to completion, before torch is imported for any of it."""
    assert {*pdae_cli.__all__, "__doc__"} <= set(dir(pdae_cli))


def test_the_page_of_commands_is_up_to_date() -> None:
    """R33. A change of any command, option, default or help shows up here, and in the page."""
    hint = "run `python tests/commands_page.py` and look at what changed"
    assert commands_page.PAGE.read_text() == commands_page.page(), hint


@pytest.mark.parametrize(("name", "command"), LEAVES, ids=[name for name, _ in LEAVES])
class TestCommands:
    def test_help(self, pdae: Command, name: str, command: Any) -> None:
        result = pdae(*name.split()[1:], "--help")
        assert result.code == 0 and "Usage:" in result.text and result.err == ""

    def test_it_says_what_it_does_with_an_example(self, name: str, command: Any) -> None:
        assert command.help and f"Example: {name} " in command.help

    def test_options_explain_themselves(self, name: str, command: Any) -> None:
        for option in command.params:
            if commands_page.is_option(option):
                assert option.help and option.help.endswith((".", "…")), option.opts
                assert all(re.fullmatch(r"--[a-z0-9-]+|-[a-zA-Z0-9]", one) for one in option.opts)


class Raised:
    """A failure that some file raises, with the text of its message: holes are {}."""

    def __init__(self, where: str, text: str) -> None:
        self.where, self.text = where, text


def raised() -> Iterator[Raised]:
    """Every `UsageError(…)`, `InputError(…)` … of the package whose message is written there."""
    for path in sorted((ROOT / "pdae_cli").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in KINDS:
                text = _template(node.args[0]) if node.args else ""
                yield Raised(f"{path.relative_to(ROOT)}:{node.lineno}", text)


def _template(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_template(one) for one in node.values)
    return "{}"


class TestMessages:
    """R32, as far as their texts go: the exit codes and next steps are in the commands' tests."""

    def test_they_are_found(self) -> None:
        assert len(list(raised())) > 100

    def test_they_are_one_line_without_a_full_stop(self) -> None:
        odd = [
            f"{one.where}: {one.text!r}"
            for one in raised()
            if not one.text or not one.text.isprintable() or one.text.endswith((".", "!", " "))
        ]
        assert odd == []

    def test_each_kind_has_its_own_exit_code(self) -> None:
        codes = {name: getattr(errors, name).exit_code for name in sorted(KINDS)}
        assert codes == {
            "InputError": 3, "ModelError": 4, "OutOfMemory": 5, "StorageError": 3, "UsageError": 2,
        }  # fmt: skip
