"""Why was my request slow? Its turning points become intervals that add up to its latency.

    events      QUEUED      SCHEDULED   FIRST_TOKEN   PREEMPTED    RESUMED   RECOMPUTED   FINISHED
    intervals      | queued     | prefill    | decode     | preempted  | recompute | decode   |

    events      FIRST_TOKEN   PREEMPTED     SWAPPING_IN   RESUMED                         FINISHED
    intervals      | decode     | preempted     | swap_in    | decode                         |

A request that comes back with all the KV it had decodes at once. What it lost is recomputed first.

Knows: what each turning point ends and begins, and which setting would have shortened what.
Does not know: how to obtain events; queues, memory, clocks.

Invariants:
    Intervals touch: the first starts at 0, each where the one before ends, the last ends at the
    latency. None is empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import fsum
from typing import Any

from evenflow.core.events import EventKind, RequestEvent, WaitReason
from evenflow.core.wording import counted


class IntervalKind(StrEnum):
    """What a request does with its time."""

    QUEUED = "queued"
    HELD = "held"
    SWAP_IN = "swap_in"
    PREFILL = "prefill"
    DECODE = "decode"
    PREEMPTED = "preempted"
    RECOMPUTE = "recompute"


@dataclass(slots=True, frozen=True)
class Interval:
    """A stretch of a request's life.

    Attributes:
        kind: queued (for a seat or a place in the step), held (for memory, its tenant's limit, a
            sibling, or the end of a pause), prefill, decode, preempted (waiting after it lost its
            memory), swap_in (its KV is loaded from a lower tier), or recompute (computing what it
            lost).
        start_s: when it began, in seconds after the request's arrival.
        end_s: when it ended.
        cause: why, in words.
        detail: how much was done, in words.
        reason: of a wait: what was lacking.
        num_tokens: tokens that were computed.
        lost_to: of preempted, and of swap_in and recompute after it: what its place was lost for.
    """

    kind: IntervalKind
    start_s: float
    end_s: float
    cause: str
    detail: str = ""
    reason: WaitReason | None = None
    num_tokens: int = 0
    lost_to: WaitReason | None = None

    @property
    def duration_s(self) -> float:
        """Seconds from start to end."""
        return self.end_s - self.start_s


@dataclass(slots=True, frozen=True)
class Explanation:
    """Where a completion's time went.

    Attributes:
        request_id: of the completion.
        tenant_id: whose it is.
        status: "waiting", "running", "preempted" or "swapping_in" while it lives, then its finish
            reason.
        latency_s: from its arrival to its end, or to now.
        intervals: in order, without gaps.
        summary: one sentence: what took the time, and what would shorten it.
    """

    request_id: str
    tenant_id: str
    status: str
    latency_s: float
    intervals: list[Interval]
    summary: str

    @property
    def queue_time_s(self) -> float:
        """Seconds from its arrival until it first had a place."""
        waits = (IntervalKind.QUEUED, IntervalKind.HELD)
        starts = (i.start_s for i in self.intervals if i.kind not in waits)
        return next(starts, self.latency_s)

    @property
    def totals(self) -> dict[IntervalKind, float]:
        """Seconds by kind, for the kinds that occur."""
        return _totals(self.intervals)

    def to_json(self) -> dict[str, Any]:
        """Return the body of `GET /v1/requests/{id}/explain`."""
        return {
            "id": self.request_id,
            "tenant": self.tenant_id,
            "status": self.status,
            "latency_s": self.latency_s,
            "intervals": [
                {
                    "kind": interval.kind.value,
                    "start_s": interval.start_s,
                    "end_s": interval.end_s,
                    "duration_s": interval.duration_s,
                    "cause": interval.cause,
                    "detail": interval.detail,
                }
                for interval in self.intervals
            ],
            "totals": {kind.value: seconds for kind, seconds in self.totals.items()},
            "summary": self.summary,
        }


def explain(
    events: Sequence[RequestEvent],
    *,
    request_id: str,
    tenant_id: str,
    status: str,
    arrival_s: float,
    now_s: float | None = None,
    num_computed_tokens: int = 0,
) -> Explanation:
    """Turn a completion's turning points into intervals.

    Args:
        events: oldest first.
        request_id: of the completion.
        tenant_id: whose it is.
        status: as in `Explanation`.
        arrival_s: when it came, in the engine clock's seconds.
        now_s: until when to explain a completion that lives.
        num_computed_tokens: of its tokens, those that have KV by then.
    """
    life = _Life(arrival_s)
    for event in events:
        life.read(event)
    if now_s is not None and not (events and events[-1].kind is EventKind.FINISHED):
        life.close(now_s, num_computed_tokens)
    latency_s = life.until_s - arrival_s
    return Explanation(
        request_id, tenant_id, status, latency_s, life.intervals, _summary(life.intervals, events)
    )


_SHORT_OF_ROOM = (WaitReason.SEATS, WaitReason.TOKENS, None)
_STARTS = (EventKind.SCHEDULED, EventKind.RESUMED)
_LOSSES = (IntervalKind.PREEMPTED, IntervalKind.SWAP_IN, IntervalKind.RECOMPUTE)
_DECODING = "a token per step"
_COMPUTED = (EventKind.PREFILL_CHUNK, EventKind.FIRST_TOKEN, EventKind.RECOMPUTED)


class _Life:
    """Reads turning points; at any time there is one interval that has not ended yet."""

    def __init__(self, arrival_s: float) -> None:
        self.intervals: list[Interval] = []
        self.until_s = arrival_s
        self._arrival_s = arrival_s
        self._kind = IntervalKind.QUEUED
        self._cause = "on its way to the scheduler"
        self._reason: WaitReason | None = None
        # Tokens with KV, and how many there were before the last preemption.
        self._num_computed = 0
        self._num_lost = 0
        self._lost_to: WaitReason | None = None
        self._preempted_s = 0.0
        self._has_output = False
        # Kind, cause and reason of what a pause has interrupted.
        self._interrupted: tuple[IntervalKind, str, WaitReason | None]

    def read(self, event: RequestEvent) -> None:
        """End the current interval and begin the next."""
        if event.kind in _COMPUTED:
            self._end(event.at_s, _chunk_detail(event), event.num_tokens)
            self._num_computed += event.num_tokens
        else:
            self.close(event.at_s, event.num_tokens)
        self._begin(event)

    def close(self, at_s: float, num_computed_tokens: int) -> None:
        """End the current interval, in which a decode got as far as `num_computed_tokens`."""
        if self._kind is not IntervalKind.DECODE:
            self._end(at_s)
            return
        num_tokens = num_computed_tokens - self._num_computed
        self._num_computed = num_computed_tokens
        seconds = max(0.0, at_s - self.until_s)
        each = f", {seconds / num_tokens * 1e3:.1f} ms each" if num_tokens > 1 else ""
        self._end(at_s, counted(num_tokens, "token") + each if num_tokens else "", num_tokens)

    def _end(self, at_s: float, detail: str = "", num_tokens: int = 0) -> None:
        if at_s > self.until_s:
            self.intervals.append(
                Interval(
                    self._kind,
                    self.until_s - self._arrival_s,
                    at_s - self._arrival_s,
                    self._cause,
                    detail,
                    self._reason,
                    num_tokens,
                    self._lost_to if self._kind in _LOSSES else None,
                )
            )
            self.until_s = at_s

    def _begin(self, event: RequestEvent) -> None:
        kind = event.kind
        if kind is EventKind.PAUSED:
            self._interrupted = (self._kind, self._cause, self._reason)
        before, self._cause = self._cause, event.cause
        self._reason = event.reason
        if kind is EventKind.PAUSED:
            self._kind = IntervalKind.HELD
        elif kind is EventKind.CONTINUED:
            self._kind, self._cause, self._reason = self._interrupted
        elif kind in (EventKind.QUEUED, EventKind.HELD):
            if self._kind is IntervalKind.PREEMPTED:
                if event.at_s == self._preempted_s:
                    self._cause = f"{before}; {event.cause}"
            else:
                queued = kind is EventKind.QUEUED or event.reason in _SHORT_OF_ROOM
                self._kind = IntervalKind.QUEUED if queued else IntervalKind.HELD
        elif kind is EventKind.PREEMPTED:
            self._kind = IntervalKind.PREEMPTED
            self._num_lost = max(self._num_lost, event.num_tokens)
            self._lost_to = event.reason
            self._preempted_s = event.at_s
        elif kind is EventKind.SWAPPING_IN:
            self._kind = IntervalKind.SWAP_IN
        elif kind in _STARTS:
            self._num_computed = event.num_tokens
            self._kind = self._computing()
        elif kind is EventKind.PREFILL_CHUNK:
            self._kind = self._computing()
            self._cause = "one step has no room for all its tokens"
        elif kind is not EventKind.FINISHED:
            self._has_output = True
            self._kind = IntervalKind.DECODE
            self._cause = _DECODING

    def _computing(self) -> IntervalKind:
        if self._num_computed < self._num_lost:
            return IntervalKind.RECOMPUTE
        return IntervalKind.DECODE if self._has_output else IntervalKind.PREFILL


def _chunk_detail(event: RequestEvent) -> str:
    steps = f" in {event.num_times} steps" if event.num_times > 1 else ""
    return counted(event.num_tokens, "token") + steps


def _totals(intervals: Sequence[Interval]) -> dict[IntervalKind, float]:
    durations: dict[IntervalKind, list[float]] = {}
    for interval in intervals:
        durations.setdefault(interval.kind, []).append(interval.duration_s)
    return {kind: fsum(seconds) for kind, seconds in durations.items()}


_ADVICE = {
    WaitReason.SEATS: "raise --max-num-seqs or give the tenant a larger weight",
    WaitReason.TOKENS: "raise --max-num-batched-tokens or give the tenant a larger weight",
    WaitReason.MEMORY: "raise --kv-cache-memory, or lower --max-num-seqs to share it less",
    WaitReason.TENANT_LIMIT: "raise the tenant's limit, or have it send less at once",
    WaitReason.SIBLING: "nothing to gain, for computing the prompt twice would take longer",
    WaitReason.PAUSE: "have it resumed",
    WaitReason.RANK: "give it a more urgent priority, or its tenant a larger weight",
    None: "a smaller --max-num-batched-tokens makes the step it came into shorter",
}


def _summary(intervals: Sequence[Interval], events: Sequence[RequestEvent]) -> str:
    """Say in one sentence what took the most time, and what would shorten it."""
    totals = _totals(intervals)
    if not totals:
        return "It took no time."
    losses = [interval for interval in intervals if interval.lost_to is not None]
    lost_s = fsum(interval.duration_s for interval in losses)
    most = max(totals, key=totals.__getitem__)
    if losses and lost_s >= totals[most]:
        return _summary_of_losses(losses, _share(lost_s, totals), events)
    share = _share(totals[most], totals)
    parts = [interval for interval in intervals if interval.kind is most]
    num_tokens = sum(part.num_tokens for part in parts)
    if most is IntervalKind.PREFILL:
        return (
            f"Computed {counted(num_tokens, 'prompt token')} for {share}: a prompt that begins "
            "like an earlier one, or a shorter one, takes less."
        )
    if most is IntervalKind.DECODE:
        return (
            f"Generated {counted(num_tokens, 'token')} for {share}: ask for fewer with max_tokens, "
            "or lower --max-num-seqs so that each step is shorter."
        )
    longest = max(parts, key=lambda part: part.duration_s)
    if most is IntervalKind.SWAP_IN:
        return (
            f"Loaded KV for {share} ({longest.cause}): with a larger --kv-cache-memory more of it "
            "stays on the device."
        )
    # Behind others nobody knows what a request lacks; it is likely what it lacks at the door.
    waits = [part for part in intervals if part.reason is not None]
    reason = longest.reason
    if reason is None and waits:
        reason = max(waits, key=lambda part: part.duration_s).reason
    word = "Queued" if most is IntervalKind.QUEUED else "Held"
    return f"{word} {share} ({longest.cause}): {_ADVICE[reason]}."


def _summary_of_losses(
    losses: Sequence[Interval], share: str, events: Sequence[RequestEvent]
) -> str:
    """Say what a request lost by its preemptions, and how it would lose less."""
    num_preemptions = sum(e.num_times for e in events if e.kind is EventKind.PREEMPTED)
    times = "once" if num_preemptions == 1 else f"{num_preemptions} times"
    by_rank_s = fsum(i.duration_s for i in losses if i.lost_to is WaitReason.RANK)
    if 2 * by_rank_s > fsum(i.duration_s for i in losses):
        advice = _ADVICE[WaitReason.RANK]
        return f"Lost {share} by making way {times} for requests that come first: {advice}."
    return (
        f"Lost {share} by giving up its memory {times}: raise --kv-cache-memory, or lower "
        "--max-num-seqs so that fewer requests share it."
    )


def _share(seconds: float, totals: dict[IntervalKind, float]) -> str:
    whole_s = fsum(totals.values())
    return f"{_words(seconds)} of {_words(whole_s)}"


def _words(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
