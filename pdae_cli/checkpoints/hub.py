"""Models from the Hugging Face Hub, and to it; its cache, HF_HOME and HF_HUB_OFFLINE are
respected."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable
from contextlib import suppress
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any

from ..engine.model import ignore
from ..engine.tensors import shown
from ..errors import ModelError, StorageError, UsageError
from ..pictures.listing import HEIC_SUFFIXES, SUFFIXES

# Those of ours, and so those that are pushed.
PAPERS = ("README.md", "LICENSE.md", "figures.json")
SAFE = ".safetensors"
NATIVE = (*PAPERS, "config.json", f"model{SAFE}", f"attributes{SAFE}", f"latent_dpm{SAFE}")
# Everything that one of our models or of diffusers' pipelines is made of.
FOLDERS = ("", "unet/", "vqvae/", "vae/")
STEMS = tuple(f"{folder}diffusion_pytorch_model" for folder in FOLDERS)
WANTED = (
    *NATIVE,
    *("model_index.json", "scheduler_config.json", "scheduler/scheduler_config.json"),
    *(f"{folder}config.json" for folder in FOLDERS if folder),
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


def fetch(name: str, announce: Announce = ignore, **how: Any) -> tuple[Path, str]:
    """Download a model, ours or of diffusers, as far as it isn't in the cache; `how`: options of
    huggingface_hub's `snapshot_download`.

    Returns its folder and the licence that its card states. Raises ModelError. `announce` is told
    how large a large download is before it begins.
    """
    from huggingface_hub import HfApi, snapshot_download

    repository, _, revision = name.partition("@")
    sizes: dict[str, int] = {}
    asked: dict[str, Any] = {"revision": revision or None, "token": how.get("token")}
    with suppress(Exception):  # what is below says why, unless all is in the cache
        if not how.get("local_files_only"):
            info = HfApi().model_info(repository, files_metadata=True, **asked)
            sizes = {one.rfilename: one.size or 0 for one in info.siblings or []}
    try:
        weights = [one for stem in STEMS for one in _weights(stem, sizes)]
        patterns = [one for one in WANTED if one in sizes or not sizes] + weights
        size = sum(sizes.get(one, 0) for one in patterns)
        if size > LARGE:
            announce(f"{repository}: {size / (1 << 20):.0f} MiB to download, unless in the cache")
        how |= {"revision": revision or None, "allow_patterns": patterns}
        folder = snapshot_download(repository, **how)
    except Exception as error:  # the Hub's HTTP client has another name, and errors, each version
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"{name}: the Hub didn't give it: {reason}; check the name and the network"
        ) from error
    card, text = Path(folder, "README.md"), ""
    if card.is_file():
        with card.open(encoding="utf-8", errors="replace") as file:
            text = file.read(65536)
    return Path(folder), _licence(text)


def _licence(card: str) -> str:
    """The licence that a card's metadata state, or several, else "unknown"."""
    found = re.search(r"^license:(.*(?:\n[ \t]*-[ \t].*)*)", card, re.MULTILINE)
    said = re.split(r"[\[\],]|\n[ \t]*-[ \t]", found[1]) if found else []
    names = [re.sub(r"(^|\s)#.*", "", one).strip(" \t\"'") for one in said]
    return shown(", ".join(one for one in names if one not in ("", "null", "~")))[1:-1] or "unknown"


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


def check_push(repository: str, token: str | bool | None = None) -> None:
    """Check, before there is work, that something can be pushed to `user/name`. Raises UsageError
    for another name, without a token, and where HF_HUB_OFFLINE forbids it."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository if is_hub_id(repository) else "@")
    except ValueError as error:
        told = f"{shown(repository)} can't be a model's name on the Hub, user/name"
        raise UsageError(told) from error
    if constants.HF_HUB_OFFLINE:
        raise UsageError("HF_HUB_OFFLINE is set, so nothing can be pushed; unset it")
    if not (get_token() if token in (None, True) else token):
        raise UsageError("no token of the Hub to push with; run `hf auth login`, or set HF_TOKEN")


def push(
    folder: Path,
    repository: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    branch: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Push a model with pdae",
    announce: Announce = ignore,
) -> Any:
    """Push a model's folder, its own files and no others, in one commit, which leaves no other
    parts of a model there; return huggingface_hub's CommitInfo. Raises UsageError where a text
    names the user's folders or `private` is wanted of a public repository, StorageError where the
    Hub doesn't take it."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    files = {name: folder / name for name in NATIVE if (folder / name).is_file()}
    for name, place in product(files, {str(Path.home()), str(Path.cwd())} - {os.sep}):
        if not name.endswith(SAFE) and f"{place}{os.sep}" in files[name].read_text(
            errors="replace"
        ):
            raise UsageError(f"{name} names {place}, which isn't for others; take it out first")
    api = HfApi(token=token)
    try:
        with warnings.catch_warnings(record=True) as told:  # of what the Hub says of the card
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", UserWarning)
            there = _opened(api, repository, private, branch)
            changes = [CommitOperationDelete(one) for one in NATIVE if one in there - files.keys()]
            done = api.create_commit(  # upload_folder may make several of a folder
                repository,
                [*changes, *(CommitOperationAdd(name, path) for name, path in files.items())],
                commit_message=commit_message, revision=branch, create_pr=create_pr,
            )  # fmt: skip
    except KeyboardInterrupt as stop:
        stop.args = (f"{repository} has nothing of it; the same command pushes it",)
        raise
    except UsageError:
        raise
    except Exception as error:  # the Hub's HTTP client has another name, and errors, each version
        raise StorageError(f"{repository}: {_refusal(error)}; nothing was pushed") from error
    for one in told:
        announce(str(one.message))
    return done


def _opened(api: Any, repository: str, private: bool | None, branch: str | None) -> set[str]:
    """Make a repository and its branch where they aren't there; return the files that are. Raises
    UsageError for a public one where `private` is wanted."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api.create_repo(repository, private=private)
    except HfHubHTTPError as refusal:
        if refusal.response.status_code == 403 and not api.repo_exists(repository):
            raise
        if refusal.response.status_code not in (403, 409):  # may not make one, or it is there
            raise
        if private and not api.model_info(repository).private:
            told = f"{repository} is there, and public; make it private on the Hub first"
            raise UsageError(told) from refusal
    else:
        if branch is None:
            return set()
    if branch is not None:
        api.create_branch(repository, branch=branch, exist_ok=True)
    return {one.rfilename for one in api.model_info(repository, revision=branch).siblings or []}


def _refusal(error: BaseException) -> str:
    """Why the Hub took nothing, and what to do."""
    known = {
        401: "the Hub doesn't know the token; run `hf auth login`, or set HF_TOKEN",
        403: "the token may not write there; take one with write access, or another user/name",
        404: "the Hub has no such user, repository or revision; check the name",
    }
    while True:
        if (response := vars(error).get("response")) is not None:
            said = vars(error).get("server_message") or f"it answered {response.status_code}"
            return known.get(response.status_code) or f"the Hub says: {' '.join(said.split())}"
        if (cause := error.__cause__ or error.__context__) is None:
            reason = " ".join(str(error).split()) or type(error).__name__
            return f"the Hub isn't reached, or was cut off: {reason}; check network and HF_ENDPOINT"
        error = cause
