"""Hostile model folders and training states: one line each, before anything is used."""

from __future__ import annotations

import errno
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from conftest import BUNDLED, tiny_model
from hostile import deep, refused
from torch import Tensor

from pdae_cli.checkpoints import load, native, read_model, write_model
from pdae_cli.engine import tensors as safe
from pdae_cli.errors import InputError, ModelError, StorageError
from pdae_cli.files import sha256, write_bytes
from pdae_cli.training.state import EMA, load_state, read_facts

Json = dict[str, Any]
LATENT: Json = {"z_dim": 6, "width": 16, "layers": 3, "dropout": 0.0}


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be damaged."""
    shutil.copytree(tiny_folder, tmp_path / "m")
    return tmp_path / "m"


def changed(path: str, value: object) -> Callable[[Json], Any]:
    """An edit of JSON: the field at a dotted path gets a value."""

    def change(content: Json) -> None:
        *above, last = path.split(".")
        for key in above:
            content = content[key]
        content[last] = value

    return change


CONFIGS: dict[str, tuple[Callable[[Json], Any], str]] = {
    "another format": (changed("format", "pdae-model-9"), "this version reads"),
    "unknown field": (changed("trust_remote_code", True), "unknown fields: trust_remote_code"),
    "a field that is missing": (lambda config: config["unet"].pop("groups"), "lacks groups"),
    "an odd picture": (changed("unet.image_size", 33), "multiple"),
    "another width": (changed("unet.base_channels", 16), "is needed"),
    "unet is a list": (changed("unet", []), "not an object"),
    "a huge width": (changed("unet.base_channels", 2**40), "base channels must be"),
    "a large width": (changed("unet.base_channels", 2**16), "is needed"),
    "a width as text": (changed("unet.base_channels", "8"), "base_channels is '8'"),
    "a negative width": (changed("unet.base_channels", -8), "base channels must be"),
    "a huge picture": (changed("unet.image_size", 2**40), "image size must be"),
    "a million channels": (changed("unet.channels", 10**6), "is needed"),
    "a million blocks": (changed("unet.blocks", 10**6), "blocks must be"),
    "65 blocks in each of two levels": (changed("unet.blocks", 65), "blocks must be 1 to 64"),
    "a million levels": (changed("unet.multipliers", [1.0] * 10**5), "16 levels"),
    "as many blocks as can be": (changed("unet.blocks", 64), "is needed"),
    "huge z": (changed("encoder.z_dim", 10**9), "z dim must be"),
    "no z": (changed("encoder.z_dim", 0), "z dim must be"),
    "no picture": (changed("encoder.image_size", 0), "image size must be"),
    "an encoder of no width": (changed("encoder.widths", [32, 0, 32]), "widths must be"),
    "a wide encoder": (changed("encoder.widths", [2**16] * 3), "is needed"),
    "a tall encoder": (changed("encoder.widths", [32] * 10**5), "convolutions"),
    "a billion timesteps": (changed("schedule.timesteps", 10**9), "timesteps must be"),
    "unknown betas": (changed("schedule.betas", "__import__"), "betas"),
    "betas of nothing": (changed("schedule.beta_start", 0), "beta start must be"),
    "unknown prediction": (changed("prediction", "magic"), "prediction"),
    "unknown variance": (changed("variance", "magic"), "unknown variance"),
    "one mean too few": (changed("normalisation.mean", [0.0] * 5), "5 means"),
    "statistics of other z": (
        changed("normalisation", {"mean": [0.0] * 5, "std": [1.0] * 5}),
        "statistics of 5",
    ),
    "a deviation of zero": (changed("normalisation.std", [0.0] * 6), "std must be"),
    "a mean that is infinite": (changed("normalisation.mean", [float("inf")] * 6), "Infinity"),
    "means as texts": (changed("normalisation.mean", ["0"] * 6), "mean[] is '0'"),
    "another digest": (changed("weights_sha256", ["0" * 64]), "its config records 000000000000"),
    "no digest": (lambda config: config.pop("weights_sha256"), "not a list"),
    "no digests": (changed("weights_sha256", []), "its config records none"),
    "a digest that is a number": (changed("weights_sha256", 7), "not a list"),
    "digests that are lists": (changed("weights_sha256", [[7]]), "config records"),
    "a licence that steers": (changed("licence", ["\x1b[2J"]), r"\x1b[2J"),
}
TEXTS = {
    "empty": ("", "no JSON"),
    "cut": ('{"format"', "no JSON"),
    "a list": ("[]", "not an object"),
    "deep": (deep(), "too deep"),
    "deep objects": (deep('{"a":'), "too deep"),
    "twice": ('{"format": "pdae-model-1", "format": "pdae-model-1"}', "twice"),
    "5 MiB": (" " * (5 << 20), "not a model of pdae"),
}


class TestConfigs:
    @pytest.mark.parametrize(("change", "words"), CONFIGS.values(), ids=CONFIGS.keys())
    def test_fields(self, folder: Path, change: Callable[[Json], Any], words: str) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))
        assert words in refused(lambda: load(str(folder)), ModelError, str(folder))

    @pytest.mark.parametrize(
        ("gone", "words"), [("model.safetensors", "incomplete"), ("config.json", "not a model")]
    )
    def test_a_file_that_is_gone(self, folder: Path, gone: str, words: str) -> None:
        (folder / gone).unlink()
        assert words in refused(lambda: load(str(folder)), ModelError, str(folder))

    @pytest.mark.parametrize(("text", "words"), TEXTS.values(), ids=TEXTS.keys())
    def test_texts(self, folder: Path, text: str, words: str) -> None:
        (folder / "config.json").write_text(text)
        assert words in refused(lambda: load(str(folder)), ModelError, str(folder))


class TestWeights:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda t: t.popitem(), "is needed"),
            (lambda t: t.update(another=torch.ones(1)), "'another' has shape (1,)"),
            (lambda t: t.update({"dpm.input.conv.bias": torch.ones(1)}), "is needed"),
            (lambda t: t.update({"dpm.input.conv.bias": torch.full((8,), torch.nan)}), "finite"),
            (lambda t: t["dpm.input.conv.bias"].fill_(torch.inf), "finite"),
            (lambda t: t.update({k: v.int() for k, v in t.items()}), "I32, not floating"),
        ],
        ids=["missing", "left over", "shape", "NaN", "infinity", "integers"],
    )
    def test_others_than_the_config_describes(
        self, folder: Path, change: Callable[[dict[str, Tensor]], Any], words: str
    ) -> None:
        tensors = safetensors.torch.load_file(folder / "model.safetensors")
        change(tensors)
        safetensors.torch.save_file(tensors, folder / "model.safetensors")
        config = json.loads((folder / "config.json").read_text())
        config["weights_sha256"] = [sha256(folder / "model.safetensors")]
        (folder / "config.json").write_text(json.dumps(config))
        assert words in refused(lambda: load(str(folder)), ModelError, "model.safetensors")


def attributes(**changes: object) -> str:
    return json.dumps({"names": ["Hat", "Old"], "facts": {}} | changes)


ROWS = {"weight": torch.ones(2, 6), "bias": torch.ones(2)}
ATTRIBUTES: dict[str, tuple[str, dict[str, Tensor], str]] = {
    "a name twice": (attributes(names=["Hat", "Hat"]), ROWS, "aren't different"),
    "names that read alike": (attributes(names=["Hat", "hat "]), ROWS, "aren't different"),
    "a name too few": (attributes(names=["Hat"]), ROWS, "is needed"),
    "a million names": (attributes(names=[str(n) for n in range(10**5)]), ROWS, "is needed"),
    "names as numbers": (attributes(names=[1, 2]), ROWS, "printable texts"),
    "names as a text": (attributes(names="HO"), ROWS, "printable texts"),
    "no names": (json.dumps({}), ROWS, "printable texts"),
    "an empty name": (attributes(names=["", "Old"]), ROWS, "printable texts"),
    "a name that steers": (attributes(names=["\x1b[2J", "Old"]), ROWS, "printable texts"),
    "a name turned round": (attributes(names=["\u202eHat", "Old"]), ROWS, "printable texts"),
    "a name of a million": (attributes(names=["H" * 10**5, "Old"]), ROWS, "printable texts"),
    "facts of other names": (attributes(facts={"Tie": {}}), ROWS, "facts"),
    "facts as a list": (attributes(facts=[]), ROWS, "facts"),
    "deep": (deep(), ROWS, "too deep"),
    "NaN": ('{"names": NaN}', ROWS, "the number NaN"),
    "2 MiB of facts": (attributes(facts={"Hat": "x" * (2 << 20)}), ROWS, "longer than 1 MiB"),
    "of another z": (attributes(), ROWS | {"weight": torch.ones(2, 7)}, "is needed"),
    "of integers": (attributes(), {k: v.int() for k, v in ROWS.items()}, "I32"),
    "of NaN": (attributes(), ROWS | {"bias": torch.full((2,), torch.nan)}, "finite"),
    "another tensor": (attributes(), ROWS | {"more": torch.ones(1)}, "is needed"),
}
LATENTS: dict[str, tuple[object, str]] = {
    "a billion wide": (LATENT | {"width": 10**9}, "width must be"),
    "of 2^62": (LATENT | {"width": 1 << 62}, "can't be read"),
    "of no width": (LATENT | {"width": 0}, "width must be"),
    "of negative width": (LATENT | {"width": -16}, "width must be"),
    "a billion layers": (LATENT | {"layers": 10**9}, "layers must be 2 to 256"),
    "layers as text": (LATENT | {"layers": "3"}, "layers is '3'"),
    "dropout of seven": (LATENT | {"dropout": 7.0}, "dropout"),
    "of another z": (LATENT | {"z_dim": 7}, "the model's has 6"),
    "unknown field": (LATENT | {"device": "cuda"}, "unknown fields: device"),
    "no width": ({"z_dim": 6, "layers": 3, "dropout": 0.0}, "lacks width"),
    "a list": ([], "is a list"),
}


class TestOptionalParts:
    @pytest.mark.parametrize(
        ("facts", "tensors", "words"), ATTRIBUTES.values(), ids=ATTRIBUTES.keys()
    )
    def test_attributes(
        self, folder: Path, facts: str, tensors: dict[str, Tensor], words: str
    ) -> None:
        data = safe.sealed(tensors, {"pdae": facts})
        (folder / "attributes.safetensors").write_bytes(data)
        assert words in refused(lambda: load(str(folder)), ModelError, "attributes.safetensors")

    def test_the_same_without_the_change_is_read(self, folder: Path) -> None:
        data = safe.sealed(ROWS, {"pdae": attributes()})
        (folder / "attributes.safetensors").write_bytes(data)
        found = load(str(folder)).attributes
        assert found is not None and found.names == ["Hat", "Old"]

    @pytest.mark.parametrize(("facts", "words"), LATENTS.values(), ids=LATENTS.keys())
    def test_latent_dpms(self, folder: Path, facts: object, words: str) -> None:
        path = folder / "latent_dpm.safetensors"
        tensors = safetensors.torch.load_file(path)
        path.write_bytes(safe.sealed(tensors, {"pdae": json.dumps(facts), "training": "{}"}))
        assert words in refused(lambda: load(str(folder)), ModelError, path.name)

    @pytest.mark.parametrize("name", ["attributes", "latent_dpm"])
    def test_a_broken_seal(self, folder: Path, name: str) -> None:
        path = folder / f"{name}.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        assert "damaged or edited" in refused(lambda: load(str(folder)), ModelError, path.name)


class TestDigests:
    """R9: every damaged byte of a model's folder is noticed before use."""

    def test_a_thousand_flips_of_weights(self, folder: Path) -> None:
        """Of the header and of the body, as the config's digest tells."""
        path, chance = folder / "model.safetensors", random.Random(0)
        data = bytearray(path.read_bytes())
        header = 8 + int.from_bytes(data[:8], "little")
        places = [chance.randrange(header) for _ in range(200)]
        places += [chance.randrange(header, len(data)) for _ in range(1000)]
        for place in places:
            flip = chance.randrange(1, 256)
            data[place] ^= flip
            path.write_bytes(data)
            refused(lambda: read_model(folder, "m"), ModelError, path.name)
            data[place] ^= flip
        path.write_bytes(data)
        read_model(folder, "m")

    def test_what_we_write_and_bundle_records_its_digests(self, folder: Path) -> None:
        for model in (folder, BUNDLED):
            assert "weights_sha256" in json.loads((model / "config.json").read_text())
            for name in ("attributes", "latent_dpm"):
                assert "sha256" in safe.check(model / f"{name}.safetensors").metadata

    def test_a_process_killed_between_its_two_files_leaves_a_model(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The new config with the old weights, and with the new ones."""
        old, new = read_model(folder, "m"), tiny_model(seed=1)

        def killed(path: Path, data: bytes) -> None:
            write_bytes(path, data)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(native, "write_bytes", killed)
            write_model(folder, new)
        assert read_model(folder, "m").weights_sha == old.weights_sha
        write_model(folder, new)
        written = read_model(folder, "m").weights_sha
        recorded = json.loads((folder / "config.json").read_text())["weights_sha256"]
        assert recorded == [written] and written != old.weights_sha

    def test_a_model_whose_place_another_cannot_take_is_left_whole(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The disk is full behind half of the new weights."""
        (folder / "LICENSE.md").write_text("Of the model before.")
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        parts = safe.parts

        def some(*of: Any) -> Iterator[bytes]:
            yield next(iter(parts(*of)))
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(safe, "parts", some)
        other = tiny_model(seed=1)
        other.attributes = other.latent_dpm = None
        with pytest.raises(StorageError, match="make room"):
            native.write_whole(folder, other, torch.float32, {}, {"LICENSE.md": b"Of the other."})
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


class TestTrainingState:
    @pytest.mark.parametrize(
        ("facts", "words"),
        [
            ({}, "lack the step"),
            ({"step": "1"}, "lack 'options'"),
            ({"step": "-1", "options": "{}"}, "lack the step"),
            ({"step": "9" * 5000, "options": "{}"}, "lack the step"),
            ({"step": "1", "options": "[]"}, "is a list"),
            ({"step": "1", "options": deep()}, "too deep"),
            ({"step": "1", "options": "{}", "more": ""}, "unknown entry 'more'"),
        ],
    )
    def test_facts(self, tmp_path: Path, facts: dict[str, str], words: str) -> None:
        path = tmp_path / "dpm.safetensors"
        safetensors.torch.save_file({"x": torch.ones(1)}, path, metadata=facts)
        assert words in refused(lambda: read_facts(path), InputError, "dpm.safetensors")

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"weight/w": torch.ones(3)}, "is needed"),
            ({"ema/w": torch.full((2,), torch.inf)}, "finite"),
            ({"exp_avg/w": torch.ones(2, dtype=torch.int32)}, "I32"),
            ({"weight/v": torch.ones(2)}, "is needed"),
        ],
        ids=["shape", "infinite", "integers", "another"],
    )
    def test_tensors(self, tmp_path: Path, change: dict[str, Tensor], words: str) -> None:
        path = tmp_path / "dpm.safetensors"
        parameters = {"w": torch.nn.Parameter(torch.zeros(2))}
        kinds = ("weight", "ema", "exp_avg", "exp_avg_sq")
        state = {f"{kind}/w": torch.ones(2) for kind in kinds} | {"step/w": torch.tensor(1.0)}
        optimizer, average = torch.optim.Adam(parameters.values()), EMA(parameters, 1)
        facts, run = {"step": "1", "options": "{}"}, (path, average, optimizer, {})
        safetensors.torch.save_file(state | change, path, metadata=facts)
        line = refused(lambda: load_state(*run), InputError, path.name)
        assert words in line and parameters["w"].sum() == 0
        safetensors.torch.save_file(state, path, metadata=facts)
        assert load_state(*run) == 1 and parameters["w"].sum() == 2
