"""What a completion did when: turning points become intervals that touch.

    events      QUEUED      SCHEDULED   FIRST_TOKEN   PREEMPTED    RESUMED   RECOMPUTED   FINISHED
    intervals      | queued     | prefill    | decode     | preempted  | recompute | decode   |

    events      FIRST_TOKEN   PREEMPTED     SWAPPING_IN   RESUMED                         FINISHED
    intervals      | decode     | preempted     | swap_in    | decode                         |

A request that comes back with all the KV it had decodes at once. What it lost is recomputed first.

Knows: what each turning point ends and begins.
Does not know: how to obtain events; what would have shortened anything.

Invariants:
    Intervals touch: the first starts at 0, each where the one before ends, the last ends at the
    latency. None is empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

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


_SHORT_OF_ROOM = (WaitReason.SEATS, WaitReason.TOKENS, None)
_LOSSES = (IntervalKind.PREEMPTED, IntervalKind.SWAP_IN, IntervalKind.RECOMPUTE)
_COMPUTED = (EventKind.PREFILL_CHUNK, EventKind.FIRST_TOKEN, EventKind.RECOMPUTED)


class Life:
    """Reads turning points; at any time there is one interval that has not ended yet.

    Args:
        arrival_s: when the completion came.

    Attributes:
        intervals: those that have ended.
        until_s: when the last of them did.
    """

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
        kind, before = event.kind, (self._kind, self._cause, self._reason)
        self._cause, self._reason = event.cause, event.reason
        match kind:
            case EventKind.PAUSED:
                self._interrupted = before
                self._kind = IntervalKind.HELD
            case EventKind.CONTINUED:
                self._kind, self._cause, self._reason = self._interrupted
            case EventKind.QUEUED | EventKind.HELD:
                self._wait(event, before[1])
            case EventKind.PREEMPTED:
                self._kind = IntervalKind.PREEMPTED
                self._num_lost = max(self._num_lost, event.num_tokens)
                self._lost_to = event.reason
                self._preempted_s = event.at_s
            case EventKind.SWAPPING_IN:
                self._kind = IntervalKind.SWAP_IN
            case EventKind.SCHEDULED | EventKind.RESUMED:
                self._num_computed = event.num_tokens
                self._kind = self._computing()
            case EventKind.PREFILL_CHUNK:
                self._kind = self._computing()
                self._cause = "one step has no room for all its tokens"
            case EventKind.FIRST_TOKEN | EventKind.RECOMPUTED:
                self._has_output = True
                self._kind = IntervalKind.DECODE
                self._cause = "a token per step"

    def _wait(self, event: RequestEvent, cause_before: str) -> None:
        if self._kind is not IntervalKind.PREEMPTED:
            queued = event.kind is EventKind.QUEUED or event.reason in _SHORT_OF_ROOM
            self._kind = IntervalKind.QUEUED if queued else IntervalKind.HELD
        elif event.at_s == self._preempted_s:
            # It waits from the very moment on: what it lost its place for must not be forgotten.
            self._cause = f"{cause_before}; {event.cause}"

    def _computing(self) -> IntervalKind:
        if self._num_computed < self._num_lost:
            return IntervalKind.RECOMPUTE
        return IntervalKind.DECODE if self._has_output else IntervalKind.PREFILL


def _chunk_detail(event: RequestEvent) -> str:
    steps = f" in {event.num_times} steps" if event.num_times > 1 else ""
    return counted(event.num_tokens, "token") + steps
