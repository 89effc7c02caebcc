from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from evenflow.core.errors import InvalidRequestError
from evenflow.workloads import transforms
from evenflow.workloads.request import Segment, WorkloadRequest


def at(arrival_s: float, session: str | None = None, **fields) -> WorkloadRequest:
    values = {"num_prompt_tokens": 10, "num_output_tokens": 4} | fields
    return WorkloadRequest(arrival_s=arrival_s, session=session, **values)


def times(requests: Iterable[WorkloadRequest]) -> list[float]:
    return [request.arrival_s for request in requests]


def test_in_order_sorts_what_is_nearly_sorted() -> None:
    assert times(transforms.in_order([at(1), at(3), at(2), at(5), at(4)], 2)) == [1, 2, 3, 4, 5]


def test_in_order_keeps_the_order_of_equal_times() -> None:
    requests = [at(0, "a", turn=turn) for turn in range(5)]
    assert [r.turn for r in transforms.in_order(requests)] == [0, 1, 2, 3, 4]


def test_in_order_refuses_what_it_cannot_sort() -> None:
    with pytest.raises(InvalidRequestError, match="request 4 comes 4 s before"):
        list(transforms.in_order([at(5), at(6), at(7), at(1)], 2))


def test_merged_streams_are_in_order_and_lazy() -> None:
    def endless(step: float) -> Iterable[WorkloadRequest]:
        time_s = 0.0
        while True:
            yield at(time_s := time_s + step)

    stream = transforms.merged(endless(2.0), endless(3.0))
    assert [next(stream).arrival_s for _ in range(5)] == [2, 3, 4, 6, 6]


def test_between_keeps_sessions_whole() -> None:
    requests = [at(0, "early"), at(1, "kept"), at(2, "early"), at(3), at(9, "kept"), at(9, "late")]
    kept = list(transforms.between(requests, 1, 5))
    assert [(r.arrival_s, r.session) for r in kept] == [(1, "kept"), (3, None), (9, "kept")]


def test_every_nth_counts_a_session_as_one() -> None:
    requests = [at(0, "a"), at(1, "b"), at(2, "a"), at(3), at(4, "c"), at(5)]
    assert times(transforms.every_nth(requests, 2)) == [0, 2, 3, 5]


def test_faster_multiplies_the_rate_and_leaves_pauses() -> None:
    requests = transforms.faster([at(10, think_time_s=3.0)], 4)
    assert [(r.arrival_s, r.think_time_s) for r in requests] == [(2.5, 3.0)]


def test_starting_at_zero_shifts_all() -> None:
    assert times(transforms.starting_at_zero([at(5), at(7)])) == [0, 2]


def test_with_lengths_scales_segments_alike() -> None:
    request = at(0, num_prompt_tokens=30, segments=(Segment("a", 20), Segment("b", 10)), prompt="x")
    (scaled,) = transforms.with_lengths([request], prompt_factor=0.5, output_factor=2)
    assert scaled.segments == (("a", 10), ("b", 5))
    assert (scaled.num_prompt_tokens, scaled.num_output_tokens, scaled.prompt) == (15, 8, None)


def test_with_lengths_cuts_prompts_and_answers() -> None:
    request = at(0, num_prompt_tokens=30, segments=(Segment("a", 20), Segment("b", 10)))
    (cut,) = transforms.with_lengths([request], max_prompt_tokens=23, max_output_tokens=1)
    assert cut.segments == (("a", 20), ("b", 3))
    assert (cut.num_prompt_tokens, cut.num_output_tokens) == (23, 1)


def test_with_lengths_changes_nothing_unless_told() -> None:
    request = at(0, segments=(Segment("a", 4), Segment("b", 6)), prompt="text")
    assert list(transforms.with_lengths([request])) == [request]


def test_with_starts_gives_each_session_one_time() -> None:
    requests = [at(0, "a"), at(0), at(0, "a"), at(0, "b")]
    assert times(transforms.with_starts(requests, iter([1.0, 2.0, 3.0]))) == [1, 2, 1, 3]


def test_with_whole_prompts_puts_the_conversation_in_front() -> None:
    first = at(0, "s", segments=(Segment("system", 6), Segment("own", 4)))
    second = at(1, "s", turn=1, continues=True, num_prompt_tokens=3)
    third = at(2, "s", turn=2, continues=True, num_prompt_tokens=2)
    whole = list(transforms.with_whole_prompts([first, at(1), second, third]))
    assert [r.num_prompt_tokens for r in whole] == [10, 10, 17, 23]
    assert whole[0].segments == first.segments
    assert whole[3].segments[: len(whole[2].segments)] == whole[2].segments
    assert not any(r.continues for r in whole)


def test_with_whole_prompts_begins_anew_where_a_request_does_not_continue() -> None:
    first = at(0, "s")
    second = replace(first, turn=1)
    assert [r.num_prompt_tokens for r in transforms.with_whole_prompts([first, second])] == [10, 10]


def test_with_whole_prompts_refuses_a_session_without_a_beginning() -> None:
    with pytest.raises(InvalidRequestError, match="continues session s, which has not begun"):
        list(transforms.with_whole_prompts([at(0, "s", continues=True)]))
