"""Models on disk: our own format (`native`), found by bundled name, folder or Hub id (`find`)."""

from .find import bundled_models, load
from .native import read_model, write_attributes, write_latent_dpm, write_model

__all__ = [
    "bundled_models",
    "load",
    "read_model",
    "write_attributes",
    "write_latent_dpm",
    "write_model",
]
