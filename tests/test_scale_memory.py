"""What a step keeps and costs: closed forms first, then --checkpoint-activations and --dry-run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Command, picture, tiny_model, unet_config
from safetensors.torch import load_file
from test_scale import TINY
from torch import Tensor, nn

from pdae_cli.engine.computing import PRECISIONS
from pdae_cli.engine.config import ModelConfig, ScheduleConfig
from pdae_cli.engine.model import Model
from pdae_cli.networks.unet import UNet
from pdae_cli.training.autoencoder import AutoencoderLoss, with_autoencoder
from pdae_cli.training.dpm import DPMLoss
from pdae_cli.training.estimate import checkpoint_bytes, memory_of
from pdae_cli.training.memory import checkpoint_activations, cost


class Perceptron(nn.Module):
    """mean((B tanh(A x))^2)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 7, bias=False), nn.Linear(7, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.a(x).tanh()).square().mean()
        return out


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_cost_is_the_closed_form(device: str) -> None:
    """n rows: forward 2n(35 + 21); backward the same for the weights, and 2n·21 for the hidden
    layer. Kept: x (5n), the hidden layer (7n), the outputs (3n), four bytes each."""
    for n in (1, 4):
        got = cost(Perceptron().to(device), torch.zeros(n, 5, device=device))
        assert got == (4 * n * (5 + 7 + 3), 2 * n * (2 * (35 + 21) + 21))


def test_cost_leaves_no_gradients() -> None:
    objective = Perceptron()
    cost(objective, torch.ones(2, 5))
    assert all(p.grad is None for p in objective.parameters())


def test_memory_of_an_objective_with_a_frozen_part() -> None:
    objective = Perceptron()
    objective.a.requires_grad_(False)
    memory = memory_of(objective, activations=100)
    assert vars(memory) == {
        "weights": 4 * 56, "gradients": 4 * 21, "adam": 8 * 21, "average": 4 * 21,
        "activations": 100,
    }  # fmt: skip
    assert memory.total == 4 * (56 + 4 * 21) + 100
    assert checkpoint_bytes(memory, torch.float16) == 2 * 56 + 16 * 21


def dpm_loss(model: Model) -> nn.Module:
    model.dpm.requires_grad_(True).train()
    return DPMLoss(model.heads, model.schedule)


def autoencoder_loss(model: Model) -> nn.Module:
    assert model.encoder_network is not None
    return AutoencoderLoss(model.heads, model.encoder_network, model.schedule)


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
def test_less_is_kept_and_more_computed(make: Callable[[Model], nn.Module]) -> None:
    """At 128 pixels, on the meta device: at most half of the bytes, at most a half more FLOPs."""
    shape = {"image_size": 128, "base_channels": 32, "multipliers": (1, 2, 2), "blocks": 2}
    with torch.device("meta"):
        batch = torch.empty(2, 3, 128, 128), torch.zeros(2).long(), torch.empty(2, 3, 128, 128)
        objective = make(on_meta(**shape))
        plain = cost(objective, *batch)
        checkpoint_activations(objective)
        saving = cost(objective, *batch)
    assert saving.saved < plain.saved / 2
    assert plain.flops < saving.flops < 1.5 * plain.flops


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(12):
        picture(number, (32, 32)).save(folder / f"{number}.png")
    return folder


class TestDryRun:
    def test_it_says_what_is_needed_and_writes_nothing(
        self, pdae: Command, photos: Path, tmp_path: Path
    ) -> None:
        """Of a run that then takes exactly the disk it was said to."""
        args = ("train", "dpm", photos, "-o", tmp_path / "run", *TINY, "--images", 16)
        before = sorted(tmp_path.rglob("*"))
        result = pdae(*args, "--dry-run", "--json")
        assert result.code == 0, result.err
        assert sorted(tmp_path.rglob("*")) == before
        needs = json.loads(result.out)
        assert needs["steps_left"] == 2 and needs["seconds_a_step"] > 0 and needs["free_bytes"] > 0
        parts = ("weights", "gradients", "adam", "average", "activations")
        assert needs["memory_bytes"] == sum(needs[f"{part}_bytes"] for part in parts)

        assert pdae(*args, "--quiet").code == 0
        state = tmp_path / "run" / "training" / "dpm.safetensors"
        (model,) = (tmp_path / "run").glob("*.safetensors")
        tensors = [*load_file(state).values(), *load_file(model).values()]
        written = [tensor.numel() * tensor.element_size() for tensor in tensors]
        steps = 4 * sum(name.startswith("step/") for name in load_file(state))
        assert needs["checkpoint_bytes"] == sum(written) - steps

    def test_activations_grow_with_the_micro_batch(self, pdae: Command, photos: Path) -> None:
        def needs(*args: object) -> dict[str, float]:
            result = pdae("train", "dpm", photos, "-o", photos, *TINY, *args, "--dry-run", "--json")
            record: dict[str, float] = json.loads(result.out)
            return record

        whole, halves = needs(), needs("--accumulate", 2)
        assert halves["activations_bytes"] == whole["activations_bytes"] / 2
        assert halves["flops_a_step"] == whole["flops_a_step"]
        saving = needs("--checkpoint-activations")
        assert saving["activations_bytes"] < whole["activations_bytes"] / 2

    def test_in_words(self, pdae: Command, photos: Path, tmp_path: Path) -> None:
        result = pdae("train", "dpm", photos, "-o", tmp_path / "run", *TINY, "--dry-run")
        assert result.code == 0 and result.err == "" and len(result.text.splitlines()) == 5
        for word in ("parameters", "memory a process", "GFLOP a step", "free", "s a step"):
            assert word in result.text


def test_the_log_as_json_lines(pdae: Command, photos: Path, tmp_path: Path) -> None:
    args = ("train", "dpm", photos, "-o", tmp_path / "run", *TINY, "--images", 16, "--json")
    result = pdae(*args)
    assert result.code == 0 and result.err.count("\n") == 1
    records = [json.loads(line) for line in result.text.splitlines()]
    assert [r["step"] for r in records if "loss" in r] == [1, 2]
