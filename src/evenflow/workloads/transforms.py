"""Changes streams of requests, one request at a time: order, time, lengths, which sessions.

All take requests in order of arrival, but for `in_order`, and give them in order of arrival.
Nothing here takes a session apart.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from evenflow.core.errors import InvalidRequestError
from evenflow.workloads.request import Segment, WorkloadRequest
from evenflow.workloads.traces.recent import NUM_OPEN_SESSIONS, Recent

_REORDERED_ROWS = 10_000


def merged(*streams: Iterable[WorkloadRequest]) -> Iterator[WorkloadRequest]:
    """Merge streams, holding one request of each."""
    return heapq.merge(*streams, key=lambda request: request.arrival_s)


def in_order(
    requests: Iterable[WorkloadRequest], max_displacement: int = _REORDERED_ROWS
) -> Iterator[WorkloadRequest]:
    """Sort requests that are nearly in order, holding `max_displacement` of them.

    Raises:
        InvalidRequestError: one is further from its place.
    """
    held: list[tuple[float, int, WorkloadRequest]] = []
    last_s = -math.inf
    for index, request in enumerate(requests):
        if request.arrival_s < last_s:
            raise InvalidRequestError(
                f"request {index + 1} comes {last_s - request.arrival_s:g} s before one that is "
                f"more than {max_displacement} places in front of it",
                param="trace",
                why="requests are read one at a time, so that a trace need not fit into memory",
                fix="Sort the trace by its arrivals first",
            )
        heapq.heappush(held, (request.arrival_s, index, request))
        if len(held) > max_displacement:
            last_s, _, first = heapq.heappop(held)
            yield first
    while held:
        yield heapq.heappop(held)[2]


def starting_at_zero(requests: Iterable[WorkloadRequest]) -> Iterator[WorkloadRequest]:
    """Make the first request come at 0."""
    start_s: float | None = None
    for request in requests:
        start_s = request.arrival_s if start_s is None else start_s
        yield replace(request, arrival_s=request.arrival_s - start_s)


def faster(requests: Iterable[WorkloadRequest], factor: float) -> Iterator[WorkloadRequest]:
    """Compress the time between arrivals, by which the rate grows; pauses stay as they are."""
    return (replace(request, arrival_s=request.arrival_s / factor) for request in requests)


def between(
    requests: Iterable[WorkloadRequest], start_s: float, end_s: float
) -> Iterator[WorkloadRequest]:
    """Keep the sessions (and lone requests) that begin at or after `start_s` and before `end_s`."""
    return _chosen(requests, lambda request, _: start_s <= request.arrival_s < end_s)


def every_nth(requests: Iterable[WorkloadRequest], nth: int) -> Iterator[WorkloadRequest]:
    """Keep the first of every `nth` sessions (and lone requests)."""
    return _chosen(requests, lambda _, index: index % nth == 0)


def _chosen(
    requests: Iterable[WorkloadRequest], is_wanted: Callable[[WorkloadRequest, int], bool]
) -> Iterator[WorkloadRequest]:
    """Keep sessions by their first request and their number in order of those."""
    verdicts: Recent[str, bool] = Recent()
    num_begun = 0
    for request in requests:
        is_kept = None if request.session is None else verdicts.get(request.session)
        if is_kept is None:
            is_kept = is_wanted(request, num_begun)
            num_begun += 1
        if request.session is not None:
            verdicts.set(request.session, is_kept)
        if is_kept:
            yield request


def with_lengths(
    requests: Iterable[WorkloadRequest],
    *,
    prompt_factor: float = 1.0,
    output_factor: float = 1.0,
    max_prompt_tokens: int | None = None,
    max_output_tokens: int | None = None,
) -> Iterator[WorkloadRequest]:
    """Make prompts and answers longer or shorter, at least one token and at most so many.

    Segments are scaled alike, so that prompts share what they shared before.
    """
    for request in requests:
        segments = tuple(
            Segment(key, max(1, round(num_tokens * prompt_factor)))
            for key, num_tokens in request.segments
        )
        num_prompt = max(1, round(request.num_prompt_tokens * prompt_factor))
        num_prompt = sum(num_tokens for _, num_tokens in segments) or num_prompt
        num_output = max(1, round(request.num_output_tokens * output_factor))
        if max_prompt_tokens is not None and num_prompt > max_prompt_tokens:
            segments = tuple(_first_tokens(segments, max_prompt_tokens))
            num_prompt = max_prompt_tokens
        if max_output_tokens is not None:
            num_output = min(num_output, max_output_tokens)
        is_same_prompt = num_prompt == request.num_prompt_tokens
        yield replace(
            request,
            num_prompt_tokens=num_prompt,
            num_output_tokens=num_output,
            segments=segments,
            prompt=request.prompt if is_same_prompt else None,
            messages=request.messages if is_same_prompt else None,
        )


def with_starts(
    requests: Iterable[WorkloadRequest], times: Iterator[float]
) -> Iterator[WorkloadRequest]:
    """Give each session (or lone request) the next of `times`, in order of their first requests.

    Later requests of a session get the time of its first, and so follow on their own.
    """
    starts: Recent[str, float] = Recent()
    for request in requests:
        start_s = None if request.session is None else starts.get(request.session)
        if start_s is None:
            start_s = next(times)
        if request.session is not None:
            starts.set(request.session, start_s)
        yield replace(request, arrival_s=start_s)


def with_whole_prompts(requests: Iterable[WorkloadRequest]) -> Iterator[WorkloadRequest]:
    """Write out the conversation in front of every request that continues one.

    Raises:
        InvalidRequestError: a request continues a session that is not among the recent ones.
    """
    histories: Recent[str, tuple[Segment, ...]] = Recent()
    for index, request in enumerate(requests):
        if request.session is None:
            yield request
            continue
        name = f"{request.session} {request.turn}"
        own = request.segments or (Segment(f"{name} prompt", request.num_prompt_tokens),)
        before: tuple[Segment, ...] | None = ()
        if request.continues:
            before = histories.get(request.session)
        if before is None:
            raise InvalidRequestError(
                f"request {index + 1} continues session {request.session}, which has not begun",
                param="trace",
                why=f"the last {NUM_OPEN_SESSIONS} sessions are remembered",
            )
        whole = (*before, *own)
        answer = Segment(f"{name} answer", request.num_output_tokens)
        histories.set(request.session, (*whole, answer))
        yield replace(
            request,
            num_prompt_tokens=sum(num_tokens for _, num_tokens in whole),
            continues=False,
            segments=whole,
            prompt=None,
            messages=None,
        )


def _first_tokens(segments: Iterable[Segment], num_tokens: int) -> Iterator[Segment]:
    for key, length in segments:
        if num_tokens <= 0:
            return
        yield Segment(key, min(length, num_tokens))
        num_tokens -= length
