"""pdae push: a model to the Hugging Face Hub."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Annotated

import typer

from .complete import models
from .options import SaidOptions, takes


@takes(SaidOptions)
def push(
    options: SaidOptions,
    model: Annotated[
        str, typer.Argument(help="Bundled name, folder, or Hub id.", autocompletion=models)
    ],
    repository: Annotated[str, typer.Argument(metavar="USER/NAME", help="Where to, on the Hub.")],
    private: Annotated[
        bool, typer.Option("--private", help="Of a repository that is new.")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Branch; default: main.")] = None,
) -> None:
    """Push a model's own files to the Hub, with its card and licence, in one commit.

    Example: pdae push runs/mine user/faces --private
    """
    from huggingface_hub.utils import disable_progress_bars, logging

    from ..checkpoints import load
    from ..checkpoints.hub import check_push

    check_push(repository)
    logging.set_verbosity(logging.CRITICAL)  # what goes wrong for good is raised as well
    out = options.out
    found = load(model, "cpu", announce=out.say)
    found.notify = out.say
    with nullcontext() if out.interactive else disable_progress_bars():
        done = found.push_to_hub(repository, private=private or None, branch=revision)
    record = {"model": model, "repository": repository, "commit": done.oid, "url": done.commit_url}
    out.result(record | {"licence": found.config.licence}, done.commit_url)
