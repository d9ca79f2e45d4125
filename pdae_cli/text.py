"""Text that others wrote, made safe to show."""

from __future__ import annotations


def printable(text: str) -> str:
    """Text without control characters, so that a file's name can't steer what shows it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
