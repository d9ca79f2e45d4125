"""Model folders, and a classifier's: what is written comes back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import randomise, tiny_model
from safetensors.torch import load_file
from torch import Tensor

from pdae_cli.checkpoints import (
    bundled_models,
    load,
    model_folder,
    read_attributes,
    read_classifier,
    read_model,
    writable_folder,
    write_classifier,
    write_model,
)
from pdae_cli.checkpoints.native import (
    FIELDS,
    change_attributes,
    read_latent_dpm,
    write_attributes,
    write_latent_dpm,
)
from pdae_cli.engine import tensors as safe
from pdae_cli.engine.attributes import Attributes
from pdae_cli.engine.config import Normalisation
from pdae_cli.engine.guidance import Classifier
from pdae_cli.engine.model import Model
from pdae_cli.errors import ModelError, UsageError
from pdae_cli.evaluation import selftest
from pdae_cli.evaluation.judge import Judge, read_judge, write_judge
from pdae_cli.files import sha256
from pdae_cli.networks.classifier import Classes
from pdae_cli.networks.latent import LatentDPM
from pdae_cli.training import state
from pdae_cli.training.classifier import new_classifier


class TestModels:
    def test_round_trip(self, tmp_path: Path) -> None:
        model = tiny_model()
        write_model(tmp_path, model)
        back = read_model(tmp_path, "back")
        assert back.config == model.config
        for ours, theirs in zip(model.networks(), back.networks(), strict=False):
            weights = theirs.state_dict()
            assert all(torch.equal(value, weights[k]) for k, value in ours.state_dict().items())
        x, t, z = torch.randn(1, 3, 32, 32), torch.tensor([7]), torch.randn(1, 6)
        for ours, theirs in zip(model.predict(x, t, z), back.predict(x, t, z), strict=True):
            assert ours is not None and theirs is not None
            # Not to the last bit: convolutions may depend on how memory is aligned.
            assert torch.allclose(ours, theirs, atol=1e-5)

    def test_sixteen_bits_are_rounded_once(self, tmp_path: Path) -> None:
        model = tiny_model()
        write_model(tmp_path, model, torch.float16)
        for name, value in load_file(tmp_path / "model.safetensors").items():
            assert value.dtype == torch.float16, name
        once = read_model(tmp_path, "once")
        write_model(tmp_path, once, torch.float16)
        twice = read_model(tmp_path, "twice")
        assert once.weights_sha == twice.weights_sha

    def test_unknown_names_say_what_there_is(self) -> None:
        for name in ("faces6", Path("faces6"), Path("runs/no/such")):  # as a notebook has them
            with pytest.raises(ModelError, match="neither a folder nor bundled"):
                load(name)


@pytest.mark.parametrize("part", ["dpm", "gradient", "encoder"])
def test_what_couldnt_be_read_again_isnt_written(part: str, tmp_path: Path) -> None:
    """A network of one's own, or none, where the config says another."""
    whole = tiny_model()
    write_model(tmp_path, whole)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    network = None if part == "gradient" else torch.nn.Linear(2, 2)
    other = replace(whole, **{FIELDS.get(part, part): network} if part != "dpm" else {})
    if part == "dpm":
        other.config = replace(other.config, unet=replace(other.config.unet, learn_sigma=True))
    with pytest.raises(ModelError, match="isn't what its config says"):
        write_model(tmp_path, other)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_optional_parts_come_back(tmp_path: Path) -> None:
    model = tiny_model()
    assert model.attributes is not None and model.latent_dpm is not None
    write_model(tmp_path, model)
    assert read_model(tmp_path, "bare").attributes is None
    write_attributes(tmp_path, model.attributes)
    write_latent_dpm(tmp_path, model.latent_dpm, {"images": 3})
    back = read_model(tmp_path, "whole")
    assert back.attributes is not None and back.attributes.names == model.attributes.names
    assert back.latent_dpm is not None and back.latent_dpm.cfg == model.latent_dpm.cfg


def of_z(model: Model, mean: float) -> Model:
    """With statistics of z as an encoder's training records them."""
    model.config = replace(model.config, normalisation=Normalisation((mean,) * 6, (1.0,) * 6))
    return model


@pytest.mark.parametrize("part", ["attributes", "latent_dpm"])
def test_what_was_made_for_another_z_is_refused(part: str, tmp_path: Path) -> None:
    """It comes from the folder, and then the encoder is trained on; or its file is copied."""
    model = of_z(tiny_model(), 0.1)
    assert model.attributes is not None and model.latent_dpm is not None
    write_model(tmp_path, model)
    model.attributes.of = model.config.z_sha
    if part == "attributes":
        write_attributes(tmp_path, model.attributes)
    else:
        write_latent_dpm(tmp_path, model.latent_dpm, {"z": model.config.z_sha})
    read_model(tmp_path, "same")
    write_model(tmp_path, of_z(model, 0.1 + 1e-9))
    with pytest.raises(ModelError, match=rf"{part}\.safetensors was made for another z than that"):
        read_model(tmp_path, "other")


def test_attributes_learnt_while_the_encoder_is_trained_are_not_written(tmp_path: Path) -> None:
    model = of_z(tiny_model(), 0.1)
    learnt = model.attributes
    assert learnt is not None
    learnt.of = model.config.z_sha
    write_model(tmp_path, of_z(model, 0.2))
    with pytest.raises(ModelError, match="made for another z"):
        change_attributes(tmp_path, lambda known: learnt)
    assert not (tmp_path / "attributes.safetensors").exists()
    write_model(tmp_path, of_z(model, 0.1))
    assert change_attributes(tmp_path, lambda known: learnt).of == learnt.of
    written = read_model(tmp_path, "m").attributes
    assert written is not None and written.renamed("smiling", "joy").of == learnt.of
    assert written.without(["smiling"]).merged(learnt).of == learnt.of
    learnt.of = of_z(model, 0.3).config.z_sha
    with pytest.raises(UsageError, match="another z"):
        written.merged(learnt)


def test_a_folder_that_holds_no_model_hides_no_bundled_one(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bundled, told = bundled_models()["faces64"], list[str]()
    (tmp_path / "faces64").mkdir()
    assert model_folder("faces64", told.append) == bundled
    assert told == ["the bundled faces64 is taken: the folder faces64 here holds none of pdae"]
    with pytest.raises(UsageError, match="faces64 is not yours to change"):
        writable_folder("faces64")
    with pytest.raises(UsageError, match="download someone/faces --revision v1 --local-dir mine"):
        writable_folder("someone/faces@v1")
    shutil.copytree(tiny_folder, "faces64", dirs_exist_ok=True)
    assert model_folder("faces64", told.append) == writable_folder("faces64") == Path("faces64")


def test_bundled_models_are_found_beside_the_package() -> None:
    for name, folder in bundled_models().items():
        assert folder.name == name and (folder / "config.json").is_file()


KINDS = Classes(("dark", "bright"), exclusive=True)


def tiny_classifier(model: Model) -> Classifier:
    """With random weights."""
    classifier = new_classifier(model, KINDS, 8, seed=0)
    randomise(classifier.network, 0.1)
    return classifier


class TestClassifier:
    def test_it_comes_back(self, model: Model, tmp_path: Path) -> None:
        classifier = tiny_classifier(model)
        write_classifier(tmp_path, classifier, {}, torch.float32)
        again = read_classifier(tmp_path)
        assert again.config == classifier.config and len(again.weights_sha) == 64
        x, t = torch.randn(2, 3, 32, 32), torch.tensor([3, 900])
        with torch.no_grad():
            assert torch.equal(again.network(x, t), classifier.network(x, t))

    def test_damage_is_found(self, model: Model, tmp_path: Path) -> None:
        write_classifier(tmp_path, tiny_classifier(model), {}, torch.float32)
        path = tmp_path / "classifier.safetensors"
        data = bytearray(path.read_bytes())
        data[-5] ^= 1
        path.write_bytes(bytes(data))
        with pytest.raises(ModelError, match=r"classifier\.safetensors can't be read"):
            read_classifier(tmp_path)

    def test_a_folder_without(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="is no classifier"):
            read_classifier(tmp_path)


def numbers(found: Model | LatentDPM | Classifier | Attributes | Judge) -> list[Tensor]:
    """All that a part of a model, or a judge, computes with."""
    if isinstance(found, Attributes):
        return [found.weight, found.bias]
    if isinstance(found, Model):
        return [one for part in found.networks() for one in part.state_dict().values()]
    network = found.network if isinstance(found, Classifier) else found
    return list(network.state_dict().values())


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("model", lambda path: read_model(path.parent, "m")),
        ("attributes", read_attributes),
        ("latent_dpm", read_latent_dpm),
        ("classifier", lambda path: read_classifier(path.parent)),
        ("judge", lambda path: read_judge(path)[0]),
    ],
)
def test_a_file_replaced_while_it_is_read_is_read_as_it_was(
    name: str, read: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training may save another, or a name be changed: names, SHA and numbers are of one file."""
    folders = tmp_path / "old", tmp_path / "new"
    for seed, folder in enumerate(folders):
        model = tiny_model(seed=seed)
        assert model.attributes is not None and model.latent_dpm is not None
        write_model(folder, model)
        if name == "attributes":
            write_attributes(folder, model.attributes.renamed("smiling", f"smiling {seed}"))
        elif name == "latent_dpm":
            write_latent_dpm(folder, model.latent_dpm, {})
        write_classifier(folder, new_classifier(model, KINDS, 8, seed), {}, torch.float32)
        write_judge(folder / "judge.safetensors", Judge(["Hat"], 32), {"Hat": 0.5 + seed / 4})
    path, other = (one / f"{name}.safetensors" for one in folders)
    before, sha = read(path), sha256(path)
    replaced_once_checked(path, other, monkeypatch)
    found = read(path)
    assert not other.exists() and sha256(path) != sha
    assert all(map(torch.equal, numbers(found), numbers(before)))
    if name == "attributes":
        assert "smiling 0" in found.names
    elif name != "latent_dpm":
        assert found.weights_sha == sha


def replaced_once_checked(path: Path, other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the other take a file's name as soon as its header was checked."""
    check = safe.check

    def meanwhile(*of: Any, **how: Any) -> safe.Header:
        header = check(*of, **how)
        if other.exists():
            other.replace(path)
        return header

    for module in (safe, state):
        monkeypatch.setattr(module, "check", meanwhile)


def test_so_are_values_and_a_runs_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path, tiny_model())
    facts = {"pdae": json.dumps({"of": selftest.made_of(tmp_path), "equal": 1.0})}
    path, other = tmp_path / selftest.VALUES, tmp_path / "other"
    for number, file in enumerate((path, other)):
        file.write_bytes(safe.sealed({"edited": torch.full((2,), float(number))}, facts))
    with monkeypatch.context() as patch:
        replaced_once_checked(path, other, patch)
        found = selftest.read_values(tmp_path)
    assert found is not None and not other.exists() and found[1]["edited"].tolist() == [0, 0]
    trained: list[tuple[Any, ...]] = []
    for number, file in enumerate((path, other)):
        weights = {"w": torch.nn.Parameter(torch.full((2,), float(number)))}
        optimizer = torch.optim.Adam(weights.values())
        weights["w"].sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        trained.append((state.EMA(weights, 1), optimizer))
        state.save_state(file, *trained[-1], {"step": "1", "options": "{}"})
    first = trained[0][0].parameters["w"].tolist()
    replaced_once_checked(path, other, monkeypatch)
    state.load_state(path, *trained[1], {})
    assert not other.exists() and trained[1][0].parameters["w"].tolist() == first


def test_what_is_changed_in_memory_stays_there(tmp_path: Path) -> None:
    """Weights lie in their file until they are used, and nothing is written through them."""
    write_model(tmp_path, tiny_model())
    path = tmp_path / "model.safetensors"
    data, model = path.read_bytes(), read_model(tmp_path, "m")
    with torch.no_grad():
        for one in numbers(model):
            one.add_(1)
    assert path.read_bytes() == data
    assert not any(map(torch.equal, numbers(model), numbers(read_model(tmp_path, "m"))))


def test_a_configs_digest_is_of_what_results_depend_on() -> None:
    """And of what isn't at its default: fields that later versions add leave it as it is."""
    config = tiny_model().config
    for same in ({"licence": "mine"}, {"training": ({"stage": "dpm"},)}, {"source": "elsewhere"}):
        assert replace(config, **same).sha == config.sha
    others = [
        replace(config, prediction="v"),
        replace(config, variance="large"),
        replace(config, clip_sample=not config.clip_sample),
        replace(config, schedule=replace(config.schedule, beta_end=0.03)),
        replace(config, unet=replace(config.unet, time_scale=2.0)),
        replace(config, normalisation=Normalisation((1.0,) * 6, (2.0,) * 6)),
    ]
    assert len({one.sha for one in (config, *others)}) == len(others) + 1
