"""pdae evaluate: what a model knows and how well its codes hold a picture, in figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from ..errors import InputError, UsageError
from .batch import Made, Runner
from .loading import Loaded
from .making import generators
from .options import FileOptions, Inputs, takes

app = typer.Typer(no_args_is_help=True, help="Measure a model: likelihood.")
STEPS = 100  # of the ODE, where the user doesn't say


@app.command()
@takes(FileOptions)
def likelihood(
    options: FileOptions,
    inputs: Inputs = None,
    conditional: Annotated[
        bool, typer.Option("--conditional", help="Of p(x | z), with each picture's own z.")
    ] = False,
    probes: Annotated[
        int, typer.Option(min=1, max=1000, help="Estimates of the divergence to average.")
    ] = 1,
) -> None:
    """Bits per dimension of pictures, by the probability-flow ODE's divergence.

    Example: pdae evaluate likelihood faces/ -r --inference-steps 200
    """
    from dataclasses import replace

    import torch

    from ..evaluation import likelihood as measure

    if options.solver or options.parity or options.corrections or options.preset:
        raise UsageError("likelihood has its own solver; leave solver, corrections, preset out")
    items = options.items(inputs)
    runner = Runner(options, "evaluate likelihood")
    sampling = options.sampling()
    if options.inference_steps is None:
        sampling = replace(sampling, inference_steps=STEPS)

    steps = len(runner.model.trajectory(sampling).grid()) - 1
    runner.nfe = probes * (2 * steps + 1)

    def process(batch: list[Loaded]) -> Sequence[Made]:
        if any(one.picture is None for one in batch):
            raise InputError("a likelihood is of pictures, not of codes")
        pictures = torch.cat([one.picture for one in batch if one.picture is not None])
        bits = measure(
            runner.model, pictures, generators(runner, batch), sampling, conditional, probes
        )
        facts = {
            "conditional": conditional,
            "probes": probes,
            "nfe": runner.nfe,
            "seed": options.seed,
            "model": runner.model.name,
        }
        return [
            Made(source, None, {"bits_per_dimension": one} | facts, f"  {one:.4f} bits/dim")
            for source, one in zip(batch, bits.tolist(), strict=True)
        ]

    runner.run(items, process)
