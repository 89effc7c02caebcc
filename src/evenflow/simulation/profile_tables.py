"""Reads the tables of measured operators and layers from a folder of `NAME.csv.gz` files.

The folder is given by whoever runs the simulator; evenflow ships no such table. `docs/simulator.md`
describes the layout.
"""

from __future__ import annotations

import csv
import gzip
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from evenflow.core.errors import ConfigError

SUFFIX = ".csv.gz"

Shape = TypeVar("Shape", bound=tuple[int, ...])


def has_table(directory: Path, name: str) -> bool:
    """Return whether the folder has a table of that name."""
    return (directory / f"{name}{SUFFIX}").is_file()


def read_table(
    directory: Path, name: str, columns: Sequence[str], where: Mapping[str, str]
) -> Iterator[tuple[str, ...]]:
    """Yield the given columns of those rows that have the given values.

    Args:
        directory: the folder.
        name: of the table, without suffix.
        columns: what to yield, in this order.
        where: value by column.

    Raises:
        ConfigError: there is no such table, or it lacks a column.
    """
    path = directory / f"{name}{SUFFIX}"
    if not path.is_file():
        there = ", ".join(sorted(p.name for p in directory.glob(f"*{SUFFIX}"))) or "none"
        raise ConfigError(
            f"there is no table {path.name} in {directory}",
            why=f"tables there: {there}",
            fix="Name the folder that holds the measured tables, as --costs tables:FOLDER",
        )
    with gzip.open(path, "rt", newline="") as file:
        rows = csv.reader(file)
        header = next(rows, [])
        missing = {*columns, *where} - set(header)
        if missing:
            raise ConfigError(
                f"{path} lacks the column {min(missing)!r}",
                why=f"its columns are {', '.join(header)}",
                fix="Use a table with the layout that docs/simulator.md describes",
            )
        wanted = [(header.index(column), value) for column, value in where.items()]
        indices = [header.index(column) for column in columns]
        for row in rows:
            if all(row[index] == value for index, value in wanted):
                yield tuple(row[index] for index in indices)


def nearest_shape(measured: Iterable[Shape], wanted: Shape) -> Shape:
    """Return the measured shape whose numbers differ least from those wanted, as ratios."""
    return min(
        measured,
        key=lambda shape: sum(abs(math.log(a / b)) for a, b in zip(shape, wanted, strict=True)),
    )
