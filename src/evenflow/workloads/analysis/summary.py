"""The figures of a trace, gathered while it is read once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from typing import Any, NamedTuple

import numpy as np

from evenflow.core.errors import InvalidRequestError
from evenflow.workloads.analysis.bursts import WindowedArrivals, Windows
from evenflow.workloads.request import WorkloadRequest
from evenflow.workloads.traces.blocks import MOONCAKE_BLOCK_TOKENS, block_ids
from evenflow.workloads.traces.recent import Recent
from evenflow.workloads.transforms import with_whole_prompts

_PERCENTILES = (50, 90, 95, 99)
_MAX_TENANTS = 10_000
_MAX_BLOCKS = 2_000_000
_DURATION_DIGITS = 3


class ServiceTime(NamedTuple):
    """How long an answer is taken to need, where the trace does not say.

    Attributes:
        first_s: up to the first token.
        per_token_s: for each token after it.
    """

    first_s: float = 0.5
    per_token_s: float = 0.02

    def answer_s(self, num_output_tokens: int) -> float:
        """Return how long an answer takes."""
        return self.first_s + self.per_token_s * (num_output_tokens - 1)


@dataclass(slots=True, frozen=True)
class TraceSummary:
    """What a trace is like.

    Attributes:
        figures: by name; counts, seconds, tokens, ratios. Those of lengths and times are mappings
            of mean, p50, p90, p95, p99 and max.
        windows: burstiness over time.
        counts: by quantity, how often each value was seen: prompt_tokens, own_prompt_tokens (if any
            request continues a conversation), output_tokens, turns, think_s, tool_s.
        num_running: of each window in which something arrives, (its begin in seconds, most requests
            under way).
    """

    figures: dict[str, Any]
    windows: Windows
    counts: Mapping[str, Mapping[float, int]]
    num_running: list[tuple[float, int]]


def summarize(
    requests: Iterable[WorkloadRequest],
    rng: np.random.Generator,
    *,
    window_s: float = 60.0,
    service: ServiceTime | None = None,
) -> TraceSummary:
    """Describe a trace.

    Args:
        requests: in order of arrival.
        rng: chooses the samples that shapes are fitted to.
        window_s: length of the windows of burstiness.
        service: from which concurrency follows, and when later turns of sessions come.

    Raises:
        InvalidRequestError: there are no requests.
    """
    gathered = _Gathered(window_s, WindowedArrivals(window_s, rng), service or ServiceTime())
    whole = with_whole_prompts(gathered.noting(requests))
    for request in _when_due(whole, gathered.service):
        gathered.add(request)
    if not gathered.num_requests:
        raise InvalidRequestError("the trace holds no requests", param="trace")
    return gathered.summary()


def _when_due(
    requests: Iterable[WorkloadRequest], service: ServiceTime
) -> Iterator[WorkloadRequest]:
    """Give turns of sessions the times at which they would come, and yield all in that order."""
    held: list[tuple[float, int, WorkloadRequest]] = []
    ends: Recent[str, float] = Recent()
    for index, request in enumerate(requests):
        # Nothing that is still to be read comes before this.
        while held and held[0][0] <= request.arrival_s:
            yield heappop(held)[2]
        due_s = request.arrival_s
        if request.session is not None:
            last_end_s = ends.get(request.session)
            if last_end_s is not None:
                due_s = max(due_s, last_end_s + request.think_time_s)
            ends.set(request.session, due_s + service.answer_s(request.num_output_tokens))
        heappush(held, (due_s, index, replace(request, arrival_s=due_s)))
    while held:
        yield heappop(held)[2]


class _BlockReuse:
    """What an unbounded prefix cache of blocks would find: leading blocks that were seen before.

    Looks no further once it holds a great many blocks.

    Attributes:
        num_requests: looked at.
    """

    def __init__(self) -> None:
        self._seen: set[Hashable] = set()
        self._num_blocks = self._num_hits = 0
        self.num_requests = 0

    def add(self, request: WorkloadRequest) -> None:
        if not request.segments or len(self._seen) > _MAX_BLOCKS:
            return
        ids = block_ids(request.segments, MOONCAKE_BLOCK_TOKENS)
        self.num_requests += 1
        self._num_blocks += len(ids)
        self._num_hits += next(
            (n for n, block in enumerate(ids) if block not in self._seen), len(ids)
        )
        self._seen.update(ids)

    @property
    def hit_ratio(self) -> float | None:
        """Share of the blocks that were found, None if there were none."""
        return self._num_hits / self._num_blocks if self._num_blocks else None


@dataclass(slots=True)
class _Gathered:
    """What has been seen so far; prompts are whole, with the conversation in front of them."""

    window_s: float
    windows: WindowedArrivals
    service: ServiceTime
    first_s: float = math.nan
    last_s: float = math.nan
    num_requests: int = 0
    gap_squares: float = 0.0
    counts: dict[str, Counter[float]] = field(default_factory=dict)
    tenants: Counter[str] = field(default_factory=Counter)
    turns: Counter[float] = field(default_factory=Counter)
    sessions: Recent[str, int] = field(default_factory=Recent)
    ends: list[float] = field(default_factory=list)
    num_running: list[tuple[float, int]] = field(default_factory=list)
    peak_running: int = 0
    busy_s: float = 0.0
    blocks: _BlockReuse = field(default_factory=_BlockReuse)
    own_tokens: Counter[float] = field(default_factory=Counter)
    continues: bool = False
    tells_prefixes: bool = False

    def noting(self, requests: Iterable[WorkloadRequest]) -> Iterator[WorkloadRequest]:
        """Pass requests on, and note what whole prompts no longer tell."""
        for request in requests:
            self.own_tokens[request.num_prompt_tokens] += 1
            self.continues |= request.continues
            self.tells_prefixes |= bool(request.segments) or request.continues
            yield request

    def add(self, request: WorkloadRequest) -> None:
        now_s = request.arrival_s
        if self.num_requests == 0:
            self.first_s = self.last_s = now_s
        self.num_requests += 1
        self.gap_squares += (now_s - self.last_s) ** 2
        self.last_s = now_s
        self.windows.add(now_s)
        self._count("prompt_tokens", request.num_prompt_tokens)
        self._count("output_tokens", request.num_output_tokens)
        if request.think_time_s > 0:
            self._count("think_s", _rounded(request.think_time_s))
        if request.tool_time_s > 0:
            self._count("tool_s", _rounded(request.tool_time_s))
        known = request.tenant in self.tenants or len(self.tenants) < _MAX_TENANTS
        self.tenants[request.tenant if known else "(others)"] += 1
        self._add_turn(request.session)
        self._add_running(request)
        self.blocks.add(request)

    def _count(self, name: str, value: float) -> None:
        self.counts.setdefault(name, Counter())[value] += 1

    def _add_turn(self, session: str | None) -> None:
        num_before = 0
        if session is not None:
            num_before = self.sessions.get(session) or 0
            self.sessions.set(session, num_before + 1)
        self.turns[num_before + 1] += 1
        if num_before:
            self.turns[num_before] -= 1

    def _add_running(self, request: WorkloadRequest) -> None:
        now_s = request.arrival_s
        while self.ends and self.ends[0] <= now_s:
            heappop(self.ends)
        length_s = self.service.answer_s(request.num_output_tokens)
        heappush(self.ends, now_s + length_s)
        self.busy_s += length_s
        self.peak_running = max(self.peak_running, len(self.ends))
        begin_s = (now_s - self.first_s) // self.window_s * self.window_s
        if not self.num_running or begin_s > self.num_running[-1][0]:
            self.num_running.append((begin_s, 0))
        self.num_running[-1] = (begin_s, max(self.num_running[-1][1], len(self.ends)))

    def summary(self) -> TraceSummary:
        windows = self.windows.finish()
        span_s = self.last_s - self.first_s
        num_gaps = self.num_requests - 1
        counts = {**self.counts, "turns": +self.turns}
        if self.continues:
            counts["own_prompt_tokens"] = self.own_tokens
        num_sessions = sum(self.turns.values())
        shares = [times / self.num_requests for _, times in self.tenants.most_common(10)]
        figures: dict[str, Any] = {
            "requests": self.num_requests,
            "sessions": num_sessions,
            "tenants": len(self.tenants),
            "busiest_tenant_ratio": shares[0],
            "ten_busiest_tenants_ratio": sum(shares),
            "span_s": span_s,
            "rate": self.num_requests / span_s if span_s else None,
            "gap_cv": None,
            "window_s": self.window_s,
            "count_dispersion": _dispersion(windows, span_s),
            "gap_cv_within_windows": windows.typical("cv"),
            "gamma_shape_within_windows": windows.typical("gamma_shape"),
            "weibull_shape_within_windows": windows.typical("weibull_shape"),
            "running_mean": self.busy_s / span_s if span_s else None,
            "running_peak": self.peak_running,
            "prefix_requests": self.blocks.num_requests if self.tells_prefixes else 0,
            "prefix_hit_ratio": self.blocks.hit_ratio if self.tells_prefixes else None,
        }
        if span_s and num_gaps:
            mean_s = span_s / num_gaps
            variance = max(0.0, self.gap_squares / num_gaps - mean_s**2)
            figures["gap_cv"] = math.sqrt(variance) / mean_s
        figures |= {name: _statistics(counter) for name, counter in counts.items()}
        return TraceSummary(figures, windows, counts, self.num_running)


def _statistics(counter: Counter[float]) -> dict[str, float]:
    """Return mean, percentiles (nearest rank) and maximum of counted values."""
    values = sorted(counter)
    up_to = np.cumsum([counter[value] for value in values])
    total = int(up_to[-1])
    figures = {"mean": sum(value * times for value, times in counter.items()) / total}
    for percentile in _PERCENTILES:
        place = int(np.searchsorted(up_to, math.ceil(total * percentile / 100)))
        figures[f"p{percentile}"] = values[place]
    return figures | {"max": values[-1]}


def _dispersion(windows: Windows, span_s: float) -> float | None:
    """Return variance over mean of the requests per window; 1 for a Poisson process."""
    num_windows = int(span_s / windows.window_s)
    if num_windows < 2:
        return None
    counts = windows.num_requests[windows.index < num_windows]
    mean = float(counts.sum() / num_windows)
    return float((counts**2).sum() / num_windows - mean**2) / mean


def _rounded(seconds: float) -> float:
    return round(seconds, _DURATION_DIGITS)
