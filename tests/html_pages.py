"""A page as a parser sees it."""

from __future__ import annotations

import hashlib
import re
from base64 import b64decode, b64encode
from collections.abc import Iterable
from html.parser import HTMLParser

LOADING = {"src", "href", "srcset", "data", "action", "poster", "background", "xlink:href"}


class Page(HTMLParser):
    """Tags with their attributes, the text of each, and tables as lists of rows of texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []  # the tag that came last, and what it says
        self.tables: list[list[list[str]]] = []
        self._cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.tags[-1][0] if self.tags else "", data.strip()))
        if self._cell:
            self.tables[-1][-1][-1] += data.strip()

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def images(self, kind: str) -> list[bytes]:
        """The pictures of a kind that stand in it."""
        head = f"data:image/{kind};base64,"
        sources = (str(one["src"]) for one in self.named("img"))
        return [b64decode(one.removeprefix(head)) for one in sources if one.startswith(head)]


def assert_harmless(text: str, anchors: Iterable[str] = ()) -> Page:
    """It loads nothing, only its own script and style may act, its links lead to places in it."""
    page = Page(text)
    assert not any(word in text for word in ("http:", "https:", "\x1b"))
    policy = next(str(one["content"]) for one in page.named("meta") if "http-equiv" in one)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert (rules["default-src"], rules["img-src"]) == ("'none'", "data:")
    assert "unsafe" not in policy
    for kind in ("script", "style"):
        own = re.findall(f"<{kind}>(.*?)</{kind}>", text, re.DOTALL)
        digests = [b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in own]
        assert len(own) == len(page.named(kind))
        assert rules.get(f"{kind}-src", "").split() == [f"'sha256-{one}'" for one in digests]
    addresses = {str(one[key]) for _, one in page.tags for key in LOADING & set(one)}
    others = {one for one in addresses if not one.startswith("data:image/")}
    assert others == {f"#{name}" for name in anchors}
    return page


def column(table: list[list[str]], name: str) -> list[str]:
    place = table[0].index(name)
    return [row[place] for row in table[1:]]
