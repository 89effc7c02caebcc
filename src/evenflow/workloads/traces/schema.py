"""Our schema: from a row to a request and back. See the package for the columns."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from evenflow.workloads.request import Segment, WorkloadRequest
from evenflow.workloads.traces.blocks import (
    MOONCAKE_BLOCK_TOKENS,
    block_ids,
    exact_ids,
    segments_of,
)
from evenflow.workloads.traces.files import Row

ARRIVALS = {"timestamp": 1e3, "timestamp_ms": 1e3, "arrival_s": 1.0, "Timestamp": 1.0}
"""By column of arrivals, how many of its units are a second."""

PROMPT_TOKENS = ("input_length", "num_prompt_tokens", "prompt_tokens", "Request tokens")
OUTPUT_TOKENS = ("output_length", "num_output_tokens", "output_tokens", "Response tokens")
_SESSIONS = ("session", "session_id")
_TIME_DIGITS = 9
_NAMED_LIKE_THE_FIELD = (
    *("tenant", "priority", "session", "turn", "continues", "think_time_s", "tool_time_s"),
    *("prompt", "messages"),
)


def request_of(row: Row) -> WorkloadRequest | None:
    """Read a row; None is a failed request.

    Raises:
        ValueError: the row says nothing sensible.
    """
    num_prompt_tokens = count(row, PROMPT_TOKENS)
    num_output_tokens = count(row, OUTPUT_TOKENS)
    if num_prompt_tokens == 0 or num_output_tokens == 0:
        return None
    prompt = row.get("prompt")
    messages = row.get("messages")
    session = next((row[name] for name in _SESSIONS if row.get(name) not in (None, "")), None)
    return WorkloadRequest(
        num_prompt_tokens=num_prompt_tokens,
        num_output_tokens=num_output_tokens,
        arrival_s=arrival_s(row),
        tenant=str(row.get("tenant") or ""),
        priority=int(number(row, "priority")) if row.get("priority") else 0,
        session=None if session is None else str(session),
        turn=count(row, ("turn",)) if row.get("turn") else 0,
        continues=str(row.get("continues", False)).lower() in ("true", "1"),
        think_time_s=duration_s(row, "think_time_s") if row.get("think_time_s") else 0.0,
        tool_time_s=duration_s(row, "tool_time_s") if row.get("tool_time_s") else 0.0,
        segments=_segments(row, num_prompt_tokens),
        prompt=tuple(prompt) if isinstance(prompt, list) else prompt,
        messages=None if messages is None else tuple(messages),
    )


def row_of(request: WorkloadRequest) -> dict[str, Any]:
    """Write a row, columns with their default values left out."""
    row = _times_and_lengths(request)
    if exact := exact_ids(request.segments):
        row["hash_ids"], block_tokens = exact
        if block_tokens != MOONCAKE_BLOCK_TOKENS:
            row["hash_block_tokens"] = block_tokens
    elif request.segments:
        row["hash_ids"] = block_ids(request.segments, MOONCAKE_BLOCK_TOKENS)
        row["segments"] = request.segments
    row |= {name: value for name in _NAMED_LIKE_THE_FIELD if (value := getattr(request, name))}
    return row


def mooncake_row_of(request: WorkloadRequest) -> dict[str, Any]:
    """Write a row with the columns of Mooncake's traces and no others."""
    row = _times_and_lengths(request)
    row["hash_ids"] = block_ids(request.segments, MOONCAKE_BLOCK_TOKENS)
    return row


def arrival_s(row: Row) -> float:
    """Return when a row's request comes, 0 when the row does not say."""
    for name, units_per_s in ARRIVALS.items():
        if name in row:
            return round(number(row, name) / units_per_s, _TIME_DIGITS)
    return 0.0


def count(row: Row, names: Iterable[str]) -> int:
    """Return the whole number under the first of `names` that the row has.

    Raises:
        ValueError: it has none, or what it has is no whole number of at least 0.
    """
    for name in names:
        if name in row:
            value = number(row, name)
            if value < 0 or not value.is_integer():
                raise ValueError(f"{name} is {row[name]!r}, which is no whole number from 0 up")
            return int(value)
    raise ValueError(f"it has none of the columns {', '.join(names)}")


def duration_s(row: Row, name: str) -> float:
    """Return a time that passes.

    Raises:
        ValueError: it is missing, no number, or negative.
    """
    value = number(row, name)
    if value < 0:
        raise ValueError(f"{name} is {row[name]!r}, which is less than 0")
    return value


def number(row: Row, name: str) -> float:
    """Return the finite number under `name`.

    Raises:
        ValueError: it is missing or something else.
    """
    try:
        value = float(row[name])
    except KeyError:
        raise ValueError(f"it has no column {name}") from None
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{name} is {row[name]!r}, which is no number")
    return value


def text(row: Row, name: str) -> str:
    """Return what stands under `name`.

    Raises:
        ValueError: nothing does.
    """
    value = row.get(name)
    if value in (None, ""):
        raise ValueError(f"it has no {name}")
    return str(value)


def hash_ids(row: Row) -> list[int]:
    """Return the ids of a row: a list, or text with spaces between.

    Raises:
        ValueError: they are no whole numbers.
    """
    ids = row["hash_ids"]
    try:
        return [int(block) for block in (ids.split() if isinstance(ids, str) else ids)]
    except (TypeError, ValueError):
        raise ValueError(f"hash_ids are {str(ids)[:50]!r}, which are no whole numbers") from None


def _segments(row: Row, num_prompt_tokens: int) -> tuple[Segment, ...]:
    if row.get("segments"):
        segments = tuple(Segment(str(key), int(num)) for key, num in row["segments"])
        if sum(segment.num_tokens for segment in segments) != num_prompt_tokens:
            raise ValueError(f"its segments are not {num_prompt_tokens} tokens together")
        return segments
    if not row.get("hash_ids"):
        return ()
    sizes = ("hash_block_tokens",)
    block_tokens = count(row, sizes) if sizes[0] in row else MOONCAKE_BLOCK_TOKENS
    return segments_of(hash_ids(row), num_prompt_tokens, max(block_tokens, 1))


def _times_and_lengths(request: WorkloadRequest) -> dict[str, Any]:
    milliseconds = round(request.arrival_s * 1e3, _TIME_DIGITS - 3)
    return {
        "timestamp": int(milliseconds) if milliseconds.is_integer() else milliseconds,
        "input_length": request.num_prompt_tokens,
        "output_length": request.num_output_tokens,
    }
