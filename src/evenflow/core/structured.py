"""Text of a prescribed form: how a request asks for it, and what enforces it.

A specification comes from anybody, so its size and its nesting are bounded here, before any parser
that is not ours sees it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from evenflow.core.errors import InvalidRequestError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

StructuredKind = Literal["json_object", "json_schema", "regex", "grammar", "choice", "tool_calls"]

MAX_JSON_DEPTH = 64
"""Most objects and arrays that a JSON schema may have inside each other."""

_MAX_SPEC_BYTES: dict[StructuredKind, int] = {
    "json_object": 0,
    "json_schema": 65536,
    "regex": 16384,
    "grammar": 16384,
    "choice": 65536,
    "tool_calls": 1 << 20,  # the schemas of all tools, which are bounded themselves
}


@dataclass(slots=True, frozen=True)
class StructuredOutput:
    """The form that a request's text must have.

    Attributes:
        kind: what `spec` is written in.
        spec: for json_schema, the schema as JSON; for regex, a regular expression in Rust's syntax
            that the whole text matches; for grammar, llguidance's dialect of Lark or llama.cpp's
            GBNF; for choice, a JSON list of the possible texts; for json_object, nothing; for
            tool_calls, the grammar that evenflow itself writes for a request's tools, in Lark.
        param: the request's field that asks for it, named in errors.
    """

    kind: StructuredKind
    spec: str = ""
    param: str = field(default="structured", compare=False)

    def __post_init__(self) -> None:
        if self.kind not in get_args(StructuredKind):
            raise self.refusal(f"there is no structured output of kind {self.kind!r}")
        self._check_size()
        if self.kind in ("json_schema", "choice"):
            self._check_json()

    def refusal(self, why: str) -> InvalidRequestError:
        """Return the error that says why this form cannot be had."""
        return InvalidRequestError(
            f"{self.param} asks for a form of output that cannot be had", param=self.param, why=why
        )

    def _check_size(self) -> None:
        if not isinstance(self.spec, str):
            raise self.refusal(f"the {self.kind} is {type(self.spec).__name__}, not a string")
        try:
            num_bytes = len(self.spec.encode())
        except UnicodeEncodeError:
            raise self.refusal(f"the {self.kind} has halves of surrogate pairs") from None
        limit = _MAX_SPEC_BYTES[self.kind]
        if num_bytes > limit:
            raise self.refusal(f"the {self.kind} has {num_bytes} bytes; the limit is {limit}")
        if not self.spec and limit:
            raise self.refusal(f"the {self.kind} is empty")

    def _check_json(self) -> None:
        try:
            value = json.loads(self.spec)
        except RecursionError:
            raise self.refusal("it is nested too deeply") from None
        except ValueError as error:
            raise self.refusal(f"the {self.kind} is not JSON: {error}") from None
        if self.kind == "choice":
            if not isinstance(value, list) or not value:
                raise self.refusal("the choice is not a list of texts")
            if not all(isinstance(text, str) and text for text in value):
                raise self.refusal("every choice must be a text that is not empty")
        elif not isinstance(value, dict):
            raise self.refusal("the schema is not a JSON object")
        elif is_deeper_than(value, MAX_JSON_DEPTH):
            raise self.refusal(f"the schema is nested more than {MAX_JSON_DEPTH} levels deep")


class TokenGrammar(Protocol):
    """How far one completion has come through its grammar."""

    def fill_mask(self, row: npt.NDArray[np.uint32]) -> None:
        """Set the bits of the tokens that may come next, and clear all others.

        Args:
            row: (ceil(vocab_size / 32),); token i is bit i % 32 of entry i // 32.

        Raises:
            GenerationError: the grammar cannot go on.
        """
        ...

    def accept(self, token_id: int) -> bool:
        """Go on by a token; return False if it may not come here."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of tokens, with and without bytes."""
        ...

    @property
    def is_complete(self) -> bool:
        """Whether the text is whole and nothing may follow."""
        ...

    def fork(self) -> TokenGrammar:
        """Return one that goes on from here by itself."""
        ...


def is_deeper_than(value: object, limit: int) -> bool:
    """Return whether a decoded JSON value has more than `limit` objects and arrays in a row."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(limit):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
    return bool(level)
