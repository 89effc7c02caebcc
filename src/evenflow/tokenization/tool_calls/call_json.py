"""The JSON of one call: where it ends, and what it says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import NoReturn

# What may stand in an object outside of strings, up to the next character that matters.
_PLAIN = re.compile(r"[\s:,0-9+\-.eEtrufalsn]*")
_IN_STRING = re.compile(r'(?:[^"\\]|\\.)*', re.DOTALL)


class ObjectEnd:
    """Finds the end of a JSON object in a growing text, looking at each character once.

    Attributes:
        position: how far the text was read; the end, once that is decided.
        is_whole: the closing brace was read.
    """

    __slots__ = ("_depth", "_in_string", "is_whole", "position")

    def __init__(self) -> None:
        self.position = 0
        self.is_whole = False
        self._depth = 0
        self._in_string = False

    def find(self, text: str) -> bool | None:
        """Return True at the end, False before a character no object can have, else None."""
        while self.position < len(text) and not self.is_whole:
            pattern = _IN_STRING if self._in_string else _PLAIN
            found = pattern.match(text, self.position)
            self.position = found.end() if found else self.position  # both match the empty text
            match text[self.position : self.position + 1]:
                case "" | "\\":  # half an escape
                    return None
                case '"':
                    self._in_string = not self._in_string
                case "{" | "[":
                    self._depth += 1
                case "}" | "]":
                    self._depth -= 1
                    self.is_whole = self._depth == 0
                case _:
                    return False
            self.position += 1
        return True if self.is_whole else None


def read_call(text: str) -> tuple[str, str] | None:
    """Return name and arguments of a call as they are written, None if it is not sound."""
    try:
        fields = dict(_fields(text))
        name = _JSON.decode(fields["name"])
        arguments = fields.get("arguments", fields.get("parameters", "{}"))
        value = _JSON.decode(arguments)
        if isinstance(value, str):  # some models write the arguments as a text within the text
            arguments, value = value, _JSON.decode(value)
    except (LookupError, RecursionError, ValueError):
        return None
    if value is None:
        arguments, value = "{}", {}
    return (name, arguments) if isinstance(name, str) and isinstance(value, dict) else None


def _fields(text: str) -> Iterable[tuple[str, str]]:
    """Yield the keys of an object with their values as they are written."""
    at = 1
    while True:
        key, at = _JSON.raw_decode(text, _skip(text, at, ""))
        if not isinstance(key, str):
            raise ValueError("the keys of an object are strings")
        at = _skip(text, at, ":")
        start = _skip(text, at, "")
        _, at = _JSON.raw_decode(text, start)
        yield key, text[start:at]
        at = _skip(text, at, "")
        if text[at] == "}":
            return
        at = _skip(text, at, ",")


def _skip(text: str, at: int, wanted: str) -> int:
    while text[at : at + 1] in (" ", "\n", "\r", "\t"):
        at += 1
    if not text.startswith(wanted, at):
        raise ValueError(f"expected {wanted} at {at}")
    return at + len(wanted)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_JSON = json.JSONDecoder(parse_constant=_refuse_constant)
