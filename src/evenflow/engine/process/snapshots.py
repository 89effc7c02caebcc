"""Takes the snapshots of the engine that metrics, dashboard and `top` are made of."""

from __future__ import annotations

from dataclasses import asdict, astuple

from evenflow.core.clock import Clock
from evenflow.core.status import RequestStatus
from evenflow.engine.engine import Engine
from evenflow.engine.process.messages import (
    LinkUse,
    Preemptions,
    Snapshot,
    StepSample,
    Switching,
    TenantState,
    TierUse,
)
from evenflow.memory.residency import Residency
from evenflow.scheduling.scheduler import Scheduler

_BUSY_S = 0.25
_IDLE_S = 1.0


class SnapshotTaker:
    """Decides when a snapshot is due, and takes it.

    Args:
        engine: what to look at.
        clock: the engine's.
    """

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock
        self._taken_s = clock.now_s()
        self._steps: list[StepSample] = []
        self._before = astuple(engine.times)
        self._last_end_s: float | None = None

    def note_step(self, started_s: float, ended_s: float) -> None:
        """Remember a step that ran from `started_s` to `ended_s`."""
        engine = self._engine
        now = astuple(engine.times)
        schedule_s, execute_s, update_s, emit_s, num_steps, num_tokens, num_requests = (
            after - before for after, before in zip(now, self._before, strict=True)
        )
        self._before = now
        if num_steps:
            handover_s = 0.0 if self._last_end_s is None else started_s - self._last_end_s
            self._steps.append(
                StepSample(
                    schedule_s, execute_s, update_s, emit_s, num_tokens, num_requests, handover_s
                )
            )
        goes_on = engine.has_work and not engine.is_paused
        self._last_end_s = ended_s if goes_on else None

    def take_if_due(self) -> Snapshot | None:
        """Return a snapshot if the last one is old enough."""
        now_s = self._clock.now_s()
        if now_s - self._taken_s < (_BUSY_S if self._steps else _IDLE_S):
            return None
        return self.take()

    def take(self) -> Snapshot:
        """Return how the engine stands, and forget the steps it tells of."""
        engine = self._engine
        scheduler = engine.scheduler
        self._taken_s = self._clock.now_s()
        steps, self._steps = self._steps, []
        times = asdict(engine.times)
        return Snapshot(
            at_s=self._taken_s,
            is_paused=engine.is_paused,
            tenants={
                tenant_id: TenantState(
                    state.num_running, dict(state.num_waiting_by_reason), state.service_tokens
                )
                for tenant_id, state in scheduler.tenant_states().items()
            },
            kv=scheduler.kv.stats(),
            preemptions=[
                Preemptions(mode, reason, tenant_id, count)
                for (mode, reason, tenant_id), count in scheduler.preemption_counts.items()
            ],
            switching=_switching(scheduler),
            steps=steps,
            num_steps=engine.times.num_steps,
            step_s={verb: times[f"{verb}_s"] for verb in ("schedule", "execute", "update", "emit")},
        )


def _switching(scheduler: Scheduler) -> Switching:
    switcher, residency = scheduler.switcher, scheduler.kv.residency
    statuses = [request.status for request in scheduler.requests.values()]
    return Switching(
        num_swapped=statuses.count(RequestStatus.PREEMPTED),
        num_arriving=len(scheduler.arriving),
        stall_s=dict(switcher.stall_s),
        num_conflicts=switcher.num_conflicts,
        tiers=[] if residency is None else _tiers(residency),
        links=[] if residency is None else _links(residency),
    )


def _tiers(residency: Residency) -> list[TierUse]:
    return [
        TierUse(tier.tier.value, tier.num_blocks, tier.num_kept)
        for tier in (residency.host, residency.disk)
        if tier is not None
    ]


def _links(residency: Residency) -> list[LinkUse]:
    stats, bytes_per_block = residency.stats, residency.transfers.bytes_per_block
    return [
        LinkUse(
            f"{link[0].value}_to_{link[1].value}",
            num_blocks * bytes_per_block,
            stats.num_copies[link],
            stats.seconds[link],
            stats.num_failures[link],
        )
        for link, num_blocks in stats.num_blocks.items()
    ]
