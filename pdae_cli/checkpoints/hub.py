"""Models from the Hugging Face Hub; its cache, HF_HOME and HF_HUB_OFFLINE are respected."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from ..engine.model import ignore
from ..engine.tensors import shown
from ..errors import ModelError
from ..pictures.listing import HEIC_SUFFIXES, SUFFIXES

# Everything that one of our models or of diffusers' pipelines is made of.
FOLDERS = ("", "unet/", "vqvae/", "vae/")
STEMS = tuple(f"{folder}diffusion_pytorch_model" for folder in FOLDERS)
WANTED = (
    *("README.md", "model.safetensors", "attributes.safetensors", "latent_dpm.safetensors"),
    *("model_index.json", "scheduler_config.json", "scheduler/scheduler_config.json"),
    *(f"{folder}config.json" for folder in FOLDERS),
)
FILES = {
    ".avif", ".bin", ".ckpt", ".csv", ".heic", ".heif", ".html", ".jfif", ".json", ".npy", ".npz",
    ".onnx", ".parquet", ".pickle", ".pkl", ".pt", ".pth", ".safetensors", ".svg", ".tar", ".txt",
    ".yaml", ".yml", ".zip",
}  # fmt: skip
LARGE = 100 << 20  # bytes of a download that is announced
Announce = Callable[[str], None]


def is_hub_id(name: str) -> bool:
    """Whether a name can be that of a model on the Hub: owner/name, with an optional @revision. One
    that ends as files do is a file that isn't here, and nothing that others need know."""
    repository = name.partition("@")[0]
    is_file = PurePosixPath(repository).suffix.lower() in SUFFIXES | HEIC_SUFFIXES | FILES
    formed = re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", name) is not None
    return formed and not is_file and name[0] not in "./~"


def fetch(name: str, announce: Announce = ignore) -> tuple[Path, str]:
    """Download a model, ours or of diffusers, as far as it isn't in the cache.

    Returns its folder and the licence that its card states. Raises ModelError. `announce` is told
    how large a large download is before it begins.
    """
    from huggingface_hub import HfApi, snapshot_download

    repository, _, revision = name.partition("@")
    try:
        info = HfApi().model_info(repository, revision=revision or None, files_metadata=True)
        sizes = {one.rfilename: one.size or 0 for one in info.siblings or []}
    except Exception:  # what is below says why, unless all is in the cache
        sizes = {}
    try:
        weights = [one for stem in STEMS for one in _weights(stem, sizes)]
        patterns = [one for one in WANTED if one in sizes or not sizes] + weights
        size = sum(sizes.get(one, 0) for one in patterns)
        if size > LARGE:
            announce(f"{repository}: {size / (1 << 20):.0f} MiB to download, unless in the cache")
        folder = snapshot_download(repository, revision=revision or None, allow_patterns=patterns)
    except Exception as error:  # the Hub's HTTP client has another name, and errors, each version
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"{name}: the Hub didn't give it: {reason}; check the name and the network"
        ) from error
    card, text = Path(folder, "README.md"), ""
    if card.is_file():
        with card.open(encoding="utf-8", errors="replace") as file:
            text = file.read(65536)
    licence = re.search(r"^license:\s*[\"']?([^\s\"']+)", text, re.MULTILINE)
    return Path(folder), shown(licence[1])[1:-1] if licence else "unknown"


def _weights(stem: str, sizes: dict[str, int]) -> list[str]:
    """The files of one network's weights: no pickles where there are safetensors, no variants where
    there are others, and of shards all, with their index."""
    if not sizes:  # not known: all that is in the cache
        return [f"{stem}*"]
    shards, variants = r"(-\d+-of-\d+)?\.{}(\.index\.json)?", r"([.-].*)?\.{}(\..*json)?"
    for shape in (shards, variants):
        for suffix in ("safetensors", "bin"):
            pattern = re.escape(stem) + f"(?:{shape.replace('{}', suffix)})"
            if found := [name for name in sizes if re.fullmatch(pattern, name)]:
                return found
    return []
