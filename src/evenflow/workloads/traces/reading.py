"""Reads traces, row by row or as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path

from evenflow.core.errors import InvalidRequestError
from evenflow.workloads.request import WorkloadRequest
from evenflow.workloads.traces.files import BadRow, Row, numbered_entries
from evenflow.workloads.traces.published import RowReader, reader_for

_MAX_SHOWN_BAD_ROWS = 5
_MAX_ROWS_READ_ON = 10_000
"""How far to look for further bad rows once there is one, so that one error names several."""

OnBadRow = Callable[[BadRow], None]


def iter_trace(path: Path, *, on_bad_row: OnBadRow | None = None) -> TraceRows:
    """Read a trace row by row, in the order of the file.

    Args:
        path: the file.
        on_bad_row: called with every row that cannot be understood, which is then left out. Without
            it such rows are an error.

    Raises:
        InvalidRequestError: the file cannot be read; while iterating, also that it has bad rows.
    """
    return TraceRows(path, on_bad_row)


def read_trace(path: Path, limit: int | None = None) -> tuple[list[WorkloadRequest], bool]:
    """Read a trace into memory.

    Args:
        path: the file.
        limit: stop after so many requests.

    Returns:
        the requests in order of arrival, and whether the trace has arrival times; without, they
        all arrive at 0.

    Raises:
        InvalidRequestError: the file cannot be read or is no trace.
    """
    rows = iter_trace(path)
    requests = list(islice(rows, limit))
    if not requests:
        raise InvalidRequestError(f"{path} holds no requests", param="dataset_path")
    return sorted(requests, key=lambda request: request.arrival_s), rows.is_timed


class TraceRows:
    """The requests of a file, one at a time.

    Attributes:
        is_timed: the trace says when requests arrive; else all arrive at 0.
        num_requests: read so far.
        num_bad_rows: left out so far because they cannot be understood.
    """

    def __init__(self, path: Path, on_bad_row: OnBadRow | None) -> None:
        self._path = path
        self._on_bad_row = on_bad_row
        entries = numbered_entries(path)
        looked_at: list[tuple[int, Row] | BadRow] = []
        for entry in islice(entries, _MAX_ROWS_READ_ON):
            looked_at.append(entry)
            if not isinstance(entry, BadRow):
                break
        self._entries = chain(looked_at, entries)
        first = looked_at[-1] if looked_at else None
        row = first[1] if isinstance(first, tuple) else {}
        self._reader: RowReader = reader_for(path, row)
        self.is_timed = self._reader.is_timed
        self.num_requests = self.num_bad_rows = 0

    def __iter__(self) -> Iterator[WorkloadRequest]:
        return self

    def __next__(self) -> WorkloadRequest:
        for entry in self._entries:
            request = self._read(entry)
            if isinstance(request, WorkloadRequest):
                self.num_requests += 1
                return request
            if isinstance(request, BadRow):
                self.num_bad_rows += 1
                if self._on_bad_row is None:
                    self._refuse(request)
                else:
                    self._on_bad_row(request)
        raise StopIteration

    def _read(self, entry: tuple[int, Row] | BadRow) -> WorkloadRequest | BadRow | None:
        if isinstance(entry, BadRow):
            return entry
        line, row = entry
        try:
            return self._reader(row)
        except ValueError as error:
            return BadRow(line, str(error))
        except (KeyError, TypeError, AttributeError) as error:
            return BadRow(line, f"{type(error).__name__}: {error}")

    def _refuse(self, first: BadRow) -> None:
        """Raise an error that names this bad row and those that follow it closely."""
        read_on = map(self._read, islice(self._entries, _MAX_ROWS_READ_ON))
        others = (entry for entry in read_on if isinstance(entry, BadRow))
        bad = [first, *islice(others, _MAX_SHOWN_BAD_ROWS - 1)]
        raise InvalidRequestError(
            f"{self._path} has rows that are no requests",
            param="dataset_path",
            why="; ".join(map(str, bad)),
            fix="Columns are timestamp (ms), input_length and output_length, or those of a "
            "published trace; `evenflow trace convert --skip-bad` leaves bad rows out",
        )
