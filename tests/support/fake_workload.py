"""An invented workload: what the dashboard shows, moving, without a model behind it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from random import Random
from typing import Any

BLOCK_SIZE = 16
TICK_S = 0.5
FREE, USED, RESERVED, CACHED, PINNED = range(5)


@dataclass(slots=True)
class FakeRequest:
    """One invented request; `groups` are runs of blocks as (start, length)."""

    id: str
    tenant: str
    num_prompt_tokens: int
    max_tokens: int
    arrival_s: float
    groups: list[tuple[int, int]] = field(default_factory=list)
    num_output_tokens: int = 0
    status: str = "waiting"

    @property
    def num_blocks(self) -> int:
        return sum(length for _, length in self.groups)


class FakeWorkload:
    """Requests of a few tenants that come, take blocks, grow, and leave some of them cached."""

    def __init__(self, weights: dict[str, float], num_blocks: int, seed: int = 0) -> None:
        self.weights = weights
        self.num_blocks = num_blocks
        self.rng = Random(seed)
        self.started_s = self.now_s = time.monotonic()
        self.live: list[FakeRequest] = []
        self.ended: dict[str, FakeRequest] = {}
        self.cached: list[tuple[int, int]] = []
        self.pinned = [(0, 6), (6, 3)]
        self.service = Counter(dict.fromkeys(weights, 0.0))
        self.counts: Counter[str] = Counter()
        self.num_created = 0

    def advance(self) -> None:
        """Let one tick pass."""
        self.now_s += TICK_S
        for _ in range(self.rng.choice((0, 1, 1, 2, 3))):
            self._arrive()
        for request in list(self.live):
            if request.status == "waiting":
                self._admit(request)
            else:
                self._grow(request)

    def _arrive(self) -> None:
        if sum(request.status == "waiting" for request in self.live) > 24:
            self.counts["rejected"] += 1
            return
        tenant = self.rng.choices(list(self.weights), range(len(self.weights), 0, -1))[0]
        self.num_created += 1
        self.live.append(
            FakeRequest(
                id=f"chatcmpl-{self.rng.getrandbits(48):012x}",
                tenant=tenant,
                num_prompt_tokens=int(self.rng.lognormvariate(5.6, 0.9)) + 8,
                max_tokens=self.rng.randrange(60, 700),
                arrival_s=self.now_s,
            )
        )

    def _admit(self, request: FakeRequest) -> None:
        need = request.num_prompt_tokens // BLOCK_SIZE + 3
        group = self._find(need)
        if group is not None:
            request.groups.append(group)
            request.status = "running"
            self.service[request.tenant] += request.num_prompt_tokens

    def _grow(self, request: FakeRequest) -> None:
        tokens = self.rng.randrange(8, 22)
        request.num_output_tokens += tokens
        self.service[request.tenant] += 2 * tokens
        length = request.num_prompt_tokens + request.num_output_tokens
        if request.num_output_tokens >= request.max_tokens:
            self._finish(request)
        elif length // BLOCK_SIZE + 1 >= request.num_blocks:
            group = self._find(min(8, request.num_blocks))
            if group is None:
                request.groups.clear()
                request.status = "preempted" if self.rng.random() < 0.2 else "waiting"
                self.counts["preemptions"] += 1
            else:
                request.groups.append(group)

    def _finish(self, request: FakeRequest) -> None:
        self.live.remove(request)
        self.ended[request.id] = request
        self.counts["finished"] += 1
        self.cached.append(request.groups[0])
        del self.cached[:-30]

    def _find(self, need: int) -> tuple[int, int] | None:
        """First fit among the free runs; cached ones are given up when nothing fits."""
        for start, length, state, *_ in self.runs():
            if state == FREE and length >= need:
                return (start, need)
        if self.cached:
            self.cached.pop(0)
        return None

    def runs(self) -> list[list[int]]:
        """Return the runs of `/ui/blocks`."""
        tenants = list(self.weights)
        held: list[list[int]] = [[s, n, CACHED, -1, -1] for s, n in self.cached]
        held += [[s, n, PINNED, 0, -1] for s, n in self.pinned]
        for index, request in enumerate(self.live):
            owner = [tenants.index(request.tenant), index]
            used = -(-(request.num_prompt_tokens + request.num_output_tokens) // BLOCK_SIZE)
            for start, length in request.groups:
                now = min(used, length)
                used -= now
                held += [[start, now, USED, *owner]] if now else []
                held += [[start + now, length - now, RESERVED, *owner]] if now < length else []
        return list(_with_free_runs(sorted(held), self.num_blocks))

    def blocks(self) -> dict[str, Any]:
        """Return the body of `/ui/blocks`."""
        return {
            "num_blocks": self.num_blocks,
            "block_size": BLOCK_SIZE,
            "runs": self.runs(),
            "tenants": list(self.weights),
            "requests": [request.id for request in self.live],
        }

    def state(self) -> dict[str, Any]:
        """Return the body of `/ui/state`."""
        by_state: Counter[int] = Counter()
        for _, length, state, *_ in self.runs():
            by_state[state] += length
        statuses = Counter(request.status for request in self.live)
        per_weight = [self.service[tenant] / weight for tenant, weight in self.weights.items()]
        busy = statuses["running"]
        wobble = 1 + 0.15 * self.rng.random()
        return {
            "at_s": self.now_s,
            "uptime_s": self.now_s - self.started_s,
            "model": "smollm2",
            "version": "0.1.0",
            "paused": False,
            "draining": False,
            "requests": {
                "running": busy,
                "waiting": len(self.live) - busy,
                "finished": self.counts["finished"],
                "failed": 0,
                "aborted": 2,
                "rejected": self.counts["rejected"],
            },
            "tenants": [self._tenant(tenant) for tenant in self.weights],
            "jain_index": sum(per_weight) ** 2
            / (len(per_weight) * sum(x * x for x in per_weight) or 1),
            "service_gap_tokens": max(per_weight) - min(per_weight),
            "kv": {
                "num_blocks": self.num_blocks,
                "used": by_state[USED] + by_state[PINNED],
                "free": by_state[FREE],
                "reserved": by_state[RESERVED],
                "evictable": by_state[CACHED],
                "cached": by_state[CACHED],
                "pinned": by_state[PINNED],
                "usage_ratio": (by_state[USED] + by_state[PINNED]) / self.num_blocks,
                "block_size": BLOCK_SIZE,
                "mean_extent_blocks": 9.4,
                "prefix_hit_ratio": 0.37,
            },
            "throughput": {
                "prompt_tokens_per_s": 220 * wobble,
                "generation_tokens_per_s": 28.0 * busy * wobble,
                "steps_per_s": 30 * wobble,
            },
            "latency": {
                "ttft_ms": _spread(90 * wobble + 12 * statuses["waiting"]),
                "itl_ms": _spread(22 * wobble + busy),
                "e2e_ms": _spread(4000 * wobble + 100 * busy),
            },
            "step_ms": {"schedule": 0.2, "execute": 24.0 * wobble, "update": 0.6, "emit": 0.3},
            "preemptions": self.counts["preemptions"],
            "switching": {
                "swapped": statuses["preempted"],
                "arriving": 0,
                "tiers": [
                    {"name": "host", "num_blocks": 4000, "kept": 120},
                    {"name": "disk", "num_blocks": 90_000, "kept": 3},
                ],
            },
            "live": [self._live(request) for request in self.live[:200]],
            "ended": [self._ended(r) for r in islice(reversed(self.ended.values()), 40)],
        }

    def _tenant(self, tenant: str) -> dict[str, Any]:
        statuses = Counter(request.status for request in self.live if request.tenant == tenant)
        return {
            "id": tenant,
            "weight": self.weights[tenant],
            "running": statuses["running"],
            "waiting": statuses.total() - statuses["running"],
            "service_tokens": self.service[tenant],
            "requests": self.num_created,
            "tokens_per_s": 28.0 * statuses["running"],
            "slo_attainment": {"ttft": 0.97, "tpot": None},
            "rejected": 0,
        }

    def _live(self, request: FakeRequest) -> dict[str, Any]:
        is_running = request.status == "running"
        return {
            "id": request.id,
            "tenant": request.tenant,
            "status": request.status,
            "num_prompt_tokens": request.num_prompt_tokens,
            "num_output_tokens": request.num_output_tokens,
            "num_computed_tokens": request.num_prompt_tokens + request.num_output_tokens - 1,
            "age_s": self.now_s - request.arrival_s,
            "priority": 0,
            "num_blocks": request.num_blocks,
            "waiting_for": None if is_running else "memory for its prompt",
        }

    def _ended(self, request: FakeRequest) -> dict[str, Any]:
        return {
            "id": request.id,
            "tenant": request.tenant,
            "status": "length",
            "num_prompt_tokens": request.num_prompt_tokens,
            "num_output_tokens": request.num_output_tokens,
            "num_preemptions": 0,
            "e2e_s": 0.05 * request.num_output_tokens,
        }

    def explain(self, request_id: str) -> dict[str, Any] | None:
        """Return the body of `/v1/requests/{id}/explain`."""
        live = next((request for request in self.live if request.id == request_id), None)
        request = live or self.ended.get(request_id)
        if request is None:
            return None
        latency = max(self.now_s - request.arrival_s, 1.0)
        shares = [
            ("queued", 0.12, "all seats were taken", ""),
            ("held", 0.08, "no memory for its prompt", "41 blocks were missing"),
            ("prefill", 0.1, "3 chunks", f"{request.num_prompt_tokens} tokens"),
            ("decode", 0.3, "in batches of 14 on average", "180 tokens"),
            ("preempted", 0.05, "swap: another comes first; gave back 38 blocks, all clean", ""),
            ("swap_in", 0.02, "30 blocks loaded from host", ""),
            ("recompute", 0.03, "480 of 608 tokens already have KV", "128 tokens"),
            ("decode", 0.3, "in batches of 17 on average", "174 tokens"),
        ]
        intervals, start = [], 0.0
        totals: Counter[str] = Counter()
        for kind, share, cause, detail in shares:
            end = start + share * latency
            times = {"start_s": start, "end_s": end, "duration_s": end - start}
            intervals.append({"kind": kind, **times, "cause": cause, "detail": detail})
            totals[kind] += end - start
            start = end
        return {
            "id": request.id,
            "tenant": request.tenant,
            "status": live.status if live else "stop",
            "latency_s": latency,
            "intervals": intervals,
            "totals": dict(totals),
            "summary": "Decoding took most of its time; a larger cache would avoid the preemption.",
        }


def _with_free_runs(held: list[list[int]], num_blocks: int) -> Iterator[list[int]]:
    """Yield held runs and the free ones between them."""
    end = 0
    for run in [*held, [num_blocks, 0, FREE, -1, -1]]:
        if run[0] > end:
            yield [end, run[0] - end, FREE, -1, -1]
        if run[1]:
            yield run
        end = run[0] + run[1]


def _spread(middle: float) -> dict[str, float]:
    return {"p50": middle, "p90": 1.7 * middle, "p99": 2.9 * middle}
