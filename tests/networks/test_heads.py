"""The two heads: eps_theta and G_psi in one evaluation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import randomise, tiny_model, unet_config
from torch import Tensor, nn
from torch._dynamo.utils import counters

from pdae_cli.diffusion.schedule import Schedule
from pdae_cli.networks.heads import PREDICTIONS, Heads, Outputs
from pdae_cli.networks.unet import UNet

SHAPES: list[dict[str, object]] = [
    {},
    {"patch": 2, "attention": (8,), "image_size": 64},
    {"time_conditioning": "additive"},
    {"resampling": "convolution"},
    {"resampling": "convolution_right"},
    {"learn_sigma": True},
    {"channels": 1},
    *({"prediction": prediction} for prediction in PREDICTIONS[1:]),
]


def heads_of(**changes: object) -> Heads:
    return tiny_model(**changes).heads  # type: ignore[arg-type]


def inputs(heads: Heads, count: int = 3) -> tuple[Tensor, Tensor]:
    cfg = heads.dpm.cfg
    generator = torch.Generator().manual_seed(1)
    shape = (count, cfg.channels, cfg.image_size, cfg.image_size)
    return torch.randn(shape, generator=generator), torch.randn(count, 6, generator=generator)


def at(heads: Heads, x: Tensor, t: int, zs: list[Tensor], guided: bool = True) -> Outputs:
    return heads.at(x, t, heads.prepare([3, t], zs), guided)


def output_calls(half: nn.Module) -> list[None]:
    """Grows by one with each run of an output half."""
    calls: list[None] = []
    assert isinstance(half.conv, nn.Module)
    half.conv.register_forward_hook(lambda *_: calls.append(None))
    return calls


@pytest.mark.parametrize(
    "changes", SHAPES, ids=lambda changes: "+".join(map(str, changes.values()))
)
@torch.no_grad()
def test_an_evaluation_at_a_timestep_is_forward_there(changes: dict[str, object]) -> None:
    """With a gradient for each z, and scaled alike both ways."""
    heads = heads_of(**changes)
    x, z = inputs(heads)
    last = x.contiguous(memory_format=torch.channels_last)
    for t in (0, 40, 999):  # 1 - alpha_bar_0 is 1e-4, of which a float32's rounding is much
        eps, gradients = at(heads, x, t, [z, -z])
        eps_forward, gradients_forward = heads(x, torch.full((len(x),), t), z, -z)
        assert torch.allclose(eps, eps_forward, rtol=1e-5, atol=2e-6)
        later = heads.at(x, t, heads.prepare([], [z, -z]))  # a timestep that wasn't foreseen
        assert torch.equal(later[0], eps) and torch.equal(later[1][1], gradients[1])
        assert eps.shape == x.shape and len(gradients) == 2
        assert all(part.is_contiguous() for part in at(heads, last, t, [z])[1])
        for ours, theirs in zip(gradients, gradients_forward, strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    _, (one,) = at(heads, x, 500, [z[:1]])  # serves all pictures
    _, (each,) = at(heads, x, 500, [z[:1].expand(3, -1)])
    assert torch.allclose(one, each, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_eps_theta_that_takes_z_itself_is_given_it() -> None:
    """Diff-AE: z conditions every block of eps_theta, and there is no G_psi."""
    dpm = UNet(unet_config(z_channels=6))
    randomise(dpm, 0.03)
    heads = Heads(dpm, None, Schedule().alpha_bar, "eps")
    x, z = inputs(heads)
    eps, gradients = at(heads, x, 500, [z])
    assert gradients == []
    assert torch.allclose(eps, heads(x, torch.full((3,), 500), z)[0], atol=1e-6)
    assert (eps - at(heads, x, 500, [-z])[0]).abs().max() > 1e-4


@torch.no_grad()
def test_codes_share_one_pass_through_eps_theta_and_unguided_ones_run_no_gradient() -> None:
    heads = heads_of()
    assert heads.gradient is not None
    x, z = inputs(heads)
    runs = output_calls(heads.dpm.output), output_calls(heads.gradient.output)
    eps, (_, _) = at(heads, x, 40, [z, -z])
    assert [len(one) for one in runs] == [1, 2]
    alone, nothing = at(heads, x, 40, [z], guided=False)
    assert [len(one) for one in runs] == [2, 2]
    assert torch.equal(alone, eps) and nothing == []


def test_gradients_reach_z_and_x_but_not_a_frozen_eps_theta() -> None:
    heads = heads_of()
    assert heads.gradient is not None
    heads.gradient.requires_grad_(True)
    x, z = inputs(heads)
    z.requires_grad_(True)
    eps, (gradient,) = heads(x, torch.tensor([3, 40, 999]), z)
    assert not eps.requires_grad
    gradient.square().sum().backward()
    assert z.grad is not None and z.grad.abs().max() > 0
    assert all(p.grad is not None for p in heads.gradient.parameters())
    assert all(p.grad is None for p in heads.dpm.parameters())
    x.requires_grad_(True)
    heads.dpm.requires_grad_(True)
    eps, _ = at(heads, x, 40, [z], guided=False)
    eps.square().sum().backward()
    assert x.grad is not None and x.grad.abs().max() > 0
    assert all(p.grad is not None for p in heads.dpm.parameters())  # time reaches every block


@torch.no_grad()
def test_the_compiler_sees_one_graph_whatever_t_is() -> None:
    """Traced but not compiled to machine code, which takes minutes: no step traces anew."""
    heads = heads_of()
    torch._dynamo.reset()
    counters.clear()
    heads.compiled = torch.compile(heads.run, backend="eager", dynamic=False, fullgraph=True)
    x, z = inputs(heads)
    for t in range(0, 1000, 100):
        eps, (gradient,) = at(heads, x, t, [z])
        alone, _ = at(heads, x, t, [z], guided=False)
        eps_forward, (gradient_forward,) = heads(x, torch.full((len(x),), t), z)
        assert torch.allclose(eps, eps_forward, atol=1e-5)
        assert torch.allclose(alone, eps_forward, atol=1e-5)
        assert torch.allclose(gradient, gradient_forward, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 2  # guided and unguided
    assert not counters["graph_break"]
    torch._dynamo.reset()


def test_compiled_on_a_cpu_weights_are_laid_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inductor is told so while it may compile, and only then: a training's weights change."""
    told = []

    def compile(run: Callable[..., Outputs], **_: object) -> Callable[..., Outputs]:
        def compiled(*inputs: Tensor) -> Outputs:
            told.append(torch._inductor.config.freezing)
            return run(*inputs)

        return compiled

    monkeypatch.setattr(torch, "compile", compile)
    heads = heads_of()
    heads.compile()
    x, z = inputs(heads)
    at(heads, x, 500, [z])
    assert told == [True]
    assert not torch._inductor.config.freezing


@torch.no_grad()
def test_bfloat16_is_near_float32() -> None:
    heads = heads_of()
    x, z = inputs(heads)
    exact, (exact_gradient,) = at(heads, x, 500, [z])
    with torch.autocast("cpu", torch.bfloat16):
        eps, (gradient,) = at(heads, x, 500, [z])
    assert eps.dtype == gradient.dtype == torch.float32
    assert torch.allclose(eps, exact, atol=0.02 * exact.abs().max().item())
    assert torch.allclose(gradient, exact_gradient, atol=0.02 * exact_gradient.abs().max().item())
