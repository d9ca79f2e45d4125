"""Models on disk: our own format (`native`), found by bundled name, folder or Hub id (`find`)."""

from .classifier import read_classifier, write_classifier
from .find import bundled_models, load, load_dpm, load_first_stage, model_folder, writable_folder
from .native import (
    is_native,
    read_attributes,
    read_config,
    read_model,
    write_attributes,
    write_latent_dpm,
    write_model,
)

__all__ = [
    "bundled_models",
    "is_native",
    "load",
    "load_dpm",
    "load_first_stage",
    "model_folder",
    "read_attributes",
    "read_classifier",
    "read_config",
    "read_model",
    "writable_folder",
    "write_attributes",
    "write_classifier",
    "write_latent_dpm",
    "write_model",
]
