"""The application: the table of commands, and what becomes of errors."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from .. import __version__
from ..errors import PdaeError
from . import train
from .output import Output

app = typer.Typer(
    name="pdae",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Turn pictures into codes, codes into pictures, and edit pictures by moving the codes.",
)
app.add_typer(train.app, name="train")


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit()


def main() -> None:
    """Run the command line; every expected failure is one line on stderr and an exit code."""
    try:
        app()
    except PdaeError as error:
        if os.environ.get("PDAE_DEBUG"):
            raise
        Output().error(str(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        Output().error("interrupted")
        sys.exit(130)
