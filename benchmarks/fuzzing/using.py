"""Kinds of damaged files, and what the commands do with one, with tiny models of random weights."""

from __future__ import annotations

import io
import os
import random
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .mutations import Mutation

TESTS = Path(__file__).parents[2] / "tests"  # whose tiny models these are
sys.path[:0] = [str(TESTS), str(TESTS / "checkpoints")]

FAST = "--inference-steps 2"
MODEL = "-m m"  # as `model_folder` makes it
SHAPE = (
    "--image-size 32 --base-channels 8 --multipliers 1 --blocks 1 --attention '' --head-channels 8"
)
LOOP = "--images 8 --batch-size 4 --log-every 1 --save-every 1"
LONGEST_LINE = 2000  # characters, of a message: more of a stranger's file floods the terminal
Use = Callable[[bytes, random.Random], str]  # what became of it; raises what isn't expected


@dataclass(frozen=True)
class Kind:
    """A valid file, how it is damaged, and what is done with it."""

    data: bytes
    mutate: Mutation
    use: Use


Kinds = dict[str, Kind]


def damaged(name: str, kinds: Kinds, chance: random.Random) -> bytes:
    """A file of this kind with one to three mutations, or the halves of two files."""
    data = bytearray(kinds[name].data)
    if chance.random() < 0.03:
        other = kinds[chance.choice(sorted(kinds))].data
        data[chance.randrange(len(data)) :] = other[chance.randrange(len(other)) :]
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        if data:
            kinds[name].mutate(data, chance)
    return bytes(data)


class Unexpected(Exception):
    """Expected of a command is neither this nor any exception that isn't a PdaeError."""


def pdae(line: str) -> str:
    """Run a command in this process: how it ended, in a word. Raises what a user isn't to see."""
    import click
    import typer

    from pdae_cli.cli.app import app
    from pdae_cli.cli.output import Output
    from pdae_cli.errors import PdaeError

    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = _command(app).main(shlex.split(line), "pdae", standalone_mode=False)
            ended = {0: "", None: "", 3: "inputs failed"}.get(code, f"exit code {code}")
        except PdaeError as error:
            Output().error(str(error))
            ended = type(error).__name__
        except (click.UsageError, typer.Exit) as error:
            ended = type(error).__name__
    _check_said(out.getvalue(), err.getvalue())
    return ended


@cache
def _command(app: Any) -> Any:
    import typer

    return typer.main.get_command(app)


def _check_said(out: str, err: str) -> None:
    """What was printed steers no terminal, floods none, and asks for no memory."""
    text = out + err
    if odd := [c for c in text if not c.isprintable() and c not in "\n\t"]:
        raise Unexpected(f"prints {odd[0]!r}: {text[:300]!r}")
    if (longest := max(map(len, err.splitlines()), default=0)) > LONGEST_LINE:
        raise Unexpected(f"a line of {longest} characters: {err[:300]!r}")
    for word in ("Traceback", "can't allocate", "out of memory"):
        if word in err:
            raise Unexpected(err[:1000])


def by_commands(template: Path, file: str, always: Sequence[str], some: Sequence[str]) -> Use:
    """Put the data into a copy of the template's folder and run there the commands of `always`,
    and two of `some`."""

    def use(data: bytes, chance: random.Random) -> str:
        endings = []
        with tempfile.TemporaryDirectory(dir=template.parent) as folder:
            shutil.copytree(template, folder, dirs_exist_ok=True)
            (Path(folder) / file).write_bytes(data)
            os.chdir(folder)
            try:
                for line in [*always, *chance.sample(some, min(2, len(some)))]:
                    endings.append(pdae(line))
                left = [str(one) for one in Path(folder).rglob("*.tmp")]
            finally:
                os.chdir(template)
        if left:
            raise Unexpected(f"leaves {left[0]} behind")
        return next((f"refused: {one}" for one in endings if one), "taken")

    return use


def model_folder(folder: Path) -> Path:
    """A folder with a whole tiny model in `m`."""
    from conftest import tiny_model

    from pdae_cli.checkpoints import write_attributes, write_latent_dpm, write_model

    model = tiny_model()
    write_model(folder / "m", model)
    assert model.attributes is not None and model.latent_dpm is not None
    write_attributes(folder / "m", model.attributes)
    write_latent_dpm(folder / "m", model.latent_dpm, {})
    return folder
