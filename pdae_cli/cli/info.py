"""pdae info: what a model or a file is, and how it was made."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from ..pictures.listing import CODES, HEIC_SUFFIXES, SUFFIXES
from .output import Output
from .run.inputs import MAX_CODES, collect, pipes_codes
from .run.tables import TABLE, CodesTable

WEIGHTS = {".bin", ".ckpt", ".pkl", ".pt", ".pth"}  # of other programs' models


def info(
    what: Annotated[
        str,
        typer.Argument(help="Model (name, folder, Hub id), codes, judge or picture, also on -."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Print what a model or a file is, and how it was made.

    Example: pdae info faces64
    """
    path, suffix = Path(what), Path(what).suffix.lower()
    if what == "-":
        is_codes = pipes_codes()
        (item,) = collect([what])
        record = _tensors(path, item.read()) if is_codes else _picture(item.read())
    # Path.is_dir and Path.is_file raise on names that are too long.
    elif os.path.isdir(path):  # noqa: PTH112
        record = _model(what)
    elif suffix in (CODES, TABLE):
        record = _tensors(path)
    elif suffix in SUFFIXES | HEIC_SUFFIXES or (
        os.path.isfile(path) and suffix not in WEIGHTS  # noqa: PTH113
    ):
        record = _picture(path)
    else:
        record = _model(what)
    Output(json=as_json).facts(record)


def _picture(source: Path | bytes) -> dict[str, Any]:
    """Without torch: whoever asks waits for no more than the file."""
    from ..pictures.decoding import has_more_frames, open_picture
    from ..pictures.metadata import read_recipe, read_source_type

    image = open_picture(source, str(source) if isinstance(source, Path) else "-")
    return {
        "kind": "picture",
        "format": image.format,
        "size": [image.width, image.height],
        "mode": image.mode,
        "animated": has_more_frames(image),
        "digital_source_type": read_source_type(image),
        "recipe": read_recipe(image),
    }


def _tensors(path: Path, piped: bytes = b"") -> dict[str, Any]:
    """A judge where the file's metadata say so, else codes, also where they were piped."""
    from ..engine.codes import from_bytes
    from ..engine.tensors import TensorsError, check
    from ..evaluation.judge import read_judge
    from ..files import read_limited

    is_table = path.suffix.lower() == TABLE
    data = CodesTable(path).read() if is_table else piped or read_limited(path, MAX_CODES)
    is_judge = False
    with suppress(TensorsError):  # which reading it as codes tells
        is_judge = not piped and "judge" in check(data).metadata
    if is_judge:
        judge, auroc = read_judge(path)
        return {
            "kind": "judge",
            "name": str(path),
            "digest": judge.weights_sha,
            "size": [judge.size, judge.size],
            "channels": judge.channels,
            "parameters": {"judge": sum(p.numel() for p in judge.parameters())},
            "attributes": judge.names,
            "held-out AUROC": auroc,
        }
    codes = from_bytes(data, str(path))
    return {
        "kind": "codes",
        "pictures": len(codes),
        "z": list(codes.z.shape),
        "x_T": None if codes.x_T is None else list(codes.x_T.shape),
        "model": codes.model,
        "digest": codes.weights_sha,
        "sampling": codes.sampling,
        "dtype": codes.dtype,
        "sources": list(codes.sources),
    }


def _model(name: str) -> dict[str, Any]:
    from dataclasses import asdict

    from ..checkpoints import load

    model = load(name, "cpu")
    config = asdict(model.config)
    config.pop("normalisation")
    parts = {"eps_theta": model.dpm, "G_psi": model.gradient_estimator, "E_phi": model.encoder}
    parts |= {"labels": model.labels, "latent DPM": model.latent_dpm}
    parts |= {"first stage": model.first_stage}
    counts = {
        name: sum(p.numel() for p in part.parameters())
        for name, part in parts.items()
        if part is not None
    }
    return {
        "kind": "model",
        "name": model.name,
        "digest": model.weights_sha,
        "parameters": counts,
        "attributes": model.attributes.names if model.attributes else [],
        **config,
    }
