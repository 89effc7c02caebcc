"""Reading the fields of bodies that are translated to chat bodies, with errors that name them."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from evenflow.core.errors import InvalidRequestError

ENGINE_FIELDS = frozenset(
    {
        "cache_salt",
        "chat_template_kwargs",
        "frequency_penalty",
        "ignore_eos",
        "logit_bias",
        "min_p",
        "min_tokens",
        "presence_penalty",
        "priority",
        "repetition_penalty",
        "seed",
        "session_id",
        "stop_token_ids",
        "top_k",
    }
)
"""Fields of our chat body that other APIs lack; they are passed on as they are."""

T = TypeVar("T")

_KINDS = {
    bool: "true or false",
    dict: "an object",
    int: "a whole number",
    list: "a list",
    str: "a string",
}


def wrong(param: str, what: str, why: str = "", fix: str = "") -> InvalidRequestError:
    """Return the error for a field."""
    return InvalidRequestError(f"{param} {what}", param=param, why=why, fix=fix)


def known_fields(body: object, known: frozenset[str]) -> dict[str, Any]:
    """Return the fields that are not null.

    Raises:
        InvalidRequestError: the body is no object or has other fields than the known ones.
    """
    if not isinstance(body, Mapping):
        raise wrong("body", "must be a JSON object")
    fields = {str(name): value for name, value in body.items() if value is not None}
    for name in fields:
        if name not in known:
            raise wrong(name, "is not supported", "it is unknown here, or has no meaning here")
    return fields


def optional(fields: Mapping[str, Any], name: str, kind: type[T], path: str = "") -> T | None:
    """Return a field, None if it is missing or null.

    Raises:
        InvalidRequestError: it is of another kind.
    """
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        raise wrong(path + name, f"must be {_KINDS[kind]}", f"it is {type(value).__name__}")
    return value


def required(fields: Mapping[str, Any], name: str, kind: type[T], path: str = "") -> T:
    """Return a field.

    Raises:
        InvalidRequestError: it is missing or of another kind.
    """
    value = optional(fields, name, kind, path)
    if value is None:
        raise wrong(path + name, "is missing", f"it must be {_KINDS[kind]}")
    return value


def positive(fields: Mapping[str, Any], name: str) -> int:
    """Return a field that must be a whole number above 0.

    Raises:
        InvalidRequestError: it is missing or something else.
    """
    value = required(fields, name, int)
    if value < 1:
        raise wrong(name, "must be at least 1", f"it is {value}")
    return value


def shown(value: object) -> str:
    """Return a value as errors show it: in bounded length, whatever was sent."""
    return reprlib.repr(value)


def objects(items: list[Any], param: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a list, each with the name of its place.

    Raises:
        InvalidRequestError: something else is in the list.
    """
    for index, item in enumerate(items):
        if not isinstance(item, dict):
            raise wrong(f"{param}[{index}]", "must be an object", f"it is {type(item).__name__}")
        yield f"{param}[{index}]", item
