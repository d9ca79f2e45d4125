"""Numbers that the authors' program computed, tensor by tensor.

Each expected file says what one procedure gives on tiny networks of random weights, with how far
its float32 is from its float64; converted, those networks must give the same here.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import expectations
import pytest
import torch
import torch.nn.functional as F
from expectations import (
    GOLDEN,
    Expected,
    States,
    about,
    alone,
    at,
    clamped,
    codes,
    converted,
    learned,
    neighbours,
    no_z,
    sampled,
    to_noise,
)
from torch import Tensor

from pdae_cli.checkpoints import names
from pdae_cli.checkpoints.pdae import CELEBA_ATTRIBUTES
from pdae_cli.diffusion import solvers
from pdae_cli.diffusion.noise import slerp
from pdae_cli.diffusion.trajectory import LATENT_SCHEDULE, Sampling
from pdae_cli.engine import model as engine
from pdae_cli.engine.attributes import Attributes
from pdae_cli.engine.codes import Codes, between
from pdae_cli.engine.model import Model
from pdae_cli.networks.encoder import EncoderConfig
from pdae_cli.training.autoencoder import AutoencoderLoss, gap_residuals
from pdae_cli.training.dpm import DPMLoss
from pdae_cli.training.latent import LatentLoss

expected, model, seen = expectations.expected, expectations.model, expectations.seen
PDAE = ("pdae_A_celeba64", "pdae_B_ffhq128")


def pdae_dpm(folder: str) -> Model:
    return converted(GOLDEN / folder / "pre-trained-dpms" / folder.rpartition("_")[2])


def shifted(model: Model, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
    """eps_theta - shift_t G_psi: the noise of the shifted posterior mean (PDAE eq. 8, 10)."""
    eps, gradient = model.predict(x, t, z)
    assert gradient is not None
    return eps - model.schedule.shift[t].float()[:, None, None, None] * gradient


def stop(model: Model, count: int) -> int:
    """Where samples and `stop_percent` 0.3 leave the trajectory to eps_theta."""
    return model.trajectory(Sampling(count, parity="pdae")).unguided_below()


@about(PDAE, "forward")
def test_pdae_networks(expected: Expected, model: Model) -> None:
    x_0, x_t, mixed = expected["in.x0"], expected["in.x_t"], expected["in.t_mixed"]
    z = model.encode_z(x_0)
    expected.check("z", z)
    for t in (0, 1, 500, 999):
        rows = len(expected[f"decoder_eps_t{t}"])
        eps, gradient = model.predict(x_t[:rows], at(t, x_t[:rows]), z[:rows])
        expected.check(f"decoder_eps_t{t}", eps)
        expected.check(f"decoder_gradient_t{t}", gradient)
    eps, gradient = model.predict(x_t, mixed, z.flip(0))
    expected.check("decoder_eps_tmixed_zflip", eps)
    expected.check("decoder_gradient_tmixed_zflip", gradient)
    x = x_t[: len(expected["unet_eps_t500"])]
    expected.check("unet_eps_t500", alone(pdae_dpm(expected.folder))(x, 500))
    noised = model.schedule.add_noise(x_0, mixed, expected["in.noise"])
    expected.check("q_sample_tmixed", noised)


@about(PDAE, "losses")
def test_pdae_losses_and_gradients(expected: Expected, model: Model) -> None:
    """The authors draw t evenly and weigh by lambda_t; our density changes no expectation."""
    x_0 = expected["in.x0"]
    heads, encoder = copy.deepcopy((model.heads, model.encoder))
    assert encoder is not None and heads.gradient is not None
    objective = AutoencoderLoss(heads, encoder, model.schedule).eval()
    objective.weight = model.schedule.loss_weight()
    regular = DPMLoss(pdae_dpm(expected.folder).heads, model.schedule)
    for loss, number in expected.starting("representation_loss_"):
        t, noise = expected[f"in.loss_t_{number}"], expected[f"in.loss_noise_{number}"]
        objective.zero_grad()
        value = objective(x_0, t, noise)
        value.backward()
        expected.check(loss, value.detach())
        expected.check(f"regular_loss_{number}", regular(x_0, t, noise).detach())
    assert isinstance(model.config.encoder, EncoderConfig)
    tables = {
        "decoder.": (heads.gradient, names.pdae_gradient(model.config.unet)),
        "encoder.": (encoder, names.pdae_encoder(model.config.encoder)),
    }
    gradients = {
        f"{prefix}{table[ours.rpartition('.')[0]][0]}.{ours.rpartition('.')[2]}": parameter.grad
        for prefix, (network, table) in tables.items()
        for ours, parameter in network.named_parameters()
    }
    for gradient, parameter in expected.starting("grad_2."):
        want = expected[gradient]
        got = gradients[parameter].reshape(want.shape)
        expected.check(gradient, got, rtol=1e-3, atol=1e-5 * want.abs().max().item())
    norms = expected.extra["grad_norms_loss_2"]
    assert set(norms) == set(gradients)
    for parameter, norm in norms.items():
        assert gradients[parameter].norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-8)


@about(PDAE, "ddim_encode_10", "ddim_encode_20")
def test_pdae_encodes(expected: Expected, model: Model, seen: States) -> None:
    count, x_0 = int(expected.name.rpartition("_")[2]), expected["in.x0"][: len(expected["in.z"])]
    made = model.encode(x_0, parity="pdae", inference_steps=count)
    expected.check("x_T", made.x_T)
    ((every, _),) = expected.starting("states_")
    expected.check_states(every, seen.taken())


@about(PDAE, "ddim_decode_10", "ddim_decode_20")
def test_pdae_decodes(expected: Expected, model: Model, seen: States) -> None:
    count, x_T, z = int(expected.name.rpartition("_")[2]), expected["in.x_T"], expected["in.z"]
    for share, guide_until in (("00", 0), ("30", stop(model, count))):
        made = codes(z, x_T, parity="pdae", inference_steps=count, guide_until=guide_until)
        expected.check(f"x_0_stop{share}", model.decode(made))
        ((every, _),) = expected.starting(f"states_stop{share}_")
        expected.check_states(every, seen.taken())


@about(PDAE, "autoencode")
def test_pdae_autoencodes(expected: Expected, model: Model) -> None:
    rows = len(expected["reconstruction_enc20_dec10"])
    made = model.encode(expected["in.x0"][:rows], parity="pdae", inference_steps=20)
    expected.check("reconstruction_enc20_dec10", model.decode(made, inference_steps=10))


@about(PDAE, "ddim_regular")
def test_pdae_without_z(expected: Expected, seen: States) -> None:
    model = pdae_dpm(expected.folder)
    x_T = expected["in.x_T"]
    x_0 = expected["in.x0"][: len(x_T)]
    made = no_z(x_T, parity="pdae", inference_steps=10)
    expected.check("x_0_ddim10", model.decode(made))
    expected.check_states("states_ddim10_every5_sample0", seen.taken())
    expected.check("x_T_ddim10", to_noise(model, "pdae", x_0, 10))


@about(PDAE, "interpolation")
def test_pdae_interpolates(expected: Expected, model: Model) -> None:
    a, b = expected["in.slerp_a"], expected["in.slerp_b"]
    ends = codes(model.encode_z(expected["in.x0"]), torch.cat([a, b]))
    settings: dict[str, Any] = {"parity": "pdae", "inference_steps": 10}
    made = model.interpolate(ends, [0.3], mode="trajectory", **settings)
    expected.check("trajectory_ddim10_alpha030", made)
    expected.check("lerp_decode_ddim10_alpha030", model.interpolate(ends, [0.3], **settings))
    middle = between(ends, [step / 10 for step in range(11)])
    assert middle.x_T is not None
    for name_, share in expected.starting("slerp_"):
        expected.check(name_, middle.x_T[int(share) // 10, None])
    for name_, share in expected.starting("lerp_z_"):
        expected.check(name_, middle.z[int(share) // 10, None])
    # Half way both ends count by 1 / (2 cos(theta / 2)).
    ends_flat = torch.stack([a.flatten(), b.flatten()], dim=1)
    counts = torch.linalg.lstsq(ends_flat, slerp(a, b, 0.5).flatten()[:, None]).solution
    expected.check("theta", 2 * (1 / (2 * counts.mean())).acos())


@about(PDAE, "manipulation")
def test_pdae_manipulates(expected: Expected, model: Model) -> None:
    """By s sqrt(512) along w/|w|, whatever the length of z."""
    weight, bias = expected["in.classifier_weight"], expected["in.classifier_bias"]
    model = replace(model, attributes=Attributes(list(CELEBA_ATTRIBUTES), weight, bias))
    x_0, x_T = expected["in.x0"], expected["in.x_T"]
    z = model.encode_z(x_0)
    made = codes(z[: len(x_T)], x_T, parity="pdae", inference_steps=10)
    for what, attribute, scale in (
        ("class31_scale030", "Smiling", 0.3),
        ("class24_scalem010", "No Beard", -0.1),
    ):
        moved = model.manipulate(made, [(attribute, scale)])
        expected.check(f"z_manipulated_{what}", moved.z)
        expected.check(f"image_{what}", model.decode(moved))
    labels = (expected["in.labels"] > 0).float()
    scores = model.scores(Codes(z))
    expected.check("bce_loss", F.binary_cross_entropy_with_logits(scores, labels))


@about(PDAE, "ddpm_step")
def test_pdae_samples_ancestrally(expected: Expected, model: Model) -> None:
    """Steps between neighbouring timesteps, with the posterior's variance."""
    schedule, noise, eps = model.schedule, expected["in.step_noise"], expected["in.step_eps"]
    x = expected["in.x_t"][: len(noise)]
    for step_name, t in expected.starting("noise_p_sample_t"):
        step = neighbours(schedule, int(t))
        small = solvers.ancestral(x, eps, step.here, step.there, "small")
        expected.check(step_name, sampled(small, noise, t == "0"))
        of = clamped(step, x, eps)
        clipped = solvers.ancestral(x, of, step.here, step.there, "small")
        expected.check(f"x0_clip_p_sample_t{t}", sampled(clipped, noise, t == "0"))
        if f"noise_p_sample_range_t{t}" in expected.tensors:
            expected.check(f"x0_noclip_p_sample_t{t}", sampled(small, noise, t == "0"))
            between = learned(small, step, expected["in.step_range"])
            expected.check(f"noise_p_sample_range_t{t}", sampled(between, noise, t == "0"))
    z, predict = expected["in.z"], alone(pdae_dpm(expected.folder))
    x = y = expected["in.x_tail"]
    for t in (3, 2, 1, 0):
        noise, step = expected[f"in.chain_noise_{3 - t}"], neighbours(schedule, t)
        both = (x, shifted(model, x, at(t, x), z)), (y, predict(y, t))
        moments = (solvers.ancestral(*one, step.here, step.there, "small") for one in both)
        x, y = (sampled(one, noise, t == 0) for one in moments)
    expected.check("representation_ddpm_tail4", x)
    expected.check("regular_ddpm_tail4", y)


@about(PDAE, "denoise_one_step")
def test_pdae_predicts_x_0(expected: Expected, model: Model) -> None:
    x_0, t = expected["in.x0"], expected["in.t_mixed"]
    x_t = model.schedule.add_noise(x_0, t, expected["in.noise"])
    z = model.encode_z(x_0)
    eps, _ = model.predict(x_t, t, None)
    expected.check("predicted_x_0", model.schedule.level(t, x_t).x_0(x_t, eps))
    eps = shifted(model, x_t, t, z)
    expected.check("autoencoder_predicted_x_0", model.schedule.level(t, x_t).x_0(x_t, eps))


@about(["pdae_A_celeba64"], "gap")
def test_pdae_posterior_mean_gap(expected: Expected, model: Model) -> None:
    """At every ninth of t = T-1 … 0, both ends included, with one (uniform) noise for all."""
    x_0, noise, schedule = expected["in.x0"], expected["in.gap_noise"], model.schedule
    z = model.encode_z(x_0)
    gaps = []
    for t in torch.arange(999, -1, -9).split(50):
        x, eps = (part.expand(len(t), *part.shape[1:]) for part in (x_0, noise))
        gaps.append(torch.stack(gap_residuals(model, x, t, eps, z.expand(len(t), -1))))
    factor = schedule.beta**2 / (schedule.alpha * (1 - schedule.alpha_bar)) / x_0.numel()
    plain, shifted_gap = torch.cat(gaps, dim=1).double() * factor.flip(0)[::9]
    expected.check("predicted_posterior_mean_gap", plain, rtol=1e-3, every=9)
    expected.check("autoencoder_posterior_mean_gap", shifted_gap, rtol=1e-3, every=9)


@about(PDAE, "latent")
def test_pdae_latent_dpm(
    expected: Expected, model: Model, seen: States, monkeypatch: pytest.MonkeyPatch
) -> None:
    """z_T and the predicted z_0 are clamped; samples leave their last 30 % to eps_theta."""
    network, z, x_T = model.latent_dpm, expected["in.lat_z"], expected["in.x_T"]
    assert network is not None
    with torch.no_grad():
        for out, t in expected.starting("mlp_out_t"):
            expected.check(out, network(z, at(int(t), z)))
        z_0 = model.normalise(model.encode_z(expected["in.x0"]))
        loss = LatentLoss(network, LATENT_SCHEDULE)
        value = loss(z_0, expected["in.lat_t"], expected["in.lat_noise"])
        expected.check("latent_l1_loss", value)
    for count in (10, 20):
        z = model.solve_z(expected["in.lat_zT"], Sampling(inference_steps=count, parity="pdae"))
        expected.check(f"z_norm_states_ddim{count}", seen.taken())
        expected.check(f"z_denorm_ddim{count}", z)
        made = codes(z, x_T, parity="pdae", inference_steps=10, guide_until=stop(model, 10))
        expected.check(f"image_ddim{count}_dec10", model.decode(made))
        seen.clear()
    given = {z.shape[1:]: expected["in.lat_zT"], x_T.shape[1:]: x_T}
    monkeypatch.setattr(engine, "normal", lambda generators, shape: given[torch.Size(shape)])
    pictures, sampled_z = model.sample(len(x_T), parity="pdae", inference_steps=10)
    expected.check("z_denorm_ddim10", sampled_z)
    expected.check("image_ddim10_dec10", pictures)
