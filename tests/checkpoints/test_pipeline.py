"""Exports as pipelines that run on pdae, loaded by diffusers itself; they lie as models do."""

from __future__ import annotations

import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign_models  # imports diffusers without a sound
import pytest
import torch
from conftest import Command, picture, tiny_model
from diffusers import DDPMPipeline, DiffusionPipeline
from diffusers.utils import dynamic_modules_utils
from torch import Tensor

from pdae_cli.checkpoints import export as export_module
from pdae_cli.checkpoints import load, write_attributes, write_latent_dpm, write_model
from pdae_cli.checkpoints.export import export
from pdae_cli.engine.config import ModelConfig
from pdae_cli.engine.model import Model
from pdae_cli.errors import ModelError, UsageError
from pdae_cli.pictures.images import to_image, to_pixels

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own
PATCHED: dict[str, Any] = {"patch": 2, "attention": (8,)}


@pytest.fixture(autouse=True)
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where diffusers copies code before it runs it: not where other processes do."""
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole PDAE that diffusers' blocks can't say, exported; of the model nothing stays."""
    source, folder = (tmp_path_factory.mktemp("models") / name for name in ("m", "out"))
    model = tiny_model(**PATCHED)
    assert model.attributes is not None and model.latent_dpm is not None
    write_model(source, model, torch.bfloat16)
    write_attributes(source, model.attributes)
    write_latent_dpm(source, model.latent_dpm, {})
    (source / "LICENSE.md").write_text("Mine.")
    assert export(load(str(source), "cpu"), source, folder) == "DiffusionPipeline"
    shutil.rmtree(source)
    return folder


def pipeline(folder: Path, **more: Any) -> Any:
    where = {"custom_pipeline": str(folder), "trust_remote_code": True}
    return DiffusionPipeline.from_pretrained(str(folder), **where, **more)


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def share(x: Tensor) -> Tensor:
    return (x / 2 + 0.5).clamp(0, 1)


def sampled(model: Model, **more: Any) -> Tensor:
    """The one of our samples that a generator of seed 3 names, in 0 … 1."""
    number = int(torch.randint(1 << 62, (1,), generator=seeded()))
    return share(model.sample([number], inference_steps=2, **more)[0])


def test_codes_and_pictures_are_ours_to_the_bit(exported: Path) -> None:
    pipe, model = pipeline(exported).to("cpu"), load(str(exported), "cpu")
    images = [picture(seed, (40, 32)) for seed in (0, 1)]
    codes, ours = (
        pipe.encode(images, inference_steps=2),
        model.encode(images, inference_steps=2),
    )
    assert codes.x_T is not None and ours.x_T is not None and codes.weights_sha
    assert torch.equal(codes.z, ours.z) and torch.equal(codes.x_T, ours.x_T)
    assert (codes.weights_sha, codes.sampling) == (ours.weights_sha, ours.sampling)
    assert pipe.encode(images, noise=False).x_T is None
    decoded = model.decode(ours)
    assert torch.equal(pipe.decode(codes, "pt").images, share(decoded))
    assert pipe.decode(codes).images == [to_image(pixels) for pixels in to_pixels(decoded)]
    moved, expected = (
        one.manipulate(codes, [("smiling", 0.3)], ["Blond_Hair"]) for one in (pipe, model)
    )
    assert torch.equal(moved.z, expected.z) and not torch.equal(moved.z, codes.z)
    way = torch.from_numpy(pipe.interpolate(codes, 3, "np").images)
    expected_way = share(model.interpolate(codes, 3))
    assert torch.equal(way, expected_way.permute(0, 2, 3, 1))


def test_pictures_are_of_the_generators(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of a generator and then of what it has become, or of one a picture."""
    pipe, model, one = pipeline(exported), load(str(exported), "cpu"), seeded()
    both = pipe(2, seeded(), 2, "pt").images
    assert "4/4" in capsys.readouterr().err  # evaluations, of both
    assert torch.equal(both[:1], sampled(model))
    alone = pipe(1, seeded(), 2, "pt", unconditional=True).images
    assert torch.equal(alone, sampled(model, unconditional=True))
    assert torch.equal(torch.cat([pipe(1, one, 2, "pt").images for _ in range(2)]), both)
    each = pipe(2, [seeded(4), seeded()], 2, "pt").images
    assert torch.equal(each[1:], both[:1]) and not torch.equal(each[:1], both[:1])
    torch.manual_seed(3)  # without one, torch's own
    assert torch.equal(pipe(1, None, 2, "pt").images, both[:1])


def test_it_is_moved_and_saved_as_diffusers_own_are(exported: Path, tmp_path: Path) -> None:
    pipe, saved, image = pipeline(exported), tmp_path / "saved", picture(0)
    assert list(pipe.components) == ["pdae"] and pipe.device.type == "cpu"
    for _ in range(2):
        pipe.save_pretrained(saved, safe_serialization=True, variant=None)
    saved = saved.rename(tmp_path / "elsewhere")
    before, after = ({p.name: p.read_bytes() for p in one.iterdir()} for one in (exported, saved))
    assert before | {"README.md": b""} == after | {"README.md": b""}
    assert {"LICENSE.md", "pipeline.py", "attributes.safetensors"} < after.keys()
    expected = load(str(exported), "cpu", "bfloat16").encode(image, inference_steps=2)
    for low in (pipeline(saved, torch_dtype=torch.bfloat16), pipe.to(torch.bfloat16)):
        assert low.dtype == torch.bfloat16
        assert torch.equal(low.encode(image, inference_steps=2).x_T, expected.x_T)


def test_what_cant_be_is_said(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = pipeline(exported)
    wrong: dict[str, Callable[[], Any]] = {
        "output_type 'latent'": lambda: pipe(output_type="latent"),
        "eta": lambda: pipe(eta=0.5),
        "batch_size is 2, with 1": lambda: pipe(2, [seeded()]),
        "float64": lambda: pipe.to(torch.float64),
        "saved as it is": lambda: pipe.save_pretrained("x", push_to_hub=True),
        "own folder": lambda: pipe.save_pretrained(exported),
        "no device_map": lambda: pipeline(exported, device_map="balanced"),
    }
    for reason, call in wrong.items():
        with pytest.raises(UsageError, match=reason):
            call()
    monkeypatch.setitem(sys.modules, "pdae_cli.checkpoints.pipeline", None)  # not installed
    with pytest.raises(ImportError, match=r"pip install -U 'pdae-cli\[diffusers\]'"):
        runpy.run_path(str(exported / "pipeline.py"))


def test_eps_theta_alone(tmp_path: Path) -> None:
    whole = tiny_model(**PATCHED)
    model = Model(ModelConfig(whole.config.schedule, whole.config.unet), whole.dpm)
    write_model(tmp_path / "m", model)
    assert export(model, tmp_path / "m", tmp_path / "out") == "DiffusionPipeline"
    pipe = pipeline(tmp_path / "out")
    assert torch.equal(pipe(1, seeded(), 2, "pt").images, sampled(model, unconditional=True))
    with pytest.raises(ModelError, match="model out lacks an encoder"):
        pipe.encode(picture(0))


def test_forms(pdae: Command, tiny_folder: Path, tmp_path: Path) -> None:
    """Of two exports into a folder nothing of the first stays; models are never taken away."""
    out, made = tmp_path / "out", []
    for to in ("diffusers", "diffusers-unet", "diffusers"):
        result = pdae("export", "--to", to, "-o", out, "--overwrite")
        assert ("DDPMPipeline" in result.text) == (to == "diffusers-unet"), result.err
        files = (path for path in out.rglob("*") if path.is_file())
        made.append({path.relative_to(out).as_posix(): path.read_bytes() for path in files})
    assert made[0] == made[2] and made[0].keys() & made[1].keys() == {
        "model_index.json", "README.md",
    }  # fmt: skip
    assert "E_phi" in pdae("info", out).text
    refused = pdae("convert", out, "-o", tmp_path / "x")
    assert refused.code == 4 and "model of pdae already" in refused.err
    mine = shutil.copytree(tiny_folder, tmp_path / "mine")
    (tmp_path / "file").write_bytes(b"")
    for to, folder, code in (("diffusers", mine, 2), ("diffusers", tmp_path / "file", 3),
                             ("diffusers-unet", mine, 2), ("diffusers-unet", out, 2)):  # fmt: skip
        result = pdae("export", "-m", out if folder == out else tiny_folder,
                      "--to", to, "-o", folder, "--overwrite")  # fmt: skip
        assert result.code == code, result.err
    assert load(str(mine), "cpu") and load(str(out), "cpu")


def files_of(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("to", ["diffusers", "diffusers-unet"])
class TestOverwriting:
    def write(self, pdae: Command, model: Path, to: str, out: Path) -> str:
        """What an export into a folder says that it refuses; nothing where it is made."""
        result = pdae("export", "-m", model, "--to", to, "-o", out, "--overwrite")
        assert result.code == (2 if result.err else 0)
        return result.err

    def test_pipelines_of_others_stay(
        self, pdae: Command, tiny_folder: Path, tmp_path: Path, to: str
    ) -> None:
        """Also one that diffusers made of an export of ours, and saved in its place."""
        theirs, saved = tmp_path / "theirs", tmp_path / "saved"
        foreign_models.pipeline(theirs, foreign_models.DDPM_STYLE)
        assert not self.write(pdae, tiny_folder, "diffusers-unet", saved)
        DDPMPipeline.from_pretrained(saved).save_pretrained(saved)
        for folder in (theirs, saved):
            for name in ("README.md", "LICENSE.md"):
                (folder / name).write_text("Mine.")
            before = files_of(folder)
            refused = self.write(pdae, tiny_folder, to, folder)
            assert f"{folder} holds model_index.json, which isn't of an export" in refused
            assert files_of(folder) == before

    def test_what_an_export_doesnt_say_it_wrote_stays(
        self, pdae: Command, tiny_folder: Path, tmp_path: Path, to: str
    ) -> None:
        """A licence beside it, attributes that were learnt since, and whatever lies elsewhere."""
        out, other = tmp_path / "out", tmp_path / "README.md"
        assert not self.write(pdae, tiny_folder, to, out)
        (out / "LICENSE.md").write_text("Mine.")
        other.write_text("Mine.")
        index = out / "model_index.json"
        index.write_text(index.read_text().replace('"_pdae": "', '"_pdae": "../README.md '))
        assert not self.write(pdae, tiny_folder, to, out)
        assert (out / "LICENSE.md").read_text() == other.read_text() == "Mine."
        index.write_text(index.read_text().replace("attributes.safetensors ", ""))
        (out / "attributes.safetensors").write_bytes(b"learnt since")
        assert "holds attributes.safetensors" in self.write(pdae, tiny_folder, to, out)
        assert (out / "attributes.safetensors").read_bytes() == b"learnt since"

    def test_one_that_was_killed_is_made_by_the_same_command(
        self, pdae: Command, tiny_folder: Path, tmp_path: Path, to: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        whole, killed = (tmp_path / one / "m" for one in "ab")
        assert not self.write(pdae, tiny_folder, to, whole)
        write, done = export_module.write_bytes, list[Path]()

        def some(path: Path, data: bytes) -> None:
            if len(done) > 1:
                raise KeyboardInterrupt
            done.append(path)
            write(path, data)

        with monkeypatch.context() as patch:
            patch.setattr(export_module, "write_bytes", some)
            assert pdae("export", "-m", tiny_folder, "--to", to, "-o", killed).code == 130
        assert done and not self.write(pdae, tiny_folder, to, killed)
        assert files_of(killed) == files_of(whole)
