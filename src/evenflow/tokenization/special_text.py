"""Special tokens that are written out in what callers send, which must not become tokens.

A chat template writes a model's special tokens around what callers say. If a caller's own text has
one of them, it would be read as the template's, and could end the caller's turn and begin another
one. So the texts are disguised before the template sees them, and uncovered in its output as text
that is encoded with no eye for special tokens.

Knows: the written forms of special tokens.
Does not know: token ids, templates, messages.

Invariants:
    Time is linear in the length of a text, whatever it says and however many special tokens
    there are.
    Uncovering a rendered prompt gives what the template would have written without disguise.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

_MARK = "\U000f5afe"
"""Stands around a disguise. A private-use character; where a caller's text has it, it is disguised
itself."""

_DISGUISE = re.compile(f"{_MARK}([0-9]+){_MARK}")


class Piece(NamedTuple):
    """A part of a prompt.

    Attributes:
        text: never empty.
        is_plain: special tokens in it are text like any other.
    """

    text: str
    is_plain: bool


class SpecialText:
    """Finds special tokens in texts.

    Args:
        written: how the special tokens are written.
    """

    def __init__(self, written: Iterable[str]) -> None:
        texts = sorted(filter(None, written))
        self._pattern = re.compile(_one_of(texts) if texts else "(?!)")
        self._hidden_pattern = re.compile(_one_of(sorted([*texts, _MARK])))

    def is_in(self, text: str) -> bool:
        """Return whether a text has a special token."""
        return self._pattern.search(text) is not None

    def disguise(self) -> Disguise:
        """Start disguising the texts of one prompt."""
        return Disguise(self._pattern, self._hidden_pattern)


class Disguise:
    """The disguised texts of one prompt.

    Args:
        special: finds special tokens.
        hidden: finds special tokens and `_MARK`.
    """

    def __init__(self, special: re.Pattern[str], hidden: re.Pattern[str]) -> None:
        self._special = special
        self._hidden = hidden
        self._originals: list[str] = []

    def put_on(self, text: str) -> str:
        """Return a text in which nothing is written like a special token."""
        return self._hidden.sub(self._replace, text)

    def take_off(self, rendered: str) -> list[Piece]:
        """Cut a prompt that was made of disguised texts into pieces.

        What stands between two special tokens of the template is one piece, and plain, if any of
        it was disguised; the rest stays together as it is.
        """
        if not self._originals:
            return [Piece(rendered, is_plain=False)]
        pieces: list[Piece] = []
        position = 0  # up to here the prompt is in `pieces`
        section_start = 0
        for section_end, next_start in self._sections(rendered):
            section = rendered[section_start:section_end]
            plain = _DISGUISE.sub(self._restore, section)
            if plain != section:
                pieces.append(Piece(rendered[position:section_start], is_plain=False))
                pieces.append(Piece(plain, is_plain=True))
                position = section_end
            section_start = next_start
        pieces.append(Piece(rendered[position:], is_plain=False))
        return [piece for piece in pieces if piece.text]

    def _sections(self, rendered: str) -> Iterable[tuple[int, int]]:
        """Yield where each text between special tokens ends, and where the next one begins."""
        for found in self._special.finditer(rendered):
            yield found.span()
        yield len(rendered), len(rendered)

    def _replace(self, found: re.Match[str]) -> str:
        self._originals.append(found[0])
        return f"{_MARK}{len(self._originals) - 1}{_MARK}"

    def _restore(self, found: re.Match[str]) -> str:
        index = int(found[1])
        return self._originals[index] if index < len(self._originals) else found[0]


def _one_of(texts: list[str]) -> str:
    """Return a regular expression for the longest of sorted texts that stands at a place.

    It is a tree of their characters, which looks at each character once; a plain list of
    alternatives would be tried one by one, thousands of them for some models.
    """
    branches: defaultdict[str, list[str]] = defaultdict(list)
    for text in texts:
        branches[text[:1]].append(text[1:])
    is_end = branches.pop("", None) is not None
    alternatives = [
        re.escape(first) + (_one_of(rests) if rests != [""] else "")
        for first, rests in branches.items()
    ]
    if len(alternatives) == 1 and not is_end:
        return alternatives[0]
    return f"(?:{'|'.join(alternatives)}){'?' if is_end else ''}"
