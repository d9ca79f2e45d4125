"""Shared fixtures: tiny models with random weights, pictures, and the command line in-process."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from PIL import Image

from pdae_cli.checkpoints import pickles
from pdae_cli.checkpoints.native import write_whole
from pdae_cli.engine.attributes import Attributes
from pdae_cli.engine.config import ModelConfig, Normalisation, ScheduleConfig
from pdae_cli.engine.model import Model
from pdae_cli.errors import STOPPING, ModelError
from pdae_cli.networks.encoder import Encoder, EncoderConfig
from pdae_cli.networks.gradient import GradientEstimator
from pdae_cli.networks.latent import LatentConfig, LatentDPM
from pdae_cli.networks.unet import UNet, UNetConfig

# Tests run side by side on small models: a thread each, also for the commands that they start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("PDAE_SHARED", ROOT.parent / "shared"))
BUNDLED = ROOT / "weights" / "faces64"


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers in a test whatever ran before it, and in whichever process."""
    torch.manual_seed(0)
    random.seed(0)


def unet_config(**changes: object) -> UNetConfig:
    """A tiny 32-pixel U-Net."""
    values: dict[str, object] = {
        "image_size": 32, "channels": 3, "patch": 1, "base_channels": 8, "multipliers": (1, 2),
        "blocks": 1, "attention": (16,), "head_channels": 8, "heads": 1,
        "time_conditioning": "scale_shift", "resampling": "residual", "learn_sigma": False,
        "groups": 4, "norm_eps": 1e-5, "dropout": 0.0,
    }  # fmt: skip
    return UNetConfig(**values | changes)  # type: ignore[arg-type]


def randomise(module: torch.nn.Module, scale: float = 0.1) -> None:
    """Give every parameter a random value, also those that start at zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))


def tiny_model(seed: int = 0, z_dim: int = 6, prediction: str = "eps", **changes: object) -> Model:
    """A whole model with random weights: codes, attributes and latent DPM."""
    torch.manual_seed(seed)
    cfg = unet_config(**changes)
    encoder = EncoderConfig.for_size(cfg.image_size, cfg.channels, z_dim)
    parts = UNet(cfg), GradientEstimator(cfg, z_dim), Encoder(encoder)
    for part in parts:
        randomise(part, 0.03)
    statistics = Normalisation(tuple(torch.randn(z_dim).tolist()), (1.5,) * z_dim)
    latent = LatentDPM(LatentConfig(z_dim, width=16, layers=3, dropout=0.0))
    attributes = Attributes(
        ["Smiling", "Blond_Hair", "5_o_Clock_Shadow"], torch.randn(3, z_dim), torch.randn(3)
    )
    return Model(
        ModelConfig(ScheduleConfig(), cfg, prediction, encoder, statistics),
        *parts,
        attributes=attributes,
        latent_dpm=latent,
        name="tiny",
    )


@pytest.fixture
def model() -> Model:
    return tiny_model()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a folder, as `--model` takes it."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_whole(folder, tiny_model(), torch.float32, {})
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """The project's shared reference data; tests that need it are skipped elsewhere."""
    if not SHARED.is_dir():
        pytest.skip(f"reference data not found at {SHARED}; set PDAE_SHARED")
    return SHARED


def read_pickles_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read foreign checkpoints in this process instead of a child, as the child does: saves
    seconds a test where the child isn't what is tested (it is in test_pickles.py)."""

    def read(path: Path) -> dict[str, Any]:
        try:
            answer, tensors = pickles._unpack(path, path.stat().st_size)
        except pickles._Refusal as refusal:
            raise ModelError(f"{path} {refusal}") from refusal
        return dict(pickles._rebuilt(answer, tensors))

    monkeypatch.setattr("pdae_cli.checkpoints.reading.read_pickle", read)


def picture(seed: int = 0, size: tuple[int, int] = (40, 32), mode: str = "RGB") -> Image.Image:
    """A smooth random picture."""
    torch.manual_seed(seed)
    small = torch.randint(0, 256, (3, 4, 4), dtype=torch.uint8)
    image = Image.frombytes("RGB", (4, 4), small.permute(1, 2, 0).contiguous().numpy().tobytes())
    return image.resize(size, Image.Resampling.BICUBIC).convert(mode)


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Three picture files."""
    paths = [tmp_path / "in" / name for name in ("a.png", "b.jpg", "c.webp")]
    paths[0].parent.mkdir()
    for seed, path in enumerate(paths):
        picture(seed).save(path)
    return paths


@dataclass(frozen=True)
class Result:
    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()


Command = Callable[..., Result]
SCHEMA = json.loads((ROOT / "pdae_cli" / "cli" / "record.schema.json").read_text())


def check_records(out: bytes) -> None:
    """Every line of --json is as the shipped schema says."""
    for line in out.decode().splitlines():
        jsonschema.validate(json.loads(line), SCHEMA)


@pytest.fixture
def pdae(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes], tiny_folder: Path
) -> Command:
    """Run `pdae ARGS` in this process: pdae("encode", path, stdin=b"…") → code, stdout, stderr."""
    from pdae_cli.cli import main

    def run(*args: object, stdin: bytes = b"", model: Path | str | None = None) -> Result:
        monkeypatch.setattr(sys, "argv", ["pdae", *map(str, args)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(stdin))))
        monkeypatch.setenv("PDAE_MODEL", str(model or tiny_folder))
        monkeypatch.setenv("COLUMNS", "200")
        capfdbinary.readouterr()
        code, handlers = 0, {one: signal.getsignal(one) for one in STOPPING}
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0
        finally:
            for one, handler in handlers.items():
                signal.signal(one, handler)
        sys.stdout.flush()
        captured = capfdbinary.readouterr()
        if "--json" in args and captured.out:
            check_records(captured.out)
        return Result(code, captured.out, captured.err.decode())

    return run
