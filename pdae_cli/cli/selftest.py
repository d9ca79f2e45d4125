"""pdae selftest: whether a model computes on this machine as it should."""

from __future__ import annotations

from dataclasses import replace

import typer

from ..errors import counted
from .options import ModelOptions, takes


@takes(ModelOptions, without=("dtype", "batch_size", "compile"))
def selftest(options: ModelOptions) -> None:
    """Check in less than a minute that the model computes here as it should: twice the same, alone
    and in a batch, and as where its values were made. Exit 1 if it doesn't.

    Example: pdae selftest --model faces64
    """
    from ..checkpoints import model_folder
    from ..evaluation.selftest import checks, read_values

    out = options.out
    folder, failed = model_folder(options.model, out.say), 0
    for one in checks(replace(options, model=str(folder)).load(), read_values(folder)):
        out.result(one._asdict(), f"{one.check}: {one.verdict}")
        if one.passed is False:
            out.error(f"{one.check}: {one.verdict}")
            failed += 1
    if failed:
        out.error(f"{counted(failed, 'check')} failed; please report it, with what pdae env says")
        raise typer.Exit(1)
