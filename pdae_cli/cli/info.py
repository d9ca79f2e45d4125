"""pdae info: what a model, a codes file or a picture is, and how it was made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InputError
from .output import Output


def info(
    what: Annotated[str, typer.Argument(help="Model (name, folder, Hub id), codes or picture.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Print what a model or a file is, and how it was made.

    Example: pdae info faces64
    """
    path = Path(what)
    if path.is_file():
        record = _codes(path) if path.suffix.lower() == ".safetensors" else _picture(path)
    else:
        record = _model(what)
    text = "\n".join(f"{key}: {_shown(value)}" for key, value in record.items())
    out = Output(json=as_json)
    for line in [text] if as_json else text.splitlines():
        out.result(record, line)


def _shown(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


def _codes(path: Path) -> dict[str, Any]:
    from ..codes import read_codes

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
    from ..images import open_picture, read_recipe

    image = open_picture(path, str(path))
    made = read_recipe(image)
    if made is None:
        raise InputError(f"{path}: a picture of {image.width}x{image.height} without a pdae recipe")
    return {"kind": "picture", "size": [image.width, image.height], **made}


def _model(name: str) -> dict[str, Any]:
    import dataclasses

    from ..checkpoints import load

    model = load(name, "cpu")
    parts = {
        "eps_theta": model.dpm,
        "G_psi": model.gradient_estimator,
        "E_phi": model.encoder_network,
        "latent DPM": model.latent_dpm,
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
