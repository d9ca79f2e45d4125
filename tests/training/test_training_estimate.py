"""What a step keeps: closed forms first, then --checkpoint-activations and --dry-run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Command, tiny_model, unet_config
from safetensors.torch import load_file
from small_runs import TINY, folder_of, state
from torch import Tensor, nn

from pdae_cli.engine.computing import PRECISIONS
from pdae_cli.engine.config import ModelConfig, ScheduleConfig
from pdae_cli.engine.model import Model
from pdae_cli.networks.unet import UNet
from pdae_cli.training.autoencoder import AutoencoderLoss, with_autoencoder
from pdae_cli.training.dpm import DPMLoss
from pdae_cli.training.estimate import checkpoint_bytes, kept_bytes, memory_of
from pdae_cli.training.loop import checkpoint_activations


class Perceptron(nn.Module):
    """mean((B tanh(A x))^2)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 7, bias=False), nn.Linear(7, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.a(x).tanh()).square().mean()
        return out


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_is_kept_is_the_closed_form(device: str) -> None:
    """n rows: x (5n), the hidden layer (7n), the outputs (3n), four bytes each; no gradients."""
    objective = Perceptron().to(device)
    for n in (1, 4):
        assert kept_bytes(objective, torch.zeros(n, 5, device=device)) == 4 * n * (5 + 7 + 3)
    assert all(p.grad is None for p in objective.parameters())


def test_memory_of_an_objective_with_a_frozen_part() -> None:
    objective = Perceptron()
    objective.a.requires_grad_(False)
    memory = memory_of(objective, activations=100)
    assert vars(memory) == {
        "weights": 4 * 56, "gradients": 4 * 21, "moments": 8 * 21, "average": 4 * 21,
        "activations": 100,
    }  # fmt: skip
    assert memory.total == 4 * (56 + 4 * 21) + 100
    assert checkpoint_bytes(memory, torch.float16) == 2 * 56 + 16 * 21
    assert memory_of(objective, 0, muon=True).moments == 4 * 21


def dpm_loss(model: Model) -> nn.Module:
    model.dpm.requires_grad_(True).train()
    return DPMLoss(model.heads, model.schedule)


def autoencoder_loss(model: Model) -> nn.Module:
    assert model.encoder is not None
    return AutoencoderLoss(model.heads, model.encoder, model.schedule)


def gradients(objective: nn.Module, precision: str) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(1)
    x_0, eps = torch.randn(2, 4, 3, 32, 32, generator=draws).unbind(0)
    torch.manual_seed(2)  # of dropout
    with torch.autocast("cpu", PRECISIONS[precision], enabled=precision != "float32"):
        loss = objective(x_0, torch.tensor([3, 250, 600, 990]), eps)
    loss.backward()
    return {n: p.grad for n, p in objective.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("make", [dpm_loss, autoencoder_loss])
def test_gradients_are_the_same_to_the_bit(
    make: Callable[[Model], nn.Module], precision: str
) -> None:
    """With dropout, whose masks are drawn again as they were."""
    plain = gradients(make(tiny_model(dropout=0.3)), precision)
    objective = make(tiny_model(dropout=0.3))
    checkpoint_activations(objective)
    again = gradients(objective, precision)
    assert plain.keys() == again.keys() and len(plain) > 10
    for name, gradient in plain.items():
        assert torch.equal(gradient, again[name]), name


def on_meta(**shape: object) -> Model:
    cfg = unet_config(**shape)
    return with_autoencoder(Model(ModelConfig(ScheduleConfig(), cfg, "eps"), UNet(cfg)), 16, 0)


@pytest.mark.parametrize("make", [dpm_loss, autoencoder_loss])
def test_less_is_kept(make: Callable[[Model], nn.Module]) -> None:
    """At 128 pixels, on the meta device: at most half of the bytes."""
    shape = {"image_size": 128, "base_channels": 32, "multipliers": (1, 2, 2), "blocks": 2}
    with torch.device("meta"):
        batch = torch.empty(2, 3, 128, 128), torch.zeros(2).long(), torch.empty(2, 3, 128, 128)
        objective = make(on_meta(**shape))
        plain = kept_bytes(objective, *batch)
        checkpoint_activations(objective)
        assert kept_bytes(objective, *batch) < plain / 2


class TestDryRun:
    def test_it_says_what_is_needed_and_writes_nothing(self, pdae: Command, tmp_path: Path) -> None:
        """Of a run that then takes exactly the disk it was said to."""
        photos = folder_of(tmp_path / "photos", 12)
        args = ("train", "dpm", photos, "-o", tmp_path / "run", *TINY, "--images", 16)
        before = sorted(tmp_path.rglob("*"))
        result = pdae(*args, "--dry-run", "--json")
        assert result.code == 0, result.err
        words = pdae(*args, "--dry-run")
        assert words.code == 0 and len(words.text.splitlines()) == 4
        for word in ("parameters", "memory a process", "free", "s a step"):
            assert word in words.text
        assert sorted(tmp_path.rglob("*")) == before
        needs = json.loads(result.out)
        assert needs["steps_left"] == 2 and needs["seconds_a_step"] > 0 and needs["free_bytes"] > 0
        parts = ("weights", "gradients", "moments", "average", "activations")
        assert needs["memory_bytes"] == sum(needs[f"{part}_bytes"] for part in parts)
        assert needs["peak_bytes"] > needs["memory_bytes"]

        assert pdae(*args, "--quiet").code == 0
        (model,) = (tmp_path / "run").glob("*.safetensors")
        tensors = [*state(tmp_path / "run").values(), *load_file(model).values()]
        written = [tensor.numel() * tensor.element_size() for tensor in tensors]
        steps = 4 * sum(name.startswith("step/") for name in state(tmp_path / "run"))
        assert needs["checkpoint_bytes"] == sum(written) - steps

    def test_activations_grow_with_the_micro_batch(self, pdae: Command, tmp_path: Path) -> None:
        photos = folder_of(tmp_path / "photos", 12)

        def activations(*args: object) -> float:
            result = pdae("train", "dpm", photos, "-o", photos, *TINY, *args, "--dry-run", "--json")
            needs: dict[str, float] = json.loads(result.out)
            return needs["activations_bytes"]

        whole = activations()
        assert activations("--accumulate", 2) == pytest.approx(whole / 2, rel=1e-3)
        assert activations("--checkpoint-activations") < whole / 2


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate")]
)
def test_a_device_without_room_for_a_step_is_a_line(
    error: RuntimeError, pdae: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names what needs less, and its exit code is its own."""

    def full(*of: object) -> None:
        raise error

    monkeypatch.setattr(DPMLoss, "forward", full)
    photos = folder_of(tmp_path / "photos", 12)
    result = pdae("train", "dpm", photos, "-o", tmp_path / "run", *TINY, "--images", 16, "--quiet")
    assert result.code == 5 and result.err.count("\n") == 1
    for word in ("cpu has no room", "--batch-size", "--accumulate", "--checkpoint-activations"):
        assert word in result.err
