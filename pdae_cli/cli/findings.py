"""A page of experiments: one HTML file that needs nothing else and runs no script.

Plots are pictures in it, so that their styles and the page's don't meet. Names and values are
anybody's and are escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..evaluation.plots import Plot
from ..pictures.images import encode_picture
from . import pages

WIDE = """
main > img { height: auto; max-width: 100%; outline: 0; margin: .8rem 0; }
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
    body = [_contents(sections), *(_section(one) for one in sections)]
    return pages.document(title, body, [pages.facts(facts)], style=WIDE)


def _contents(sections: Sequence[Section]) -> str:
    items = []
    for one in sections:
        title, words = pages.escaped(one.title), pages.escaped(one.words)
        items.append(f'<li><a href="#{_anchor(one)}">{title}</a>: {words}</li>')
    return f"<ul>{''.join(items)}</ul>"


def _anchor(section: Section) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in section.title)


def _section(section: Section) -> str:
    title, words = pages.escaped(section.title), pages.escaped(section.words)
    parts = [f'<h2 id="{_anchor(section)}">{title}</h2>\n<p>{words}</p>']
    if section.plot is not None:
        data = section.plot.svg().encode()
        parts.append(pages.image("svg+xml", data, f"Plot: {section.plot.title}"))
    if section.rows:
        parts.append(_rows(section))
    if section.sheet is not None:
        parts.append(
            pages.image("png", encode_picture(section.sheet, ".png", None), "Sheet of pictures")
        )
    return "\n".join(parts)


def _rows(section: Section) -> str:
    names = list(dict.fromkeys(name for row in section.rows for name in row))
    numeric = {
        name for name in names if all(pages.is_number(row.get(name) or 0) for row in section.rows)
    }
    heads = [pages.head(name, name in numeric, sorts=False) for name in names]
    body = [[pages.cell(row.get(name), name in numeric) for name in names] for row in section.rows]
    table = pages.table(section.title, heads, body)
    if len(body) <= LONG:
        return table
    return f"<details><summary>All {len(body)} rows</summary>{table}</details>"
