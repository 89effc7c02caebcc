"""Where a prompt on the command line comes from."""

from __future__ import annotations

import sys


def read_prompt(text: str) -> str:
    """Return what -p says: the text itself, or all of stdin for "-".

    Bytes that are not UTF-8 become what the tokeniser refuses, as they do in an argument.
    """
    if text != "-":
        return text
    return sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
