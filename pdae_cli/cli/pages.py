"""What the HTML pages share: a document that loads nothing, tables, cells, pictures in it.

By its Content-Security-Policy a page runs no script and takes no style but its own. Texts are
anybody's: whatever is given as text is escaped here, and none stands in a script, a style or an
address.
"""

from __future__ import annotations

import hashlib
import html
import json
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any, TypeGuard

from .. import __version__
from ..errors import printable

MISSING = "—"


def document(
    title: str, body: Sequence[str], footer: Sequence[str], style: str = "", script: str = ""
) -> str:
    """A page, as text that UTF-8 can say, of parts that are HTML already; `style` comes after the
    style of all pages."""
    style = f"{asset('page.css')}{style}"
    scripts = f"script-src {_hash(script)}; " if script else ""
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; {scripts}"
        "base-uri 'none'; form-action 'none'"
    )
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta name="generator" content="pdae {__version__}">',
        f"<title>{escaped(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>",
        f"<h1>{escaped(title)}</h1>",
        *body,
        "</main>\n<footer>",
        *footer,
        "</footer>",
        *([f"<script>{script}</script>"] if script else []),
        "</body>\n</html>\n",
    ]
    return "\n".join(parts)


def asset(name: str) -> str:
    """A file beside this one."""
    return resources.files(__package__).joinpath(name).read_text("utf-8").strip()


def _hash(content: str) -> str:
    """The one script or style that the page's policy lets in."""
    return f"'sha256-{b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def facts(told: Mapping[str, str]) -> str:
    """Names and what holds of them."""
    items = "".join(f"<dt>{escaped(k)}</dt><dd>{escaped(v)}</dd>" for k, v in told.items())
    return f"<dl>{items}</dl>" if items else ""


def image(kind: str, data: bytes, alt: str, more: str = "") -> str:
    """A picture that stands in the page itself; `more`: of its attributes."""
    source = f"data:image/{kind};base64,{b64encode(data).decode()}"
    return f'<img alt="{escaped(alt)}"{more} src="{source}">'


# --- Tables ------------------------------------------------------------------------------------


def table(label: str, heads: Iterable[str], body: Iterable[list[str]]) -> str:
    """Rows of cells below a row of heads."""
    rows = "\n".join(f"<tr>{''.join(cells)}</tr>" for cells in body)
    return (
        f'<div class="wide" role="region" aria-label="{escaped(label)}" tabindex="0"><table>\n'
        f"<thead><tr>{''.join(heads)}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>"
    )


def head(name: str, number: bool = False, sorts: bool = True) -> str:
    """A column's head; `sorts`: a script may sort by it."""
    kind = ' class="number"' if number else ""
    own = f' data-name="{escaped(name)}"' if sorts else ""
    return f'<th scope="col"{kind}{own}>{escaped(name)}</th>'


def row_head(name: str) -> str:
    """A row's head."""
    return f'<th scope="row" data-value="{escaped(name)}">{escaped(name)}</th>'


def cell(value: Any, number: bool = True) -> str:
    """A value as people read it, with the exact one beside it to sort by."""
    text = shown(value)
    exact = "" if value is None else repr(value) if is_number(value) else text
    kind = ' class="number"' if number else ""
    sorts = exact.replace("inf", "Infinity").replace("nan", "") if is_number(value) else exact
    return f'<td{kind} data-value="{escaped(sorts)}">{escaped(text)}</td>'


# --- Values ------------------------------------------------------------------------------------


def shown(value: Any) -> str:
    """A value as people read it."""
    if value is None:
        return MISSING
    if isinstance(value, float):
        return f"{value:.4g}".replace("inf", "∞")
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value))
    return value if isinstance(value, str) else json.dumps(value)


def escaped(text: str) -> str:
    """For an element's content or a quoted attribute: no markup, no control characters."""
    return html.escape(printable(text))


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)
