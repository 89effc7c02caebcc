"""Priorities that come from outside and change while requests wait and run.

A priority trace says, at certain steps or at certain seconds, how urgent its subjects are from then
on. A subject is a session, by its name, or a request without one, by its place in order of arrival
("0", "1", ...). Nobody has published such a trace of a real service, so two kinds are made here, as
FastSwitch (arXiv 2411.18424) does:

    random    at each update every subject draws a level of its own, whatever it had before
    markov    a subject mostly keeps its level, and else goes to the next one up or down

In a file an update is a line, and whom it does not name keeps what it has:

    {"step": 25, "priorities": {"chat 0": 3, "17": 0}}
    {"step": 50, "priorities": {"chat 0": 2}}

with "at_s", in seconds from the start of the workload, instead of "step" if all lines have it.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, islice
from pathlib import Path
from typing import Protocol
from zlib import crc32

import numpy as np

from evenflow.core.errors import InvalidRequestError
from evenflow.workloads.request import WorkloadRequest
from evenflow.workloads.traces.files import Row, numbered_rows, opened
from evenflow.workloads.traces.recent import Recent

NEVER_STEP = sys.maxsize
MAX_PRIORITY = 2**31

_NUM_RANDOM_LEVELS = 1 << 16  # so many that two requests hardly ever draw the same
_NUM_MARKOV_LEVELS = 8
_UP, _DOWN = 0.9, 0.1  # a number in [0, 1) from which on, and below which, the level changes
_LEVELS_AT_ONCE = 64


def subject_of(request: WorkloadRequest, place: str) -> str:
    """Return the subject that a request belongs to; `place` is its place in order of arrival."""
    return place if request.session is None else request.session


class PriorityFeed(Protocol):
    """A priority trace that is being played.

    Attributes:
        next_step: steps after which the next update is due; `NEVER_STEP` if none is.
        next_s: when the next update is due, in seconds; infinite if none is.
    """

    next_step: int
    next_s: float

    def update(self) -> None:
        """Go on to the next update."""
        ...

    def priority(self, subject: str) -> int | None:
        """Return how urgent a subject is by now, lower is earlier; None if nothing was said."""
        ...


@dataclass(slots=True, frozen=True)
class PriorityUpdate:
    """A line of a trace.

    Attributes:
        priorities: by subject.
        step: steps after which they are in force; None in a trace of seconds.
        at_s: seconds after which they are; None in a trace of steps.
    """

    priorities: Mapping[str, int]
    step: int | None = None
    at_s: float | None = None


class RecordedPriorities:
    """Plays updates as they were written down.

    Args:
        updates: in order.
    """

    def __init__(self, updates: Iterable[PriorityUpdate]) -> None:
        self._updates = iter(updates)
        self._priorities: dict[str, int] = {}
        self._next: PriorityUpdate | None = None
        self._read_next()

    def update(self) -> None:
        """Go on to the next update."""
        if self._next is not None:
            self._priorities.update(self._next.priorities)
        self._read_next()

    def priority(self, subject: str) -> int | None:
        """Return what was last said of a subject."""
        return self._priorities.get(subject)

    def _read_next(self) -> None:
        self._next = next(self._updates, None)
        self.next_step, self.next_s = NEVER_STEP, math.inf
        if self._next is not None and self._next.step is not None:
            self.next_step = self._next.step
        elif self._next is not None and self._next.at_s is not None:
            self.next_s = self._next.at_s


Levels = Callable[[np.random.Generator, int | None, int], list[int]]
"""Draws the next levels of a subject, given the last one (None at the beginning) and how many."""


class GeneratedPriorities:
    """Plays updates that are drawn, one every so many steps, for ever.

    The levels of a subject hang on its name, the seed and the number of the update, and on nothing
    else: engines that differ in who waits for how long are told the same.

    Args:
        levels: draws them.
        steps_between: steps from one update to the next.
        seed: of all levels.
    """

    next_s = math.inf

    def __init__(self, levels: Levels, steps_between: int, seed: int = 0) -> None:
        self.next_step = steps_between
        self._levels = levels
        self._steps_between = steps_between
        self._seed = seed
        self._number = 0
        self._drawn: Recent[str, tuple[np.random.Generator, list[int]]] = Recent()

    def update(self) -> None:
        """Go on to the next update."""
        self._number += 1
        self.next_step += self._steps_between

    def priority(self, subject: str) -> int:
        """Return the level of a subject by now."""
        known = self._drawn.get(subject)
        if known is None:
            rng = np.random.default_rng([self._seed, crc32(subject.encode())])
            known = rng, self._levels(rng, None, _LEVELS_AT_ONCE)
            self._drawn.set(subject, known)
        rng, drawn = known
        while len(drawn) <= self._number:
            drawn += self._levels(rng, drawn[-1], _LEVELS_AT_ONCE)
        return drawn[self._number]

    def updates(self, subjects: Sequence[str]) -> Iterator[PriorityUpdate]:
        """Yield what is said of some subjects, from now on and for ever, to be written down."""
        step = self.next_step - self._steps_between
        while True:
            yield PriorityUpdate({name: self.priority(name) for name in subjects}, step)
            step = self.next_step
            self.update()


def random_levels(rng: np.random.Generator, last: int | None, num: int) -> list[int]:  # noqa: ARG001
    """Draw levels that have nothing to do with each other."""
    levels: list[int] = rng.integers(_NUM_RANDOM_LEVELS, size=num).tolist()
    return levels


def markov_levels(rng: np.random.Generator, last: int | None, num: int) -> list[int]:
    """Draw levels of which eight in ten are the one before, and the others next to it."""
    first = int(rng.integers(_NUM_MARKOV_LEVELS)) if last is None else last
    drawn = rng.random(num)
    moves = (drawn >= _UP).astype(int) - (drawn < _DOWN)
    top = _NUM_MARKOV_LEVELS - 1
    levels = accumulate(
        moves.tolist(), lambda level, move: min(max(level + move, 0), top), initial=first
    )
    return list(islice(levels, 0 if last is None else 1, num + (last is not None)))


_KINDS: Mapping[str, Levels] = {"random": random_levels, "markov": markov_levels}


def open_priorities(source: str, seed: int = 0) -> Callable[[], PriorityFeed]:
    """Return what begins to play a priority trace, as often as it is called.

    Args:
        source: a file, or random:FREQUENCY or markov:FREQUENCY, in updates per step.
        seed: of the latter two.

    Raises:
        InvalidRequestError: it is neither, or the file is no priority trace.
    """
    kind, _, frequency = source.partition(":")
    if kind in _KINDS and not Path(source).is_file():
        return partial(GeneratedPriorities, _KINDS[kind], _steps_between(frequency), seed)
    return partial(RecordedPriorities, read_priorities(Path(source)))


def read_priorities(path: Path) -> list[PriorityUpdate]:
    """Read a priority trace.

    Raises:
        InvalidRequestError: the file cannot be read, or a line is no update or out of order.
    """
    updates: list[PriorityUpdate] = []
    for number, row in numbered_rows(path):
        try:
            update = _update_of(row)
            if updates and not _follows(updates[-1], update):
                raise ValueError("it does not come after the one before")
        except ValueError as error:
            raise InvalidRequestError(
                f"line {number} of {path} is no update of priorities",
                param="priority_trace",
                why=str(error),
                fix='Lines are {"step": 25, "priorities": {"NAME": 3}}, ascending, or all of them '
                'with "at_s" instead of "step"',
            ) from None
        updates.append(update)
    return updates


def write_priorities(path: Path, updates: Iterable[PriorityUpdate]) -> None:
    """Write a priority trace, gzipped if its name says so."""
    with opened(path, "w") as file:
        for update in updates:
            when = {"at_s": update.at_s} if update.step is None else {"step": update.step}
            row = {**when, "priorities": dict(update.priorities)}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _steps_between(frequency: str) -> int:
    try:
        value = float(frequency)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise InvalidRequestError(
            f"priorities cannot change {frequency or 'so many'} times per step",
            param="priority_trace",
            fix="Say random:0.04 for an update every 25 steps; 1 is one in every step",
        )
    return round(1 / value)


def _update_of(row: Row) -> PriorityUpdate:
    """Read a line.

    Raises:
        ValueError: it says nothing sensible.
    """
    priorities = row.get("priorities")
    step, at_s = row.get("step"), row.get("at_s")
    if not isinstance(priorities, dict) or not all(map(_is_priority, priorities.values())):
        raise ValueError('"priorities" must be an object of whole numbers')
    if (step is None) == (at_s is None) or len(row) > 2:
        raise ValueError('it must have "step" or "at_s", and "priorities", and nothing else')
    if step is not None and not (_is_whole(step) and 0 <= step < NEVER_STEP):
        raise ValueError('"step" must be a whole number from 0 up')
    if at_s is not None and not (_is_whole(at_s) or isinstance(at_s, float)):
        raise ValueError('"at_s" must be a number of seconds')
    if at_s is not None and not 0 <= at_s < math.inf:
        raise ValueError('"at_s" must be a number of seconds from 0 up')
    return PriorityUpdate(priorities, step, at_s)


def _follows(before: PriorityUpdate, update: PriorityUpdate) -> bool:
    if before.step is not None and update.step is not None:
        return before.step < update.step
    return before.at_s is not None and update.at_s is not None and before.at_s < update.at_s


def _is_priority(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_PRIORITY


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
