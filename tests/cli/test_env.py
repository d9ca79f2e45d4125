"""pdae env and pdae selftest: what is told of a machine, and whether it computes as it should."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import BUNDLED, Command
from selftest_values import write_values

import pdae_cli
from pdae_cli.engine.model import Model
from pdae_cli.evaluation import selftest
from pdae_cli.files import sha256


class TestEnv:
    def test_it_tells_versions_and_weights(self, pdae: Command) -> None:
        told = json.loads(pdae("env", "--json").text)
        assert told["version"] == pdae_cli.__version__
        assert told["torch"]["version"] == told["packages"]["torch"] == torch.__version__
        assert told["torch"]["threads"] == 1 and "pytest" not in told["packages"]
        assert told["bundled"]["faces64/model.safetensors"] == sha256(BUNDLED / "model.safetensors")
        text = pdae("env").text
        assert "  torch: " in text and f"version: {pdae_cli.__version__}\n" in text

    def test_no_secret_and_no_home_is_told(
        self, pdae: Command, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        secrets = {
            "HF_TOKEN": "abc-def-ghi", "MLFLOW_TRACKING_PASSWORD": "abc-def-ghi",
            "HF_ENDPOINT": "https://me:abc-def-ghi@mirror.example", "HF_HUB_X": "hf_abcdefghi",
            "https_proxy": "http://abc-def-ghi:1", "WANDB_BASE_URL": "https://x.example?t=abc-def-ghi",
        }  # fmt: skip
        shown = {"HF_HOME": "/home/a/hf:/home/anna", "OMP_NUM_THREADS": "1", "HOME": "/home/a"}
        for name, value in (secrets | shown).items():
            monkeypatch.setenv(name, value)
        text = pdae("env", "--json").text
        told = json.loads(text)["environment"]
        assert {name: told[name] for name in secrets} == dict.fromkeys(secrets, "set")
        assert told["HF_HOME"] == "~/hf:/home/anna" and told["OMP_NUM_THREADS"] == "1"
        assert "ghi" not in text and "/home/a/" not in text and "HOME" not in told

    def test_a_user_without_an_account(
        self, pdae: Command, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As containers start programs."""

        def unknown() -> str:
            raise KeyError("getpwuid(): uid not found: 1234")

        monkeypatch.setattr("getpass.getuser", unknown)
        told = json.loads(pdae("env", "--json").text)
        assert isinstance(told["caches"], dict) and "getpwuid" not in str(told)

    def test_what_is_broken_is_said_in_its_place(
        self, pdae: Command, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("torch", "PIL", "huggingface_hub"):
            monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setattr(
            "importlib.metadata.requires", lambda _: ["none-such", 'x; extra == "y"']
        )
        result = pdae("env", "--json")
        told = json.loads(result.text)
        assert result.code == 0 and result.err == ""
        for name in ("torch", "pillow", "caches"):
            assert told[name].startswith("broken: ModuleNotFoundError: import of "), told[name]
        assert told["packages"] == {
            "none-such": "not installed", "x": "not installed, of the extra y"
        }  # fmt: skip
        assert told["bundled"] and told["python"]


def verdicts(text: str) -> dict[str, dict[str, object]]:
    return {one["check"]: one for one in map(json.loads, text.splitlines())}


class TestSelftest:
    def test_without_values_it_says_what_can_be_said(self, pdae: Command) -> None:
        result = pdae("selftest", "--json")
        told = verdicts(result.text)
        assert result.code == 0, result.err
        assert told["computed"]["verdict"] == "z, x_T, decoded, edited, sampled, on cpu"
        for name in ("twice", "alone and among three"):
            assert told[name]["verdict"] == "equal to the bit" and told[name]["passed"] is True
        assert told["stored values"]["verdict"] == "there are none for these weights"
        assert told["stored values"]["passed"] is told["round trip"]["passed"] is None

    def test_a_model_whose_attributes_were_all_removed_is_tested_without_an_edit(
        self, tiny_folder: Path
    ) -> None:
        model = pdae_cli.load(str(tiny_folder), "cpu")
        assert model.attributes is not None
        model.attributes = model.attributes.without(model.attributes.names)
        computed = selftest.computed(model, selftest.drawn(32, 3)[:1])
        assert "edited" not in computed and "decoded" in computed

    def test_values_tell_other_computations_and_other_weights(
        self, pdae: Command, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Values that are equal, nearly so, wrong, damaged; of a model that has changed since."""
        path, model = tiny_folder / selftest.VALUES, pdae_cli.load(str(tiny_folder), "cpu")
        values = selftest.computed(model, selftest.drawn(32, 3))

        def off(by: float) -> None:
            """What is computed is what was, but for x_T."""

            def computed(model: Model, x: torch.Tensor) -> dict[str, torch.Tensor]:
                return {key: one[: len(x)] + by * (key == "x_T") for key, one in values.items()}

            monkeypatch.setattr(selftest, "computed", computed)

        try:
            off(0)
            write_values(tiny_folder, model)
            assert pdae("selftest").text.endswith("stored values: equal to the bit\n")
            off(3e-5)
            near = pdae("selftest")
            assert near.code == 0 and "values: equal within 0.0001, as expected" in near.text
            off(3e-4)
            far = pdae("selftest", "-q")
            assert far.code == 1 and "stored values: differs: by 0.0003 in x_T" in far.err
            assert far.out == b"" and far.err.endswith("with what pdae env says\n")
            off(float("nan"))
            assert pdae("selftest").code == 1
            content = path.read_bytes()
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
            damaged = pdae("selftest")
            assert damaged.code == 4 and str(path) in damaged.err and damaged.err.count("\n") == 1
            path.write_bytes(content)
            monkeypatch.setattr(selftest, "made_of", lambda folder: {"config.json": "0"})
            assert selftest.read_values(tiny_folder) is None
        finally:
            path.unlink()

    def test_the_bundled_models_values_are_of_its_weights(self) -> None:
        """Stale after new weights: python benchmarks/selftest_values.py weights/faces64."""
        stored = selftest.read_values(BUNDLED)
        assert stored is not None, "run `python benchmarks/selftest_values.py weights/faces64`"
        model = pdae_cli.load("faces64", "cpu")
        ours = selftest.computed(model, selftest.drawn(64, 3)[:1])
        assert selftest.alike("", ours, stored[1], selftest.TOLERANCE).passed
