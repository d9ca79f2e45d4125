"""Models on disk: our own format (`native`), found by bundled name, folder or Hub id (`find`)."""
# ruff: noqa: F401, this file is where other rooms find them

from ..files import bundled_models
from .card import read_card
from .find import (
    PretrainedModel,
    load,
    load_dpm,
    load_first_stage,
    model_folder,
    writable_folder,
)
from .native import (
    change_attributes,
    is_native,
    read_attributes,
    read_classifier,
    read_config,
    read_model,
    write_attributes,
    write_classifier,
    write_latent_dpm,
    write_model,
)
