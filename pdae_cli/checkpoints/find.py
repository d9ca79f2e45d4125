"""From what a user writes after --model to a model in memory, and back to a folder or the Hub."""

from __future__ import annotations

import difflib
import os
import tempfile
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..engine.computing import Say, ignore
from ..engine.config import ModelConfig
from ..engine.model import Model
from ..errors import ModelError, UsageError
from ..files import bundled_models, check_writable
from ..networks.first_stage import FirstStage
from .card import HUB
from .convert import read_foreign
from .first_stage import first_stage_of
from .hub import PAPERS, STAGES, check_push, fetch, is_hub_id, push
from .native import is_native, latent_training, read_model, renew_card, write_whole
from .reading import read_bytes
from .source import open_source


@dataclass
class PretrainedModel(Model):
    """A model that knows its way to a folder and the Hub, as huggingface_hub's ModelHubMixin has
    it. That class itself reads config.json as arguments of `__init__`, and removes it before it
    writes: a model of ours is whole at any time."""

    papers: dict[str, bytes] = field(default_factory=dict)  # card, licence, figures: as they lie
    latent_training: dict[str, Any] = field(default_factory=dict)  # the latent DPM's, as recorded

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, revision: str | None = None, **how: Any
    ) -> PretrainedModel:
        """Load a model as `load` does, with its options: a bundled name, a folder, or an id on the
        Hub, of which `revision` is a branch, a tag or a commit. Raises ModelError, UsageError."""
        name = str(pretrained_model_name_or_path)
        if revision is not None and (not is_hub_id(name) or os.path.isdir(name)):  # noqa: PTH112
            raise UsageError(f"{name} is no id on the Hub, so it has no revision {revision!r}")
        return load(name if revision is None else f"{name.partition('@')[0]}@{revision}", **how)

    def save_pretrained(
        self, save_directory: str | Path, *, repo_id: str | None = None, push_to_hub: bool = False,
        **options: Any,
    ) -> Any:  # fmt: skip
        """Write the model's folder, each number as it is, in 16 bits where all fit, with the card
        and the licence's text; where wanted push it, by default by the folder's name, with the
        `options` of `push_to_hub`. Raises InputError, StorageError, ModelError, UsageError."""
        folder = Path(save_directory)
        if options and not push_to_hub:
            raise UsageError(f"{', '.join(options)} without push_to_hub")
        write_whole(folder, self, None, self.latent_training, self.papers)
        return self.push_to_hub(repo_id or folder.name, **options) if push_to_hub else None

    def push_to_hub(self, repo_id: str, **options: Any) -> Any:
        """Push the model to `user/name`, with its card and licence, in one commit (`hub.push`:
        `private`, `token`, `branch`, `create_pr`, `commit_message`); return huggingface_hub's
        CommitInfo. Raises UsageError where it can't be tried, StorageError where it fails."""
        check_push(repo_id, options.get("token"))
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made, repo_id.partition("/")[2])
            self.save_pretrained(folder)
            renew_card(folder, repo_id)
            return push(folder, repo_id, announce=self.notify, **options)


def model_folder(name: str, announce: Say = ignore, **how: Any) -> Path:
    """Find the folder of a bundled name, a folder, or a Hub id with an optional `@revision`, which
    is downloaded as `hub.fetch` says.

    Raises ModelError where there is no such model; `announce` is told of large downloads, and of a
    folder that isn't meant.
    """
    bundled = bundled_models()
    if _is_here(name):
        return Path(name)
    if name in bundled:
        if os.path.isdir(name):  # noqa: PTH112
            announce(f"the bundled {name} is taken: the folder {name} here holds none of pdae")
        return bundled[name]
    if is_hub_id(name):
        return fetch(name, announce, **how)[0]
    near = difflib.get_close_matches(name, bundled, n=1)
    known = f"bundled: {', '.join(sorted(bundled)) or 'none'}"
    hint = f"did you mean {near[0]}?" if near else known
    if os.path.isfile(name):  # noqa: PTH113
        hint = f"it is a file: name ours by its folder; `pdae convert {name} -o MODEL` takes others"
    raise ModelError(f"no model {name!r}: neither a folder nor bundled; {hint}")


def _is_here(name: str) -> bool:
    """Whether a name means a folder here: if called as a bundled model, one that holds a model."""
    folder = os.path.isdir(name)  # noqa: PTH112, Path.is_dir raises on names that are too long
    return folder and (name not in bundled_models() or is_native(Path(name)))


def writable_folder(name: str) -> Path:
    """Find the folder of a model that may be changed. Raises UsageError for a bundled one or a Hub
    id, InputError or StorageError where it can't be written."""
    if _is_here(name):
        check_writable(Path(name))
        return Path(name)
    if is_hub_id(name) and name not in bundled_models():  # which needn't be fetched to say no
        repository, at, revision = name.partition("@")
        get = f"hf download {repository}{f' --revision {revision}' if at else ''} --local-dir mine"
        raise UsageError(f"{name} is on the Hub, not yours to change; copy it first: {get}")
    folder = model_folder(name)
    raise UsageError(f"{name} is not yours to change; copy it first: cp -r {folder} mine")


def load(
    name: str | Path,
    device: str = "auto",
    dtype: str = "float32",
    announce: Say = ignore,
    compile: bool = False,
    *,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> PretrainedModel:
    """Load a model: a bundled name, a folder, or a Hub id with an optional `@revision`, downloaded
    as huggingface_hub's `snapshot_download` takes the last four.

    Raises ModelError where there is no such model or it can't be read, UsageError for a device or
    dtype that can't be used, or where networks can't be compiled.
    """
    how = {"token": token, "cache_dir": cache_dir, "force_download": force_download}
    name = str(name)
    folder = model_folder(name, announce, **how, local_files_only=local_files_only)
    shown = folder.resolve().name if Path(name).is_dir() else name
    read = read_model(folder, shown)
    parts = {one.name: vars(read)[one.name] for one in fields(read)}
    papers = {one: read_bytes(folder / one) for one in PAPERS if (folder / one).exists()}
    model = PretrainedModel(**parts, papers=papers, latent_training=latent_training(folder) or {})
    model.to(device, dtype, compile)
    return model


def going_on(model: Model, licence: str | None) -> ModelConfig:
    """Return the config that training goes on with: of a model of the Hub it says so, and with a
    licence, the data's, that one beside its own."""
    config, name = model.config, model.name
    if is_hub_id(name) and not config.source.endswith(name):
        config = replace(config, source=f"pdae: {HUB}{name}")
    return replace(config, licence=terms(config.licence, licence or "unknown"))


def terms(*licences: str) -> str:
    """Name the licence of what is made of several: theirs, each once, as far as they are known."""
    known = dict.fromkeys(one for licence in licences for one in licence.split("; "))
    return "; ".join(one for one in known if one != "unknown") or "unknown"


def load_dpm(name: str, announce: Say = ignore) -> Model:
    """Load a model, ours or converted in memory, on the CPU. Raises ModelError."""
    if name in bundled_models() or is_native(Path(name)):
        return load(name, "cpu")
    source = open_source(name, announce=announce)
    if is_native(source.path):
        return read_model(source.path, name)
    made = read_foreign(source)
    for note in made.notes:
        announce(note)
    return made.model


def load_first_stage(name: str, announce: Say = ignore) -> tuple[FirstStage, dict[str, str]]:
    """Load diffusers' AutoencoderKL or VQModel, alone or a pipeline's, and what a config says of
    whose it is. Raises ModelError."""
    source = open_source(name, announce=announce, folders=STAGES)
    known = f"first stage: {HUB}{source.hub}" if source.hub else ""
    return first_stage_of(source, announce), {"licence": source.licence, "source": known}
