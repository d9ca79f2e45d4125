"""Numbers that Diff-AE, guided-diffusion and diffusers computed: see test_golden_pdae.py."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import expectations
import torch
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
    timesteps,
    to_noise,
)
from torch import Tensor

from pdae_cli.diffusion import parity, solvers
from pdae_cli.diffusion.trajectory import Sampling
from pdae_cli.engine.model import Model
from pdae_cli.training.dpm import DPMLoss

expected, model, seen = expectations.expected, expectations.model, expectations.seen
DIFFAE = ("diffae_ddpm64", "diffae_autoenc64")
GUIDED = ("guided_uncond64_learnsigma", "guided_uncond64_fixedsigma")
DIFFUSERS = ("diffusers_ddpm", "diffusers_adm")


def diffae_z(model: Model, x_0: Tensor) -> Tensor | None:
    """z where eps_theta takes one."""
    return model.encode_z(x_0) if model.takes_z else None


@about(DIFFAE, "forward")
def test_diffae_networks(expected: Expected, model: Model) -> None:
    x_t, mixed = expected["in.x_t"], expected["in.t_mixed"]
    z = diffae_z(model, expected["in.x0"])
    for t in (0, 1, 500, 999):
        expected.check(f"eps_t{t}", model.predict(x_t, at(t, x_t), z)[0])
    eps, _ = model.predict(x_t, mixed, z)
    expected.check("eps_tmixed", eps)
    if z is not None:
        expected.check("cond", z)
        expected.check("eps_tmixed_from_x_start", eps)
        expected.check("eps_tmixed_condflip", model.predict(x_t, mixed, z.flip(0))[0])


@about(DIFFAE, "loss")
def test_diffae_loss(expected: Expected, model: Model) -> None:
    x_0, noise, t = expected["in.x0"], expected["in.noise"], expected["in.t_mixed"]
    x_t = model.schedule.add_noise(x_0, t, noise)
    eps, _ = model.predict(x_t, t, diffae_z(model, x_0))
    expected.check("x_t", x_t)
    expected.check("pred_xstart", model.schedule.level(t, x_t).x_0(x_t, eps))
    expected.check("loss_per_sample", (noise - eps).square().mean((1, 2, 3)))
    if not model.takes_z:
        loss = DPMLoss(model.heads, model.schedule)
        each = [loss(*(part[row : row + 1] for part in (x_0, t, noise))) for row in range(len(x_0))]
        expected.check("loss_per_sample", torch.stack(each))


@about(DIFFAE, "ddim_T10", "ddim_T20")
def test_diffae_ddim(expected: Expected, model: Model, seen: States) -> None:
    count, x_0, x_T = int(expected.name.rpartition("_T")[2]), expected["in.x0"], expected["in.x_T"]
    settings: dict[str, Any] = {"parity": "diffae", "inference_steps": count}
    expected.check("timestep_map", timesteps("diffae", model, count, encode=True))
    if model.takes_z:
        made = model.encode(x_0, **settings)
        expected.check("encode_x_T", made.x_T)
        made = replace(made, x_T=x_T)
    else:
        expected.check("encode_x_T", to_noise(model, "diffae", x_0, count))
        made = no_z(x_T, **settings)
    for every, _ in expected.starting("encode_states_"):
        expected.check_states(every, seen.taken())
    seen.clear()
    expected.check("decode_x_0", model.decode(made))
    for every, _ in expected.starting("decode_states_"):
        expected.check_states(every, seen.taken())


@about(DIFFAE, "p_sample_T10")
def test_diffae_samples_ancestrally(expected: Expected, model: Model) -> None:
    x, noise = expected["in.x_t"], expected["in.noise"]
    steps = parity.steps("diffae", model.schedule, 10, encode=False)[::-1]
    # The fixture's z are those of the pictures in forward.
    z = diffae_z(model, expected["in.x0"])
    for drawn, index in expected.starting("sample_i"):
        step = steps[int(index)]
        eps = clamped(step, x, model.predict(x, at(step.t, x), z)[0])
        moments = solvers.ancestral(x, eps, step.here, step.there, model.config.variance)
        expected.check(drawn, sampled(moments, noise, index == "0"))


@about(["diffae_autoenc64"], "latent")
def test_diffae_latent_dpm(expected: Expected, model: Model, seen: States) -> None:
    """Nothing is clamped; the result is denormalised."""
    network, z = model.latent_dpm, expected["in.lat_z"]
    assert network is not None
    with torch.no_grad():
        for out, t in expected.starting("latent_net_t"):
            expected.check(out, network(z, at(int(t), z)))
    z = model.solve_z(expected["in.lat_zT"], Sampling(inference_steps=20, parity="diffae"))
    expected.check("z_states_T20", seen.taken())
    expected.check("z_denorm", z)
    made = codes(z, expected["in.x_T"], parity="diffae", inference_steps=10)
    expected.check("image_T10", model.decode(made))


# --- guided-diffusion (openai) ------------------------------------------------------------------


@about(GUIDED, "forward")
def test_guided_networks(expected: Expected, model: Model) -> None:
    x_t, mixed = expected["in.x_t"], expected["in.t_mixed"]
    with torch.no_grad():
        for t in (0, 1, 500, 999):
            expected.check(f"out_t{t}", model.dpm(x_t, at(t, x_t)))
        expected.check("out_tmixed", model.dpm(x_t, mixed))
        assert torch.equal(model.predict(x_t, mixed, None)[0], model.dpm(x_t, mixed)[:, :3])


@about(GUIDED, "sampling_ddim10")
def test_guided_ddim(expected: Expected, model: Model, seen: States) -> None:
    expected.check("timestep_map", timesteps("diffae", model, 10, encode=True))
    made = no_z(expected["in.x_T"], parity="diffae", inference_steps=10)
    expected.check("ddim_x_0", model.decode(made))
    expected.check_states("ddim_states_sample0", seen.taken())
    expected.check("ddim_reverse_x_T", to_noise(model, "diffae", expected["in.x0"], 10))
    expected.check_states("ddim_reverse_states_sample0", seen.taken())


@about(GUIDED, "sampling_25")
def test_guided_samples_ancestrally(expected: Expected, model: Model) -> None:
    """Timesteps evenly from 0 to T-1, rounded; variance learned or beta."""
    x, noise, alpha_bar = expected["in.x_t"], expected["in.noise"], model.schedule.alpha_bar
    times = [round(index * 999 / 24) for index in range(25)]
    expected.check("timestep_map", torch.tensor(times))
    levels = [1.0, *alpha_bar[times].tolist()]
    steps = [parity.Step(times[i], levels[i + 1], levels[i]) for i in range(25)]
    floor = (1 - levels[1]) / (1 - levels[2]) * (1 - levels[2] / levels[1])  # of the second step
    for drawn, index in expected.starting("sample_i"):
        step = steps[int(index)]
        with torch.no_grad():
            output = model.dpm(x, at(step.t, x))
        eps, share, kind = clamped(step, x, output[:, :3]), output[:, 3:], model.config.variance
        moments = solvers.ancestral(x, eps, step.here, step.there, kind)
        if index == "0":  # where the posterior has no variance
            moments = moments[0], torch.full_like(x, math.log(floor))
        moments = learned(moments, step, share) if kind == "learned" else moments
        expected.check(f"mean_i{index}", moments[0])
        expected.check(f"log_variance_i{index}", moments[1])
        expected.check(drawn, sampled(moments, noise, index == "0"))


# --- diffusers ----------------------------------------------------------------------------------


@about(DIFFUSERS, "forward")
def test_diffusers_networks(expected: Expected, model: Model) -> None:
    """From a pipeline, and where there is one from the layout of old repositories."""
    for index in sorted((GOLDEN / expected.folder).glob("*/model_index.json")):
        found, x_t = converted(index.parent), expected["in.x_t"]
        for t in (0, 1, 500, 999):
            expected.check(f"eps_t{t}", found.predict(x_t, at(t, x_t), None)[0])
        expected.check("eps_tmixed", found.predict(x_t, expected["in.t_mixed"], None)[0])
        assert replace(found.config, source=model.config.source) == model.config


@about(DIFFUSERS, "ddim10")
def test_diffusers_ddim(expected: Expected, model: Model, seen: States) -> None:
    """As the scheduler's clip_sample says; its inverse with it divides by small numbers, so the
    stored states are its test, each a step from the one before."""
    x_0, x_T = expected["in.x0"], expected["in.x_T"]
    decode, encode = (parity.steps("diffusers", model.schedule, 10, way) for way in (False, True))
    expected.check("ddim_timesteps", timesteps("diffusers", model, 10))
    expected.check("inverse_timesteps", timesteps("diffusers", model, 10, encode=True))
    made = no_z(x_T, parity="diffusers", inference_steps=10)
    expected.check("ddim_x_0_clip", model.decode(made))
    expected.check_states("ddim_states_clip_sample0", seen.taken())
    unclipped = replace(model, config=replace(model.config, clip_sample=False))
    expected.check("ddim_x_0_noclip", unclipped.decode(made))
    predict = alone(model)
    clipped = parity.ddim(predict, x_T, decode, clip=1, recompute=True)
    expected.check("ddim_x_0_clip_useclippedeps", clipped)
    free = parity.ddim(predict, x_T, decode, clip=0, recompute=True)
    expected.check("ddim_x_0_noclip_useclippedeps", free)
    free = parity.ddim(predict, x_0, encode, clip=0, recompute=False)
    expected.check("inverse_x_T_noclip", free)
    stored = expected["inverse_states_clip_sample0"]
    stepped = torch.cat([
        parity.ddim(predict, x, [step], clip=1, recompute=False)
        for x, step in zip([x_0[:1], *stored[:-1, None]], encode, strict=True)
    ])  # fmt: skip
    expected.check("inverse_states_clip_sample0", stepped, atol=5e-5)  # about as exact as eps
    whole = parity.ddim(predict, x_0, encode, clip=1, recompute=False)
    expected.check("inverse_x_T_clip", whole)


@about(DIFFUSERS, "ddpm_step")
def test_diffusers_samples_ancestrally(expected: Expected, model: Model) -> None:
    """At t = 1 diffusers' coefficients, 1 - alpha_bar in float32, have but four digits."""
    x, noise = expected["in.x_t"], expected["in.noise"]
    for drawn, t in expected.starting("prev_sample_t"):
        step = neighbours(model.schedule, int(t))
        eps = clamped(step, x, model.predict(x, at(int(t), x), None)[0])
        moments = solvers.ancestral(x, eps, step.here, step.there, model.config.variance)
        rounded = 1e-4 if t == "1" else None
        expected.check(drawn, sampled(moments, noise, t == "0"), atol=rounded)
