"""What the server measures, told to Prometheus at `/metrics` and to the dashboard.

Knows: which event counts where; how to write the exposition format.
Does not know: HTTP, processes, who calls.

Invariants:
    What the engine counts is taken over from its snapshots, never counted a second time.
    All calls come from one thread, the event loop's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, generate_latest
from prometheus_client.process_collector import ProcessCollector

from evenflow.engine.explain import Explanation
from evenflow.engine.intervals import IntervalKind
from evenflow.engine.outputs import RequestMetrics
from evenflow.engine.process.messages import Snapshot, Switching, TenantState
from evenflow.fairness.report import jain_index, service_gap
from evenflow.server.catalogue import PREFIX, Catalogue
from evenflow.server.windows import LatencyWindow, RateWindow

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
ATTAINMENT_WINDOW_S = 300.0
FAIRNESS_WINDOW_S = 30.0
_WAITS_OF_ITS_OWN = frozenset({"tenant_limit", "sibling"})
_MODES = {IntervalKind.RECOMPUTE: "recompute", IntervalKind.SWAP_IN: "swap"}
_CUT_SHORT = frozenset({"abort", "error", "timeout"})


class ServerMetrics:
    """Counts what happens to requests, mirrors what the engine reports, and renders both.

    Args:
        started_s: now, on the clock of the engine's snapshots.
        version: evenflow's.
        config: labels of `config_info`.
        weight_of: a tenant's weight, by which its service is divided in the fairness figures.
        engine_pid: the engine's process, if it has one of its own.

    Attributes:
        started_s: as given.
        counts: the instruments.
        snapshot: the engine's last one.
        weight_of: as given.
        ttft, itl, e2e: their percentiles over the last minute.
        prompt_rate, generation_rate, step_rate: growth per second over the last five seconds.
    """

    def __init__(
        self,
        *,
        started_s: float,
        version: str,
        config: Mapping[str, str],
        weight_of: Callable[[str], float] = lambda _: 1.0,
        engine_pid: Callable[[], int] | None = None,
    ) -> None:
        self.started_s = started_s
        self.counts = counts = Catalogue(version, config)
        self.snapshot: Snapshot | None = None
        self.ttft = LatencyWindow(counts.latency.ttft, started_s)
        self.itl = LatencyWindow(counts.latency.itl, started_s)
        self.e2e = LatencyWindow(counts.latency.e2e, started_s)
        self.prompt_rate = RateWindow(counts.tokens.prompt, started_s)
        self.generation_rate = RateWindow(counts.tokens.generated, started_s)
        self.step_rate = RateWindow(counts.steps.steps, started_s)
        self._backlogged_since_s: dict[str, float] = {}
        self._service = RateWindow(counts.tenants.service, started_s, FAIRNESS_WINDOW_S)
        self._slo = RateWindow(counts.tenants.slo_requests, started_s, ATTAINMENT_WINDOW_S)
        self.weight_of = weight_of
        self._processes = CollectorRegistry()
        ProcessCollector(registry=self._processes)
        if engine_pid is not None:
            ProcessCollector(PREFIX + "engine", engine_pid, registry=self._processes)

    def on_submitted(self, tenant: str, num_prompt_tokens: int) -> None:
        """A request was accepted."""
        self.counts.requests.submitted.add(1, tenant)
        self.counts.tokens.prompt.add(num_prompt_tokens, tenant)

    def on_rejected(self, tenant: str, reason: str) -> None:
        """A request was turned away."""
        self.counts.requests.rejected.add(1, reason, tenant)

    def on_first_token(self, tenant: str, ttft_s: float) -> None:
        """A completion got its first token."""
        self.counts.tokens.generated.add(1, tenant)
        self.counts.latency.ttft.observe(ttft_s, tenant)

    def on_token(self, tenant: str, gap_s: float) -> None:
        """A completion got another token, `gap_s` after the one before."""
        self.counts.tokens.generated.add(1, tenant)
        self.counts.latency.itl.observe(gap_s, tenant)

    def on_finished(
        self, explanation: Explanation, metrics: RequestMetrics, attained: Mapping[str, bool]
    ) -> None:
        """A completion ended. What was cut short has an outcome, but no latency.

        Args:
            explanation: its life; the status is its finish reason.
            metrics: its times.
            attained: whether each objective it had was met, by name (`Slo.attained`).
        """
        counts, tenant = self.counts, explanation.tenant_id
        counts.requests.finished.add(1, explanation.status)
        counts.tokens.cached.add(metrics.num_cached_tokens, tenant)
        for slo, is_met in attained.items():
            counts.tenants.slo_requests.add(1, tenant, slo, "true" if is_met else "false")
        if explanation.status not in _CUT_SHORT:
            self._observe_latencies(explanation, metrics)

    def on_http(self, path: str, status: int) -> None:
        """A request was answered; `path` is its route's template."""
        self.counts.http.requests.add(1, path, str(status))

    def on_loop_lag(self, lag_s: float) -> None:
        """The event loop ran a timer `lag_s` too late."""
        self.counts.http.loop_lag.observe(lag_s)

    def on_snapshot(self, snapshot: Snapshot) -> None:
        """Take over what the engine reports, and let the windows move on."""
        self.snapshot = snapshot
        self._mirror_tenants(snapshot)
        self._mirror_memory(snapshot)
        self._mirror_switching(snapshot.switching)
        self._mirror_steps(snapshot)
        now_s = snapshot.at_s
        for latency in (self.ttft, self.itl, self.e2e):
            latency.mark(now_s)
        for rate in (
            self.prompt_rate,
            self.generation_rate,
            self.step_rate,
            self._service,
            self._slo,
        ):
            rate.mark(now_s)
        self._judge_fairness(snapshot)
        self._judge_attainment(now_s)

    def render(self) -> bytes:
        """Return the body of `/metrics`, of type `CONTENT_TYPE`."""
        lines = [line for instrument in self.counts for line in instrument.lines()]
        return "\n".join(lines).encode() + b"\n" + generate_latest(self._processes)

    def _observe_latencies(self, explanation: Explanation, metrics: RequestMetrics) -> None:
        counts, tenant = self.counts, explanation.tenant_id
        queue_time_s = explanation.queue_time_s
        started_s = metrics.arrival_s + queue_time_s
        counts.latency.e2e.observe(metrics.finished_s - metrics.arrival_s, tenant)
        counts.latency.queue.observe(queue_time_s, tenant)
        counts.latency.inference.observe(metrics.finished_s - started_s)
        if metrics.first_token_s is not None:
            counts.latency.prefill.observe(metrics.first_token_s - started_s)
            counts.latency.decode.observe(metrics.finished_s - metrics.first_token_s)
        if metrics.tpot_s is not None:
            counts.latency.tpot.observe(metrics.tpot_s)
        for kind, seconds in explanation.totals.items():
            counts.latency.stage.observe(seconds, kind.value)
        for interval in explanation.intervals:
            if interval.lost_to is not None and interval.kind in _MODES:
                counts.memory.preemption_cost.observe(interval.duration_s, _MODES[interval.kind])

    def _mirror_tenants(self, snapshot: Snapshot) -> None:
        counts = self.counts
        tenants = snapshot.tenants
        counts.requests.running.set(snapshot.num_running)
        counts.steps.paused.set(int(snapshot.is_paused))
        counts.tenants.running.replace({(id_,): t.num_running for id_, t in tenants.items()})
        counts.tenants.service.replace({(id_,): t.service_tokens for id_, t in tenants.items()})
        counts.requests.waiting.replace(
            {
                (reason, id_): count
                for id_, tenant in tenants.items()
                for reason, count in tenant.num_waiting_by_reason.items()
            }
        )
        counts.memory.preemptions.replace(
            {(p.mode, p.reason, p.tenant_id): p.count for p in snapshot.preemptions}
        )

    def _mirror_memory(self, snapshot: Snapshot) -> None:
        counts, kv = self.counts, snapshot.kv
        for usage in (counts.memory.usage, counts.memory.usage_alias):
            usage.set(kv.num_used / kv.num_blocks)
        counts.memory.blocks.replace(
            {
                ("free",): kv.num_free,
                ("used",): kv.num_used,
                ("reserved",): kv.num_reserved,
                ("evictable",): kv.num_evictable,
            }
        )
        counts.memory.cached.set(kv.num_cached)
        counts.memory.pinned.set(kv.num_pinned)
        counts.memory.mean_extent.set(kv.mean_extent_blocks)
        counts.memory.queries.replace({(): kv.num_query_tokens})
        counts.memory.hits.replace({(): kv.num_hit_tokens})

    def _mirror_switching(self, now: Switching) -> None:
        counts = self.counts.switching
        counts.swapped.set(now.num_swapped)
        counts.arriving.set(now.num_arriving)
        blocks = {"host": counts.host, "disk": counts.disk}
        for tier in now.tiers:
            blocks[tier.tier].set(tier.num_kept, "kept")
            blocks[tier.tier].set(tier.num_blocks - tier.num_kept, "free")
            if tier.tier == "host":
                counts.host_usage.set(tier.num_kept / tier.num_blocks)
        for link in now.links:
            direction = (link.direction,)
            counts.bytes.values[direction] = link.num_bytes
            counts.copies.values[direction] = link.num_copies
            counts.seconds.values[direction] = link.seconds
            counts.failures.values[direction] = link.num_failures
        counts.stalls.replace({(cause,): seconds for cause, seconds in now.stall_s.items()})
        counts.conflicts.replace({(): now.num_conflicts})

    def _mirror_steps(self, snapshot: Snapshot) -> None:
        counts = self.counts
        counts.steps.steps.replace({(): snapshot.num_steps})
        counts.steps.time.replace({(stage,): s for stage, s in snapshot.step_s.items()})
        for step in snapshot.steps:
            counts.steps.tokens.observe(step.num_tokens)
            counts.steps.planning.observe(step.schedule_s)
            if step.handover_s:
                counts.steps.handover.observe(step.handover_s)

    def _judge_fairness(self, snapshot: Snapshot) -> None:
        """Compare the tenants that wanted more than they got throughout the window."""
        backlogged = {id_ for id_, tenant in snapshot.tenants.items() if _wants_more(tenant)}
        since_s = self._backlogged_since_s = {
            id_: self._backlogged_since_s.get(id_, snapshot.at_s) for id_ in backlogged
        }
        window_start_s = self._service.start_s(snapshot.at_s)
        growth = self._service.growth(snapshot.at_s)
        shares = [
            growth.get((id_,), 0.0) / self.weight_of(id_)
            for id_ in backlogged
            if since_s[id_] <= window_start_s
        ]
        self.counts.tenants.jain_index.set(jain_index(shares))
        self.counts.tenants.service_gap.set(service_gap(shares))

    def _judge_attainment(self, now_s: float) -> None:
        outcomes: dict[tuple[str, str], dict[str, float]] = {}
        for (tenant, slo, is_met), count in self._slo.growth(now_s).items():
            outcomes.setdefault((tenant, slo), {})[is_met] = count
        self.counts.tenants.slo_attainment.replace(
            {
                labels: by_outcome.get("true", 0.0) / sum(by_outcome.values())
                for labels, by_outcome in outcomes.items()
                if sum(by_outcome.values())
            }
        )


def _wants_more(tenant: TenantState) -> bool:
    """Whether requests wait for others, not only for their tenant's own limit or a sibling."""
    waiting = tenant.num_waiting_by_reason.items()
    return any(count for reason, count in waiting if reason not in _WAITS_OF_ITS_OWN)
