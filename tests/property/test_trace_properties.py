"""Traces read back as they were written; streams stay in order."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from evenflow.workloads.request import Segment, WorkloadRequest
from evenflow.workloads.traces import iter_trace, write_trace
from evenflow.workloads.traces.blocks import block_ids
from evenflow.workloads.transforms import (
    between,
    every_nth,
    in_order,
    merged,
    with_lengths,
    with_whole_prompts,
)

names = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=8)
times = st.integers(0, 10**12).map(lambda microseconds: microseconds / 1e6)
block_keys = st.integers(0, 10**6).map(lambda number: f"block {number}")
segments = st.lists(
    st.builds(Segment, st.one_of(names, block_keys), st.sampled_from([1, 64, 512, 700])), max_size=4
).map(tuple)


@st.composite
def requests(draw: st.DrawFn) -> WorkloadRequest:
    parts = draw(segments)
    has_session = draw(st.booleans())
    pause_s = draw(times) if has_session else 0.0
    return WorkloadRequest(
        num_prompt_tokens=sum(part.num_tokens for part in parts) or draw(st.integers(1, 10**6)),
        num_output_tokens=draw(st.integers(1, 10**6)),
        arrival_s=draw(times),
        tenant=draw(st.one_of(st.just(""), names)),
        priority=draw(st.integers(-3, 3)),
        session=draw(names) if has_session else None,
        turn=draw(st.integers(0, 50)) if has_session else 0,
        continues=has_session and draw(st.booleans()),
        think_time_s=pause_s,
        tool_time_s=pause_s * draw(st.sampled_from([0.0, 0.5, 1.0])),
        segments=parts,
        prompt=draw(st.one_of(st.none(), names)),
    )


@given(st.lists(requests(), max_size=5), st.sampled_from(["trace.jsonl", "trace.jsonl.gz"]))
def test_trace_reads_back_what_was_written(workload: list[WorkloadRequest], name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        assert write_trace(path, workload) == len(workload)
        assert list(iter_trace(path)) == workload


@given(st.lists(requests(), max_size=5))
def test_trace_for_mooncake_keeps_times_lengths_and_shared_prefixes(
    workload: list[WorkloadRequest],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.jsonl"
        write_trace(path, workload, "mooncake")
        back = list(iter_trace(path))
    for ours, theirs in zip(workload, back, strict=True):
        assert theirs.arrival_s == ours.arrival_s
        assert theirs.num_prompt_tokens == ours.num_prompt_tokens
        assert theirs.num_output_tokens == ours.num_output_tokens
        assert block_ids(theirs.segments, 512) == block_ids(ours.segments, 512)


def expanded(parts: tuple[Segment, ...]) -> list[tuple[str, int]]:
    return [(key, place) for key, num_tokens in parts for place in range(num_tokens)]


small_segments = st.lists(
    st.builds(Segment, st.sampled_from("ab"), st.integers(1, 6)), max_size=4
).map(tuple)


@given(small_segments, small_segments, st.integers(1, 5))
def test_block_ids_are_equal_exactly_where_the_tokens_are(
    first: tuple[Segment, ...], second: tuple[Segment, ...], size: int
) -> None:
    """A slow oracle compares tokens, for prompts that are cut into segments in the same places."""
    ids, others = block_ids(first, size), block_ids(second, size)
    tokens, other_tokens = expanded(first), expanded(second)
    for index in range(min(len(tokens), len(other_tokens)) // size):
        if ids[index] == others[index]:
            assert tokens[: (index + 1) * size] == other_tokens[: (index + 1) * size]


@given(st.lists(st.lists(times, max_size=8).map(sorted), max_size=4))
def test_merged_streams_are_sorted_and_complete(streams: list[list[float]]) -> None:
    def of(arrivals: list[float]) -> list[WorkloadRequest]:
        return [
            WorkloadRequest(num_prompt_tokens=1, num_output_tokens=1, arrival_s=t) for t in arrivals
        ]

    out = [request.arrival_s for request in merged(*map(of, streams))]
    assert out == sorted(t for stream in streams for t in stream)


@given(st.permutations(range(12)))
def test_in_order_sorts_whatever_it_can_hold(order: list[int]) -> None:
    rows = [WorkloadRequest(num_prompt_tokens=1, num_output_tokens=1, arrival_s=t) for t in order]
    assert [r.arrival_s for r in in_order(rows, 12)] == list(range(12))


sessions = st.lists(
    st.tuples(st.sampled_from([None, "a", "b", "c"]), st.floats(0, 100)), min_size=1, max_size=30
)


@settings(deadline=None)
@given(sessions, st.integers(1, 4), st.floats(0, 100))
def test_selecting_keeps_all_of_a_session_or_nothing(
    rows: list[tuple[str | None, float]], nth: int, until_s: float
) -> None:
    workload = [
        WorkloadRequest(num_prompt_tokens=1, num_output_tokens=1, arrival_s=time_s, session=session)
        for session, time_s in sorted(rows, key=lambda row: row[1])
    ]
    for kept in (list(every_nth(workload, nth)), list(between(workload, 0.0, until_s))):
        for name in "abc":
            num_kept = sum(r.session == name for r in kept)
            assert num_kept in (0, sum(r.session == name for r in workload))
        assert [r.arrival_s for r in kept] == sorted(r.arrival_s for r in kept)


@given(st.lists(requests(), max_size=5), st.floats(0.1, 3), st.integers(1, 2000))
def test_scaled_lengths_agree_with_their_segments(
    workload: list[WorkloadRequest], factor: float, limit: int
) -> None:
    scaled = with_lengths(workload, prompt_factor=factor, max_prompt_tokens=limit)
    for request in scaled:
        assert 1 <= request.num_prompt_tokens <= limit
        if request.segments:
            assert sum(n for _, n in request.segments) == request.num_prompt_tokens


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 9)), max_size=12))
def test_whole_prompts_hold_all_that_was_said(turns: list[tuple[str, int]]) -> None:
    seen: dict[str, int] = {}
    workload = []
    for session, num_tokens in turns:
        continues = session in seen
        turn = seen[session] = seen.get(session, -1) + 1
        workload.append(
            WorkloadRequest(
                num_prompt_tokens=num_tokens,
                num_output_tokens=2,
                session=session,
                turn=turn,
                continues=continues,
            )
        )
    said: dict[str, int] = {}
    for request, whole in zip(workload, with_whole_prompts(workload), strict=True):
        so_far = said.get(request.session, 0) + request.num_prompt_tokens
        assert whole.num_prompt_tokens == so_far
        said[request.session] = so_far + request.num_output_tokens
