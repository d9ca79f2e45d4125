"""Models from the Hugging Face Hub, and to it; its cache, HF_HOME and HF_HUB_OFFLINE are
respected."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from ..engine.model import ignore
from ..engine.tensors import shown
from ..errors import ModelError, StorageError, UsageError
from ..pictures.listing import HEIC_SUFFIXES, SUFFIXES

# Those of ours, and so those that are pushed.
PAPERS = ("README.md", "LICENSE.md", "figures.json")
NATIVE = (*PAPERS, "config.json", "model.safetensors", "attributes.safetensors",
          "latent_dpm.safetensors")  # fmt: skip
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
    try:
        sizes: dict[str, int] = {}
        if not how.get("local_files_only"):
            asked = how.get("token"), revision or None
            info = HfApi().model_info(
                repository, files_metadata=True, token=asked[0], revision=asked[1]
            )
            sizes = {one.rfilename: one.size or 0 for one in info.siblings or []}
    except Exception:  # what is below says why, unless all is in the cache
        pass
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


def check_push(repository: str, token: str | bool | None = None) -> None:
    """Check, before there is work, that something can be pushed to `user/name`. Raises UsageError
    for another name, without a token, and where HF_HUB_OFFLINE forbids it."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import validate_repo_id

    named = False
    with suppress(ValueError):  # said better below
        validate_repo_id(repository)
        named = is_hub_id(repository) and "@" not in repository
    if not named:
        raise UsageError(f"{shown(repository)} can't be a model's name on the Hub, user/name")
    if constants.HF_HUB_OFFLINE:
        raise UsageError("HF_HUB_OFFLINE is set, so nothing can be pushed; unset it")
    if token is False or (not isinstance(token, str) and get_token() is None):
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
    """Push a model's folder, its own files and no others, in one commit, which leaves none of our
    files of a model that was there; return huggingface_hub's CommitInfo. Raises UsageError as
    `check_push` does, and where `private` is wanted of a repository that is public; StorageError
    where the Hub doesn't take it."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    check_push(repository, token)
    files = {name: folder / name for name in NATIVE if (folder / name).is_file()}
    own = {Path(place).as_posix() for place in (os.path.expanduser("~"), os.getcwd())}  # noqa: PTH109, PTH111
    for name in (one for one in files if not one.endswith(".safetensors")):
        text = files[name].read_text(errors="replace")
        if named := [place for place in own - {"/"} if f"{place}/" in text]:
            raise UsageError(
                f"{name} names {named[0]}/…, which isn't for others; take it out first"
            )
    api = HfApi(token=token)
    add = [CommitOperationAdd(name, path) for name, path in files.items()]
    try:
        with warnings.catch_warnings(record=True) as told:  # of what the Hub says of the card
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", UserWarning)
            there = _opened(api, repository, private, branch)
            gone = [CommitOperationDelete(one) for one in NATIVE if one in there - files.keys()]
            done = api.create_commit(  # upload_folder may make several of a folder
                repository,
                [*gone, *add],
                commit_message=commit_message,
                revision=branch,
                create_pr=create_pr,
            )
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
    """Make a repository and its branch where they aren't there; return the files of one that is.
    Raises UsageError for a public one where `private` is wanted."""
    from huggingface_hub.errors import HfHubHTTPError

    refusal: HfHubHTTPError | None = None
    try:
        api.create_repo(repository, private=private)
    except HfHubHTTPError as error:
        if error.response.status_code not in (403, 409):  # may not make it, or it is there
            raise
        refusal = error
    try:
        if branch is not None:
            api.create_branch(repository, branch=branch, exist_ok=True)
        if refusal is None:
            return set()
        info = api.model_info(repository, revision=branch)
    except HfHubHTTPError as error:
        raise refusal or error from None
    if private and not info.private:
        raise UsageError(f"{repository} is there, and public; make it private on the Hub first")
    return {one.rfilename for one in info.siblings or []}


def _refusal(error: BaseException | None) -> str:
    """Why the Hub took nothing, and what to do."""
    known = {
        401: "the Hub doesn't know the token; run `hf auth login`, or set HF_TOKEN",
        403: "the token may not write there; take one with write access, or another user/name",
        404: "the Hub has no such user, repository or revision; check the name",
    }
    causes = []
    while error is not None:
        causes.append(error)
        error = error.__cause__ or error.__context__
    for one in causes:
        response = vars(one).get("response")
        if response is not None:
            code = response.status_code
            said = vars(one).get("server_message") or f"the Hub answered {code}; try again later"
            return known.get(code, " ".join(str(said).split()))
    reason = " ".join(str(causes[-1]).split()) or type(causes[-1]).__name__
    return f"the Hub can't be reached, or was cut off: {reason}; check the network and HF_ENDPOINT"
