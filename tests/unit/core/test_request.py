from __future__ import annotations

import itertools

import pytest

from evenflow.core.errors import IntegrityError
from evenflow.core.events import (
    MAX_NUM_PAUSABLE_EVENTS,
    NUM_DETAILED_EVENTS,
    EventKind,
    WaitReason,
)
from evenflow.core.ids import RequestId
from evenflow.core.request import Request
from evenflow.core.sampling import SamplingParams
from evenflow.core.status import RequestStatus

LEGAL = {
    ("WAITING", "RUNNING"),
    ("WAITING", "FINISHED_ABORTED"),
    ("WAITING", "FINISHED_ERROR"),
    ("WAITING", "FINISHED_EXPIRED"),
    ("RUNNING", "PREEMPTED"),
    ("RUNNING", "FINISHED_STOPPED"),
    ("RUNNING", "FINISHED_LENGTH"),
    ("RUNNING", "FINISHED_ABORTED"),
    ("RUNNING", "FINISHED_ERROR"),
    ("RUNNING", "FINISHED_EXPIRED"),
    ("PREEMPTED", "RUNNING"),
    ("PREEMPTED", "FINISHED_ABORTED"),
    ("PREEMPTED", "FINISHED_ERROR"),
    ("PREEMPTED", "FINISHED_EXPIRED"),
    ("WAITING", "SWAPPING_IN"),
    ("PREEMPTED", "SWAPPING_IN"),
    ("SWAPPING_IN", "RUNNING"),
    ("SWAPPING_IN", "FINISHED_ABORTED"),
    ("SWAPPING_IN", "FINISHED_ERROR"),
    ("SWAPPING_IN", "FINISHED_EXPIRED"),
}


def make_request(name: str = "r", **params: int) -> Request:
    return Request(RequestId(name), [1, 2, 3], SamplingParams(**params), max_num_tokens=10)


@pytest.mark.parametrize(("before", "after"), list(itertools.product(RequestStatus, repeat=2)))
def test_move_to_allows_exactly_the_legal_moves(
    before: RequestStatus, after: RequestStatus
) -> None:
    request = make_request()
    request.status = before
    if (before.name, after.name) in LEGAL:
        request.move_to(after)
        assert request.status is after
    else:
        with pytest.raises(IntegrityError, match=f"r cannot go from {before.name} to {after.name}"):
            request.move_to(after)
        assert request.status is before


def test_status_is_finished_exactly_when_it_has_a_finish_reason() -> None:
    reasons = {status.name: status.finish_reason for status in RequestStatus if status.is_finished}
    assert reasons == {
        "FINISHED_STOPPED": "stop",
        "FINISHED_LENGTH": "length",
        "FINISHED_ABORTED": "abort",
        "FINISHED_ERROR": "error",
        "FINISHED_EXPIRED": "timeout",
    }
    assert all(s.is_finished == (s.finish_reason is not None) for s in RequestStatus)


def test_request_counts_output_apart_from_prompt() -> None:
    prompt = [1, 2, 3]
    request = Request(RequestId("r"), prompt, SamplingParams(), max_num_tokens=10)
    request.token_ids += [8, 9]
    assert (request.num_tokens, request.num_prompt_tokens, request.num_output_tokens) == (5, 3, 2)
    assert request.output_token_ids == [8, 9]
    assert prompt == [1, 2, 3]


def test_request_derives_its_seed_from_its_id_when_none_is_given() -> None:
    assert make_request("a").seed == make_request("a").seed != make_request("b").seed
    assert 0 <= make_request("a").seed < 2**64


@pytest.mark.parametrize(
    ("seed", "stream"), [(0, 0), (7, 7), (2**64 - 1, 2**64 - 1), (-1, 2**64 - 1)]
)
def test_request_takes_a_given_seed_as_64_bits(seed: int, stream: int) -> None:
    assert make_request(seed=seed).seed == stream


def test_record_keeps_events_in_order() -> None:
    request = make_request()
    request.record(EventKind.QUEUED, 1.0, "nobody else")
    request.record(EventKind.SCHEDULED, 2.5, "why")
    assert [(event.kind.value, event.at_s, event.cause) for event in request.events] == [
        ("queued", 1.0, "nobody else"),
        ("scheduled", 2.5, "why"),
    ]


def test_record_preemption_merges_with_the_last_one_when_events_are_many() -> None:
    request = make_request()
    for cycle in range(NUM_DETAILED_EVENTS):
        request.num_computed_tokens = cycle
        request.record_preemption(WaitReason.RANK, 10.0 * cycle, f"cause {cycle}")
        request.record_wait(WaitReason.MEMORY, 10.0 * cycle + 1, "")
        request.record(EventKind.RESUMED, 10.0 * cycle + 2, "")
    assert len(request.events) <= NUM_DETAILED_EVENTS + 2
    preempted = [event for event in request.events if event.kind is EventKind.PREEMPTED]
    assert sum(event.num_times for event in preempted) == NUM_DETAILED_EVENTS
    assert [event.num_times for event in preempted[:-1]] == [1] * (len(preempted) - 1)
    last = preempted[-1]
    assert (last.at_s, last.num_tokens) == (10.0 * (len(preempted) - 1), NUM_DETAILED_EVENTS - 1)
    assert (last.cause, last.reason) == (f"cause {NUM_DETAILED_EVENTS - 1}", WaitReason.RANK)


def test_record_preemption_remembers_the_furthest_reach_when_it_merges() -> None:
    request = make_request()
    for cycle in range(2 * NUM_DETAILED_EVENTS):
        request.num_computed_tokens = 500 if cycle == NUM_DETAILED_EVENTS else 7
        request.record_preemption(WaitReason.MEMORY, float(cycle), "")
    assert request.events[-1].num_tokens == 500


def test_record_pause_stops_when_events_are_many() -> None:
    request = make_request()
    request.record(EventKind.SCHEDULED, 0.0, "")
    for number in range(1000):
        request.record_pause(float(number))
        request.record_continuation(number + 0.5)
    kinds = [event.kind for event in request.events]
    assert len(kinds) <= MAX_NUM_PAUSABLE_EVENTS + 1
    assert kinds.count(EventKind.PAUSED) == kinds.count(EventKind.CONTINUED)


def test_record_continuation_repeats_what_was_lacking_before_the_pause() -> None:
    request = make_request()
    request.record_wait(WaitReason.SIBLING, 1.0, "another computes the prompt")
    request.record_pause(2.0)
    request.record_continuation(3.0)
    last = request.events[-1]
    assert (last.kind, last.reason) == (EventKind.CONTINUED, WaitReason.SIBLING)
    assert last.cause == "another computes the prompt"
    request.record_continuation(4.0)
    assert request.events[-1] is last
