"""docs/commands.md, from the application itself: `python tests/commands_page.py` writes it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import typer

PAGE = Path(__file__).parents[1] / "docs" / "commands.md"
TYPERS = {"--help", "--install-completion", "--show-completion"}  # its own, in its own words
HEAD = """# Commands

Every command with its arguments and options, as `pdae COMMAND --help` has them; options with a `*`
are rarely wanted, and `pdae help COMMAND --all` alone shows them. Written by
`python tests/commands_page.py`; a test compares it with the program.
"""


def commands(command: Any, name: str = "pdae") -> Iterator[tuple[str, Any]]:
    """A command and all below it, by what one types."""
    yield name, command
    for below, one in sorted(getattr(command, "commands", {}).items()):
        yield from commands(one, f"{name} {below}")


def everything() -> list[tuple[str, Any]]:
    """All commands of `pdae`."""
    from pdae_cli.cli.app import app

    return list(commands(typer.main.get_command(app)))


def is_option(parameter: Any) -> bool:
    """Whether it is an option and not an argument."""
    return bool(parameter.param_type_name == "option")


def page() -> str:
    """The whole page."""
    return HEAD + "".join(_section(name, one) for name, one in everything())


def _section(name: str, command: Any) -> str:
    options = [one for one in command.params if not TYPERS & set(one.opts)]
    rows = [
        f"| {_names(one)} | {_default(one)} | {_cell(_help(one))} |\n"
        for one in sorted(options, key=is_option)
    ]
    table = "\n| | default | |\n| --- | --- | --- |\n" + "".join(rows) if rows else ""
    return f"\n## {name}\n\n{(command.help or '').strip()}\n{table}"


def _names(parameter: Any) -> str:
    if not is_option(parameter):
        return f"`{parameter.name.upper()}`"
    kinds = get_args(parameter.type_descriptor.annotation)  # of a Literal, its choices
    choices = [one for one in kinds if isinstance(one, str)]
    value = "" if parameter.is_flag else f" {'/'.join(choices) if choices else '…'}"
    names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    rare = " \\*" if parameter.hidden else ""
    return f"`{names}{value}`{rare}"


def _default(parameter: Any) -> str:
    default = parameter.default
    if parameter.required:
        return "needed"
    if default is None or default is False or callable(default) or default in ((), []):
        return ""
    return f"`{default}`"


def _help(parameter: Any) -> str:
    return " ".join((getattr(parameter, "help", None) or "").split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.path.insert(0, str(PAGE.parents[1]))
    PAGE.write_text(page())
