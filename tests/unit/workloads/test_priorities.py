"""Priority traces: what is drawn, what is written down, what is refused."""

from __future__ import annotations

import math
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest

from evenflow.core.errors import InvalidRequestError
from evenflow.workloads.priorities import (
    NEVER_STEP,
    GeneratedPriorities,
    PriorityFeed,
    PriorityUpdate,
    RecordedPriorities,
    markov_levels,
    open_priorities,
    random_levels,
    read_priorities,
    write_priorities,
)

NAMES = [f"chat {number}" for number in range(50)]


def played(feed: PriorityFeed, num_updates: int) -> list[list[int | None]]:
    """Return the priorities of `NAMES` before the first update and after each."""
    levels = [[feed.priority(name) for name in NAMES]]
    for _ in range(num_updates):
        feed.update()
        levels.append([feed.priority(name) for name in NAMES])
    return levels


@pytest.mark.parametrize("kind", ["random:0.04", "markov:0.04"])
def test_levels_hang_on_name_seed_and_number_of_the_update_alone(kind: str) -> None:
    begin = open_priorities(kind, seed=3)
    asked_always, asked_late = begin(), begin()
    last = played(asked_always, 200)[-1]
    for _ in range(200):
        asked_late.update()
    assert [asked_late.priority(name) for name in reversed(NAMES)] == last[::-1]
    assert played(open_priorities(kind, seed=4)(), 200)[-1] != last
    assert len(set(last)) > 1


def test_random_levels_have_nothing_to_do_with_those_before() -> None:
    levels = np.array(played(GeneratedPriorities(random_levels, 25), 100))
    assert (np.diff(levels, axis=0) == 0).mean() < 0.01
    assert abs(np.corrcoef(levels[:-1].ravel(), levels[1:].ravel())[0, 1]) < 0.05


def test_markov_levels_stay_eight_times_in_ten_and_move_by_one() -> None:
    drawn = markov_levels(np.random.default_rng(0), None, 100_000)
    assert set(drawn) == set(range(8))
    moves = Counter(after - before for before, after in pairwise(drawn) if 0 < before < 7)
    assert set(moves) == {-1, 0, 1}
    for move, share in ((-1, 0.1), (0, 0.8), (1, 0.1)):
        assert moves[move] / moves.total() == pytest.approx(share, abs=0.01)
    assert len(drawn) == 100_000
    assert len(markov_levels(np.random.default_rng(0), 0, 10)) == 10


def test_frequency_says_how_many_steps_lie_between_updates() -> None:
    feed = open_priorities("markov:0.02")()
    assert (feed.next_step, feed.next_s) == (50, math.inf)
    feed.update()
    assert feed.next_step == 100


def test_feed_remembers_what_earlier_lines_said() -> None:
    feed = RecordedPriorities([PriorityUpdate({"a": 1, "b": 2}, 5), PriorityUpdate({"b": 3}, 9)])
    assert (feed.next_step, feed.priority("a")) == (5, None)
    feed.update()
    feed.update()
    assert [feed.priority(name) for name in "abc"] == [1, 3, None]
    assert (feed.next_step, feed.next_s) == (NEVER_STEP, math.inf)


@pytest.mark.parametrize("name", ["trace.jsonl", "trace.jsonl.gz"])
def test_trace_plays_from_its_file_as_it_was_drawn(tmp_path: Path, name: str) -> None:
    begin = open_priorities("markov:0.1", seed=1)
    generated = begin()
    assert isinstance(generated, GeneratedPriorities)
    write_priorities(tmp_path / name, islice(generated.updates(NAMES), 21))
    from_file, drawn = open_priorities(str(tmp_path / name))(), begin()
    assert from_file.next_step == 0
    from_file.update()
    assert from_file.next_step == drawn.next_step == 10
    assert played(from_file, 20) == played(drawn, 20)


def test_trace_of_seconds_reads_back_as_it_was_written(tmp_path: Path) -> None:
    updates = [PriorityUpdate({"ä": -3}, at_s=0.5), PriorityUpdate({}, at_s=2.0)]
    write_priorities(tmp_path / "p.jsonl", updates)
    assert read_priorities(tmp_path / "p.jsonl") == updates
    assert RecordedPriorities(updates).next_s == 0.5


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"step": 3}', '"priorities" must be'),
        ('{"step": 3, "priorities": {"a": 1.5}}', "whole numbers"),
        ('{"step": 3, "priorities": {"a": true}}', "whole numbers"),
        ('{"step": 3, "priorities": {"a": 99999999999}}', "whole numbers"),
        ('{"step": -1, "priorities": {}}', "from 0 up"),
        ('{"step": 1.5, "priorities": {}}', "from 0 up"),
        ('{"at_s": "1", "priorities": {}}', "seconds"),
        ('{"at_s": NaN, "priorities": {}}', "seconds from 0 up"),
        ('{"priorities": {}}', '"step" or "at_s"'),
        ('{"step": 1, "at_s": 1, "priorities": {}}', '"step" or "at_s"'),
        ('{"step": 3, "priorities": {}, "tenant": 1}', "nothing else"),
        ('{"step": 2, "priorities": {}}', "does not come after"),
        ('{"at_s": 9, "priorities": {}}', "does not come after"),
        ("no JSON", "not JSON"),
    ],
)
def test_file_is_refused_with_the_line_that_is_wrong(
    tmp_path: Path, line: str, complaint: str
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"step": 2, "priorities": {"a": 1}}\n' + line + "\n")
    with pytest.raises(InvalidRequestError, match="line 2") as caught:
        read_priorities(path)
    assert complaint in str(caught.value)


@pytest.mark.parametrize("source", ["random:0", "random:1.1", "markov:", "random", "markov:often"])
def test_frequency_that_cannot_be_is_refused(source: str) -> None:
    with pytest.raises(InvalidRequestError, match="times per step"):
        open_priorities(source)


def test_missing_file_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="cannot be read"):
        open_priorities("none.jsonl")
