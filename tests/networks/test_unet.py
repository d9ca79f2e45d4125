"""eps_theta and G_psi: what starts as nothing, what conditions, what fits where."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import randomise, unet_config
from torch import Tensor

from pdae_cli.networks.gradient import GradientEstimator
from pdae_cli.networks.unet import Conditioning, Half, ResBlock, UNet

T = torch.tensor([3, 900])


def networks(**changes: object) -> tuple[UNet, GradientEstimator]:
    cfg = unet_config(**changes)
    return UNet(cfg), GradientEstimator(cfg, z_dim=5)


def test_untrained_networks_predict_nothing() -> None:
    """Both output convolutions start at zero: G_psi = 0 leaves eps_theta as it is."""
    unet, gradient = networks()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(unet(x, T), torch.zeros_like(x))
    assert torch.equal(
        gradient(
            unet.input(x, unet.input.modulation(unet.time(T))), unet.time(T), torch.randn(2, 5)
        ),
        torch.zeros_like(x),
    )


def test_the_embedding_of_z_holds_all_of_it() -> None:
    """Not only as much as the time's, which is narrow where the network is."""
    time = unet_config().embedding_channels
    for z_dim, width in ((5, time), (time, time), (time + 1, time + 1)):
        cfg = unet_config().taking_z(z_dim)
        gradient = GradientEstimator(cfg, z_dim)
        assert gradient.z.out_features == width
        assert {block.z.in_features for block in gradient.output.blocks if block.z} == {width}
    assert cfg.taking_z(5) == unet_config()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"patch": 2, "attention": (8,)},
        {"time_conditioning": "additive"},
        {"resampling": "convolution"},
        {"head_channels": None, "heads": 2},
        {"learn_sigma": True},
        {"z_embedding_channels": 9},
        {"channels": 1, "multipliers": (1, 2, 2), "blocks": 2, "attention": (16, 8)},
    ],
    ids=lambda changes: "+".join(changes) or "plain",
)
def test_t_and_z_condition_outputs_of_the_pictures_shape(changes: dict[str, object]) -> None:
    unet, gradient = networks(**changes)
    for network in (unet, gradient):
        randomise(network)
    cfg = unet.cfg
    x, z = torch.randn(1, cfg.channels, 32, 32).expand(2, -1, -1, -1), torch.randn(2, 5)
    eps = unet(x, T)
    assert eps.shape == (2, cfg.channels * (2 if cfg.learn_sigma else 1), 32, 32)
    assert (eps[0] - eps[1]).abs().max() > 1e-3
    time = unet.time(torch.tensor([3, 3]))
    features = unet.input(x, unet.input.modulation(time))
    g = gradient(features, time, z)
    assert g.shape == x.shape and (g[0] - g[1]).abs().max() > 1e-3
    assert torch.allclose(*gradient(features, time, z[:1].expand(2, -1)), atol=1e-6)


@pytest.mark.parametrize("conditioning", ["scale_shift", "additive"])
@pytest.mark.parametrize("rows", [2, 1], ids=["own timesteps", "one timestep"])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_adagn_is_applied_twice(conditioning: str, rows: int, form: torch.memory_format) -> None:
    """h = (1 + z_s) ((1 + t_s) GN(h) + t_b) + z_b (PDAE sec. 3.3), or with additive time
    (1 + z_s) GN(h + t) + z_b, written out, is the one scale and shift that a half folds them in,
    in the columns of each of its blocks.
    """
    cfg = unet_config(time_conditioning=conditioning)
    half = Half()
    half.first = ResBlock(cfg, 8, 16, conditioning=Conditioning(32, shift=True))
    half.block = block = ResBlock(cfg, 8, 8, conditioning=Conditioning(32, shift=True))
    half.number_blocks()
    half.double()
    randomise(half, 0.3)
    assert block.z is not None
    x = torch.randn(2, 8, 4, 4, dtype=torch.float64).contiguous(memory_format=form)
    time, z = torch.randn(rows, 32).double(), torch.randn(2, 32).double()

    def norm(h: Tensor, which: torch.nn.GroupNorm) -> Tensor:
        return F.group_norm(h, 4, which.weight, which.bias)

    h, t = block.conv_in(F.silu(norm(x, block.norm_in))), block.time(F.silu(time))
    if conditioning == "additive":
        h = norm(h + t[:, :, None, None], block.norm_out)
    else:
        t_s, t_b = t.view(rows, 2, 8, 1, 1).unbind(1)
        h = (1 + t_s) * norm(h, block.norm_out) + t_b
    z_s, z_b = block.z(F.silu(z)).view(2, 2, 8, 1, 1).unbind(1)
    expected = x + block.conv_out(F.silu((1 + z_s) * h + z_b))
    assert torch.allclose(block(x, half.modulation(time, z)), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 33}, "multiple"),
        ({"base_channels": 10}, "groups"),
        ({"time_conditioning": "both"}, "time_conditioning"),
        ({"resampling": "none"}, "resampling"),
    ],
)
def test_impossible_shapes_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unet_config(**changes)
