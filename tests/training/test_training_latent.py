"""The latent DPM's training: what whitened z are, and that sampling finds the way back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_model
from small_runs import OPTIONS, folder_of, quiet, stage_of, task_of
from torch import Tensor

from pdae_cli.checkpoints.native import read_latent_dpm
from pdae_cli.diffusion.noise import generator
from pdae_cli.diffusion.trajectory import LATENT_SCHEDULE, Sampling
from pdae_cli.errors import UsageError
from pdae_cli.networks.latent import LatentConfig, LatentDPM
from pdae_cli.training.latent import LEAST, latent_stage, principal_axes
from pdae_cli.training.loop import Training

D = 6


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("photos"))


def correlated(count: int = 4000) -> Tensor:
    """z of which one number nearly repeats another, and one holds nothing."""
    z = torch.randn(count, D, generator=generator(1, "z"))
    z[:, 1] = z[:, 0] + 0.05 * z[:, 1]
    z[:, 5] = 0
    return z


def whitened(z: Tensor) -> LatentDPM:
    network = LatentDPM(LatentConfig(D, 16, 3, 0.0, whitened=True))
    with torch.no_grad():
        network.colour.weight.copy_(principal_axes(z))
    return network


def test_axes_are_numpys_principal_components() -> None:
    z = correlated()
    axes = principal_axes(z).double().numpy()
    moment = z.double().numpy().T @ z.double().numpy() / len(z)
    assert np.allclose(axes @ axes.T, moment + LEAST**2 * np.diag([0, 0, 0, 0, 0, 1]), atol=1e-5)
    lengths = np.linalg.norm(axes, axis=0)
    assert np.allclose(axes.T @ axes, np.diag(lengths**2), atol=1e-5)
    assert lengths.min() == pytest.approx(LEAST)


@torch.no_grad()
def test_whitened_codes_do_not_covary_and_go_back() -> None:
    z = correlated()
    network = whitened(z)
    white = network.whiten(z)
    covariance = white.T @ white / len(z)
    wanted = torch.eye(D)
    wanted[0, 0] = 0  # the shortest axis, along which there is nothing
    assert torch.allclose(covariance, wanted, atol=1e-4)
    assert torch.allclose(network.unwhiten(white), z, atol=1e-5)
    assert torch.equal(network.whiten(z[7:9]), white[7:9])
    assert torch.equal(network.unwhiten(white[7:9]), network.unwhiten(white)[7:9])


def test_codes_that_are_not_whitened_stay_as_they_are() -> None:
    network, z = LatentDPM(LatentConfig(D, 16, 3, 0.0)), correlated(3)
    assert network.whiten(z) is z and network.unwhiten(z) is z


class KnowsWhite(LatentDPM):
    """The best answer where all there is is N(0, 1): the ODE then leaves everything where it is."""

    def forward(self, z_t: Tensor, t: Tensor) -> Tensor:
        return LATENT_SCHEDULE.level(int(t[0])).noise * z_t


def test_samples_covary_as_what_was_learnt() -> None:
    model, z = tiny_model(), correlated()
    wide = torch.zeros(len(z), model.config.z_dim)
    wide[:, :D] = z
    network = KnowsWhite(LatentConfig(model.config.z_dim, 16, 3, 0.0, whitened=True))
    with torch.no_grad():
        network.colour.weight.copy_(principal_axes(wide))
    model.latent_dpm = network
    z_T = torch.randn(len(z), model.config.z_dim, generator=generator(2, "z"))
    made = model.normalise(model.solve_z(z_T, Sampling()))[:, :D]
    assert torch.allclose(made.T @ made / len(z), z.T @ z / len(z), atol=0.08)
    assert (made[:, 0] - made[:, 1]).std() == pytest.approx(0.05, rel=0.05)


def test_it_is_trained_on_whitened_codes_and_written_so(photos: Path, tmp_path: Path) -> None:
    stage = stage_of("latent", tiny_model(), task_of(photos, tmp_path))
    codes = stage.source.stack(range(len(stage.source)))
    moment = codes.T @ codes / len(codes)
    assert moment.diag().max() < 1.01 and (moment - moment.diag().diag()).abs().max() < 0.01
    Training(stage, replace(OPTIONS, images=8), tmp_path).train(quiet)
    assert read_latent_dpm(tmp_path / "latent_dpm.safetensors").cfg.whitened


def test_a_run_begun_on_codes_that_were_not_is_refused(photos: Path, tmp_path: Path) -> None:
    def run_of(**changes: object) -> Training:
        stage = stage_of("latent", tiny_model(), task_of(photos, tmp_path))
        stage = replace(stage, settings={**stage.settings, **changes})
        return Training(stage, replace(OPTIONS, images=8), tmp_path)

    run_of(whitened=False).train(quiet)
    with pytest.raises(UsageError, match="whitened False → True"):
        run_of()


def test_nor_is_one_of_another_width(photos: Path, tmp_path: Path) -> None:
    def run_of(width: int) -> Training:
        stage = latent_stage(tiny_model(), task_of(photos, tmp_path), width, 3, 0.1, 0)
        return Training(stage, replace(OPTIONS, images=8), tmp_path)

    run_of(16).train(quiet)
    with pytest.raises(UsageError, match="width 16 → 24"):
        run_of(24)
