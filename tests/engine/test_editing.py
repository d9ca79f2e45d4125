"""Edits of a part: what is known comes back, what is free fits it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import mixture
import pytest
import torch
from conftest import tiny_model
from torch import Generator, Tensor

from pdae_cli.diffusion.noise import generator, normal
from pdae_cli.diffusion.schedule import Schedule
from pdae_cli.diffusion.solvers import SOLVERS
from pdae_cli.diffusion.trajectory import Sampling, Trajectory
from pdae_cli.engine.attributes import Scale
from pdae_cli.engine.codes import Codes
from pdae_cli.engine.editing import (
    LUMA,
    alongside,
    by_luma,
    by_mask,
    colourise,
    decode_within,
    inpaint,
    reach,
    settled,
)
from pdae_cli.engine.model import Model
from pdae_cli.errors import InputError, ModelError, UsageError
from pdae_cli.pictures.images import to_image, to_pixels, to_tensor

HALF = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
HALF[..., 4:] = 1


def draws(count: int) -> list[Generator]:
    return [generator(0, number) for number in range(count)]


def ways(steps: int = 12) -> list[Sampling]:
    """Every solver, and every other program's procedure."""
    plain = [Sampling(steps, solver=name) for name in SOLVERS]
    return plain + [Sampling(10, parity=name) for name in ("pdae", "diffae", "diffusers")]


def name_of(sampling: Sampling) -> str:
    return sampling.parity or sampling.solver


class TestKnown:
    @pytest.mark.parametrize("sampling", ways()[:3], ids=name_of)
    def test_an_ode_keeps_to_the_draws_of_a_known_picture(self, sampling: Sampling) -> None:
        """x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps with one eps, to the last node."""
        trajectory = Trajectory(mixture.SCHEDULE, sampling, "small", False)
        x_0, eps = mixture.pictures(), normal(draws(4), (3, 8, 8)).double()
        first, *_, last = trajectory.grid()
        x_T = first.signal * x_0 + first.noise * eps
        end = trajectory.to_picture(settled(mixture.SCHEDULE, x_0), x_T, draws(4))
        assert torch.allclose(end, last.signal * x_0 + last.noise * eps, rtol=0, atol=1e-10)

    def test_ancestral_sampling_diffuses_it_anew_and_ends_in_it(self) -> None:
        """On the way its states are N(sqrt(alpha_bar) x_0, 1 - alpha_bar), at its end it is x_0."""
        x_0 = torch.full((1, 1, 100, 100), 0.4, dtype=torch.float64)
        trajectory = Trajectory(Schedule(), Sampling(50, solver="ddpm"), "small", False)
        lead, states = settled(trajectory.schedule, x_0), {}

        def watched(x: Tensor, t: int) -> Tensor:
            states[t] = x
            return lead(x, t)

        end = trajectory.to_picture(watched, normal(draws(1), (1, 100, 100)).double(), draws(1))
        assert torch.allclose(end, x_0, rtol=0, atol=1e-10)
        for node in trajectory.grid()[10:-1:10]:
            assert abs(states[node.t].mean().item() - node.signal * 0.4) < 5 * node.noise / 100
            assert states[node.t].std().item() == pytest.approx(node.noise, rel=0.05)

    def test_joins_are_projections(self) -> None:
        known, free = torch.randn(2, 4, 3, 8, 8, dtype=torch.float64).unbind()
        for join in (by_mask(HALF), by_luma):
            both = join(known, free)
            assert torch.allclose(join(both, free), both)
            assert torch.allclose(join(known, both), both)
            nothing = torch.zeros_like(known)
            assert torch.allclose(join(known, nothing) + join(nothing, free), both)

    def test_luma_is_pillows_and_its_noise_is_normal(self) -> None:
        known, free = (torch.rand(2, 1, 3, 64, 64, generator=generator(1)) - 0.5).unbind()
        grey = [to_image(to_pixels(x)[0]).convert("L") for x in (known, by_luma(known, free))]
        ours, theirs = (to_tensor(one).int() for one in grey)
        assert (ours - theirs).abs().max() <= 1
        noise = by_luma(*torch.randn(2, 1, 3, 256, 256).unbind())[0].flatten(1)
        assert torch.allclose(torch.cov(noise), torch.eye(3), atol=0.03)


class TestFree:
    @pytest.mark.parametrize("sampling", [one for one in ways() if one.solver != "pc"], ids=name_of)
    def test_what_is_independent_of_the_known_is_as_without_it(self, sampling: Sampling) -> None:
        """The mixture's pixels know nothing of each other: to the bit the same as alone. (The steps
        of `pc` are as long as the whole picture's norm says.)"""
        trajectory = Trajectory(mixture.SCHEDULE, sampling, "small", False)
        lead, x_T = settled(mixture.SCHEDULE, mixture.pictures()), normal(draws(4), (3, 8, 8))
        pair = alongside(lead, mixture.eps, by_mask(HALF))
        both = torch.cat([x_T, x_T]).double()
        free = trajectory.to_picture(pair, both, draws(4) * 2).chunk(2)[1]
        alone = trajectory.to_picture(mixture.eps, x_T.double(), draws(4))
        assert torch.equal(free[..., 4:], alone[..., 4:])

    @pytest.mark.parametrize("part", ["mask", "luma"])
    def test_what_depends_on_the_known_is_drawn_given_it(self, part: str) -> None:
        """Pictures of Gaussian channels that correlate by 0.8, some of them known or their luma:
        the corrector brings mean and covariance of the rest to those given it, up to its own error
        of steps (the ODE and ancestral sampling are off by half of the way)."""
        spread, alike = 0.5, 0.8
        n = 2 if part == "mask" else 3
        covariance = spread**2 * (alike + (1 - alike) * torch.eye(n, dtype=torch.float64))
        schedule = Schedule()
        known = torch.full((n,), 0.6, dtype=torch.float64)

        def eps(x: Tensor, t: int) -> Tensor:
            alpha_bar = schedule.alpha_bar[t].item()
            eye = torch.eye(n, dtype=torch.float64)
            precision = torch.linalg.inv(alpha_bar * covariance + (1 - alpha_bar) * eye)
            return math.sqrt(1 - alpha_bar) * torch.einsum("ij,njhw->nihw", precision, x)

        if part == "luma":
            axis = torch.tensor(LUMA, dtype=torch.float64)
            join: Any = by_luma
        else:
            axis = torch.tensor([1.0, 0.0], dtype=torch.float64)

            def join(known: Tensor, free: Tensor) -> Tensor:
                return torch.cat([known[:, :1], free[:, 1:]], 1)

        given = covariance @ axis / (axis @ covariance @ axis)
        mean = given * (axis @ known)
        rest = covariance - torch.outer(given, axis @ covariance)

        trajectory = Trajectory(schedule, Sampling(500, solver="pc"), "small", False)
        x_0 = known[:, None, None].expand(1, n, 48, 48)
        x_T = normal(draws(1), (n, 48, 48)).double()
        pair = alongside(settled(schedule, x_0), eps, join)
        free = trajectory.to_picture(pair, torch.cat([x_T, x_T]), draws(1) * 2)[1:]
        result = join(x_0, free)[0].flatten(1)
        assert torch.allclose(result.mean(1), mean, rtol=0.06, atol=1e-9)
        assert torch.allclose(torch.cov(result), rest, atol=0.03 * spread**2)


STEPS = 4
MASK = torch.zeros(1, 1, 32, 32)
MASK[..., 8:20, 10:30] = 1


def pictures_of(n: int) -> Tensor:
    return torch.rand(n, 3, 32, 32, generator=generator(3)) * 2 - 1


class TestCompletion:
    @pytest.mark.parametrize("sampling", ways(5), ids=name_of)
    def test_all_masked_is_decoding_from_noise_what_isnt_comes_back_to_the_bit(
        self, model: Model, sampling: Sampling
    ) -> None:
        x, z = pictures_of(2), torch.randn(2, 6)
        codes = replace(model.encode(x, sampling, noise=False), z=z)
        made = inpaint(model, x, torch.ones(1, 1, 32, 32), z, sampling)
        assert torch.equal(made, model.decode(codes, random_noise=True))
        assert torch.equal(inpaint(model, x, torch.zeros(1, 1, 32, 32), z, sampling), x)
        made, free = inpaint(model, x, MASK, z, sampling), MASK.bool().expand_as(x)
        assert torch.equal(made[~free], x[~free])
        assert not torch.isclose(made[free], x[free]).any()

    def test_each_picture_has_its_own_mask_z_and_noise(self, model: Model) -> None:
        x, z = pictures_of(3), torch.randn(3, 6)
        masks = torch.cat([MASK, MASK.roll(5, 2), 1 - MASK])
        together = inpaint(model, x, masks, z, inference_steps=STEPS)
        model.batch_size = 2
        assert torch.equal(together, inpaint(model, x, masks, z, inference_steps=STEPS))
        alone = inpaint(model, x[1:2], masks[1:2], z[1:2], inference_steps=STEPS)
        assert torch.equal(together[1:2], alone)

    def test_what_is_under_the_mask_doesnt_matter(self, model: Model) -> None:
        """z by default is that of a first try without z, which sees nothing of it either."""
        x = pictures_of(2)

        def made(x: Tensor, z: Tensor | None = None, **changes: float) -> Tensor:
            changes = {"inference_steps": STEPS} | changes
            return inpaint(model, x, MASK, z, generators=draws(2), **changes)

        own = [made(one) for one in (x, torch.where(MASK.bool(), torch.ones(()), x))]
        assert torch.equal(*own)
        first = made(x, guidance=0.0)
        told = made(x, model.encode_z(first))
        assert torch.equal(own[0], told) and not torch.equal(own[0], first)

    def test_eps_theta_alone_needs_no_encoder(self) -> None:
        bare = tiny_model()
        bare.encoder = bare.gradient_estimator = bare.heads.gradient = None
        made = inpaint(bare, pictures_of(1), MASK, inference_steps=STEPS, guidance=0.0)
        assert made.isfinite().all()
        with pytest.raises(ModelError, match="lacks an encoder"):
            inpaint(bare, pictures_of(1), MASK, inference_steps=STEPS)

    def test_colours_are_new_and_luma_is_the_pictures(self, model: Model) -> None:
        weights = torch.tensor(LUMA)[:, None, None]
        grey = (pictures_of(2) * weights).sum(1, keepdim=True).expand(-1, 3, -1, -1)
        made = colourise(model, grey, inference_steps=STEPS)
        luma = (made * weights).sum(1, keepdim=True).expand_as(grey)
        assert torch.allclose(luma, grey, atol=1e-5 * made.abs().max().item())
        assert (made.amax(1) - made.amin(1) > 1e-3).float().mean() > 0.9
        with pytest.raises(ModelError, match="without colours"):
            colourise(tiny_model(channels=1), torch.zeros(1, 1, 32, 32))


@pytest.mark.parametrize("share", [1.2, -0.5, math.nan])
def test_a_share_outside_of_the_way_is_refused(model: Model, share: float) -> None:
    codes = model.encode(pictures_of(2), inference_steps=STEPS)
    with pytest.raises(UsageError, match="shares of the way are from 0 to 1, not"):
        model.interpolate(codes, [0, share])


def test_random_numbers_between_two_pictures_are_theirs(model: Model) -> None:
    """Of a stochastic solver: other pictures' way, or another place on it, has other ones."""
    x, drawn = pictures_of(3), list[Tensor]()
    codes = model.encode(x, solver="ddpm", inference_steps=STEPS)

    def kept(x_T: Tensor, zs: Any, own: Any, *rest: Any, **more: Any) -> Tensor:
        drawn.extend(torch.rand(4, generator=one) for one in own)
        return x_T

    model.to_pictures = kept  # type: ignore[method-assign]
    for pair in (codes[:2], codes[1:], codes[:2]):
        model.interpolate(pair, [0.25, 0.5])
    assert len({tuple(one.tolist()) for one in drawn[:4]}) == 4
    assert torch.equal(torch.stack(drawn[4:]), torch.stack(drawn[:2]))


@pytest.mark.parametrize("unit", ["", "sd"])
def test_a_score_is_reached_in_its_standard_deviations(model: Model, unit: Any) -> None:
    """Whatever PDAE's own step would be."""
    assert model.attributes is not None
    model.attributes.facts["Smiling"] = {"score_mean": 0.5, "score_sd": 2.0}
    codes = Codes(z=torch.randn(3, 6))
    moved = reach(model, codes, [("smiling", Scale(1.5, unit))])
    assert model.scores(moved)[:, 0].tolist() == pytest.approx([0.5 + 1.5 * 2] * 3, abs=1e-4)


class TestLocalEdits:
    @pytest.mark.parametrize("sampling", ways(5), ids=name_of)
    def test_outside_it_is_the_reconstruction_inside_it_fits(
        self, model: Model, sampling: Sampling
    ) -> None:
        codes = model.encode(pictures_of(2), sampling)
        moved = model.manipulate(codes, [("smiling", 2.0)])
        before, after = model.decode(codes), model.decode(moved)
        assert torch.equal(decode_within(model, codes, moved, torch.zeros(1, 1, 32, 32)), before)
        assert torch.equal(decode_within(model, codes, moved, torch.ones(1, 1, 32, 32)), after)
        assert torch.equal(decode_within(model, codes, codes, MASK), before)  # no edit is none
        within, free = decode_within(model, codes, moved, MASK), MASK.bool().expand_as(before)
        assert torch.equal(within[~free], before[~free])
        assert not torch.isclose(within[free], before[free]).all()
        assert not torch.isclose(within[free], after[free]).all()  # it isn't cut out of that

    def test_it_doesnt_depend_on_the_batch(self, model: Model) -> None:
        codes = model.encode(pictures_of(3), inference_steps=STEPS)
        moved = model.manipulate(codes, [("smiling", 2.0)])
        masks = torch.cat([MASK, MASK.roll(5, 2), MASK / 2])
        together = decode_within(model, codes, moved, masks)
        model.batch_size = 2
        assert torch.equal(together, decode_within(model, codes, moved, masks))

    def test_z_alone_isnt_enough(self, model: Model) -> None:
        codes = model.encode(pictures_of(1), noise=False)
        with pytest.raises(InputError, match="hold z alone"):
            decode_within(model, codes, codes, MASK)
