"""Text for people."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Return `1 token`, `2 tokens`: a number with a noun that takes an s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def printable(text: str) -> str:
    """Return what others chose without what a terminal would obey."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
