"""The application: the table of commands, and what becomes of errors."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from typing import Annotated, Any

import typer

from .. import __version__
from ..errors import STOPPED, STOPPING, OutOfMemory, PdaeError, UsageError
from ..files import unwritable
from . import attributes, codes, data, evaluate, train
from .align import align
from .convert import convert
from .decode import decode
from .encode import encode
from .env import env
from .export import export
from .info import info
from .inpaint import colourise, inpaint
from .interpolate import interpolate
from .manipulate import manipulate
from .models import models
from .output import Output
from .process import settle
from .push import push
from .reconstruct import reconstruct
from .redo import redo
from .run.launch import on_its_machine
from .sample import sample
from .selftest import selftest
from .streams import ReaderLeft, standard_streams

EPILOG = (
    "Exit codes: 0 done; 1 unexpected error, or a failed selftest; 2 wrong usage; 3 some or all "
    "inputs failed; 4 the model can't be had or read; 5 out of memory; 130 interrupted."
)

MORE = "Options that are rarely wanted: pdae help {} --all"

COMMANDS = (
    encode, decode, reconstruct, interpolate, manipulate, inpaint, colourise, sample,
    align, convert, export, push, models, info, redo, env, selftest
)  # fmt: skip

app = typer.Typer(
    name="pdae",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Turn pictures into codes, codes into pictures, and edit pictures by moving the codes.",
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in COMMANDS:
    app.command(epilog=MORE.format(command.__name__))(command)
app.add_typer(attributes.app, name="attributes")
app.add_typer(codes.app, name="codes")
app.add_typer(data.app, name="data")
app.add_typer(evaluate.app, name="evaluate")
app.add_typer(train.app, name="train")


@app.command("help")
def help_(
    context: typer.Context,
    command: Annotated[
        list[str] | None, typer.Argument(help="A command, in one or two words.")
    ] = None,
    all_options: Annotated[
        bool, typer.Option("--all", help="With options that are rarely wanted.")
    ] = False,
) -> None:
    """Explain a command, as its --help does, or with --all its every option.

    Example: pdae help train dpm --all
    """
    found: Any = context.find_root().command
    name = "pdae"
    for word in command or []:
        below = getattr(found, "commands", {})
        if word not in below:
            raise UsageError(f"no command {word!r} in {name}; known: {', '.join(sorted(below))}")
        found, name = below[word], f"{name} {word}"
    for parameter in found.params if all_options else ():
        parameter.hidden = False
    print(found.get_help(type(context)(found, info_name=name)))


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"pdae {__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Options before the command."""


def run() -> None:
    """Run the command line and exit; every expected failure is one line on stderr and an exit code.

    Typer itself ends usage errors with 2 and interruptions with 130.
    """
    settle()
    with standard_streams():
        try:
            code = _code()
        finally:
            for number in STOPPING:  # nothing is in work any more
                signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


def _code() -> Any:
    """Run the command and return its exit code, when every failure is said."""
    stop: BaseException | None
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt as error:
        stop = error
    except SystemExit as end:
        if end.code != STOPPED:
            return end.code
        stop = end
    except Exception as error:
        return _explained(error)
    while not isinstance(stop, KeyboardInterrupt | None):
        stop = stop.__cause__ or stop.__context__
    if isinstance(stop, ReaderLeft) and sys.platform != "win32":  # without a word, as filters end
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.raise_signal(signal.SIGPIPE)
    if on_its_machine() == 0:
        Output().say("; ".join(["interrupted", *map(str, stop.args if stop else ())]))
    return STOPPED


def _explained(error: Exception) -> int:
    """Say what went wrong in a line; return the exit code. With PDAE_DEBUG the traceback comes too:
    before the line of what can be expected, and raised alone for what can't."""
    debug = os.environ.get("PDAE_DEBUG", "").lower() not in ("", "0", "false", "no", "off")
    full = isinstance(error, MemoryError)
    if isinstance(error, RuntimeError) and "torch" in sys.modules:  # whose errors these would be
        from ..engine.computing import ran_out

        full = ran_out(error)
    if full:
        error = OutOfMemory("out of memory; choose a smaller --batch-size")
    if isinstance(error, OSError):  # whatever the system refuses: the user's to mend, not ours
        error = unwritable(error.filename or "a file", error)
    if isinstance(error, PdaeError):
        if debug:
            traceback.print_exc()
        if not (isinstance(error, UsageError) and on_its_machine() > 0):
            Output().error(str(error))  # of a launcher's processes one says what all got wrong
        return error.exit_code
    if debug:
        raise error
    where = traceback.extract_tb(error.__traceback__)[-1]
    Output().error(
        f"unexpected {type(error).__name__}: {error} ({where.name}, line {where.lineno}); "
        "PDAE_DEBUG=1 shows all of it, please report it"
    )
    return 1
