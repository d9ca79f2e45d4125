"""Weights as they lie around: shards, variants, wrappers, prefixes, and what isn't weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign_models
import numpy
import pytest
import torch
from conftest import ROOT, Command, read_pickles_here
from foreign_models import ADM_STYLE, UNet2DModel, converted, guided, pipeline, states
from safetensors.torch import load_file, save_file
from torch import Tensor

from pdae_cli.checkpoints import load
from pdae_cli.checkpoints.convert import read_foreign
from pdae_cli.checkpoints.pickles import read_pickle
from pdae_cli.checkpoints.reading import weights_among
from pdae_cli.checkpoints.source import Source
from pdae_cli.engine.model import Model
from pdae_cli.errors import ModelError

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own
quick = foreign_models.quick
WEIGHTS = "diffusion_pytorch_model"


def same(model: Model, network: Any) -> bool:
    """Whether eps_theta gives the network's own output."""
    x, t = states(model), torch.tensor([3, 801])
    with torch.no_grad():
        expected = network(x, t)
        expected = getattr(expected, "sample", expected)
        return torch.allclose(model.dpm(x, t), expected, atol=2e-5)


@pytest.fixture
def pipe(tmp_path: Path) -> UNet2DModel:
    return pipeline(tmp_path, ADM_STYLE)


def saved(unet: UNet2DModel, folder: Path, **options: Any) -> Path:
    """The pipeline's network, saved anew in another way."""
    for path in (folder / "unet").glob(f"{WEIGHTS}*"):
        path.unlink()
    unet.save_pretrained(str(folder / "unet"), **options)
    return folder / "unet"


class TestFiles:
    @pytest.mark.parametrize(
        "options",
        [
            {"max_shard_size": "100KB"},
            {"max_shard_size": "100KB", "safe_serialization": False},
            {"variant": "fp16"},
            {"variant": "fp16", "max_shard_size": "100KB"},
            {"variant": "non_ema", "safe_serialization": False},
        ],
        ids=str,
    )
    def test_as_diffusers_saves_them(
        self, pipe: UNet2DModel, tmp_path: Path, options: dict[str, Any]
    ) -> None:
        folder = saved(pipe, tmp_path, **options)
        assert not (folder / f"{WEIGHTS}.safetensors").exists()
        assert same(converted(tmp_path), pipe)

    def test_one_of_several_variants_isnt_chosen(self, pipe: UNet2DModel, tmp_path: Path) -> None:
        folder = saved(pipe, tmp_path, variant="fp16")
        one = folder / f"{WEIGHTS}.fp16.safetensors"
        other = shutil.copy(one, folder / f"{WEIGHTS}.bf16.safetensors")
        with pytest.raises(ModelError, match=r"several variants, 'bf16', 'fp16'"):
            converted(tmp_path)
        Path(other).rename(folder / f"{WEIGHTS}.safetensors")
        one.write_text("not read, since there are others")
        assert same(converted(tmp_path), pipe)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda places: places.popitem(), "don't go together"),
            (lambda places: places.update(more=next(iter(places.values()))), "don't go together"),
            (lambda places: places.update(more="lost.safetensors"), "No such file"),
            (lambda places: places.update(more="../up.safetensors"), "no file of weights in its"),
            (lambda places: places.update(more="/etc/x.safetensors"), "no file of weights in its"),
            (lambda places: places.update(more=f"{WEIGHTS}.safetensors.index.json"), "no file of"),
            (lambda places: places.update(more={"weight_map": {}}), "no index"),
            (lambda places: places.update({f"t{n}": f"{n}.bin" for n in range(2000)}), "1000 can"),
            (lambda places: places.clear(), "no index"),
        ],
    )
    def test_an_index_that_cannot_be(
        self,
        pipe: UNet2DModel,
        tmp_path: Path,
        change: Callable[[dict[str, Any]], Any],
        words: str,
    ) -> None:
        index = saved(pipe, tmp_path, max_shard_size="100KB") / f"{WEIGHTS}.safetensors.index.json"
        content = json.loads(index.read_text())
        change(content["weight_map"])
        index.write_text(json.dumps(content))
        with pytest.raises(ModelError, match=words):
            converted(tmp_path)

    @pytest.mark.parametrize(
        ("files", "wanted"),
        [
            ((".safetensors", ".bin", ".fp16.safetensors"), 1),
            (("-00001-of-00002.safetensors", "-00002-of-00002.safetensors",
              ".safetensors.index.json", ".bin"), 3),
            ((".fp16.bin", ".fp16.safetensors", ".fp16-00001-of-00001.bin"), 1),
            ((".fp16-00001-of-00001.safetensors", ".safetensors.fp16.index.json", ".fp16.bin"), 2),
            ((".bin", ".fp16.safetensors"), 1),
            (("_other.safetensors",), 0),
        ],
    )  # fmt: skip
    def test_what_the_hub_is_asked_for(self, files: tuple[str, ...], wanted: int) -> None:
        """The best, and of shards all, which is what is read then."""
        stem = f"unet/{WEIGHTS}"
        names = [f"{stem}{file}" for file in files]
        found = weights_among(names, stem, "someone/ddpm")
        best = [n for n in names if "safetensors" in n] if wanted > 1 else found
        assert sorted(found) == sorted(best) and len(found) == wanted
        assert wanted < 2 or found[0].endswith(".json")


Wrapping = Callable[[dict[str, Tensor]], dict[str, Any]]


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in state.items()}


def zeros(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.zeros_like(value) for name, value in state.items()}


WRAPPINGS: dict[str, Wrapping] = {
    "module.": lambda s: prefixed("module.", s),
    "module._orig_mod.": lambda s: prefixed("module._orig_mod.", s),
    "_orig_mod.module.model.": lambda s: prefixed("_orig_mod.module.model.", s),
    "compiled within": lambda s: {n.replace(".", "._orig_mod.", 1): v for n, v in s.items()},
    "state_dict": lambda s: {"state_dict": s, "epoch": 3, "best": numpy.float64(0.5)},
    "model": lambda s: {"model": prefixed("module.", s), "optimizer": {"lr": 1e-4}},
    "params_ema": lambda s: {"params": zeros(s), "params_ema": s},
    "ema beside": lambda s: {"model": zeros(s), "ema": s, "step": torch.tensor(3)},
    "averaged by prefix": lambda s: prefixed("model.", zeros(s)) | prefixed("ema_model.", s),
    "buffers beside": lambda s: prefixed("denoise_fn.", s) | {"betas": torch.ones(1000)},
    "deep": lambda s: {"checkpoint": {"state_dict": {"model": s}}},
}


class TestWrappers:
    @pytest.mark.parametrize("name", WRAPPINGS)
    def test_guided_diffusion(self, name: str, tmp_path: Path) -> None:
        network = guided(tmp_path).dpm
        state = torch.load(tmp_path / "ema.pt", weights_only=True)
        torch.save(WRAPPINGS[name](state), tmp_path / "ema.pt")
        assert same(converted(tmp_path), network)
        source = Source(tmp_path / "ema.pt", tmp_path / "model_flags.json")
        assert read_foreign(source).family == "guided-diffusion"

    @pytest.mark.parametrize("name", ["module.", "_orig_mod.module.model.", "ema beside", "deep"])
    def test_diffusers(self, name: str, pipe: UNet2DModel, tmp_path: Path) -> None:
        path = tmp_path / "unet" / f"{WEIGHTS}.safetensors"
        torch.save(WRAPPINGS[name](load_file(path)), path.with_suffix(".bin"))
        path.unlink()
        assert same(converted(tmp_path), pipe)

    def test_several_networks_of_one_kind_are_named(self, tmp_path: Path) -> None:
        guided(tmp_path)
        state = torch.load(tmp_path / "ema.pt", weights_only=True)
        torch.save({"first": state, "second": state}, tmp_path / "ema.pt")
        with pytest.raises(ModelError, match=r"several networks, below 'first\.', 'second\.'"):
            converted(tmp_path)
        torch.save(
            state | {f"module.{name}": one for name, one in state.items()}, tmp_path / "ema.pt"
        )
        with pytest.raises(ModelError, match=r"several networks, below '', 'module\.'"):
            converted(tmp_path)

    def test_what_is_left_is_told(self, tmp_path: Path) -> None:
        guided(tmp_path)
        assert len(read_foreign(Source(tmp_path)).rows) == 1  # and of nothing, nothing
        state = torch.load(tmp_path / "ema.pt", weights_only=True)
        torch.save({"ema": state, "model": state}, tmp_path / "ema.pt")
        rows = read_foreign(Source(tmp_path)).rows
        assert any("not below ema." in r.what and str(len(state)) in r.ignored for r in rows)

    def test_safetensors_in_a_torch_files_place(self, tmp_path: Path) -> None:
        network = guided(tmp_path).dpm
        state = torch.load(tmp_path / "ema.pt", weights_only=True)
        save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "ema.safetensors")
        (tmp_path / "ema.pt").unlink()
        assert same(converted(tmp_path), network)


class TestTrainingCheckpoints:
    def test_unet_ema_with_a_schedulers_config(self, pipe: UNet2DModel, tmp_path: Path) -> None:
        folder = tmp_path / "run" / "checkpoint-500"
        pipe.save_pretrained(str(folder / "unet_ema"))
        pipe.save_pretrained(str(folder / "unet"))
        config = tmp_path / "scheduler" / "scheduler_config.json"
        assert same(read_foreign(Source(folder / "unet_ema", config)).model, pipe)
        with pytest.raises(ModelError, match=r"unet_ema .*with --config"):
            converted(folder)
        with pytest.raises(ModelError, match="pass it as --config"):
            converted(folder / "unet_ema")
        with pytest.raises(ModelError, match="_class_name 'UNet2DModel'"):
            read_foreign(Source(folder / "unet_ema", folder / "unet" / "config.json"))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 454889472\n"
PAGE = b"\xef\xbb\xbf\r\n <!DOCTYPE html><html><title>Quota exceeded</title></html>"
XML = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>"


class TestNotTheWeights:
    @pytest.mark.parametrize(
        ("content", "words"), [(POINTER, "Git-LFS"), (PAGE, "web page"), (XML, "answer")]
    )
    @pytest.mark.parametrize(
        "place", ["unet/diffusion_pytorch_model.safetensors", "unet/config.json", "x.pt", "x.ckpt"]
    )
    def test_foreign(
        self, pipe: UNet2DModel, tmp_path: Path, place: str, content: bytes, words: str
    ) -> None:
        (tmp_path / place).write_bytes(content)
        with pytest.raises(ModelError, match=words):
            read_foreign(Source(tmp_path / place if place.startswith("x") else tmp_path))

    @pytest.mark.parametrize("name", ["model", "attributes", "latent_dpm", "config"])
    def test_our_own(self, tiny_folder: Path, tmp_path: Path, name: str) -> None:
        folder = Path(shutil.copytree(tiny_folder, tmp_path / "m"))
        path = folder / ("config.json" if name == "config" else f"{name}.safetensors")
        path.write_bytes(POINTER)
        with pytest.raises(ModelError, match="Git-LFS"):
            load(str(folder))


def test_numpys_numbers_are_skipped_and_never_taken_for_settings(tmp_path: Path) -> None:
    """In the child, with weights_only: whatever spells a number or an array is a mark."""
    values = {
        "a": numpy.float64(1),
        "b": numpy.arange(3),
        "c": [numpy.int32(1), numpy.array(["x"])],
    }
    torch.save({"w": torch.ones(2), **values}, tmp_path / "x.pt")
    found = read_pickle(tmp_path / "x.pt")
    assert torch.equal(found["w"], torch.ones(2))
    marks = [found["a"], found["b"], *found["c"]]
    assert all("not read" in mark for mark in marks)
    guided(tmp_path / "m", lambda flags: flags.update(image_size=marks[0]))
    with pytest.raises(ModelError, match=r"image_size is .*not read"):
        converted(tmp_path / "m")


def test_commands_of_the_page(
    pdae: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/checkpoints.md's first block, each on a checkpoint of its kind."""
    from page_models import all_sources

    read_pickles_here(monkeypatch)
    monkeypatch.chdir(tmp_path)
    all_sources(tmp_path)
    text = (ROOT / "docs" / "checkpoints.md").read_text()
    lines = text.partition("```bash\n")[2].partition("```")[0].splitlines()
    assert len(lines) == 7
    for line in lines:
        words = line.partition("#")[0].split()[1:]
        short = ("--z-dim", 8, "--images", 2, "--batch-size", 2) if words[0] == "train" else ()
        result = pdae(*words, *short)
        assert result.code == 0, result.err
        load(words[words.index("-o") + 1])
