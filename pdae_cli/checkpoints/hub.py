"""Models from the Hugging Face Hub; its cache, HF_HOME and HF_HUB_OFFLINE are respected."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import ModelError

# Everything that one of our models or of diffusers' pipelines is made of; no pickles if there are
# safetensors beside them.
OURS = ("config.json", "model.safetensors", "attributes.safetensors", "latent_dpm.safetensors")
DIFFUSERS = (
    "model_index.json",
    "config.json",
    "scheduler_config.json",
    "scheduler/scheduler_config.json",
    "diffusion_pytorch_model.safetensors",
    *(
        f"{part}/{file}"
        for part in ("unet", "vqvae", "vae")
        for file in ("config.json", "diffusion_pytorch_model.safetensors")
    ),
)
PICKLES = tuple(
    one.replace(".safetensors", ".bin") for one in DIFFUSERS if one.endswith(".safetensors")
)
LARGE = 100 << 20  # bytes of a download that is announced

Announce = Callable[[str], None]


def silent(text: str) -> None:
    """Announce nothing."""


def is_hub_id(name: str) -> bool:
    """Whether a name reads as `owner/name` with an optional `@revision`."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", name) is not None and name[0] not in "./~"


def fetch(name: str, announce: Announce = silent) -> tuple[Path, str]:
    """Download a model, ours or of diffusers, as far as it isn't in the cache.

    Returns its folder and the licence that its card states. Raises ModelError. `announce` is told
    how large a large download is before it begins.
    """
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    try:
        files, licence = _remote_files(repository, revision or None)
        patterns = [*OURS, *DIFFUSERS, "README.md"]
        patterns += [
            one
            for one in PICKLES
            if (one in files or not files) and one.replace(".bin", ".safetensors") not in files
        ]
        size = sum(files[one] for one in files if one in patterns)
        if size > LARGE:
            announce(f"{repository}: {size / (1 << 20):.0f} MiB to download, unless in the cache")
        folder = snapshot_download(repository, revision=revision or None, allow_patterns=patterns)
        return Path(folder), licence or _licence(Path(folder))
    except Exception as error:  # the Hub's HTTP client has another name, and errors, each version
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"{name}: the Hub didn't give it: {reason}; check the name and the network"
        ) from error


def _remote_files(repository: str, revision: str | None) -> tuple[dict[str, int], str]:
    """Name → bytes of the repository's files, and its licence; nothing if it can't be asked."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(repository, revision=revision, files_metadata=True)
    except Exception:  # `fetch` says why, unless all is in the cache
        return {}, ""
    siblings: Sequence[Any] = info.siblings or []
    card = info.card_data
    licence = str(card.license) if card is not None and card.get("license") else ""
    return {one.rfilename: one.size or 0 for one in siblings}, licence


def _licence(folder: Path) -> str:
    """The licence in the front matter of a model card."""
    card = folder / "README.md"
    text = card.read_text(errors="replace")[:65536] if card.exists() else ""
    match = re.search(r"^license:\s*(\S+)\s*$", text, re.MULTILINE)
    return match[1] if match else "unknown"
