"""Writes traces."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from evenflow.core.errors import InvalidRequestError
from evenflow.workloads.request import WorkloadRequest
from evenflow.workloads.traces import schema
from evenflow.workloads.traces.files import opened

Layout = Literal["evenflow", "mooncake"]


def write_trace(
    path: Path, requests: Iterable[WorkloadRequest], layout: Layout = "evenflow"
) -> int:
    """Write a trace as JSON lines, one request at a time; return how many there were.

    The file appears under its name when it is complete, so it may be the one that is read from.

    Args:
        path: ends in .jsonl or .jsonl.gz.
        requests: in the order in which they are to be written.
        layout: all columns, or only the four that tools for Mooncake's traces know.

    Raises:
        InvalidRequestError: the name says CSV, or the file cannot be written.
    """
    if ".csv" in path.suffixes:
        raise InvalidRequestError(
            f"{path} cannot be written",
            param="output",
            why="traces are written as JSON lines",
            fix="Use a name that ends in .jsonl or .jsonl.gz",
        )
    row_of = schema.row_of if layout == "evenflow" else schema.mooncake_row_of
    unfinished = path.with_name(f".{path.name}.unfinished{path.suffix}")
    num_requests = 0
    try:
        with opened(unfinished, "w") as file:
            for request in requests:
                file.write(json.dumps(row_of(request), ensure_ascii=False) + "\n")
                num_requests += 1
        unfinished.replace(path)
    except OSError as error:
        raise InvalidRequestError(
            f"{path} cannot be written", param="output", why=str(error)
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)
    return num_requests
