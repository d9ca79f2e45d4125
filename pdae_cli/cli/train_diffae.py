"""pdae train diffae: the baseline of PDAE."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import UsageError
from .options import takes
from .train import Data, Folder, ShapeFlags, load_model, run


@takes(ShapeFlags)
def diffae(
    data: Data,
    output: Folder,
    options: ShapeFlags,
    z_dim: Annotated[int, typer.Option(min=1, help="Dimensions of z.")] = 512,
) -> None:
    """Train a Diff-AE to compare with: E_phi and an eps_theta that takes z, both from scratch.

    Example: pdae train diffae photos/ -o runs/diffae --image-size 64
    """
    from ..training.diffae import diffae_stage, new_diffae

    if options.init_from is None:
        model = new_diffae(z_dim=z_dim, **options.network())
    else:
        model = load_model(options.init_from)
        if not model.takes_z or model.encoder_network is None:
            raise UsageError(f"{options.init_from} is no Diff-AE; leave --init-from out")
    options.placed(model)
    train, held_out = options.data(data, model.config)
    run(diffae_stage(model, train, held_out, output, options.stored()), options, output)
