"""Properties of the networks: what starts as nothing, what conditions, what fits where."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import randomise, unet_config

from pdae_cli.networks.blocks import (
    Attention,
    Conditioning,
    Modulation,
    ResBlock,
    placed,
    timestep_embedding,
)
from pdae_cli.networks.encoder import Encoder, EncoderConfig
from pdae_cli.networks.gradient import GradientEstimator
from pdae_cli.networks.latent import LatentConfig, LatentDPM
from pdae_cli.networks.unet import UNet

T = torch.tensor([3, 900])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"patch": 2, "attention": (8,)},
        {"time_conditioning": "additive"},
        {"resampling": "convolution"},
        {"head_channels": None, "heads": 2},
        {"learn_sigma": True},
        {"channels": 1, "multipliers": (1, 2, 2), "blocks": 2, "attention": (16, 8)},
    ],
    ids=lambda changes: "+".join(changes) or "plain",
)
def test_unet_and_gradient_keep_the_pictures_shape(changes: dict[str, object]) -> None:
    cfg = unet_config(**changes)
    unet, gradient = UNet(cfg), GradientEstimator(cfg, z_dim=5)
    randomise(unet)
    randomise(gradient)
    x = torch.randn(2, cfg.channels, 32, 32)
    eps = unet(x, T)
    assert eps.shape == (2, cfg.channels * (2 if cfg.learn_sigma else 1), 32, 32)
    g = gradient(*unet.features(x, T), torch.randn(2, 5))
    assert g.shape == x.shape and g.abs().max() > 0


def test_untrained_networks_predict_nothing() -> None:
    """Both output convolutions start at zero: G_psi = 0 leaves eps_theta as it is."""
    cfg = unet_config()
    unet, gradient = UNet(cfg), GradientEstimator(cfg, 5)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(unet(x, T), torch.zeros_like(x))
    assert torch.equal(gradient(*unet.features(x, T), torch.randn(2, 5)), torch.zeros_like(x))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same weights and inputs whatever was tested before."""
    torch.manual_seed(0)


def test_t_and_z_condition_the_outputs() -> None:
    cfg = unet_config()
    unet, gradient = UNet(cfg), GradientEstimator(cfg, 5)
    randomise(unet)
    randomise(gradient)
    x, z = torch.randn(1, 3, 32, 32).expand(2, -1, -1, -1), torch.randn(2, 5)
    eps = unet(x, T)
    assert (eps[0] - eps[1]).abs().max() > 1e-3
    features, time = unet.features(x, torch.tensor([3, 3]))
    g = gradient(features, time, z)
    assert (g[0] - g[1]).abs().max() > 1e-3
    assert torch.allclose(*gradient(features, time, z[:1].expand(2, -1)), atol=1e-6)


@pytest.mark.parametrize("rows", [2, 1], ids=["own timesteps", "one timestep"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_adagn_is_applied_twice(rows: int, channels_last: bool) -> None:
    """h = (1 + z_s) ((1 + t_s) GN(h) + t_b) + z_b (PDAE sec. 3.3), written out independently, is
    the one scale and shift that the block folds them into."""
    block = ResBlock(unet_config(), 8, 8, conditioning=Conditioning(32, shift=True)).double()
    randomise(block, 0.3)
    assert block.z is not None
    x = torch.randn(2, 8, 4, 4, dtype=torch.float64)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    time, z = torch.randn(rows, 32).double(), torch.randn(2, 32).double()
    h = block.conv_in(F.silu(F.group_norm(x, 4, block.norm_in.weight, block.norm_in.bias)))
    t_s, t_b = block.time(F.silu(time)).view(rows, 2, 8, 1, 1).unbind(1)
    z_s, z_b = block.z(F.silu(z)).view(2, 2, 8, 1, 1).unbind(1)
    h = F.group_norm(h, 4, block.norm_out.weight, block.norm_out.bias)
    h = (1 + z_s) * ((1 + t_s) * h + t_b) + z_b
    expected = x + block.conv_out(F.silu(h))
    ours = block(x, block.by_time(time).then(block.by_z(z)))
    assert torch.allclose(ours, expected, atol=1e-12)


def test_additive_time_comes_before_the_norm() -> None:
    """h = (1 + z_s) GN(h + t) + z_b."""
    cfg = unet_config(time_conditioning="additive")
    block = ResBlock(cfg, 8, 8, conditioning=Conditioning(32, shift=True)).double()
    randomise(block, 0.3)
    assert block.z is not None
    x = torch.randn(2, 8, 4, 4, dtype=torch.float64)
    time, z = torch.randn(2, 32).double(), torch.randn(2, 32).double()
    h = block.conv_in(F.silu(F.group_norm(x, 4, block.norm_in.weight, block.norm_in.bias)))
    h = h + block.time(F.silu(time))[:, :, None, None]
    h = F.group_norm(h, 4, block.norm_out.weight, block.norm_out.bias)
    z_s, z_b = block.z(F.silu(z)).view(2, 2, 8, 1, 1).unbind(1)
    expected = x + block.conv_out(F.silu((1 + z_s) * h + z_b))
    ours = block(x, block.by_time(time).then(block.by_z(z)))
    assert torch.allclose(ours, expected, atol=1e-12)


def test_modulations_side_by_side_are_taken_apart_again() -> None:
    widths = [3, 5, 2]
    parts = [Modulation(*torch.randn(3, 4, width).unbind(0)) for width in widths]
    for part, again in zip(parts, Modulation.joined(parts).split(widths), strict=True):
        assert all(map(torch.equal, part, again))  # type: ignore[arg-type]
    row = Modulation.joined(parts).row(2)
    assert row.scale.shape == (1, 10) and torch.equal(row.scale[:, :3], parts[0].scale[2:3])


def test_only_bfloat16_inference_on_a_cpu_chooses_a_memory_format() -> None:
    """Channels last for large maps, contiguous for small ones; all else keeps what it was given."""
    large, small = torch.randn(2, 4, 32, 32), torch.randn(2, 4, 16, 16)
    last = torch.channels_last
    with torch.autocast("cpu", torch.bfloat16):
        assert placed(large) is large
        with torch.no_grad():
            assert placed(large).is_contiguous(memory_format=last)
            assert placed(small.contiguous(memory_format=last)).is_contiguous()
            assert placed(small, growth=4).is_contiguous(memory_format=last)
    with torch.no_grad():
        assert placed(large) is large


def test_attention_is_softmax_of_scaled_products() -> None:
    attention = Attention(8, 2, torch.nn.GroupNorm(4, 8))
    randomise(attention, 0.5)
    x = torch.randn(2, 8, 3, 3)
    rows = attention.norm(x).flatten(2).transpose(1, 2)
    heads = attention.qkv(rows).chunk(2, dim=2)  # head by head: q, k, v side by side
    mixed = []
    for head in heads:
        q, k, v = head.chunk(3, dim=2)
        mixed.append(torch.softmax(q @ k.transpose(1, 2) / 4**0.5, dim=2) @ v)
    expected = x + attention.out(torch.cat(mixed, 2)).transpose(1, 2).reshape(x.shape)
    assert torch.allclose(attention(x), expected, atol=1e-5)


def test_patches_are_a_rearrangement() -> None:
    """Space-to-depth loses nothing: a pixel's value reaches exactly one position and channel."""
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(F.pixel_shuffle(F.pixel_unshuffle(x, 2), 2), x)


def test_timestep_embedding_agrees_with_the_authors(shared) -> None:  # type: ignore[no-untyped-def]
    from safetensors.torch import load_file

    golden = load_file(shared / "golden" / "pdae_schedules" / "timestep_embedding.safetensors")
    t = next(value for name, value in golden.items() if not value.is_floating_point())
    checked = 0
    for name, table in golden.items():
        if table.is_floating_point() and table.ndim == 2 and len(table) == len(t):
            ours = timestep_embedding(t, table.shape[1])
            assert torch.allclose(ours, table, atol=1e-4), name
            checked += 1
    assert checked


@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_encoder_takes_every_size(size: int) -> None:
    cfg = EncoderConfig.for_size(size, z_dim=7)
    encoder = Encoder(cfg)
    assert encoder.attention is not None
    assert encoder(torch.randn(1, 3, size, size)).shape == (1, 7)


def test_encoder_refuses_a_size_it_cant_halve() -> None:
    with pytest.raises(ValueError, match="48 pixels"):
        EncoderConfig.for_size(48)


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


def test_latent_dpm_sees_z_in_every_layer() -> None:
    network = LatentDPM(LatentConfig(z_dim=6, width=16, layers=4, dropout=0.0))
    widths = [layer.linear.in_features for layer in network.layers]
    assert widths == [6, 22, 22, 22] and network.out.in_features == 22
    z = torch.randn(2, 6)
    assert network(z, T).shape == z.shape
    assert (network(z[:1], T[:1]) - network(z[:1], T[1:])).abs().max() > 1e-4
