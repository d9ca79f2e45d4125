"""HTML pages that need nothing else, of the templates beside this file.

By its Content-Security-Policy a page loads nothing, runs no script and takes no style but its own.
Texts are anybody's: every value is escaped and shown without control characters.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any, TypeGuard

from .. import __version__
from ..errors import counted, printable

KINDS = {b"\x89PNG": "png", b"RIFF": "webp", b"<?xml": "svg+xml"}  # of pictures, by how they begin


def render(template: str, title: str, script: str = "", **values: Any) -> str:
    """Fill a template of page.html with values; `script` names a file beside it. The page is text
    that UTF-8 can say."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    pages = Environment(
        loader=PackageLoader(__package__, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else printable(shown(value)),
    )
    pages.filters |= {"exact": exact, "counted": counted, "columns": columns}
    pages.filters["data_uri"] = lambda picture: Markup(data_uri(picture))
    own, policy = {"style": "", "script": ""}, "default-src 'none'; img-src data:; "
    for kind, name in (("style", "page.css"), ("script", script)):
        if name:  # the one style and script that the page lets in
            own[kind] = resources.files(__package__).joinpath(name).read_text("utf-8").strip()
            digest = b64encode(hashlib.sha256(own[kind].encode()).digest()).decode()
            policy += f"{kind}-src 'sha256-{digest}'; "
    own["policy"] = f"{policy}base-uri 'none'; form-action 'none'"
    fixed = {name: Markup(text) for name, text in own.items()}
    page = pages.get_template(template)
    return page.render(values, title=title, version=__version__, **fixed) + "\n"


def shown(value: Any) -> str:
    """A value as people read it."""
    if value is None:
        return "—"
    if isinstance(value, float):
        return f"{value:.4g}".replace("inf", "∞")
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value))
    return value if isinstance(value, str) else json.dumps(value)


def exact(value: Any) -> str:
    """A value to sort by: numbers as scripts read them, nothing where it is missing."""
    if is_number(value):
        return repr(value).replace("inf", "Infinity").replace("nan", "")
    return "" if value is None else shown(value)


def data_uri(picture: bytes) -> str:
    """An SVG, PNG or WebP file as an address that holds all of it."""
    kind = next(kind for head, kind in KINDS.items() if picture.startswith(head))
    return f"data:image/{kind};base64,{b64encode(picture).decode()}"


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def columns(records: Iterable[Mapping[str, Any]]) -> dict[str, bool]:
    """Every field of any record, as they come, and whether it holds numbers and nothing else."""
    values: dict[str, list[Any]] = {}
    for record in records:
        for name, value in record.items():
            values.setdefault(name, []).extend([] if value is None else [value])
    return {name: bool(found) and all(map(is_number, found)) for name, found in values.items()}
