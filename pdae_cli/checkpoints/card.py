"""A model's card, its README.md: what is known of the model stands between marks and is kept
current there; what people wrote around them, and in the metadata, stays."""

from __future__ import annotations

import html
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..engine.config import ModelConfig
from ..engine.tensors import shown
from ..errors import ModelError
from ..files import write_bytes
from .reading import BY_DAMAGE, read_text

CARD, TERMS, FIGURES = "README.md", "LICENSE.md", "figures.json"
OURS = "pdae"  # the name of our section's marks
MAX_CARD = 1 << 20  # bytes
HUB = "hf.co/"  # in our records, before the id of a model, or behind it datasets/ of a data set
TASKS = ("image-to-image", "unconditional-image-generation")
# What the Hub knows as a licence; any other is `other` there, with a name and perhaps a text.
LICENCES = re.compile(
    r"apache-2\.0|mit|(creativeml-|bigscience-)?openrail(-m|\+\+)?|cc0-1\.0|bsd-[23]-clause|isc"
    r"|cc-by(-nc)?(-nd|-sa)?-[234]\.[05]|a?gpl-3\.0|gpl-2\.0|lgpl-(2\.1|3\.0)|mpl-2\.0|unlicense"
)
TERMS_ARE = "Licence of the weights: "
LIMITS = """## Limits

- It makes what its pictures showed, with what went together there: an edit of one attribute moves
  others. Pictures outside of its frame are encoded, but edits of them mean little.
- Not for identifying, judging or deceiving people.
"""


def with_section(text: str, name: str, content: str) -> str:
    """Put content between a text's marks of that name; where it has none they come behind it.
    Raises ValueError for marks that are no pair."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    newline = "\r\n" if "\r\n" in text else "\n"
    block = f"{begin}\n{content.strip()}\n{end}".replace("\n", newline)
    if begin not in text and end not in text:
        return f"{text.rstrip()}{newline * 2}{block}{newline}".lstrip()
    before, _, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not closed or begin in rest or end in before + after:
        raise ValueError(f"it needs one {begin} and behind it one {end}, or neither")
    return before + block + after


def write_card(
    folder: Path, config: ModelConfig, learnt: Mapping[str, Any], latent: dict[str, Any] | None,
    name: str | None = None, conversion: str | None = None,
) -> None:  # fmt: skip
    """Write a model's card, or renew the one that is there. `learnt`: its attributes' facts;
    `latent`: the summary of its latent DPM's training; `name`: what commands call it; `conversion`:
    how it was converted. Raises ModelError for a card that can't be renewed."""
    stages = [*config.training, *([latent] if latent else [])]
    terms = TERMS_ARE + _plain(config.licence)
    known_as = name or folder.resolve().name  # of `.`, too
    parts = [_about(config, len(learnt), latent), terms, _use(config, known_as)]
    sections = {OURS: "\n\n".join([*parts, *_lists(stages, learnt)])}
    old, text, card = read_card(
        folder, sections | ({"conversion": conversion} if conversion else {})
    )
    data, before = card.data, card.data.to_dict()
    if _said(old) not in (None, _said(text)):  # the metadata are of other weights
        data.license = data.license_name = data.license_link = data.base_model = None
    if data.pipeline_tag in (None, *TASKS):
        data.pipeline_tag = TASKS[config.encoder is None]
    if config.licence != "unknown" and data.license is None:
        data.license, data.license_name = hub_licence(config.licence)
        data.license_link = None
    if data.license == "other" and data.license_link is None and (folder / TERMS).is_file():
        data.license_link = TERMS
    data.base_model = data.base_model or next(_ids(HUB, config.source), None)
    data.library_name, data.tags = "pdae", _joined(data.tags, ["pdae"])
    told = "\n".join(str(one.get("data")) for one in stages)
    data.datasets = _joined(data.datasets, list(_ids(f"{HUB}datasets/", told)))
    metrics = [key for one in stages for key in _object(one.get("metrics"))]
    measured = any(_object(facts).get("auroc") is not None for facts in learnt.values())
    data.metrics = _joined(data.metrics, metrics + ["auroc"] * measured)
    write_bytes(folder / CARD, (text if data.to_dict() == before else card.content).encode())


def hub_licence(licence: str) -> tuple[str, str | None]:
    """The `license` and `license_name` that the Hub takes for a licence."""
    if known := LICENCES.fullmatch(licence.lower()):
        return known[0], None
    slug = re.sub(r"[^a-z0-9.]+", "-", licence.lower())[:60].strip("-.")
    return "other", slug or "see-the-card"


def read_card(folder: Path, sections: Mapping[str, str] | None = None) -> tuple[str, str, Any]:
    """Read a folder's card, or begin one, and put sections into it: the text that was there, the
    one with them, and huggingface_hub's ModelCard of that. Raises ModelError where it can't be."""
    from huggingface_hub import ModelCard

    path = folder / CARD
    old = read_text(path, MAX_CARD) if path.exists() else ""
    title = _plain(folder.resolve().name)
    text = old or f"# {title}\n\n<!-- {OURS} -->\n<!-- /{OURS} -->\n\n{LIMITS}"
    try:
        for name, content in (sections or {OURS: ""}).items():
            text = with_section(text, name, content)
        # Of a text without metadata it would warn.
        return old, text, ModelCard(text if text.startswith("---") else f"---\n\n---\n{text}")
    except BY_DAMAGE as e:
        reason = shown(" ".join(str(e).split()) or type(e).__name__)[1:-1]
        raise ModelError(f"{path} can't be renewed: {reason}; mend it, or move it away") from e


def _said(card: str) -> tuple[str, str] | None:
    """The licence and the source that our section states; None where it is none, or empty."""
    ours = card.partition(f"<!-- {OURS} -->")[2].partition(f"<!-- /{OURS} -->")[0]
    terms = re.search(rf"^{TERMS_ARE}(.*)", ours, re.MULTILINE)
    source = re.search(r" from (.*)\. `pdae` keeps", ours)
    return (terms[1].strip(), source[1] if source else "") if terms else None


def _ids(before: str, text: str) -> Iterator[str]:
    """The ids of the Hub that stand behind that in a text, without their revisions."""
    return (one[1] for one in re.finditer(rf"{re.escape(before)}([\w.-]+/[\w.-]+)", text))


def _joined(there: Any, more: list[str]) -> list[str] | None:
    """A list of the metadata, one text perhaps, with what isn't in it yet; None for nothing."""
    known = there if isinstance(there, list) else [there] if there else []
    return [*known, *(one for one in dict.fromkeys(more) if one not in known)] or None


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _plain(value: object, most: int = 500) -> str:
    """A text of whoever's that can't end a line, a cell, or a section of ours."""
    text = "" if value is None else " ".join(str(value).split())
    text = text if len(text) <= most else f"{text[:most]} …"
    return html.escape(text, quote=False).replace("`", "'")


def _about(config: ModelConfig, attributes: int, latent: object) -> str:
    """What the model is, and its parts."""
    parts = ["ε_θ of a first stage's latents" if config.first_stage else "ε_θ"]
    if config.z_dim is not None:
        parts += ["E_φ" if config.encoder else "labels", f"z of {config.z_dim} numbers"]
        parts += ["G_ψ"] * (not config.unet.z_channels)
    parts += [f"attributes ({attributes})"] * bool(attributes)
    parts += ["a latent DPM"] * (latent is not None)
    parts += [f"from {_plain(config.source)}"] * bool(config.source)
    return (
        f"A model of [PDAE](https://arxiv.org/abs/2212.12990) for pictures of {config.image_size} "
        f"pixels and {config.channels} channels: {', '.join(parts)}. `pdae` keeps this part of the "
        "card current; what is written outside of it stays."
    )


def _use(config: ModelConfig, name: str) -> str:
    """How to use it, from the shell and from Python."""
    does = (
        "encode face.png -o z.safetensors" if config.encoder else "sample --unconditional -o a.png"
    )
    python = f"import pdae_cli as pdae\n\nmodel = pdae.Model.from_pretrained({_plain(repr(name))})"
    shell = f"pdae {does} -m {_plain(shlex.quote(name))}"
    return f"## How to use it\n\n```bash\n{shell}\n```\n\n```python\n{python}\n```"


def _lists(stages: list[dict[str, Any]], learnt: Mapping[str, Any]) -> Iterator[str]:
    """The stages that it was trained in, with what they measured; attributes' figures."""

    def told(values: Mapping[str, Any]) -> str:
        kept = {k: v for k, v in values.items() if v not in (None, "") and v is not False}
        numbers = {k: f"{v:.4g}" if isinstance(v, float) else _plain(v) for k, v in kept.items()}
        return ", ".join(f"{_plain(key)} {value}" for key, value in numbers.items())

    if stages:
        yield "## Recipe\n\n" + "\n".join(
            f"- **{_plain(one.get('stage'))}**: {_plain(one.get('images'))} pictures seen, of "
            f"{_plain(one.get('data')) or 'data unknown'}; {told(_object(one.get('options')))}; on "
            f"held-out pictures {told(_object(one.get('metrics'))) or 'nothing measured'}"
            for one in stages
        )
    if learnt:
        keys = ("auroc", "correlation", "held_out")
        yield "## Figures of attributes, on held-out pictures\n\n" + "\n".join(
            f"- {_plain(name)}: {told({key: _object(one).get(key) for key in keys})}"
            for name, one in learnt.items()
        )
