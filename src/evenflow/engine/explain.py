"""Why was my request slow? Its turning points become intervals that add up to its latency.

Knows: what took the time, and which setting would have shortened it.
Does not know: how to obtain events; queues, memory, clocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum
from typing import Any

from evenflow.core.events import EventKind, RequestEvent, WaitReason
from evenflow.core.wording import counted
from evenflow.engine.intervals import Interval, IntervalKind, Life


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
    life = Life(arrival_s)
    for event in events:
        life.read(event)
    if now_s is not None and not (events and events[-1].kind is EventKind.FINISHED):
        life.close(now_s, num_computed_tokens)
    latency_s = life.until_s - arrival_s
    return Explanation(
        request_id, tenant_id, status, latency_s, life.intervals, _summary(life.intervals, events)
    )


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
