"""Small trainings, as tests of several rooms start them: in this process, or as commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from conftest import ROOT, picture
from safetensors.torch import load_file

from pdae_cli.engine.model import Model
from pdae_cli.networks.classifier import Classes
from pdae_cli.training.autoencoder import autoencoder_stage
from pdae_cli.training.classifier import classifier_stage, new_classifier
from pdae_cli.training.conditional import Condition, conditional_stage, with_labels
from pdae_cli.training.data import Pictures, Task, open_pictures
from pdae_cli.training.diffae import diffae_stage, new_diffae
from pdae_cli.training.dpm import dpm_stage
from pdae_cli.training.encoder import encoder_stage
from pdae_cli.training.latent import latent_stage
from pdae_cli.training.stage import Rows, Stage, TrainOptions, draw_batch

OPTIONS = TrainOptions(
    images=48, batch_size=8, accumulate=1, lr=1e-3, warmup=2, grad_clip=1.0, ema_images=1000,
    precision="no", channels_last=False, compile=False, flip=True, seed=5, log_every=1,
    save_every=100,
)  # fmt: skip
SHAPE: dict[str, Any] = {
    "image_size": 32, "channels": 3, "patch": 1, "base_channels": 8, "multipliers": (1, 2),
    "blocks": 1, "attention": (16,), "head_channels": 8,
}  # fmt: skip
KINDS = Classes(("dark", "bright"), exclusive=True)
TINY = (
    "--image-size", "32", "--base-channels", "8", "--multipliers", "1,2", "--blocks", "1",
    "--attention", "16", "--head-channels", "8", "--batch-size", "8", "--log-every", "1",
    "--warmup", "2", "--device", "cpu",
)  # fmt: skip


def quiet(record: dict[str, object]) -> None:
    pass


def folder_of(folder: Path, count: int = 24) -> Path:
    """A folder of small pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture(number, (32, 32)).save(folder / f"{number}.png")
    return folder


def task_of(photos: Path, folder: Path) -> Task:
    """Sixteen pictures to train on, eight held out."""
    pictures = open_pictures(photos, 32)
    return Task(pictures.subset(range(16)), pictures.subset(range(16, len(pictures))), folder)


def stage_of(kind: str, model: Model, task: Task, **more: Any) -> Stage:
    """Of a kind, for this model; labels, where it takes some, are of every other picture."""
    labels = Condition(KINDS, {n: [i % 2, 1 - i % 2] for i, n in enumerate(task.train.names)})
    if kind == "latent":
        return latent_stage(model, task, 16, 3, 0.1, 0)
    if kind == "encoder":
        return encoder_stage(model, task)
    if kind == "diffae":
        return diffae_stage(untrained_diffae(dropout=model.config.unet.dropout), task)
    if kind == "conditional":
        return conditional_stage(with_labels(model, KINDS, 6, seed=0), task, labels)
    if kind == "classifier":
        return classifier_stage(model, new_classifier(model, KINDS, 8, seed=0), task, labels)
    make = dpm_stage if kind == "dpm" else autoencoder_stage
    return make(model, task, **more)


def untrained_diffae(prediction: str = "v", dropout: float = 0.0) -> Model:
    return new_diffae(3, "linear", prediction, 6, dropout=dropout, **SHAPE)


def drawn(
    pictures: Pictures,
    step: int,
    first: int,
    count: int,
    y: torch.Tensor | None = None,
    options: TrainOptions = OPTIONS,
) -> Rows:
    """Rows of a batch of 32-pixel pictures, timesteps drawn evenly."""
    even = torch.full((1000,), 1e-3, dtype=torch.float64)
    nothing = torch.nn.Identity()
    stage = Stage("", nothing, pictures, even, dict, tuple, print, (3, 32, 32), y)  # type: ignore[arg-type]
    return draw_batch(stage, options, step, first, count)


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """The same tensors to the bit, and not a handful."""
    assert one.keys() == other.keys() and len(one) > 10
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def command(processes: int, *args: object) -> list[str]:
    """`pdae ARGS` in so many processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [sys.executable, *(launcher if processes > 1 else []), "-m", "pdae_cli", *map(str, args)]


def started(*args: object, processes: int = 1, **variables: str) -> subprocess.Popen[str]:
    """`pdae ARGS` as processes of a thread each."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"} | variables
    return subprocess.Popen(
        command(processes, *args), cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def ended(*args: object, processes: int = 1, **variables: str) -> tuple[int, str]:
    """Exit code and stderr of `pdae ARGS`."""
    process = started(*args, processes=processes, **variables)
    _, err = process.communicate(timeout=300)
    return process.returncode, err


def losses(folder: Path) -> list[float]:
    lines = (folder / "training" / "dpm.jsonl").read_text().splitlines()
    return [record["loss"] for record in map(json.loads, lines) if "loss" in record]


def state(folder: Path, stage: str = "dpm") -> dict[str, torch.Tensor]:
    return load_file(folder / "training" / f"{stage}.safetensors")
