"""Our model folder: config.json, model.safetensors, attributes.safetensors, latent_dpm.safetensors.

A network is built without memory, its names and shapes are compared with the file's header, and
only then are tensors read: a file can't make us allocate more than it holds.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..attributes import Attributes
from ..config import ModelConfig, from_json, to_json
from ..engine import Model
from ..errors import ModelError
from ..files import replacing, sha256, write_bytes
from ..networks.encoder import Encoder
from ..networks.gradient import GradientEstimator
from ..networks.half_unet import HalfUNet, HalfUNetConfig
from ..networks.latent import LatentConfig, LatentDPM
from ..networks.unet import UNet

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
ATTRIBUTES = "attributes.safetensors"
LATENT_DPM = "latent_dpm.safetensors"
MAX_CONFIG_BYTES = 4 << 20

T = TypeVar("T")


def is_native(folder: Path) -> bool:
    """Whether a folder is a model of ours; it may still be a damaged one."""
    config = folder / CONFIG
    if not config.is_file() or config.stat().st_size > MAX_CONFIG_BYTES:
        return False
    return '"_class_name"' not in config.read_text(errors="replace")  # as diffusers' have


def read_model(folder: Path, name: str) -> Model:
    """Read a model folder; networks are float32 on the CPU. Raises ModelError."""
    if not is_native(folder):
        raise ModelError(
            f"{folder} is not a model of pdae; if it is a pre-trained model of another program, "
            f"`pdae convert {folder} -o MODEL` makes it one"
        )
    config = guarded(folder / CONFIG, lambda: _read_config(folder / CONFIG))
    weights = folder / WEIGHTS
    parts: Any = dict(
        guarded(weights, lambda: fill(lambda: build_networks(config), weights)).named_children()
    )
    return Model(
        config=config,
        dpm=parts["dpm"],
        gradient_estimator=parts.get("gradient"),
        encoder_network=parts.get("encoder"),
        attributes=_optional(folder / ATTRIBUTES, read_attributes),
        latent_dpm=_optional(folder / LATENT_DPM, read_latent_dpm),
        name=name,
        digest=sha256(weights),
    )


def build_networks(config: ModelConfig) -> nn.ModuleDict:
    """The untrained networks of a model, by their names in the weights' file."""
    encoder = config.encoder
    parts: dict[str, nn.Module] = {"dpm": UNet(config.unet)}
    if encoder is not None and not config.unet.z_channels:
        parts["gradient"] = GradientEstimator(config.unet, encoder.z_dim)
    if isinstance(encoder, HalfUNetConfig):
        parts["encoder"] = HalfUNet(encoder)
    elif encoder is not None:
        parts["encoder"] = Encoder(encoder)
    return nn.ModuleDict(parts)


def _read_config(path: Path) -> ModelConfig:
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ValueError(f"larger than {MAX_CONFIG_BYTES >> 20} MiB")
    return from_json(json.loads(path.read_text()))


def _optional(path: Path, read: Callable[[Path], T]) -> T | None:
    return guarded(path, lambda: read(path)) if path.exists() else None


def guarded(path: Path, read: Callable[[], T]) -> T:
    """read(), with everything that a damaged file can cause as one ModelError."""
    try:
        return read()
    except FileNotFoundError as error:
        raise ModelError(f"the model is incomplete: {path} is missing") from error
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"{path} can't be read: {reason}") from error


def fill(build: Callable[[], nn.Module], path: Path) -> Any:
    """A network with the file's tensors, as float32. Names and shapes must match exactly."""
    with init_empty_weights():
        network = build()
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    with safe_open(path, "pt") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        for name in sorted(wanted.keys() | found.keys()):
            if wanted.get(name) != found.get(name):
                raise ValueError(
                    f"tensor {name} has shape {found.get(name)}, its config says {wanted.get(name)}"
                )
        tensors = {name: file.get_tensor(name).float() for name in wanted}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"tensor {name} holds numbers that aren't finite")
    network.load_state_dict(tensors, assign=True)
    return network


def write_model(folder: Path, model: Model, dtype: torch.dtype = torch.float32) -> None:
    """Write config and weights atomically, the weights as `dtype`."""
    tensors: dict[str, Tensor] = {}
    parts = {
        "dpm": model.dpm,
        "gradient": model.gradient_estimator,
        "encoder": model.encoder_network,
    }
    for prefix, part in parts.items():
        if part is not None:
            tensors |= {f"{prefix}.{k}": stored(v, dtype) for k, v in part.state_dict().items()}
    with replacing(folder / WEIGHTS) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    text = json.dumps(to_json(model.config), indent=1)
    write_bytes(folder / CONFIG, text.encode() + b"\n")


def stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().cpu().to(dtype).contiguous()


def write_attributes(folder: Path, attributes: Attributes) -> None:
    """Write attributes.safetensors atomically."""
    facts = {"names": attributes.names, "facts": attributes.facts}
    with replacing(folder / ATTRIBUTES) as temporary:
        tensors = {"weight": attributes.weight.contiguous(), "bias": attributes.bias.contiguous()}
        save_file(tensors, temporary, metadata={"pdae": json.dumps(facts)})


def read_attributes(path: Path) -> Attributes:
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["pdae"])
        weight, bias = file.get_tensor("weight"), file.get_tensor("bias")
    names = facts["names"]
    if weight.ndim != 2 or weight.shape[0] != len(names) or bias.shape != (len(names),):
        raise ValueError("names, weight and bias don't match")
    return Attributes(names, weight.float(), bias.float(), facts["facts"])


def write_latent_dpm(
    folder: Path,
    network: LatentDPM,
    training: dict[str, Any],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write latent_dpm.safetensors atomically, its config and training summary in the metadata."""
    tensors = {name: stored(value, dtype) for name, value in network.state_dict().items()}
    facts = {
        "pdae": json.dumps(dataclasses.asdict(network.cfg)),
        "training": json.dumps(training),
    }
    with replacing(folder / LATENT_DPM) as temporary:
        save_file(tensors, temporary, metadata=facts)


def read_latent_dpm(path: Path) -> LatentDPM:
    with safe_open(path, "pt") as file:
        cfg = LatentConfig(**json.loads(file.metadata()["pdae"]))
    network: LatentDPM = fill(lambda: LatentDPM(cfg), path)
    return network
