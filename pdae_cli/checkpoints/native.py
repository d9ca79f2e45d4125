"""Our model folder: config.json, model.safetensors, attributes.safetensors, latent_dpm.safetensors,
and the card, README.md, which whatever changes them renews; and a classifier's:
classifier.safetensors.

config.json records the weights' SHA-256 and the others are sealed (see tensors.py), so that damage
is found before use. A network is built without memory, its names and shapes are compared with the
file's header, and only then are tensors read: a file can't make us allocate more than it holds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from filelock import FileLock, Timeout
from torch import Tensor, nn

from ..engine import tensors as safe
from ..engine.attributes import MAX_NAME, Attributes, check_facts, simplified
from ..engine.config import FORMAT, ModelConfig, build, from_json
from ..engine.guidance import Classifier, ClassifierConfig
from ..engine.model import Model
from ..errors import InputError, ModelError, UsageError
from ..files import replacing, sha256, unwritable, write_bytes
from ..networks.classifier import ClassEmbedding, NoisyClassifier
from ..networks.encoder import Encoder
from ..networks.first_stage import FirstStage, FirstStageConfig
from ..networks.gradient import GradientEstimator
from ..networks.half_unet import HalfUNet, HalfUNetConfig
from ..networks.latent import LatentConfig, LatentDPM
from ..networks.unet import UNet
from .card import FIGURES, TERMS, read_card, write_card
from .reading import MAX_CONFIG_BYTES, read_text

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
ATTRIBUTES = "attributes.safetensors"
LOCK = ".attributes.lock"
PATIENCE = 60  # seconds, with another process that changes attributes
LATENT_DPM = "latent_dpm.safetensors"
CLASSIFIER = "classifier.safetensors"
FORMATS = FORMAT.rstrip("0123456789")  # how those of all versions begin
WEIGHTS_SHAS = "weights_sha256"  # in the config: of the weights, and of those before them
FIELDS = {"gradient": "gradient_estimator"}  # of a Model; others are called as in the weights


def is_native(folder: Path) -> bool:
    """Whether a folder is a model of ours; it may still be a damaged one. Raises ModelError where
    its config isn't for us to read."""
    config = folder / CONFIG
    with guarded(config):
        if not config.is_file() or config.stat().st_size > MAX_CONFIG_BYTES:
            return False
        data = config.read_bytes()
    try:
        facts = json.loads(data)
    except (ValueError, RecursionError):  # whoever reads it says what is wrong
        return b'"_class_name"' not in data  # as diffusers' have
    return not isinstance(facts, dict) or str(facts.get("format")).startswith(FORMATS)


def read_model(folder: Path, name: str) -> Model:
    """Read a model folder; networks are float32 on the CPU. Raises ModelError."""
    if not is_native(folder):
        if (folder / CLASSIFIER).is_file():
            use = f"`pdae sample --classifier {folder}` takes it"
            raise ModelError(f"{folder} is a classifier, no model; {use}")
        called = folder if folder.resolve().name == name else name  # of the Hub: not the cache
        what = f"{called} is not a model of pdae; if it is a pre-trained model of another program"
        raise ModelError(f"{what}, `pdae convert {called} -o MODEL` makes it one")
    path, weights = folder / CONFIG, folder / WEIGHTS
    with guarded(path):
        config, recorded = _read_config(path)
    with guarded(weights):
        content, header = safe.opened(weights)
        found = hashlib.sha256(content).hexdigest()
        if found not in recorded:
            told = safe.shown(recorded[0])[1:13] if recorded else "none"
            raise ValueError(
                f"its SHA-256 is {found[:12]}, its config records {told}; it was damaged or edited"
            )
        networks = fill(lambda: build_networks(config), content, header)
    more: dict[str, Any] = {"name": name, "weights_sha": found}
    if (file := folder / ATTRIBUTES).exists():
        more["attributes"] = known = read_attributes(file, config.z_dim)
        _check_z(known.of, config, file)
    if (file := folder / LATENT_DPM).exists():
        networks["latent_dpm"] = read_latent_dpm(file, config)
    with guarded(path):
        return assembled(config, networks, **more)


def _check_z(of: str, config: ModelConfig, path: Path) -> None:
    """Raise ModelError for a file that was made for another z than the model's."""
    if of and config.z_sha and of != config.z_sha:
        raise ModelError(
            f"{path.name} was made for another z than that of {path.parent}, whose encoder was "
            "trained since; move such a file away and make it again"
        )


def build_networks(config: ModelConfig) -> nn.ModuleDict:
    """Build the untrained networks of a model, by their names in the weights' file."""
    encoder = config.encoder
    parts: dict[str, nn.Module] = {"dpm": UNet(config.unet)}
    if config.z_dim is not None and not config.unet.z_channels:
        parts["gradient"] = GradientEstimator(config.unet, config.z_dim)
    if config.labels is not None:
        parts["labels"] = ClassEmbedding(config.labels)
    if isinstance(encoder, HalfUNetConfig):
        parts["encoder"] = HalfUNet(encoder)
    elif encoder is not None:
        parts["encoder"] = Encoder(encoder)
    if config.first_stage is not None:
        parts["first_stage"] = build_first_stage(config.first_stage)
    return nn.ModuleDict(parts)


def build_first_stage(cfg: FirstStageConfig) -> FirstStage:
    """Build an untrained one. Raises ModelError where diffusers isn't installed."""
    try:
        return FirstStage(cfg)
    except ImportError as error:
        raise ModelError(
            "a latent diffusion model needs diffusers: pip install 'pdae-cli[diffusers]'"
        ) from error


def assembled(config: ModelConfig, networks: nn.ModuleDict, **more: Any) -> Model:
    """Make a model of its networks, by the names of `build_networks`, and `more` of its fields."""
    fields: dict[str, Any] = {FIELDS.get(name, name): part for name, part in networks.items()}
    return Model(config=config, **fields, **more)


def write_model(folder: Path, model: Model, dtype: torch.dtype = torch.float32) -> None:
    """Write config and weights (as `dtype`) so that at any time the folder holds a whole model, and
    its card."""
    _write_networks(folder, model, dtype)
    renew_card(folder)


def _write_networks(
    folder: Path, model: Model, dtype: torch.dtype, others: Mapping[str, bytes | None] | None = None
) -> None:
    """Write config and weights, and just before these take their place the `others` of the folder
    that belong to them: content, or None for one that goes. Raises ModelError, before anything is
    written, for networks that couldn't be read again."""
    tensors: dict[str, Tensor] = {}
    for prefix in ("dpm", "gradient", "encoder", "labels", "first_stage"):
        if (part := vars(model)[FIELDS.get(prefix, prefix)]) is not None:
            tensors |= {f"{prefix}.{k}": v for k, v in _stored(part, dtype).items()}
    with init_empty_weights(include_buffers=True):
        said = build_networks(model.config).state_dict()
    shapes = [{(name, one.shape) for name, one in state.items()} for state in (said, tensors)]
    if wrong := shapes[0] ^ shapes[1]:
        part = min(wrong)[0].partition(".")[0]
        raise ModelError(f"{model.name} can't be saved: its {part} isn't what its config says")
    path = folder / WEIGHTS
    with replacing(path) as weights:
        sha = hashlib.sha256()
        for part in safe.parts(tensors, {"format": "pt"}):
            sha.update(part)
            weights.write(part)
        weights.flush()  # the last that can find the disk full
        for name, content in (others or {}).items():
            if content is None:
                (folder / name).unlink(missing_ok=True)
            else:
                write_bytes(folder / name, content)
        # Good for the weights that are there and those that come, until these are there: a process
        # that is killed in between leaves a model that can be read.
        new = [sha.hexdigest()]
        _write_config(folder, model.config, new + ([sha256(path)] if path.exists() else []))
    _write_config(folder, model.config, new)


def write_whole(
    folder: Path,
    model: Model,
    dtype: torch.dtype | None,
    training: dict[str, Any],
    papers: Mapping[str, bytes] | None = None,
    conversion: str | None = None,
) -> None:
    """Write a model with all that belongs to it, `training` the summary of its latent DPM's, and
    papers, such as its card, by their names, the card with its `conversion`; of a model that was
    there, none of its parts stays. Without a dtype each file has the smallest in which its numbers
    are what they are."""
    read_card(folder)  # or the error, before anything is written
    another = is_native(folder) and _is_another(folder, model.config)
    gone = (ATTRIBUTES, LATENT_DPM, *([TERMS, FIGURES] if another else []))
    others = dict.fromkeys(gone) | dict(papers or {})
    networks = [one for one in model.networks() if one is not model.latent_dpm]
    _write_networks(folder, model, dtype or safe.exact_dtype(*networks), others)
    if (latent := model.latent_dpm) is not None:
        _write_latent_dpm(folder, latent, training, dtype or safe.exact_dtype(latent))
    if model.attributes is not None:
        write_attributes(folder, model.attributes)
    renew_card(folder, conversion=conversion)


def _is_another(folder: Path, config: ModelConfig) -> bool:
    """Whether what lies in a folder may have other terms than a model with this config: it is of
    another source or licence, or damaged."""
    with suppress(ModelError):
        old = read_config(folder)
        return (old.source, old.licence) != (config.source, config.licence)
    return True


def renew_card(
    folder: Path,
    name: str | None = None,
    conversion: str | None = None,
    attributes: Attributes | None = None,
) -> None:
    """Write the card of the model that lies in a folder (`card.write_card`), or will with these
    attributes. Raises ModelError."""
    path, config = folder / ATTRIBUTES, read_config(folder)
    there = attributes is None and path.exists()
    known = read_attributes(path, config.z_dim) if there else attributes
    learnt = {one: known.facts.get(one) for one in known.names} if known else {}
    write_card(folder, config, learnt, latent_training(folder), name, conversion)


def latent_training(folder: Path) -> dict[str, Any] | None:
    """Read the summary of the latent DPM's training; None without one. Raises ModelError."""
    path = folder / LATENT_DPM
    if not path.exists():
        return None
    with guarded(path):
        return safe.check(path, keys=("pdae", "training")).facts("training")


def _write_config(folder: Path, config: ModelConfig, shas: list[str]) -> None:
    text = json.dumps(asdict(config) | {WEIGHTS_SHAS: shas}, indent=1)
    write_bytes(folder / CONFIG, text.encode() + b"\n")


def read_config(folder: Path) -> ModelConfig:
    """Read a model's config alone. Raises ModelError."""
    with guarded(folder / CONFIG):
        return _read_config(folder / CONFIG)[0]


def _read_config(path: Path) -> tuple[ModelConfig, list[object]]:
    """Read the config, and the SHA-256 that its weights may have."""
    facts = safe.strict_json(read_text(path))
    recorded = facts.pop(WEIGHTS_SHAS, None)
    if not isinstance(recorded, list):
        raise ValueError(f"{WEIGHTS_SHAS} is {safe.shown(recorded)}, not a list")
    return from_json(facts), recorded


def write_attributes(folder: Path, attributes: Attributes) -> None:
    """Write attributes.safetensors atomically."""
    facts = {"names": attributes.names, "facts": attributes.facts}
    facts |= {"z": attributes.of} if attributes.of else {}
    tensors = {"weight": attributes.weight.contiguous(), "bias": attributes.bias.contiguous()}
    write_bytes(folder / ATTRIBUTES, safe.sealed(tensors, {"pdae": json.dumps(facts)}))


def change_attributes(
    folder: Path, change: Callable[[Attributes | None], Attributes]
) -> Attributes:
    """Replace a model's attributes (None where it has none) by what `change` makes of them, one
    process after the other, so that no change is lost. Raises ModelError, InputError."""
    path = folder / ATTRIBUTES
    try:
        with FileLock(folder / LOCK, timeout=PATIENCE):
            after = change(read_attributes(path) if path.exists() else None)
            if not (after.weight.isfinite().all() and after.bias.isfinite().all()):
                less = "use --dtype float32, and a smaller --decay"
                raise InputError(f"what was learnt isn't finite, so {path} stays as it is; {less}")
            _check_z(after.of, read_config(folder), path)
            renew_card(folder, attributes=after)  # first: what is killed behind it can be repeated
            write_attributes(folder, after)
            return after
    except Timeout as error:
        raise InputError(f"another process changes {path}; try again when it is done") from error
    except OSError as error:
        raise unwritable(path, error) from error


def read_attributes(path: Path, z_dim: int | None = None) -> Attributes:
    """Read attributes of z with `z_dim` dimensions (None: any). Raises ModelError."""
    with guarded(path):
        content, header = safe.opened(path, keys=("pdae",))
        known = header.facts()
        names, facts = known.get("names"), known.get("facts", {})
        if not isinstance(of := known.get("z", ""), str):
            raise ValueError("its z isn't a text")
        if not isinstance(names, list) or not all(
            isinstance(one, str) and one.isprintable() and 0 < len(one) <= MAX_NAME for one in names
        ):
            raise ValueError("its names aren't a list of printable texts")
        if len({simplified(name) for name in names}) < len(names):
            raise ValueError("its names aren't different")
        if not isinstance(facts, dict) or not facts.keys() <= set(names):
            raise ValueError("its facts aren't of its names")
        if not all(one is None or isinstance(one, dict) for one in facts.values()):
            raise ValueError("its facts aren't objects")
        for one in facts.values():
            check_facts(one or {})
        found = header.tensors.get("weight")
        z_dim = found.shape[-1] if z_dim is None and found and found.shape else z_dim
        header.require({"weight": (len(names), z_dim or 0), "bias": (len(names),)})
        tensors = safe.load(content, header)
        return Attributes(names, tensors["weight"].float(), tensors["bias"].float(), facts, of)


def write_latent_dpm(
    folder: Path, network: LatentDPM, training: dict[str, Any], dtype: torch.dtype = torch.float32
) -> None:
    """Write latent_dpm.safetensors atomically, its config and training summary in the metadata, and
    the card of the model that it belongs to."""
    _write_latent_dpm(folder, network, training, dtype)
    if is_native(folder):
        renew_card(folder)


def _write_latent_dpm(
    folder: Path, network: LatentDPM, training: dict[str, Any], dtype: torch.dtype
) -> None:
    facts = {"pdae": json.dumps(asdict(network.cfg)), "training": json.dumps(training)}
    write_bytes(folder / LATENT_DPM, safe.sealed(_stored(network, dtype), facts))


def read_latent_dpm(path: Path, of: ModelConfig | None = None) -> LatentDPM:
    """Read a latent DPM of a model with this config (None: any). Raises ModelError."""
    with guarded(path):
        content, header = safe.opened(path, keys=("pdae", "training"))
        cfg = build(LatentConfig, header.facts(), "latent DPM")
        if of is not None and cfg.z_dim != of.z_dim:
            raise ValueError(f"it is of z with {cfg.z_dim} dimensions, the model's has {of.z_dim}")
        network: LatentDPM = fill(lambda: LatentDPM(cfg), content, header)
        if of is not None:
            _check_z(str(header.facts("training").get("z", "")), of, path)
        return network


def write_classifier(
    folder: Path, classifier: Classifier, training: dict[str, Any], dtype: torch.dtype
) -> None:
    """Write classifier.safetensors atomically, its config and training in the metadata."""
    facts = {"pdae": json.dumps(asdict(classifier.config)), "training": json.dumps(training)}
    write_bytes(folder / CLASSIFIER, safe.sealed(_stored(classifier.network, dtype), facts))


def read_classifier(folder: Path) -> Classifier:
    """Read the classifier in a folder, float32 on the CPU. Raises ModelError."""
    path = folder / CLASSIFIER
    if not path.is_file():
        raise ModelError(f"{folder} is no classifier; `pdae train classifier` makes one")
    with guarded(path):
        content, header = safe.opened(path, keys=("pdae", "training"))
        config: ClassifierConfig = build(ClassifierConfig, header.facts(), "classifier")
        network = fill(lambda: NoisyClassifier(config.unet, config.classes), content, header)
        sha = hashlib.sha256(content).hexdigest()
        return Classifier(config, network.requires_grad_(False).eval(), sha)


@contextmanager
def guarded(path: Path) -> Iterator[None]:
    """Turn everything that a damaged file can cause into one ModelError."""
    try:
        yield
    except FileNotFoundError as error:
        raise ModelError(f"the model is incomplete: {path} is missing") from error
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"{path} can't be read: {reason}; get the model again") from error


def fill(make: Callable[[], nn.Module], content: memoryview, header: safe.Header) -> Any:
    """Make a network of an open file's tensors, as float32; names and shapes must match exactly."""
    with init_empty_weights(include_buffers=True):
        network = make()
    state = network.state_dict()
    header.require({name: tuple(one.shape) for name, one in state.items()})
    state |= {name: one.float() for name, one in safe.load(content, header).items()}
    network.load_state_dict(state, assign=True)
    return network


def _stored(network: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """A network's tensors as written. Raises UsageError where the dtype can't hold them."""
    state, most = network.state_dict(), torch.finfo(dtype).max
    if any(one.abs().max() > most for one in state.values() if one.numel()):
        raise UsageError(f"weights beyond {most:.6g} can't be stored so; take float32")
    return {name: one.detach().cpu().to(dtype).contiguous() for name, one in state.items()}
