"""Every number of every file that we read has a range: values outside of each are one line."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import tracemalloc
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model, unet_config

from pdae_cli.checkpoints import load
from pdae_cli.checkpoints.native import read_classifier, read_latent_dpm
from pdae_cli.diffusion.parity import DDIM
from pdae_cli.diffusion.trajectory import Sampling
from pdae_cli.engine import codes as codes_files
from pdae_cli.engine import tensors as safe
from pdae_cli.engine.attributes import FACTS
from pdae_cli.engine.config import ModelConfig, Normalisation, ScheduleConfig, build
from pdae_cli.engine.guidance import ClassifierConfig
from pdae_cli.errors import InputError, ModelError, PdaeError, Range, ranges
from pdae_cli.evaluation import judge
from pdae_cli.networks.classifier import Classes, EmbeddingConfig
from pdae_cli.networks.encoder import EncoderConfig
from pdae_cli.networks.first_stage import FirstStageConfig
from pdae_cli.networks.half_unet import HalfUNetConfig
from pdae_cli.networks.latent import LatentConfig

CLASSES = Classes(("Hat", "Old"), False)
# One of each kind of dataclass that files hold.
MADE: list[Any] = [
    tiny_model().config, unet_config(), ScheduleConfig(), DDIM, Normalisation((0.0,), (1.0,)),
    EncoderConfig.for_size(32), LatentConfig(6, 16, 3, 0.0), EmbeddingConfig(CLASSES, 6), CLASSES,
    HalfUNetConfig(32, 3, 8, (1.0, 2.0), 1, (16,), None, 1, 4, 1e-5, 6),
    FirstStageConfig("VQModel", 3, 3, ("DownEncoderBlock2D",), ("UpDecoderBlock2D",), (8,), 1, 4,
                     True, True, 16, 3, 1.0, 0.0),
    Sampling(), ClassifierConfig(32, unet_config(), CLASSES, ScheduleConfig()),
    judge.JudgeFacts(("Hat",), {"Hat": 0.5}, 32, 3),
]  # fmt: skip
KINDS = {type(one) for one in MADE}
FAR = ("1" + "0" * 400, "-1" + "0" * 400, "1e999", "-1e999", "NaN", "true", '"7"', "[7]")


def inner(hint: Any) -> Iterator[Any]:
    """All types that an annotation is made of."""
    yield hint
    for one in typing.get_args(hint):
        yield from inner(one)


def reachable(kind: type) -> set[type]:
    """The dataclasses that a dataclass is made of, itself too."""
    found = {kind}
    for hint in typing.get_type_hints(kind).values():
        below = [one for one in inner(hint) if dataclasses.is_dataclass(one)]
        found |= {other for one in below for other in reachable(typing.cast(type, one))}
    return found


def numbers(kind: type) -> dict[str, Range]:
    """A dataclass's numeric fields with their ranges, which all must have."""
    found, given = {}, ranges(kind)
    for name, hint in typing.get_type_hints(kind).items():
        if {int, float} & set(inner(hint)) and dict not in map(typing.get_origin, inner(hint)):
            assert name in given, f"{kind.__name__}.{name} has no range"
            found[name] = given[name]
    return found


def outside(given: Range, chance: random.Random) -> list[str]:
    """JSON of values that aren't within a range."""
    below, above = (abs(end) * chance.uniform(0.01, 10) + 1 for end in given)
    near = [given.least - below, given.most + above, given.most * 1e6 + 1]
    whole = [int(given.least) - 1 - chance.randrange(9), int(given.most) + 1 + chance.randrange(9)]
    tiny = [] if given.least <= 0 <= given.most else ["1e-400"]
    return [*map(json.dumps, [*near, *whole]), *FAR, *tiny]


def with_value(content: Any, path: tuple[str, ...], text: str) -> str:
    """JSON with another value at a path; in a list, in place of its first."""
    content = json.loads(json.dumps(content))
    place = content
    for name in path[:-1]:
        place = place[name]
    old = place[path[-1]]
    place[path[-1]] = ["@", *old[1:]] if isinstance(old, list) else "@"
    return json.dumps(content).replace('"@"', text)


def wrong(content: Any, path: tuple[str, ...], given: Range, count: int = 2) -> Iterator[str]:
    """A config with so many values outside of a field's range."""
    chance = random.Random(".".join(path))
    for text in chance.sample(values := outside(given, chance), min(count, len(values))):
        yield with_value(content, path, text)


def test_every_kind_is_here_and_every_number_has_a_range() -> None:
    for root in (ModelConfig, LatentConfig, ClassifierConfig, Sampling, judge.JudgeFacts):
        assert reachable(root) <= KINDS
    assert sum(len(numbers(kind)) for kind in KINDS) > 50
    bare = dataclasses.make_dataclass("Bare", [("steps", tuple[int, ...] | None)])
    with pytest.raises(AssertionError, match=r"Bare\.steps has no range"):
        numbers(bare)


@pytest.mark.parametrize("made", MADE, ids=lambda one: type(one).__name__)
def test_what_is_outside_is_refused_before_anything_is_built(made: Any) -> None:
    content = dataclasses.asdict(made)
    assert build(type(made), safe.strict_json(json.dumps(content)), "it") == made
    tracemalloc.start()
    for name, given in numbers(type(made)).items():
        for text in wrong(content, (name,), given, count=99):
            with pytest.raises((ValueError, PdaeError)) as caught:
                build(type(made), safe.strict_json(text), "it")
            assert len(str(caught.value)) < 500
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()


def paths(config: Any) -> Iterator[tuple[tuple[str, ...], Range]]:
    """The places of all numbers of a config that there are."""
    for name, given in numbers(type(config)).items():
        if getattr(config, name) is not None:
            yield (name,), given
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from (((field.name, *path), given) for path, given in paths(value))


def test_model_folders(tiny_folder: Path, tmp_path: Path) -> None:
    """Exit code 4, whatever number of config.json it is."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "m"))
    content = json.loads((folder / "config.json").read_text())
    every = list(paths(load(str(folder)).config))
    assert len(every) > 25
    for path, given in every:
        for text in wrong(content, path, given):
            (folder / "config.json").write_text(text)
            with pytest.raises(ModelError) as caught:
                load(str(folder))
            assert caught.value.exit_code == 4 and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("made", "key", "read"),
    [
        (MADE[6], "pdae", read_latent_dpm),
        (MADE[-2], "pdae", lambda path: read_classifier(path.parent)),
        (MADE[-1], "judge", judge.read_judge),
    ],
)
def test_parts_of_models(made: Any, key: str, read: Any, tmp_path: Path) -> None:
    path = tmp_path / "classifier.safetensors"
    for place, given in paths(made):
        for text in wrong(dataclasses.asdict(made), place, given):
            path.write_bytes(safe.sealed({"x": torch.ones(1)}, {key: text}))
            with pytest.raises(ModelError):
                read(path)


def test_attributes(tiny_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "m"))
    tensors = {"weight": torch.ones(1, 6), "bias": torch.ones(1)}
    for name, given in FACTS.items():
        content = {"names": ["Hat"], "facts": {"Hat": {name: 0.5}}}
        for text in wrong(content, ("facts", "Hat", name), given):
            data = safe.sealed(tensors, {"pdae": text})
            (folder / "attributes.safetensors").write_bytes(data)
            with pytest.raises(ModelError):
                load(str(folder))


def test_codes() -> None:
    """Exit code 3; what is within a range comes back as the number it is meant as."""
    sampling = {"sampling": dataclasses.asdict(Sampling())}
    facts = {
        "format": codes_files.FORMAT, "model": "m", "digest": "", "sources": ["a"],
        "digests": [""], "converged": [], **sampling,
    }  # fmt: skip
    z = {"z": torch.ones(1, 6)}

    def read(text: str) -> codes_files.Codes:
        return codes_files.from_bytes(safe.sealed(z, {"pdae": text}), "it")

    for name, given in numbers(Sampling).items():
        for text in wrong(facts, ("sampling", name), given):
            with pytest.raises(InputError):
                read(text)
    whole = read(with_value(facts, ("sampling", "guidance"), "7"))
    assert type(whole.sampling["guidance"]) is float
