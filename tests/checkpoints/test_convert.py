"""`pdae convert`, `train --dpm` and the Hub, end to end."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Command, picture
from foreign_models import ADM_STYLE, DDPM_STYLE, converted, guided, pipeline, states

from pdae_cli.checkpoints import load, load_dpm, load_first_stage, read_model
from pdae_cli.checkpoints.convert import FAMILIES, family_of, read_foreign
from pdae_cli.checkpoints.hub import fetch
from pdae_cli.checkpoints.source import Source
from pdae_cli.errors import ModelError

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own


class TestCommand:
    """`pdae convert` itself."""

    def test_convert_then_use(self, pdae: Command, tmp_path: Path) -> None:
        guided(tmp_path / "source")
        out = tmp_path / "model"
        result = pdae("convert", tmp_path / "source", "-o", out)
        assert result.code == 0 and "guided-diffusion" in result.text and "licence" in result.text
        assert sorted(p.name for p in out.iterdir()) == [
            "README.md", "config.json", "model.safetensors",
        ]  # fmt: skip
        assert '"E_phi"' not in pdae("info", out).text
        sample = pdae("sample", "--unconditional", "-n", 2, "-o", tmp_path / "s.png", "-m", out,
                      "--inference-steps", 2)  # fmt: skip
        assert sample.code == 0, sample.err
        picture(0).save(tmp_path / "a.png")
        encode = pdae("encode", tmp_path / "a.png", "-m", out, "-o", tmp_path / "z.safetensors")
        assert encode.code == 4 and "lacks an encoder" in encode.err
        again = pdae("convert", tmp_path / "source", "-o", out)
        assert again.code == 2 and "--overwrite" in again.err
        (out / "attributes.safetensors").write_text("of the model before")
        again = pdae("convert", tmp_path / "source", "-o", out, "--overwrite", "--json")
        record = json.loads(again.text)
        assert record["family"] == "guided-diffusion" and record["tensors"][0]["used"] > 50
        assert not (out / "attributes.safetensors").exists()

    def test_failures_are_one_line_and_write_nothing(
        self, pdae: Command, tiny_folder: Path, tmp_path: Path
    ) -> None:
        guided(tmp_path / "no-flags")
        (tmp_path / "no-flags" / "model_flags.json").unlink()
        (tmp_path / "text.pt").write_text("not a checkpoint")
        (tmp_path / "empty").mkdir()
        unit = tmp_path / "autoencoder"
        unit.mkdir()
        torch.save({"ema_decoder": {}, "ema_encoder": {}}, unit / "checkpoint.pt")
        cases = {
            tmp_path / "no-flags" / "ema.pt": "found no flags",
            tmp_path / "text.pt": "text.pt",
            tmp_path / "empty": "no known family",
            unit / "checkpoint.pt": "found no config.yml",
            tmp_path / "nothing": "no such file",
            tiny_folder: "already",
        }
        for source, message in cases.items():
            result = pdae("convert", source, "-o", tmp_path / "out")
            assert result.code == 4, result.err
            assert message in result.err and len(result.err.splitlines()) == 1, result.err
            assert result.out == b"" and not (tmp_path / "out").exists()

    def test_a_model_of_another_program_isnt_ours(self, pdae: Command, tmp_path: Path) -> None:
        """Though it has a config.json and a model.safetensors, as transformers' have."""
        (tmp_path / "vit").mkdir()
        (tmp_path / "vit" / "config.json").write_text('{"model_type": "vit"}')
        (tmp_path / "vit" / "model.safetensors").write_bytes(b"")
        result = pdae("convert", tmp_path / "vit", "-o", tmp_path / "out")
        assert result.code == 4 and "of no known family" in result.err, result.err
        result = pdae("info", tmp_path / "vit")
        assert result.code == 4 and "is not a model of pdae" in result.err, result.err

    def test_a_config_that_isnt_ours_to_read(
        self, pdae: Command, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is the model that fails, not what is to be written."""

        def denied(path: Path) -> bytes:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

        monkeypatch.setattr(Path, "read_bytes", denied)
        result = pdae("convert", tiny_folder, "-o", tmp_path / "out")
        assert result.code == 4 and "config.json can't be read: " in result.err, result.err

    def test_a_source_isnt_written_over(self, pdae: Command, tmp_path: Path) -> None:
        pipeline(tmp_path / "pipe", DDPM_STYLE)
        folder = tmp_path / "pipe" / "unet"
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        result = pdae("convert", folder, "-o", tmp_path / "pipe" / ".." / "pipe" / "unet",
                      "--config", tmp_path / "pipe" / "scheduler" / "scheduler_config.json",
                      "--overwrite")  # fmt: skip
        assert result.code == 2 and "is the source's own folder" in result.err, result.err
        assert before == {path.name: path.read_bytes() for path in folder.iterdir()}

    def test_weights_that_a_dtype_cant_hold(self, pdae: Command, tmp_path: Path) -> None:
        """65,504 is float16's largest: a model of infinities couldn't be read again."""
        guided(tmp_path / "source")
        (path,) = (tmp_path / "source").glob("*.pt")
        weights = torch.load(path, weights_only=True)
        weights["input_blocks.0.0.bias"][0] = 7e4
        torch.save(weights, path)
        out = tmp_path / "model"
        result = pdae("convert", tmp_path / "source", "-o", out, "--weights-dtype", "float16")
        assert result.code == 2 and "weights beyond 65504" in result.err, result.err
        assert not out.exists()
        for dtype in ("float32", "bfloat16"):
            line = ("convert", tmp_path / "source", "-o", out, "--weights-dtype", dtype)
            assert pdae(*line, "--overwrite").code == 0 and pdae("info", out).code == 0

    @pytest.mark.parametrize("command", ["info", "sample"])
    def test_files_of_weights_are_told_as_such(
        self, command: str, pdae: Command, tmp_path: Path
    ) -> None:
        torch.save({"w": torch.ones(2)}, path := tmp_path / "net.pt")
        result = pdae("info", path) if command == "info" else pdae("sample", "-m", path, "-o", "-")
        assert result.code == 4 and "it is a file: " in result.err, result.err
        assert f"`pdae convert {path} -o MODEL`" in result.err

    def test_of_diffusers_the_folder_is_named(self, pdae: Command, tmp_path: Path) -> None:
        pipeline(tmp_path, DDPM_STYLE)
        weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
        result = pdae("convert", weights, "-o", tmp_path / "out")
        assert result.code == 4 and "name the folder, not its weights" in result.err, result.err

    def test_other_commands_point_to_convert(self, pdae: Command, tmp_path: Path) -> None:
        pipeline(tmp_path, DDPM_STYLE)
        result = pdae("sample", "-m", tmp_path, "-o", tmp_path / "s.png", "--unconditional")
        assert result.code == 4 and "pdae convert" in result.err


class TestHub:
    """Hub ids, on the Hub's own cache layout on disk, read through huggingface_hub."""

    @pytest.fixture
    def cached(self, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """someone/faces, ours, and someone/ddpm as the cache keeps them, offline; the second's."""
        from huggingface_hub import constants

        for name in ("faces", "ddpm"):
            repository = tmp_path / "cache" / f"models--someone--{name}"
            snapshot = repository / "snapshots" / ("b" * 40)
            if name == "faces":
                shutil.copytree(tiny_folder, snapshot)
            else:
                pipeline(snapshot, DDPM_STYLE)
            (snapshot / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
            (repository / "refs").mkdir()
            (repository / "refs" / "main").write_text("b" * 40)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        return snapshot

    def test_an_id_is_loaded(self, cached: Path, tiny_folder: Path) -> None:
        assert load("someone/faces").name == "someone/faces"
        found = load(f"someone/faces@{'b' * 40}")
        assert found.weights_sha == load(str(tiny_folder)).weights_sha
        assert load_dpm("someone/ddpm").config.licence == "apache-2.0"
        for read in (load, load_dpm):
            with pytest.raises(ModelError, match="the Hub didn't give it"):
                read("someone/else")

    def test_an_id_is_converted_with_its_licence(
        self, cached: Path, pdae: Command, tmp_path: Path
    ) -> None:
        for name in ("someone/ddpm", f"someone/ddpm@{'b' * 40}"):
            result = pdae("convert", name, "-o", tmp_path / "model", "--overwrite")
            assert result.code == 0, result.err
            assert "licence: apache-2.0" in result.text
            assert "apache-2.0" in (tmp_path / "model" / "README.md").read_text()
        model = read_model(tmp_path / "model", "m")
        x, t = states(model), torch.tensor([1, 500])
        with torch.no_grad():
            assert torch.allclose(model.dpm(x, t), converted(cached).dpm(x, t), atol=1e-5)

    @pytest.mark.parametrize(
        ("said", "licence"),
        [
            ("license:\ntags:\n- mit", "unknown"),
            ("license: # none\ntags: []", "unknown"),
            ("license: null", "unknown"),
            ("license: 'mit'  # mine", "mit"),
            ("license:\n- mit\n- apache-2.0\ntags: a", "mit, apache-2.0"),
            ('license: [apache-2.0, "mit"]', "apache-2.0, mit"),
            ("license: other\nlicense_name: openrail++-x", "openrail++-x"),
            ("license: other\nlicense_link: LICENSE.md", "other"),
            ("license: mit\nlicense_name: my-own", "mit"),
            ("tags: []\n---\nlicense: mit", "unknown"),  # in the text
        ],
    )
    def test_a_licence_is_what_the_card_says_it_is(
        self, cached: Path, said: str, licence: str
    ) -> None:
        (cached / "README.md").write_text(f"---\nlanguage: en\n{said}\n---\n# A model\n")
        assert fetch("someone/ddpm")[1] == licence

    def test_so_does_that_of_a_folder(self, pdae: Command, tmp_path: Path) -> None:
        """Rather than what is known of its family, also where a file of the folder is named."""
        guided(tmp_path / "adm")
        pipeline(tmp_path / "pipe", DDPM_STYLE)
        for name in ("adm", "pipe"):
            (tmp_path / name / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# It\n")
        for number, source in enumerate(("adm", "pipe", "adm/ema.pt")):
            made = tmp_path / "m" / str(number)
            result = pdae("convert", tmp_path / source, "-o", made, "--json")
            assert json.loads(result.text)["licence"] == "cc-by-nc-4.0", result.err
            assert "\nlicense: cc-by-nc-4.0\n" in (made / "README.md").read_text()

    def test_only_what_is_needed_is_asked_for_and_its_size_told(
        self, cached: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Pickles only where there are no safetensors; a large download is announced."""
        files = {
            "unet/diffusion_pytorch_model.safetensors": 300 << 20,
            "unet/diffusion_pytorch_model.bin": 300 << 20,
            "training/optimizer.bin": 900 << 20,
        }
        asked: list[list[str]] = []

        class Api:
            def model_info(self, repository: str, **options: Any) -> Any:
                siblings = [SimpleNamespace(rfilename=k, size=v) for k, v in files.items()]
                return SimpleNamespace(siblings=siblings, card_data=None)

        def snapshot(repository: str, allow_patterns: list[str], **options: Any) -> str:
            asked.append(allow_patterns)
            return str(cached)

        monkeypatch.setattr("huggingface_hub.HfApi", Api)
        monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
        said: list[str] = []
        fetch("someone/ddpm", said.append)
        assert said == ["someone/ddpm: 300 MiB to download, unless in the cache"]
        assert not any(name.endswith(".bin") for name in asked[0])
        del files["unet/diffusion_pytorch_model.safetensors"]
        fetch("someone/ddpm", said.append)
        assert "unet/diffusion_pytorch_model.bin" in asked[1]
        files["vae/diffusion_pytorch_model.safetensors"] = 200 << 20
        with pytest.raises(ModelError, match="holds no AutoencoderKL"):
            load_first_stage("someone/ddpm", said.append)
        assert asked[2] == ["vae/diffusion_pytorch_model.safetensors"] and "200 MiB" in said[2]
        files |= {f"diffusion_pytorch_model.{one}.bin": 1 for one in ("fp16", "ema")}
        with pytest.raises(ModelError, match="someone/ddpm holds weights of several variants"):
            fetch("someone/ddpm")
        assert len(asked) == 3


class TestTraining:
    """`train autoencoder --dpm SRC` on foreign models: they train, and eps_theta stays as it is."""

    @pytest.mark.parametrize("family", ["diffusers", "diffusers-adm", "guided"])
    def test_a_few_steps(self, family: str, pdae: Command, tmp_path: Path) -> None:
        source, data = tmp_path / "source", tmp_path / "data"
        data.mkdir()
        for seed in range(8):
            picture(seed, (32, 32)).save(data / f"{seed}.png")
        if family == "guided":
            guided(source)
        else:
            shape = DDPM_STYLE if family == "diffusers" else ADM_STYLE
            pipeline(source, shape | {"sample_size": 32}, beta_schedule="scaled_linear")
        before = read_foreign(Source(source)).model.dpm.state_dict()
        short = ("--z-dim", 8, "--images", 6, "--batch-size", 2, "--save-every", 3)
        run = ("train", "autoencoder", data, "--dpm", source, "-o", tmp_path / "run")
        result = pdae(*run, *short)
        assert result.code == 0, result.err
        model = read_model(tmp_path / "run", "run")
        for name, value in model.dpm.state_dict().items():
            assert torch.equal(value, before[name]), name
        assert model.gradient_estimator is not None
        assert model.gradient_estimator.output.conv.weight.abs().max() > 0
        codes = model.encode(states(model, 1).clamp(-1, 1), inference_steps=2)
        assert model.decode(codes).isfinite().all()


# --- The reference checkpoints, by the commands alone ---------------------------------------------

CHECKPOINTS = {
    "pdae_A_celeba64": "pdae",
    "pdae_B_ffhq128/trained-models/autoencoder/ffhq128": "pdae",
    "pdae_A_celeba64/pre-trained-dpms/celeba64": "pdae",
    "diffae_autoenc64/checkpoints/tiny64_autoenc_latent": "diffae",
    "diffae_ddpm64/checkpoints/tiny64_ddpm/last.ckpt": "diffae",
    "guided_uncond64_learnsigma": "guided-diffusion",
    "guided_uncond64_fixedsigma": "guided-diffusion",
    "diffusers_ddpm/pipeline": "diffusers",
    "diffusers_ddpm/legacy_root_layout": "diffusers",
    "diffusers_adm/pipeline": "diffusers",
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of diffusers
@pytest.mark.parametrize("path", CHECKPOINTS)
def test_commands_on_reference_checkpoints(
    path: str, shared: Path, pdae: Command, tmp_path: Path
) -> None:
    source, model = shared / "golden" / path, tmp_path / "model"
    assert family_of(Source(source)) == CHECKPOINTS[path] and CHECKPOINTS[path] in FAMILIES
    result = pdae("convert", source, "-o", model)
    assert result.code == 0, result.err
    assert f"source: {CHECKPOINTS[path]}" in pdae("info", model).text
    picture(2, (64, 64)).save(tmp_path / "a.png")
    steps = ("-m", model, "--inference-steps", 2)
    codes, back = tmp_path / "z.safetensors", tmp_path / "back.png"
    encoded = pdae("encode", tmp_path / "a.png", "-o", codes, *steps)
    if read_model(model, "m").encoder is None:
        assert encoded.code == 4 and "lacks an encoder" in encoded.err
        plain = pdae("sample", "--unconditional", "-n", 1, "-o", back, *steps)
        assert plain.code == 0, plain.err
        return
    assert encoded.code == 0, encoded.err
    for command in (("decode", codes), ("reconstruct", tmp_path / "a.png")):
        done = pdae(*command, "-o", back, "--overwrite", *steps)
        assert done.code == 0, done.err
