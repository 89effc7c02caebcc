"""Two tenants that wait all the time: their service per weight stays together, whatever comes."""

from __future__ import annotations

from itertools import combinations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from evenflow.core.ids import TenantId
from evenflow.core.sampling import SamplingParams
from evenflow.engine.engine import Engine
from evenflow.fairness.report import service_gap_bound
from evenflow.fairness.tenants import Tenant, TenantDirectory, TenantLimits
from support.scripted_engine import make_engine

LONGEST_PROMPT, LONGEST_OUTPUT = 40, 12
BLOCK_SIZE = 4
LONGEST_BLOCKS = (LONGEST_PROMPT + LONGEST_OUTPUT) // BLOCK_SIZE
TENANTS = [TenantId(name) for name in "abc"]

Batch = tuple[int, TenantId, list[tuple[int, int]]]

batches = st.lists(
    st.tuples(
        st.integers(0, 150),  # before which step
        st.sampled_from(TENANTS),
        st.lists(
            st.tuples(st.integers(1, LONGEST_PROMPT), st.integers(1, LONGEST_OUTPUT)),
            min_size=1,
            max_size=30,
        ),
    ),
    min_size=2,
    max_size=8,
)
weights = st.tuples(*[st.sampled_from([0.5, 1.0, 2.0, 3.0])] * 3)


class GapWatch:
    """Follows the differences of service per weight while both of two tenants wait.

    Attributes:
        widest: by pair, the largest service gap over any interval so far.
        most_interrupted: most requests at a time that wait again with half a prompt computed.
    """

    def __init__(self, engine: Engine, weights: dict[TenantId, float]) -> None:
        self._scheduler = engine.scheduler
        self._weights = weights
        # (smallest, largest) difference since both began to wait.
        self._open: dict[tuple[TenantId, TenantId], tuple[float, float]] = {}
        self.widest = dict.fromkeys(combinations(weights, 2), 0.0)
        self.most_interrupted = 0

    def look(self) -> None:
        """Between two steps, and between what comes and the step that follows it."""
        waiting = self._scheduler.waiting.by_tenant()
        interrupted = [
            request
            for requests in waiting.values()
            for request in requests
            if request.num_preemptions and request.num_settled_tokens < request.num_prompt_tokens
        ]
        self.most_interrupted = max(self.most_interrupted, len(interrupted))
        service = self._scheduler.service.service_tokens
        for pair in self.widest:
            if not all(tenant_id in waiting for tenant_id in pair):
                self._open.pop(pair, None)
                continue
            one, other = (service(tenant_id) / self._weights[tenant_id] for tenant_id in pair)
            gap = one - other
            low, high = self._open.get(pair, (gap, gap))
            self._open[pair] = low, high = min(low, gap), max(high, gap)
            self.widest[pair] = max(self.widest[pair], high - low)


def excess(
    policy: str,
    coming: list[Batch],
    weight_of: tuple[float, ...],
    max_num_seqs: int,
    token_budget: int,
    room_for: int = 7,
) -> float:
    """Serve everything; return by how much a gap was wider than the bound at most.

    Each request that waits again with half a prompt computed counts towards T as `docs/fairness.md`
    says; with memory for seven, hardly any does.
    """
    weights = dict(zip(TENANTS, weight_of, strict=True))
    directory = TenantDirectory(
        Tenant(tenant_id, TenantLimits(weight=weight)) for tenant_id, weight in weights.items()
    )
    engine, _ = make_engine(
        policy=policy,
        directory=directory,
        block_size=BLOCK_SIZE,
        num_blocks=room_for * (LONGEST_BLOCKS + 1),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=token_budget,
        enable_prefix_caching=False,
    )
    watch = GapWatch(engine, weights)
    coming = sorted(coming)
    step = count = 0
    while coming or engine.has_work:
        while coming and coming[0][0] <= step:
            _, tenant_id, requests = coming.pop(0)
            for num_prompt, num_output in requests:
                params = SamplingParams(max_tokens=num_output)
                engine.add_request(f"{count}", [1] * num_prompt, params, tenant_id=tenant_id)
                count += 1
        watch.look()
        engine.step()
        watch.look()
        step += 1
    return max(
        gap
        - service_gap_bound(
            (weights[pair[0]], weights[pair[1]]),
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=token_budget + watch.most_interrupted * LONGEST_PROMPT,
            longest_prompt=LONGEST_PROMPT,
            longest_output=LONGEST_OUTPUT,
        )
        for pair, gap in watch.widest.items()
    )


FLOOD: list[Batch] = [
    (0, TENANTS[0], [(LONGEST_PROMPT, LONGEST_OUTPUT)] * 60),
    (0, TENANTS[1], [(LONGEST_PROMPT, LONGEST_OUTPUT)] * 60),
]
"""Who came first has everything served first, if nobody looks at tenants."""

RETURN: list[Batch] = [
    (0, TENANTS[0], [(LONGEST_PROMPT, LONGEST_OUTPUT)] * 90),
    (450, TENANTS[1], [(LONGEST_PROMPT, LONGEST_OUTPUT)] * 40),
]
"""Who comes late has had nothing, and would be served alone until that is made up for."""


@settings(max_examples=150, deadline=None)
@given(batches, weights, st.integers(1, 6), st.integers(1, 40))
@example(FLOOD, (1.0, 1.0, 1.0), 2, 20)
@example(RETURN, (1.0, 1.0, 1.0), 2, 20)
def test_service_gap_stays_below_the_bound_under_vtc(
    coming: list[Batch], weight_of: tuple[float, ...], max_num_seqs: int, spare_tokens: int
) -> None:
    assert excess("vtc", coming, weight_of, max_num_seqs, max_num_seqs + spare_tokens) < 0


@settings(max_examples=50, deadline=None)
@given(batches, weights, st.integers(2, 6), st.integers(1, 40), st.integers(1, 3))
def test_service_gap_stays_below_the_bound_when_memory_runs_out(
    coming: list[Batch],
    weight_of: tuple[float, ...],
    max_num_seqs: int,
    spare_tokens: int,
    room_for: int,
) -> None:
    token_budget = max_num_seqs + spare_tokens
    assert excess("vtc", coming, weight_of, max_num_seqs, token_budget, room_for) < 0


def test_service_gap_passes_the_bound_under_fcfs() -> None:
    assert excess("fcfs", FLOOD, (1.0, 1.0, 1.0), 2, 20) > 0
