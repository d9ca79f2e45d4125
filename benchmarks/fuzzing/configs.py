"""Configs: our model folders', and those of the families that `convert` knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .mutations import lines, tree, yaml_tree
from .tables import cells
from .using import FAST, MODEL, Kind, Kinds, by_commands, model_folder

CONVERT = "convert source -o made"
BY_FLAGS = "convert source/ema.pt --config flags.txt -o made"
TRAINED = "source/trained-models"
WEIGHTS = "diffusion_pytorch_model"
INDEX = f"{WEIGHTS}.safetensors.index.json"
FILES = (  # of each family
    ("ddpm", "source/unet/config.json", tree, CONVERT),
    ("ddpm", "source/scheduler/scheduler_config.json", tree, CONVERT),
    ("ddpm", "source/model_index.json", tree, CONVERT),
    ("adm", "source/unet/config.json", tree, CONVERT),
    ("latent", "source/vqvae/config.json", tree, CONVERT),
    ("latent", "source/unet/config.json", tree, CONVERT),
    ("guided", "source/model_flags.json", tree, CONVERT),
    ("guided", "flags.txt", cells, BY_FLAGS),
    ("pdae", "source/pre-trained-dpms/faces128/config.yml", yaml_tree, CONVERT),
    ("pdae", f"{TRAINED}/autoencoder/faces128/config.yml", yaml_tree, CONVERT),
    ("pdae", f"{TRAINED}/latent_denoise_fn/faces128/config.yml", yaml_tree, CONVERT),
    ("diffae", "source/settings.json", tree, CONVERT),
    ("compvis", "source/config.yaml", yaml_tree, CONVERT),
    ("shards", f"source/unet/{INDEX}", tree, CONVERT),
)


def kinds(root: Path) -> Kinds:
    """A config is converted, or in our own folder used; what becomes a model is looked at."""
    from conftest import picture

    _make(root)
    ours, found = model_folder(root / "ours"), Kinds()
    picture(1, (32, 32)).save(ours / "a.png")
    back = f"reconstruct a.png {MODEL} -o back.png {FAST}"
    drawn = f"sample -n 1 {MODEL} -o new.png {FAST}"
    use = by_commands(ours, "m/config.json", ["info m", back, drawn], [])
    found["ours"] = Kind((ours / "m" / "config.json").read_bytes(), tree, use)
    for family, file, mutate, line in FILES:
        data = (root / family / file).read_bytes()
        use = by_commands(root / family, file, [line], ["info made"])
        name = f"{family} {' '.join(Path(file).parts[-3:])}"
        if file.endswith((".yml", ".yaml")):
            found[f"{name}, lines"] = Kind(data, lines, use)
            data = _yaml_as_json(data)
        found[name] = Kind(data, mutate, use)
    _read_pickles_here()
    return found


def _make(root: Path) -> None:
    """A small checkpoint of each family, in `source` of its own folder."""
    import latent_models
    from foreign_models import ADM_STYLE, DDPM_STYLE, guided, pipeline
    from safetensors import safe_open
    from test_foreign_compvis import checkpoint
    from test_foreign_pdae import release

    pipeline(root / "ddpm" / "source", DDPM_STYLE)
    pipeline(root / "adm" / "source", ADM_STYLE)
    latent_models.pipeline(root / "latent" / "source")
    guided(root / "guided" / "source")
    release(root / "pdae" / "source")
    checkpoint(root / "compvis" / "source")
    _diffae(root / "diffae")
    pipeline(root / "shards" / "source", ADM_STYLE)
    unet, shard = root / "shards" / "source" / "unet", f"{WEIGHTS}-00001-of-00001.safetensors"
    (unet / f"{WEIGHTS}.safetensors").rename(unet / shard)
    with safe_open(unet / shard, "pt") as file:
        places = dict.fromkeys(file.keys(), shard)
    (unet / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    flags = json.loads((root / "guided" / "source" / "model_flags.json").read_text())
    text = " ".join(f"--{name} {value}" for name, value in flags.items())
    (root / "guided" / "flags.txt").write_text(text)


def _yaml_as_json(data: bytes) -> bytes:
    import yaml

    return json.dumps(yaml.safe_load(data)).encode()


def _diffae(folder: Path) -> None:
    """Diff-AE keeps its settings within the checkpoint: here they also lie beside it."""
    import pytest
    import torch
    from test_foreign_diffae import diffae

    with pytest.MonkeyPatch.context() as patch:
        diffae(folder, patch)
        content = torch.load(folder / "faces_autoenc_latent" / "last.ckpt", weights_only=False)
    (folder / "faces_autoenc_latent").rename(folder / "source")
    content.pop("callbacks")
    torch.save(content, folder / "source" / "last.ckpt")
    (folder / "source" / "settings.json").write_text(json.dumps(content["hyper_parameters"]))


def _read_pickles_here() -> None:
    """Read pickles in this process; the commands start a child for each, which takes seconds."""
    import torch

    from pdae_cli.checkpoints import reading
    from pdae_cli.errors import ModelError

    def read(path: Path) -> dict[str, Any]:
        content: dict[str, Any] = torch.load(path, weights_only=True)
        if (beside := path.with_name("settings.json")).exists():
            try:
                content["hyper_parameters"] = json.loads(beside.read_bytes())
            except (ValueError, RecursionError) as error:  # no pickle can be that
                raise ModelError("not JSON") from error
        return content

    reading.read_pickle = read
