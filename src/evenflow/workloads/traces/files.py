"""Rows of JSONL and CSV files, gzipped or not, with the numbers of their lines."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from evenflow.core.errors import InvalidRequestError

Row = Mapping[str, Any]


@dataclass(slots=True, frozen=True)
class BadRow:
    """A row that cannot be understood.

    Attributes:
        line: its number in the file, from 1; the last one of a row that spans several.
        reason: what is wrong with it.
    """

    line: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


def numbered_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a file in which every row must be sound.

    Raises:
        InvalidRequestError: the file cannot be read, or a line is no row.
    """
    for entry in numbered_entries(path):
        if isinstance(entry, BadRow):
            raise InvalidRequestError(
                f"{path} cannot be read", param="dataset_path", why=str(entry)
            )
        yield entry


def numbered_entries(path: Path) -> Iterator[tuple[int, Row] | BadRow]:
    """Yield the rows of a file with the numbers of their lines, and what lines are no rows.

    Raises:
        InvalidRequestError: the file cannot be read.
    """
    try:
        with opened(path, "r") as file:
            yield from _csv_rows(file) if ".csv" in path.suffixes else _json_rows(file)
    except (OSError, EOFError, ValueError, csv.Error, zlib.error) as error:
        raise InvalidRequestError(
            f"{path} cannot be read", param="dataset_path", why=str(error)
        ) from error


def opened(path: Path, mode: str) -> IO[str]:
    """Open a text file, or a gzipped one."""
    encoding = "utf-8-sig" if mode == "r" else "utf-8"
    if ".gz" in path.suffixes:
        return cast("IO[str]", gzip.open(path, f"{mode}t", encoding=encoding, newline=""))
    return path.open(mode, encoding=encoding, newline="")


def _csv_rows(file: IO[str]) -> Iterator[tuple[int, Row] | BadRow]:
    reader = csv.DictReader(file)
    num_columns = len(reader.fieldnames or ())
    for row in reader:
        # Cells beyond the header are a list under None, missing ones are None.
        if None in row or None in row.values():
            extra = cast("dict[str | None, list[str]]", row).get(None, ())
            num_cells = sum(row[name] is not None for name in reader.fieldnames or ()) + len(extra)
            reason = f"it has {num_cells} columns where the header has {num_columns}"
            yield BadRow(reader.line_num, reason)
        else:
            yield reader.line_num, row


def _json_rows(file: IO[str]) -> Iterator[tuple[int, Row] | BadRow]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            yield BadRow(number, f"it is not JSON: {error}")
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            yield BadRow(number, "it is not a JSON object")
