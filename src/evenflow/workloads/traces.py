"""Traces of workloads: one schema of our own to write, and the common ones to read.

A trace is JSON lines (`.jsonl`) or CSV with a header (`.csv`), either also gzipped (`.gz`). Columns
go by these names, of which the first is ours and the only one that is written:

    arrival_s            also Timestamp (BurstGPT); timestamp_ms, timestamp (Mooncake, in ms)
    num_prompt_tokens    also prompt_tokens, input_length, "Request tokens"
    num_output_tokens    also output_tokens, output_length, "Response tokens"
    tenant, session      optional, as are all that follow
    segments             [[key, tokens], ...], see `request.py`; also hash_ids (Mooncake): one id
                         per started block of 512 tokens, equal ids mean equal text up to there
    prompt, messages     the text, the token ids or the chat
    continues, think_time_s

Rows that ask for no output are failed requests of the recording and are left out.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

from evenflow.core.errors import InvalidRequestError
from evenflow.workloads.request import Segment, WorkloadRequest

_MOONCAKE_BLOCK_TOKENS = 512
_ARRIVALS = {"arrival_s": 1.0, "Timestamp": 1.0, "timestamp_ms": 1e-3, "timestamp": 1e-3}
_PROMPT_TOKENS = ("num_prompt_tokens", "prompt_tokens", "input_length", "Request tokens")
_OUTPUT_TOKENS = ("num_output_tokens", "output_tokens", "output_length", "Response tokens")

Row = Mapping[str, Any]


def read_trace(path: Path, limit: int | None = None) -> tuple[list[WorkloadRequest], bool]:
    """Read a trace.

    Args:
        path: the file.
        limit: stop after so many requests.

    Returns:
        the requests in order of arrival, and whether the trace has arrival times; without, they
        all arrive at 0.

    Raises:
        InvalidRequestError: the file cannot be read or is no trace.
    """
    requests: list[WorkloadRequest] = []
    is_timed = True
    for number, row in numbered_rows(path):
        if limit is not None and len(requests) >= limit:
            break
        try:
            is_timed = is_timed and any(name in row for name in _ARRIVALS)
            request = _request(row)
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidRequestError(
                f"line {number} of {path} is no row of a trace",
                param="dataset_path",
                why=f"{type(error).__name__}: {error}",
                fix="Give it the columns arrival_s, num_prompt_tokens and num_output_tokens",
            ) from error
        if request.num_output_tokens > 0:
            requests.append(request)
    if not requests:
        raise InvalidRequestError(f"{path} holds no requests", param="dataset_path")
    return sorted(requests, key=lambda request: request.arrival_s), is_timed


def write_trace(path: Path, requests: Iterable[WorkloadRequest]) -> None:
    """Write a trace as JSON lines, fields with their default values left out."""
    with _opened(path, "w") as file:
        for request in requests:
            file.write(json.dumps(_row(request), ensure_ascii=False) + "\n")


def numbered_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a CSV or JSONL file, gzipped or not, with the numbers of their lines.

    Raises:
        InvalidRequestError: the file cannot be read, or a line is no JSON object.
    """
    try:
        with _opened(path, "r") as file:
            if ".csv" in path.suffixes:
                yield from enumerate(csv.DictReader(file), start=2)
            else:
                yield from _json_rows(file)
    except (OSError, ValueError, csv.Error) as error:
        raise InvalidRequestError(
            f"{path} cannot be read", param="dataset_path", why=str(error)
        ) from error


def _json_rows(file: IO[str]) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is not a JSON object")
        yield number, row


def _opened(path: Path, mode: str) -> IO[str]:
    if path.suffix == ".gz":
        return cast("IO[str]", gzip.open(path, f"{mode}t", encoding="utf-8", newline=""))
    return path.open(mode, encoding="utf-8", newline="")


def _request(row: Row) -> WorkloadRequest:
    num_prompt_tokens = int(float(_first_of(row, _PROMPT_TOKENS)))
    prompt = row.get("prompt")
    return WorkloadRequest(
        num_prompt_tokens=num_prompt_tokens,
        num_output_tokens=int(float(_first_of(row, _OUTPUT_TOKENS))),
        arrival_s=next((float(row[n]) * unit for n, unit in _ARRIVALS.items() if n in row), 0.0),
        tenant=row.get("tenant") or "",
        session=row.get("session") or None,
        continues=bool(row.get("continues", False)),
        think_time_s=float(row.get("think_time_s", 0.0)),
        segments=_segments(row, num_prompt_tokens),
        prompt=tuple(prompt) if isinstance(prompt, list) else prompt,
        messages=tuple(row["messages"]) if "messages" in row else None,
    )


def _first_of(row: Row, names: Iterable[str]) -> Any:
    for name in names:
        if name in row:
            return row[name]
    raise KeyError(f"none of the columns {', '.join(names)}")


def _segments(row: Row, num_prompt_tokens: int) -> tuple[Segment, ...]:
    if "hash_ids" not in row:
        return tuple(Segment(key, num_tokens) for key, num_tokens in row.get("segments", ()))
    hash_ids = row["hash_ids"]
    keys = hash_ids.split() if isinstance(hash_ids, str) else [str(key) for key in hash_ids]
    last_tokens = num_prompt_tokens - _MOONCAKE_BLOCK_TOKENS * (len(keys) - 1)
    lengths = [_MOONCAKE_BLOCK_TOKENS] * (len(keys) - 1) + [last_tokens]
    return tuple(Segment(f"block {key}", n) for key, n in zip(keys, lengths, strict=False))


def _row(request: WorkloadRequest) -> dict[str, Any]:
    row: dict[str, Any] = {
        "arrival_s": round(request.arrival_s, 6),
        "num_prompt_tokens": request.num_prompt_tokens,
        "num_output_tokens": request.num_output_tokens,
    }
    optional = ("tenant", "session", "continues", "think_time_s", "segments", "prompt", "messages")
    row |= {name: value for name in optional if (value := getattr(request, name))}
    return row
