"""Layers that networks share, and the networks that are only these: E_phi, the latent DPM."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import randomise
from safetensors.torch import load_file

from pdae_cli.networks.encoder import Encoder, EncoderConfig
from pdae_cli.networks.latent import LatentConfig, LatentDPM
from pdae_cli.networks.layers import Attention, attend, placed, resized, silu, timestep_embedding


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


ROWS = [(16,), (64,), (16, 16, 16), (160, 8, 8), (160, 16, 16), (96, 16, 16), (32, 32, 32)]


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("row", ROWS)
def test_silu_of_a_row_is_the_same_in_every_batch(threads: int, row: tuple[int, ...]) -> None:
    """Torch's own isn't: a row's last numbers are computed otherwise, and a thread's."""
    x, before = torch.randn(8, *row), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            together = silu(x, keep=True)
            for count in range(1, 8):
                parts = [silu(part, keep=True) for part in x.split(count)]
                assert torch.equal(torch.cat(parts), together)
            exact = x.double() * torch.sigmoid(x.double())
            assert torch.allclose(together.double(), exact, rtol=1e-6, atol=1e-7)
            assert torch.equal(silu(x.clone()), together)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_maps_are_doubled_by_nearest_neighbours(memory_format: torch.memory_format) -> None:
    """To the bit as torch's own, with gradients and without."""
    x = torch.randn(2, 8, 4, 6).contiguous(memory_format=memory_format)
    expected = F.interpolate(x, scale_factor=2.0)
    assert torch.equal(resized(x, "up"), expected)
    with torch.no_grad():
        assert torch.equal(resized(x, "up"), expected)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(resized(x, "up"), expected)


def test_attention_is_softmax_of_scaled_products() -> None:
    attention = Attention(torch.nn.GroupNorm(4, 8), heads=2)
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


def test_attention_in_bfloat16_is_computed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU; with gradients as near to float64's as bfloat16 inputs are."""
    seen: list[torch.dtype] = []
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *x: (seen.append(x[0].dtype), kernel(*x))[1]
    )
    parts = [torch.randn(2, 3, 16, 8, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    with torch.autocast("cpu", torch.bfloat16):
        h = attend(*parts)
    h.float().square().sum().backward()
    exact = [part.detach().double().requires_grad_() for part in parts]
    q, k, v = exact
    reference = torch.softmax(q @ k.transpose(2, 3) / 8**0.5, dim=3) @ v
    reference.square().sum().backward()
    assert seen == [torch.float32] and h.dtype == torch.bfloat16
    assert torch.allclose(h.double(), reference, atol=0.02)
    for one, wanted in zip(parts, exact, strict=True):
        assert one.grad is not None and wanted.grad is not None
        assert torch.allclose(one.grad.double(), wanted.grad, atol=0.05)


def test_timestep_embedding_agrees_with_the_authors(shared: Path) -> None:
    golden = load_file(shared / "golden" / "pdae_schedules" / "timestep_embedding.safetensors")
    t = next(value for name, value in golden.items() if not value.is_floating_point())
    tables = [
        table for table in golden.values()
        if table.is_floating_point() and table.ndim == 2 and len(table) == len(t)
    ]  # fmt: skip
    assert tables
    for table in tables:
        assert torch.allclose(timestep_embedding(t, table.shape[1]), table, atol=1e-4)


@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_encoder_takes_every_size(size: int) -> None:
    encoder = Encoder(EncoderConfig.for_size(size, z_dim=7))
    assert encoder.attention is not None
    assert encoder(torch.randn(1, 3, size, size)).shape == (1, 7)
    with pytest.raises(ValueError, match="48 pixels"):
        EncoderConfig.for_size(48)


def test_latent_dpm_sees_z_in_every_layer() -> None:
    network = LatentDPM(LatentConfig(z_dim=6, width=16, layers=4, dropout=0.0))
    widths = [layer.linear.in_features for layer in network.layers]
    assert widths == [6, 22, 22, 22] and network.out.in_features == 22
    z = torch.randn(2, 6)
    early, late = (network(z, torch.tensor([t, t])) for t in (3, 900))
    assert early.shape == z.shape and (early - late).abs().max() > 1e-4
