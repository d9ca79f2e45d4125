"""What is written to disk: codes, models, and that nothing is ever half-written."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import tiny_model
from safetensors.torch import load_file, save_file

from pdae_cli.checkpoints import bundled_models, load, read_model, write_model
from pdae_cli.checkpoints.native import write_attributes, write_latent_dpm
from pdae_cli.diffusion.noise import generator, normal
from pdae_cli.engine.codes import Codes, read_codes, stack, to_bytes
from pdae_cli.engine.config import from_json, to_json
from pdae_cli.errors import InputError, ModelError
from pdae_cli.files import replacing, write_bytes


def codes_of(n: int, **changes: object) -> Codes:
    values = Codes(
        z=torch.randn(n, 6),
        x_T=torch.randn(n, 3, 4, 4),
        sources=tuple(f"{k}.png" for k in range(n)),
        digests=tuple(f"{k:064}" for k in range(n)),
        model="tiny",
        digest="d",
        sampling={"inference_steps": 5},
    )
    return replace(values, **changes)  # type: ignore[arg-type]


class TestCodes:
    def test_round_trip(self) -> None:
        codes = codes_of(3)
        back = read_codes(io.BytesIO(to_bytes(codes)), "it")
        assert codes.x_T is not None and back.x_T is not None
        assert torch.equal(back.z, codes.z) and torch.equal(back.x_T, codes.x_T)
        assert back.sources == codes.sources and back.sampling == codes.sampling
        assert (back.model, back.digest) == ("tiny", "d")

    def test_z_alone(self) -> None:
        assert read_codes(io.BytesIO(to_bytes(codes_of(1, x_T=None))), "it").x_T is None

    def test_stack_is_the_inverse_of_rows(self) -> None:
        codes = codes_of(3)
        again = stack([codes[row : row + 1] for row in range(3)])
        assert torch.equal(again.z, codes.z) and again.sources == codes.sources
        with pytest.raises(InputError, match="x_T"):
            stack([codes, codes_of(1, x_T=None)])

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"{",
            b"\xff" * 16,
            (10**12).to_bytes(8, "little") + b"{}",
            to_bytes(codes_of(1))[:-20],
            to_bytes(codes_of(2)).replace(b"pdae-codes-2", b"pdae-codes-9"),
            to_bytes(codes_of(1, z=torch.full((1, 6), float("nan")))),
            to_bytes(codes_of(1, z=torch.zeros(6)[None, None])),
        ],
        ids=["empty", "brace", "noise", "huge header", "cut", "format", "nan", "shape"],
    )
    def test_damaged_files_are_one_line(self, data: bytes) -> None:
        with pytest.raises(InputError, match="it: ") as caught:
            read_codes(io.BytesIO(data), "it")
        assert "\n" not in str(caught.value)

    def test_foreign_safetensors_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "x.safetensors"
        save_file({"z": torch.zeros(1, 6)}, path)
        with pytest.raises(InputError, match="not a codes file"):
            read_codes(path, str(path))


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
        assert once.digest == twice.digest

    def test_config_is_json_and_back(self) -> None:
        config = tiny_model().config
        assert from_json(json.loads(json.dumps(to_json(config)))) == config

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda c: c.update(format="x"), "this version reads"),
            (lambda c: c["unet"].pop("groups"), "lacks groups"),
            (lambda c: c["unet"].update(extra=1), "unknown fields: extra"),
            (lambda c: c["unet"].update(blocks="2"), "config.unet.blocks is '2'"),
            (lambda c: c["unet"].update(image_size=33), "multiple"),
            (lambda c: c["unet"].update(base_channels=16), "is needed"),
            (lambda c: c["unet"].update(base_channels=2**40), "can't be read"),
        ],
    )
    def test_wrong_configs_are_named(
        self, tiny_folder: Path, tmp_path: Path, change, message
    ) -> None:  # type: ignore[no-untyped-def]
        folder = tmp_path / "m"
        shutil.copytree(tiny_folder, folder)
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ModelError, match=message):
            load(str(folder))

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda f: (f / "model.safetensors").unlink(), "incomplete"),
            (lambda f: (f / "model.safetensors").write_bytes(b"x" * 100), "can't be read"),
            (lambda f: (f / "config.json").write_text("{"), "can't be read"),
            (lambda f: (f / "config.json").unlink(), "not a model"),
            (lambda f: (f / "attributes.safetensors").write_bytes(b""), "attributes"),
        ],
    )
    def test_damaged_models_are_one_line(
        self, tiny_folder: Path, tmp_path: Path, damage, message
    ) -> None:  # type: ignore[no-untyped-def]
        folder = tmp_path / "m"
        shutil.copytree(tiny_folder, folder)
        damage(folder)
        with pytest.raises(ModelError, match=message):
            load(str(folder))

    def test_weights_that_arent_finite_are_refused(self, tiny_folder: Path, tmp_path: Path) -> None:
        folder = tmp_path / "m"
        shutil.copytree(tiny_folder, folder)
        tensors = load_file(folder / "model.safetensors")
        next(iter(tensors.values())).fill_(float("inf"))
        save_file(tensors, folder / "model.safetensors")
        config = json.loads((folder / "config.json").read_text())
        del config["weights_sha256"]  # older models have none
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ModelError, match="finite"):
            load(str(folder))

    def test_unknown_names_say_what_there_is(self) -> None:
        with pytest.raises(ModelError, match="neither a folder nor bundled"):
            load("faces6")

    def test_a_hub_repository_loads_from_the_cache(
        self, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The Hub's own cache layout on disk, read offline through huggingface_hub."""
        from huggingface_hub import constants

        revision = "a" * 40
        repository = tmp_path / "models--someone--faces"
        snapshot = repository / "snapshots" / revision
        shutil.copytree(tiny_folder, snapshot)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(revision)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert load("someone/faces").name == "someone/faces"
        assert load(f"someone/faces@{revision}").digest == load(str(tiny_folder)).digest
        with pytest.raises(ModelError, match="Hub"):
            load("someone/else")


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


def test_bundled_models_are_found_beside_the_package() -> None:
    for name, folder in bundled_models().items():
        assert folder.name == name and (folder / "config.json").is_file()


class TestAtomicWrites:
    def test_a_failure_leaves_the_old_file_and_no_other(self, tmp_path: Path) -> None:
        path = tmp_path / "it"
        write_bytes(path, b"old")
        with pytest.raises(RuntimeError), replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError
        assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]

    def test_what_dead_processes_left_is_removed(self, tmp_path: Path) -> None:
        code = (
            "import os, sys; from pathlib import Path; from pdae_cli.files import replacing\n"
            "with replacing(Path(sys.argv[1])) as temporary:\n"
            "    temporary.write_bytes(b'half'); os.kill(os.getpid(), 9)"
        )
        path = tmp_path / "x.bin"
        for _ in range(2):
            subprocess.run([sys.executable, "-c", code, str(path)])
            assert len(list(tmp_path.iterdir())) == 1
        with replacing(path) as mine:
            mine.write_bytes(b"whole")
            write_bytes(tmp_path / "y.bin", b"")
            assert len(list(tmp_path.iterdir())) == 2  # the dead one's is gone, mine is there
        assert sorted(p.name for p in tmp_path.iterdir()) == ["x.bin", "y.bin"]

    def test_unwritable_places_are_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match="can't write"):
            write_bytes(tmp_path / "file" / "below", b"")
        (tmp_path / "folder").mkdir()
        with pytest.raises(InputError, match="can't write"):
            write_bytes(tmp_path / "folder", b"")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]

    def test_others_may_read_what_they_may_read_of_this_user(self, tmp_path: Path) -> None:
        """safetensors' own writing leaves files that nobody else can read."""
        write_model(tmp_path, tiny_model())
        (tmp_path / "plain").touch()
        usual = (tmp_path / "plain").stat().st_mode
        assert {path.stat().st_mode for path in tmp_path.iterdir()} == {usual}

    def test_a_claimed_name_is_written_as_any_other(self, tmp_path: Path) -> None:
        """As files are that several processes share out among them."""
        (tmp_path / "plain").touch()
        write_bytes(tmp_path / "folder" / "file", b"all", claimed=True)
        write_bytes(tmp_path / "folder" / "file", b"new", claimed=True)
        assert [path.name for path in (tmp_path / "folder").iterdir()] == ["file"]
        assert (tmp_path / "folder" / "file").read_bytes() == b"new"
        usual = (tmp_path / "plain").stat().st_mode
        assert (tmp_path / "folder" / "file").stat().st_mode == usual


class TestNoise:
    def test_streams_are_named_by_seed_and_key(self) -> None:
        same = [torch.randn(4, generator=generator(1, "a", 2)) for _ in range(2)]
        assert torch.equal(*same)
        for other in (generator(2, "a", 2), generator(1, "b", 2), generator(1, "a", 3)):
            assert not torch.equal(same[0], torch.randn(4, generator=other))

    def test_rows_are_their_own(self) -> None:
        both = normal([generator(0, "a"), generator(0, "b")], (2, 3))
        assert torch.equal(both[1:], normal([generator(0, "b")], (2, 3)))
