"""A page of experiments: one HTML file that needs nothing else and runs no script.

Plots are pictures in it, so that their styles and the page's don't meet. Names and values are
anybody's and are escaped; see `report`, whose style this is.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from .. import __version__
from ..images import encode_picture
from ..plots import Plot
from .report import _asset, _cell, _facts, _hash, _head, _is_number, _safe, _table

WIDE = """main > img { height: auto; max-width: 100%; outline: 0; margin: .8rem 0; }
td.number { white-space: nowrap; }"""
LONG = 24  # rows of a table that are seen at once


@dataclass(frozen=True)
class Section:
    """One experiment: its name, what it says in words, rows, plot and sheet."""

    title: str
    words: str
    rows: Sequence[Mapping[str, object]] = ()
    plot: Plot | None = None
    sheet: Tensor | None = None  # uint8 (C, H, W)


def page(title: str, sections: Sequence[Section], facts: Mapping[str, str]) -> str:
    """The page, as text that UTF-8 can say. `facts`: what holds for all of it."""
    style = f"{_asset('report.css')}\n{WIDE}"
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; base-uri 'none'; "
        "form-action 'none'"
    )
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta name="generator" content="pdae {__version__}">',
            f"<title>{_safe(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>",
            f"<h1>{_safe(title)}</h1>\n{_contents(sections)}",
            *(_section(one) for one in sections),
            f"</main>\n<footer>\n{_facts(facts)}\n</footer>\n</body>\n</html>\n",
        ]
    )


def _contents(sections: Sequence[Section]) -> str:
    items = (
        f'<li><a href="#{_anchor(one)}">{_safe(one.title)}</a>: {_safe(one.words)}</li>'
        for one in sections
    )
    return f"<ul>{''.join(items)}</ul>"


def _anchor(section: Section) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in section.title)


def _section(section: Section) -> str:
    parts = [
        f'<h2 id="{_anchor(section)}">{_safe(section.title)}</h2>\n<p>{_safe(section.words)}</p>'
    ]
    if section.plot is not None:
        data = section.plot.svg().encode()
        parts.append(_image("svg+xml", data, f"Plot: {section.plot.title}"))
    if section.rows:
        parts.append(_rows(section))
    if section.sheet is not None:
        parts.append(
            _image("png", encode_picture(section.sheet, ".png", None), "Sheet of pictures")
        )
    return "\n".join(parts)


def _image(kind: str, data: bytes, alt: str) -> str:
    source = f"data:image/{kind};base64,{b64encode(data).decode()}"
    return f'<img alt="{_safe(alt)}" src="{source}">'


def _rows(section: Section) -> str:
    names = list(dict.fromkeys(name for row in section.rows for name in row))
    numeric = {
        name for name in names if all(_is_number(row.get(name) or 0) for row in section.rows)
    }
    heads = [_head(name, name in numeric, sorts=False) for name in names]
    body = [[_cell(row.get(name), name in numeric) for name in names] for row in section.rows]
    table = _table(_safe(section.title), heads, body)
    if len(body) <= LONG:
        return table
    return f"<details><summary>All {len(body)} rows</summary>{table}</details>"
