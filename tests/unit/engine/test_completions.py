from __future__ import annotations

import math

import pytest

from evenflow.core.errors import DuplicateRequestError
from evenflow.core.ids import RequestId
from evenflow.core.request import Request
from evenflow.core.sampling import SamplingParams
from evenflow.engine.completions import CompletionTable
from evenflow.engine.progress import CompletionProgress


@pytest.fixture
def table() -> CompletionTable:
    return CompletionTable()


def add(
    table: CompletionTable, request_id: str, n: int = 1, deadline_s: float | None = None
) -> list[CompletionProgress]:
    """Add a request's completions."""
    added = []
    for index, own_id in enumerate(table.unused_ids(request_id, n)):
        request = Request(own_id, [1], SamplingParams(), max_num_tokens=9, deadline_s=deadline_s)
        added.append(CompletionProgress(request_id, index, request, None))
        table.add(added[-1])
    return added


def test_add_makes_completions_live_under_their_own_ids_and_their_requests(
    table: CompletionTable,
) -> None:
    a = add(table, "a", n=3)
    b = add(table, "b")
    assert list(table.live.items()) == list(zip(("a", "a#1", "a#2", "b"), a + b, strict=True))
    assert table.of_request("a") == tuple(a)
    assert table.of_request("b") == tuple(b)
    assert table.of_request("a#1") == table.of_request("nobody") == ()


def test_forget_leaves_nothing_of_a_completion_and_all_of_its_siblings(
    table: CompletionTable,
) -> None:
    first, second = add(table, "a", n=2)
    table.forget(first)
    assert table.of_request("a") == (second,)
    assert list(table.live) == ["a#1"]
    table.forget(second)
    assert len(table) == 0
    assert table.of_request("a") == ()
    assert not table.has_ended


def test_retire_keeps_the_completion_until_it_is_taken_once(table: CompletionTable) -> None:
    first, second = add(table, "a", n=2)
    (other,) = add(table, "b")
    table.retire(second)
    table.retire(other)
    assert list(table.live) == ["a"]
    assert table.of_request("a") == (first,)
    assert table.has_ended
    assert len(table) == 3
    assert table.take_ended() == [second, other]
    assert table.take_ended() == []
    assert not table.has_ended
    assert len(table) == 1


def test_completions_of_a_request_can_be_retired_while_they_are_walked(
    table: CompletionTable,
) -> None:
    add(table, "a", n=3)
    for progress in table.of_request("a"):
        table.retire(progress)
    assert not table.live
    assert len(table.take_ended()) == 3


def test_unused_ids_names_the_completions_and_takes_nothing(table: CompletionTable) -> None:
    assert table.unused_ids("a", 3) == ["a", "a#1", "a#2"]
    assert table.unused_ids("a", 1) == ["a"]
    assert len(table) == 0


@pytest.mark.parametrize(("name", "taken"), [("a", "a"), ("a#1", "a#1")])
def test_unused_ids_refuses_the_id_of_a_live_completion(
    table: CompletionTable, name: str, taken: str
) -> None:
    add(table, "a", n=2)
    with pytest.raises(DuplicateRequestError, match=f"'{taken}' is in use"):
        table.unused_ids(name, 1)


def test_unused_ids_refuses_a_sibling_id_that_another_request_has(table: CompletionTable) -> None:
    add(table, "a#1")
    with pytest.raises(DuplicateRequestError, match="'a#1' is in use"):
        table.unused_ids("a", 2)
    assert table.unused_ids("a", 1) == ["a"]


def test_unused_ids_refuses_a_request_of_which_only_a_later_completion_lives(
    table: CompletionTable,
) -> None:
    table.forget(add(table, "a", n=2)[0])
    with pytest.raises(DuplicateRequestError):
        table.unused_ids("a", 1)


def test_unused_ids_refuses_an_id_whose_end_was_not_taken(table: CompletionTable) -> None:
    table.retire(add(table, "a")[0])
    with pytest.raises(DuplicateRequestError):
        table.unused_ids("a", 1)
    table.take_ended()
    assert table.unused_ids("a", 1) == [RequestId("a")]


def test_overdue_returns_who_is_late_and_when_to_ask_again(table: CompletionTable) -> None:
    assert table.next_deadline_s == math.inf
    add(table, "never")
    assert table.next_deadline_s == math.inf
    late = [add(table, name, deadline_s=at)[0] for name, at in (("b", 12.0), ("a", 10.0))]
    add(table, "c", deadline_s=15.0)
    assert table.next_deadline_s == 10.0
    assert table.overdue(9.9) == []
    assert table.overdue(12.0) == [(late[0], 12.0), (late[1], 10.0)]
    assert table.next_deadline_s == 15.0


def test_next_deadline_is_put_right_after_its_request_ended_by_itself(
    table: CompletionTable,
) -> None:
    (short,) = add(table, "short", deadline_s=10.0)
    add(table, "long", deadline_s=20.0)
    table.forget(short)
    assert table.overdue(10.0) == []
    assert table.next_deadline_s == 20.0
