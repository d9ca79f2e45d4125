"""Files of strangers, by format: configs, and weights in one file or in shards. Each is a regular
file of limited size, and limited depth, before anything is built of it."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from ..engine import tensors as safe
from ..engine.tensors import shown, strict_json
from ..errors import InputError, ModelError
from ..files import mistaken_for, read_limited
from .pickles import read_pickle

MAX_CONFIG_BYTES = 4 << 20
MAX_YAML_BYTES = 128 << 10  # which is read at 100 KB a second
MAX_NODES, MAX_DEPTH, MAX_SCALAR = 20_000, 32, 4096  # of YAML; aliases counted as what they are
MAX_SHARDS = 1000
# What the parsers raise: YAML's also where a tag says of a value what it isn't.
BY_DAMAGE = (
    yaml.YAMLError, ValueError, RecursionError, OverflowError, LookupError, AttributeError,
    TypeError,
)  # fmt: skip
SAFETENSORS = ".safetensors"
INDEX = ".json"


def read_bytes(path: Path, limit: int = MAX_CONFIG_BYTES) -> bytes:
    """Read a file of at most so many bytes. Raises ModelError."""
    try:
        return read_limited(path, limit)
    except InputError as error:
        raise ModelError(str(error)) from error


def read_text(path: Path, limit: int = MAX_CONFIG_BYTES) -> str:
    """Read a text of UTF-8, of at most so many bytes. Raises ModelError."""
    data = read_bytes(path, limit)
    if (other := mistaken_for(data)) is not None:
        raise ModelError(f"{path} is {other}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} can't be read: it is no text of UTF-8") from error


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file, or by any other suffix YAML, that holds an object. Raises ModelError."""
    is_json = path.suffix == ".json"
    text = read_text(path, MAX_CONFIG_BYTES if is_json else MAX_YAML_BYTES)
    try:
        content = strict_json(text, infinities=True) if is_json else _yaml(text)
    except BY_DAMAGE as error:
        reason = str(getattr(error, "problem", None) or error or type(error).__name__)
        raise ModelError(
            f"{path} can't be read as a config: {shown(reason.splitlines()[0])[1:-1]}"
        ) from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise ModelError(f"{path} is no config: it holds {kind}, not an object")
    return content


def _yaml(text: str) -> Any:
    """Parse YAML, whose aliases and merge keys can make gigabytes out of a line."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is not None:
            _expanded(node, {}, 0)
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def _expanded(node: Any, sizes: dict[int, int], depth: int) -> int:
    """How many nodes one stands for, aliases followed. Raises ValueError beyond the limits."""
    if depth > MAX_DEPTH:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels, or in itself")
    if isinstance(node, yaml.ScalarNode):
        if len(node.value) > MAX_SCALAR:
            raise ValueError(f"a value of more than {MAX_SCALAR} characters")
        return 1
    if id(node) not in sizes:
        pairs = isinstance(node, yaml.MappingNode)
        parts = [part for pair in node.value for part in pair] if pairs else node.value
        sizes[id(node)] = 1 + sum(_expanded(part, sizes, depth + 1) for part in parts)
    if sizes[id(node)] > MAX_NODES:
        raise ValueError(f"its aliases stand for more than {MAX_NODES} values")
    return sizes[id(node)]


def read_weights(path: Path) -> dict[str, Any]:
    """Read a file of safetensors, one that torch.save wrote, or all shards of an index. Returns
    what it holds: tensors by name, or what `read_pickle` tells. Raises ModelError."""
    if path.suffix == SAFETENSORS:
        try:
            return dict(safe.load(*safe.opened(path)))
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} can't be read: {error}; get the model again") from error
    return _of_shards(path) if path.suffix == INDEX else read_pickle(path)


def _of_shards(index: Path) -> dict[str, Tensor]:
    places = read_object(index).get("weight_map")
    texts = isinstance(places, dict) and all(isinstance(one, str) for one in places.values())
    if not isinstance(places, dict) or not texts or not places:
        raise ModelError(f"{index} is no index: its weight_map isn't file names by tensors' names")
    found: dict[str, Tensor] = {}
    files = sorted(set(places.values()))
    if len(files) > MAX_SHARDS:
        raise ModelError(f"{index} names {len(files)} files; {MAX_SHARDS} can be")
    for name in files:
        if not re.fullmatch(r"[\w.-]+\.(safetensors|bin)", name) or name.startswith("."):
            raise ModelError(f"{index} names {shown(name)}, no file of weights in its own folder")
        tensors = read_weights(index.with_name(name))
        wanted = {tensor for tensor, file in places.items() if file == name}
        if tensors.keys() != wanted:
            other = shown(min(tensors.keys() ^ wanted))
            raise ModelError(
                f"{index} and {name} don't go together: only one has the tensor {other}"
            )
        found |= tensors
    return found


def weights_beside(folder: Path, stem: str) -> Path:
    """Find a folder's weights, or of shards the index (`weights_among`). Raises ModelError where
    there are none, or several variants."""
    if found := weights_among([path.name for path in folder.iterdir()], stem, str(folder)):
        return folder / found[0]
    looked = ", ".join(f"{stem}{end}" for end in (SAFETENSORS, ".bin", f"{SAFETENSORS}.index.json"))
    raise ModelError(f"found no weights; looked for {looked} in {folder}, or of a variant")


def weights_among(names: Collection[str], stem: str, where: str) -> list[str]:
    """The files of a network's weights among names: safetensors before .bin, whole before shards,
    of which all belong to their index, the first; and of a variant (fp16) where there are no
    others. Raises ModelError where there are several of these."""
    word = r"(?:\.(?!index\b)(\w+))?"
    pattern = rf"{re.escape(stem)}{word}\.(safetensors|bin)(?:{word}(\.index){word}\.json)?"
    found = sorted(
        (one[1] or one[3] or one[5] or "", one[2] == "bin", one[4] or "", one[0])
        for one in (re.fullmatch(pattern, name) for name in names)
        if one
    )
    variants = {variant for variant, *_ in found}
    if "" not in variants and len(variants) > 1:
        several = ", ".join(map(shown, sorted(variants)))
        raise ModelError(f"{where} holds weights of several variants, {several}; keep one of them")
    if not found:
        return []
    variant, is_bin, indexed, best = found[0]
    mark = rf"(\.{variant})?" if variant else ""
    shard = rf"{re.escape(stem)}{mark}-\d+-of-\d+{mark}\.{'bin' if is_bin else 'safetensors'}"
    return [best, *(name for name in names if indexed and re.fullmatch(shard, name))]
