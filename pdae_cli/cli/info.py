"""pdae info: what a model, a codes file or a picture is, and how it was made."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from .output import Output


def info(
    what: Annotated[str, typer.Argument(help="Model (name, folder, Hub id), codes or picture.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Print what a model or a file is, and how it was made.

    Example: pdae info faces64
    """
    path = Path(what)
    if os.path.isfile(path):  # noqa: PTH113, Path.is_file raises on names that are too long
        record = _codes(path) if path.suffix.lower() == ".safetensors" else _picture(path)
    else:
        record = _model(what)
    out = Output(json=as_json)
    for line in [""] if as_json else _lines(record):
        out.result(record, line)


def _lines(record: dict[str, Any], indent: str = "") -> Iterator[str]:
    """For people: a line for each fact, those of a fact that has parts indented below it."""
    for key, value in record.items():
        if isinstance(value, dict) and value:
            yield f"{indent}{key}:"
            yield from _lines(value, indent + "  ")
        else:
            shown = value if isinstance(value, str) else json.dumps(value)
            yield f"{indent}{key}: {'none' if value is None else shown}"


def _codes(path: Path) -> dict[str, Any]:
    from ..engine.codes import read_codes

    codes = read_codes(path, str(path))
    return {
        "kind": "codes",
        "pictures": len(codes),
        "z": list(codes.z.shape),
        "x_T": None if codes.x_T is None else list(codes.x_T.shape),
        "model": codes.model,
        "digest": codes.digest,
        "sampling": codes.sampling,
        "sources": list(codes.sources),
    }


def _picture(path: Path) -> dict[str, Any]:
    from ..pictures.images import has_more_frames, open_picture
    from ..pictures.metadata import read_recipe, read_source_type

    image = open_picture(path, str(path))
    return {
        "kind": "picture",
        "format": image.format,
        "size": [image.width, image.height],
        "mode": image.mode,
        "animated": has_more_frames(image),
        "digital_source_type": read_source_type(image),
        "recipe": read_recipe(image),
    }


def _model(name: str) -> dict[str, Any]:
    import dataclasses

    from ..checkpoints import load

    model = load(name, "cpu")
    parts = {
        "eps_theta": model.dpm,
        "G_psi": model.gradient_estimator,
        "E_phi": model.encoder_network,
        "labels": model.labels,
        "latent DPM": model.latent_dpm,
        "first stage": model.first_stage,
    }
    config = dataclasses.asdict(model.config)
    config.pop("normalisation")
    return {
        "kind": "model",
        "name": model.name,
        "digest": model.digest,
        "parameters": {
            part: sum(p.numel() for p in network.parameters())
            for part, network in parts.items()
            if network is not None
        },
        "attributes": model.attributes.names if model.attributes else [],
        **config,
    }
