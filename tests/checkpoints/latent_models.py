"""Latent diffusion models in small, of diffusers' own classes with random weights."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import randomise
from torch import Tensor

from pdae_cli.checkpoints import load_dpm
from pdae_cli.engine.model import Model
from pdae_cli.training.autoencoder import with_autoencoder

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of other people's packages
    import diffusers
    from diffusers import AutoencoderKL, DDIMScheduler, LDMPipeline, UNet2DModel, VQModel

diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()

SIZE, LATENT = 32, 8  # pixels, and latents of a factor of 4
LEVELS: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (8, 8, 16),
    "norm_num_groups": 4,
}
KINDS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "kl": (AutoencoderKL, LEVELS | {"latent_channels": 4, "scaling_factor": 0.7}),
    "vq": (VQModel, LEVELS | {"latent_channels": 3, "num_vq_embeddings": 32}),
    "kl, shifted": (AutoencoderKL, LEVELS | {"latent_channels": 4, "shift_factor": 0.25}),
    "kl, no bottleneck": (
        AutoencoderKL,
        LEVELS | {"latent_channels": 4, "use_quant_conv": False, "use_post_quant_conv": False},
    ),
    "vq, codes of their own width": (
        VQModel,
        LEVELS | {"latent_channels": 3, "num_vq_embeddings": 16, "vq_embed_dim": 5},
    ),
    "vq, attention": (
        VQModel,
        LEVELS
        | {
            "latent_channels": 3,
            "down_block_types": (*["DownEncoderBlock2D"] * 2, "AttnDownEncoderBlock2D"),
            "up_block_types": ("AttnUpDecoderBlock2D", *["UpDecoderBlock2D"] * 2),
        },
    ),
}


def theirs(name: str) -> Any:
    """A first stage of diffusers with random weights."""
    kind, shape = KINDS[name]
    torch.manual_seed(1)
    network = kind(**shape).eval()
    randomise(network, 0.1)
    return network


def pipeline(folder: Path, name: str = "vq") -> LDMPipeline:
    """A latent diffusion pipeline with random weights, written to a folder."""
    stage = theirs(name)
    channels = stage.config.latent_channels
    torch.manual_seed(2)
    unet = UNet2DModel(
        sample_size=LATENT,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
    ).eval()
    randomise(unet, 0.03)
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False)
    made = LDMPipeline(stage, unet, scheduler)
    made.save_pretrained(str(folder))
    return made


def pixels(count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.rand((count, 3, SIZE, SIZE), generator=generator) * 2 - 1


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ldm") / "pipeline"
    pipeline(folder)
    return folder


@pytest.fixture
def model(source: Path) -> Model:
    """A whole latent PDAE, with G_psi and E_phi of random weights."""
    made = with_autoencoder(load_dpm(str(source)), z_dim=6, seed=0)
    assert made.gradient_estimator is not None and made.encoder is not None
    randomise(made.gradient_estimator, 0.03)
    made.name = "latent"
    return made
