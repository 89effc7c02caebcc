"""The books of live requests against a plain list of what happened."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from evenflow.core.events import EventKind, RequestEvent
from evenflow.core.ids import RequestId, TenantId
from evenflow.core.sampling import SamplingParams
from evenflow.core.slo import Slo
from evenflow.engine.completions import completion_id
from evenflow.engine.explain_store import ExplainStore
from evenflow.engine.outputs import Delta, RequestMetrics
from evenflow.engine.process.messages import AddRequest, StepOutput
from evenflow.fairness.tenants import TenantDirectory
from evenflow.scheduling.admission import AdmissionControl
from evenflow.server.books import Books
from evenflow.server.metrics import ServerMetrics

TENANTS = [TenantId(name) for name in ("blue", "green")]
SLO = Slo(ttft_s=2.0)
ENDINGS = ["stop", "length", "abort", "error", "timeout"]


@dataclass
class Live:
    """A request as the oracle knows it."""

    tenant_id: TenantId
    num_prompt_tokens: int
    arrival_s: float
    has_slo: bool
    open_indices: list[int]
    is_waiting: bool = True
    first_token_s: dict[int, float] = field(default_factory=dict)


class BooksMachine(RuleBasedStateMachine):
    """Requests come, start, get tokens, end in every way there is; strangers are passed over."""

    def __init__(self) -> None:
        super().__init__()
        self.admission = AdmissionControl(1000, None, TenantDirectory())
        self.metrics = ServerMetrics(started_s=0.0, version="1", config={})
        self.explains = ExplainStore()
        self.books = Books(self.admission, self.metrics, self.explains, None)
        self.now_s = 0.0
        self.num_opened = 0
        self.live: dict[str, Live] = {}
        self.gone: list[str] = []
        self.ended: dict[str, str] = {}
        self.counts: Counter[str] = Counter()

    # ---- What happens --------------------------------------------------------------------------

    @rule(
        tenant_id=st.sampled_from(TENANTS),
        num_tokens=st.integers(1, 9),
        n=st.integers(1, 3),
        has_slo=st.booleans(),
    )
    def open(self, tenant_id: TenantId, num_tokens: int, n: int, has_slo: bool) -> None:
        name = f"r{self.num_opened}"
        self.num_opened += 1
        command = AddRequest(
            request_id=name,
            prompt_token_ids=[1] * num_tokens,
            params=SamplingParams(n=n),
            tenant_id=tenant_id,
            slo=SLO if has_slo else None,
        )
        self.books.open(command, self.now_s, None)
        self.live[name] = Live(tenant_id, num_tokens, self.now_s, has_slo, list(range(n)))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def accept(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.live)))
        self.books.on_accepted(name)
        self.counts["submitted"] += 1
        self.counts["prompt_tokens"] += self.live[name].num_prompt_tokens

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def reject(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.live)))
        self.books.close(name, self.now_s)
        self._close(name)

    @precondition(lambda self: self.live)
    @rule(seconds=st.sampled_from([0.0, 0.5, 3.0]), seed=st.integers(0, 2**32))
    def step(self, seconds: float, seed: int) -> None:
        """Some requests start, some completions get a token, some end, with or without one."""
        self.now_s += seconds
        random = Random(seed)
        started = []
        for name, live in self.live.items():
            if random.random() < 0.5:
                started.append(RequestId(completion_id(name, random.randrange(3))))
                live.is_waiting &= started[-1] != name
        deltas = [
            self._advance(name, index, random)
            for name in list(self.live)
            for index in list(self.live[name].open_indices)
            if random.random() < 0.7
        ]
        self.books.on_output(StepOutput(self.now_s, deltas, started))

    @rule(data=st.data())
    def late_news(self, data: st.DataObject) -> None:
        """Whatever is said of a request that is gone, or never was, changes nothing."""
        name = data.draw(st.sampled_from([*self.gone, "nobody"]))
        deltas = [Delta(name, 0, 5, "x"), Delta(name, 0, None, "", finish_reason="abort")]
        self.books.on_output(StepOutput(self.now_s, deltas, [RequestId(name)]))
        self.books.on_accepted(name)
        self.books.close(name, self.now_s)

    @precondition(lambda self: len(self.live) > 2)
    @rule()
    def lose_engine(self) -> None:
        self.books.close_all(self.now_s)
        for name in list(self.live):
            self._close(name)

    # ---- The oracle ----------------------------------------------------------------------------

    def _advance(self, name: str, index: int, random: Random) -> Delta:
        live = self.live[name]
        reason = random.choice(ENDINGS) if random.random() < 0.2 else None
        has_token = reason is None or random.random() < 0.7
        delta = Delta(name, index, 5 if has_token else None, "x", finish_reason=reason)
        if has_token:
            kind = "itl" if index in live.first_token_s else "ttft"
            live.first_token_s.setdefault(index, self.now_s)
            self.counts[kind] += 1
        if reason is not None:
            first_s = live.first_token_s.get(index)
            delta.metrics = RequestMetrics(
                live.arrival_s, first_s, self.now_s, 1, 0, 0, 1, live.tenant_id
            )
            delta.events = (
                RequestEvent(EventKind.QUEUED, live.arrival_s, ""),
                RequestEvent(EventKind.FINISHED, self.now_s, ""),
            )
            self.ended[completion_id(name, index)] = reason
            if live.has_slo and reason != "abort":
                is_met = first_s is not None and first_s - live.arrival_s <= 2.0
                self.counts[f"slo {is_met}"] += 1
            live.open_indices.remove(index)
            if not live.open_indices:
                self._close(name)
        return delta

    def _close(self, name: str) -> None:
        del self.live[name]
        self.gone.append(name)

    # ---- What must hold ------------------------------------------------------------------------

    @invariant()
    def books_know_who_lives(self) -> None:
        assert len(self.books) == len(self.live)
        assert self.books.idle.is_set() == (not self.live)
        for name, live in self.live.items():
            assert self.books.owner(name) == live.tenant_id
        assert not any(name in self.books for name in self.gone)

    @invariant()
    def admission_knows_who_waits(self) -> None:
        self.admission.check_integrity()
        waiting = [live for live in self.live.values() if live.is_waiting]
        assert self.admission.num_queued_reqs == len(waiting)
        assert self.admission.num_queued_tokens == sum(w.num_prompt_tokens for w in waiting)

    @invariant()
    def metrics_count_everything_once(self) -> None:
        counts = self.metrics.counts
        assert counts.requests.submitted.total == self.counts["submitted"]
        assert counts.tokens.prompt.total == self.counts["prompt_tokens"]
        assert counts.tokens.generated.total == self.counts["ttft"] + self.counts["itl"]
        assert sum(counts.latency.ttft.counts) == self.counts["ttft"]
        assert sum(counts.latency.itl.counts) == self.counts["itl"]
        finished = {labels[0]: count for labels, count in counts.requests.finished.values.items()}
        assert finished == Counter(self.ended.values())
        for is_met in (True, False):
            judged = counts.tenants.slo_requests.values.items()
            total = sum(count for labels, count in judged if labels[-1] == str(is_met).lower())
            assert total == self.counts[f"slo {is_met}"]

    @invariant()
    def every_ending_is_explained(self) -> None:
        assert len(self.explains) == len(self.ended)
        for name, reason in self.ended.items():
            explanation = self.explains.get(name)
            assert explanation is not None
            assert explanation.status == reason


BooksMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, derandomize=True
)
TestBooksMachine = BooksMachine.TestCase
