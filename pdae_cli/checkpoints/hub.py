"""Models from the Hugging Face Hub, and to it; its cache, HF_HOME and HF_HUB_OFFLINE are
respected."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import product
from json import JSONDecodeError
from pathlib import Path, PurePosixPath
from typing import Any

from ..engine.computing import Say, ignore
from ..engine.tensors import shown
from ..errors import ModelError, StorageError, UsageError
from ..pictures.listing import HEIC_SUFFIXES, SUFFIXES
from .card import CARD, FIGURES, TERMS
from .native import ATTRIBUTES, CONFIG, LATENT_DPM, WEIGHTS
from .reading import SAFETENSORS, weights_among

# Those of ours, and so those that are pushed.
PAPERS = (CARD, TERMS, FIGURES)
NATIVE = (*PAPERS, CONFIG, WEIGHTS, ATTRIBUTES, LATENT_DPM)
# Everything that one of our models or of diffusers' pipelines is made of.
STAGES = ("", "vqvae/", "vae/")  # where a first stage lies
FOLDERS = (*STAGES, "unet/")
STEM = "diffusion_pytorch_model"
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
# Why a model isn't given, or taken, by the status of the answer, and what to do.
NO_ACCESS = {
    401: "it knows no such model, or not who asks; check the name, and for a private or gated one "
    "run `hf auth login`, or set HF_TOKEN",
    403: "the token may not read it; ask for access on the model's page, or take another token",
    404: "it has no such model, or no such revision of it; check the name",
}
NO_PUSH = {
    401: "the Hub doesn't know the token; run `hf auth login`, or set HF_TOKEN",
    403: "the token may not write there; take one with write access, or another user/name",
    404: "the Hub has no such user, repository or revision; check the name",
}
LARGE = 100 << 20  # bytes of a download that is announced


def is_hub_id(name: str) -> bool:
    """Whether a name can be that of a model on the Hub: owner/name, with an optional @revision. One
    that ends as files do is a file that isn't here, and nothing that others need know."""
    repository = name.partition("@")[0]
    is_file = PurePosixPath(repository).suffix.lower() in SUFFIXES | HEIC_SUFFIXES | FILES
    formed = re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", name) is not None
    return formed and not is_file and name[0] not in "./~"


def fetch(
    name: str, announce: Say = ignore, folders: Sequence[str] = FOLDERS, **how: Any
) -> tuple[Path, str]:
    """Download a model, ours or of diffusers (weights in these folders), as far as it isn't in the
    cache; `how`: options of huggingface_hub's `snapshot_download`.

    Returns its folder and the licence that its card states. Raises ModelError, also for what would
    lie in a folder that is here: that is a slip, unless a revision is named. `announce` is told
    how large a large download is before it begins.
    """
    from huggingface_hub import HfApi, snapshot_download

    repository, _, revision = name.partition("@")
    if not revision and os.path.isdir(owner := repository.partition("/")[0]):  # noqa: PTH112
        told = f"{name}: {owner} is a folder here, and has no such one"
        raise ModelError(f"{told}; to ask the Hub, write {name}@main")
    sizes: dict[str, int] = {}
    asked: dict[str, Any] = {"revision": revision or None, "token": how.get("token")}
    with suppress(Exception):  # what is below says why, unless all is in the cache
        if not how.get("local_files_only"):
            info = HfApi().model_info(repository, files_metadata=True, **asked)
            sizes = {one.rfilename: one.size or 0 for one in info.siblings or []}
    if not sizes:
        sizes = dict.fromkeys(_cached(repository, revision or None, how.get("cache_dir")), 0)
    if sizes and not any(one.rpartition("/")[2].startswith((STEM, WEIGHTS)) for one in sizes):
        get = f"download another program's (`hf download {repository} --local-dir FOLDER`)"
        raise ModelError(f"{name} holds no model of pdae or diffusers; {get} and convert it")
    stems = [f"{folder}{STEM}" for folder in folders]
    weights = [one for stem in stems for one in weights_among(sizes, stem, repository)]
    patterns = [one for one in WANTED if one in sizes] + weights
    if not sizes:  # all that is in the cache
        patterns = [*WANTED, *(f"{stem}*" for stem in stems)]
    if (size := sum(sizes.get(one, 0) for one in patterns)) > LARGE:
        announce(f"{repository}: {size / (1 << 20):.0f} MiB to download, unless in the cache")
    how |= {"revision": revision or None, "allow_patterns": patterns}
    try:
        folder = snapshot_download(repository, **how)
    except Exception as error:  # the Hub's HTTP client has another name, and errors, each version
        reason = reason_of(error, "check the name and the network", NO_ACCESS)
        raise ModelError(f"{name}: no folder here, and the Hub didn't give it: {reason}") from error
    return Path(folder), licence_in(Path(folder))


def _cached(repository: str, revision: str | None, cache: str | Path | None) -> list[str]:
    """The files of a repository as they were listed when it was downloaded; none where the list
    isn't kept. Those that weren't wanted then must not be asked for without the network."""
    with suppress(Exception):  # an older huggingface_hub keeps no list, and misses no file
        from huggingface_hub import get_cached_repo_tree

        found = get_cached_repo_tree(repository, revision=revision, cache_dir=cache)
        return [one.path for one in found]
    return []


def licence_in(folder: Path) -> str:
    """The licence that the metadata of a folder's card state, or several, else "unknown"; of an
    `other` its name."""
    card, text = folder / CARD, ""
    with suppress(OSError):
        if card.is_file():
            with card.open(encoding="utf-8-sig", errors="replace") as file:
                text = file.read(65536)
    head = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    stated = _stated("license", head[1]) if head else ""
    named = _stated("license_name", head[1]) if head and stated == "other" else ""
    return named or stated or "unknown"


def _stated(field: str, metadata: str) -> str:
    """What a field of a card's metadata says, a text or several, without reading all as YAML."""
    found = re.search(rf"^{field}:(.*(?:\n[ \t]*-[ \t].*)*)", metadata, re.MULTILINE)
    said = re.split(r"[\[\],]|\n[ \t]*-[ \t]", found[1]) if found else []
    names = [re.sub(r"(^|\s)#.*", "", one).strip(" \t\"'") for one in said]
    return shown(", ".join(one for one in names if one not in ("", "null", "~")))[1:-1]


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
    announce: Say = ignore,
) -> Any:
    """Push a model's folder, its own files and no others, in one commit, which leaves no other
    parts of a model there; return huggingface_hub's CommitInfo. Raises UsageError where a text
    names the user's folders or `private` is wanted of a public repository, StorageError where the
    Hub doesn't take it."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    files = {name: folder / name for name in NATIVE if (folder / name).is_file()}
    for name, place in product(files, {str(Path.home()), str(Path.cwd())} - {os.sep}):
        if not name.endswith(SAFETENSORS) and f"{place}{os.sep}" in files[name].read_text(
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
        hint = "the Hub isn't reached, or was cut off; check network and HF_ENDPOINT"
        reason = reason_of(error, hint, NO_PUSH)
        raise StorageError(f"{repository}: {reason}; nothing was pushed") from error
    for one in told:
        announce(str(one.message))
    return done


def _opened(api: Any, repository: str, private: bool | None, branch: str | None) -> set[str]:
    """Make a repository and its branch where they aren't there; return the files that are. Raises
    UsageError for a public one where `private` is wanted."""
    api.create_repo(repository, private=private, exist_ok=True)
    if private and not api.model_info(repository).private:
        raise UsageError(f"{repository} is there, and public; make it private on the Hub first")
    if branch is not None:
        api.create_branch(repository, branch=branch, exist_ok=True)
    return {one.rfilename for one in api.model_info(repository, revision=branch).siblings or []}


def reason_of(error: BaseException, hint: str, answers: Mapping[int, str] | None = None) -> str:
    """Why the Hub gave or took nothing, and what to do: by the status of its answer, where
    `answers` are given, or what it says; else what is meant, or the first line of its library's
    message and the hint."""
    cause = _cause(error)
    if answers and (response := vars(cause).get("response")) is not None:
        said = vars(cause).get("server_message") or f"it answered {response.status_code}"
        later = "; try again later" if response.status_code >= 500 else ""
        told = f"the Hub says: {' '.join(said.split())}{later}"
        return answers.get(response.status_code, told)
    if isinstance(cause, UnicodeEncodeError):
        return "the token has letters that none has; copy it anew, to HF_TOKEN or `hf auth login`"
    if isinstance(cause, JSONDecodeError):
        return "what answers isn't the Hub, but maybe a page that lets one into the network"
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{without_passwords(first)}; {hint}"


def without_passwords(text: str) -> str:
    """A text without the users and passwords of its URLs, as HF_ENDPOINT may have them."""
    return re.sub(r"://[^/\s]+@", "://…@", text)


def _cause(error: BaseException) -> BaseException:
    """The one of an error and its causes that has the Hub's answer or that `reason_of` knows, else
    the first cause."""
    known = UnicodeEncodeError, JSONDecodeError
    while not isinstance(error, known) and vars(error).get("response") is None:
        cause = error.__cause__ or error.__context__
        if cause is None:
            break
        error = cause
    return error
