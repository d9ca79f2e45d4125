"""A classifier's folder: classifier.safetensors, its config and training in the metadata."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from ..engine import tensors as safe
from ..engine.conditional import Classifier, ClassifierConfig
from ..engine.config import build
from ..errors import ModelError
from ..files import sha256, write_bytes
from ..networks.classifier import NoisyClassifier
from .native import fill, guarded, stored

CLASSIFIER = "classifier.safetensors"


def write_classifier(
    folder: Path, classifier: Classifier, training: dict[str, Any], dtype: torch.dtype
) -> None:
    """Write classifier.safetensors atomically."""
    state = classifier.network.state_dict()
    facts = {
        "pdae": json.dumps(dataclasses.asdict(classifier.config)),
        "training": json.dumps(training),
    }
    tensors = {name: stored(value, dtype) for name, value in state.items()}
    write_bytes(folder / CLASSIFIER, safe.sealed(tensors, facts))


def read_classifier(folder: Path) -> Classifier:
    """The classifier in a folder, float32 on the CPU. Raises ModelError."""
    path = folder / CLASSIFIER
    if not path.is_file():
        raise ModelError(f"{folder} is no classifier; `pdae train classifier` makes one")
    return guarded(path, lambda: _read(path))


def _read(path: Path) -> Classifier:
    header = safe.check(path, keys=("pdae", "training"))
    config: ClassifierConfig = build(ClassifierConfig, header.facts(), "classifier")
    network = fill(lambda: NoisyClassifier(config.unet, config.classes), path)
    return Classifier(config, network.requires_grad_(False).eval(), sha256(path))
