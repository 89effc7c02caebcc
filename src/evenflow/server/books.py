"""Every accepted request, from the door to its last token: admission, metrics, explanations.

The engine's outputs come by here once a step, before any client is written to, so the books are
right whether or not anybody reads a stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from evenflow.core.ids import TenantId
from evenflow.core.slo import Slo
from evenflow.engine.completions import completion_id
from evenflow.engine.explain_store import ExplainStore
from evenflow.engine.outputs import Delta
from evenflow.engine.process.messages import AddRequest, StepOutput
from evenflow.scheduling.admission import AdmissionControl
from evenflow.server.metrics import ServerMetrics
from evenflow.server.recording import TrafficRecorder
from evenflow.server.tracing import Tracer


@dataclass(slots=True)
class _Entry:
    tenant_id: TenantId
    slo: Slo
    arrival_s: float
    num_open: int
    num_prompt_tokens: int
    traceparent: str | None
    num_output_tokens: int = 0
    last_token_s: dict[int, float] = field(default_factory=dict)


class Books:
    """Keeps account of live requests.

    Args:
        admission: counts those that wait.
        metrics: counts everything.
        explains: remembers how requests went.
        tracer: sends traces, if wanted.

    Attributes:
        idle: set while no request is live.
    """

    def __init__(
        self,
        admission: AdmissionControl,
        metrics: ServerMetrics,
        explains: ExplainStore,
        tracer: Tracer | None,
    ) -> None:
        self.admission = admission
        self.metrics = metrics
        self.explains = explains
        self._tracer = tracer
        self.idle = asyncio.Event()
        self.idle.set()
        self._open: dict[str, _Entry] = {}
        self._recorders: list[TrafficRecorder] = []

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._open

    def __len__(self) -> int:
        return len(self._open)

    def owner(self, request_id: str) -> TenantId | None:
        """Return whose live request it is."""
        entry = self._open.get(request_id)
        return entry.tenant_id if entry else None

    @contextmanager
    def recorded(self, recorder: TrafficRecorder) -> Iterator[None]:
        """Tell a recorder of the requests that come from now on, until the block is left."""
        self._recorders.append(recorder)
        try:
            yield
        finally:
            self._recorders.remove(recorder)

    def open(self, command: AddRequest, now_s: float, traceparent: str | None) -> None:
        """Note that a request goes to the engine now."""
        self.idle.clear()
        num_tokens = len(command.prompt_token_ids)
        self._open[command.request_id] = _Entry(
            command.tenant_id,
            command.slo or Slo(),
            now_s,
            command.params.n,
            num_tokens,
            traceparent,
        )
        self.admission.queued(command.request_id, command.tenant_id, num_tokens)
        for recorder in self._recorders:
            recorder.on_opened(command, now_s)

    def on_accepted(self, request_id: str) -> None:
        """Note that the engine has queued a request."""
        entry = self._open.get(request_id)
        if entry is not None:
            self.metrics.on_submitted(entry.tenant_id, entry.num_prompt_tokens)

    def on_output(self, output: StepOutput) -> None:
        """Take in what a step brought."""
        for request_id in output.started:
            self.admission.started(request_id, output.at_s)
        for delta in output.deltas:
            entry = self._open.get(delta.request_id)
            if entry is None:
                continue
            if delta.token_id is not None:
                self._on_token(entry, delta.index, output.at_s)
            if delta.finish_reason is not None:
                self._on_finished(entry, delta, output.at_s)

    def close(self, request_id: str, now_s: float) -> None:
        """Note that a request is gone."""
        entry = self._open.pop(request_id, None)
        if entry is not None:
            self.admission.ended(request_id, entry.num_output_tokens, now_s)
            for recorder in self._recorders:
                recorder.on_closed(request_id)
        if not self._open:
            self.idle.set()

    def close_all(self, now_s: float) -> None:
        """Note that the engine is gone, and every request with it."""
        for request_id in list(self._open):
            self.close(request_id, now_s)

    def _on_token(self, entry: _Entry, index: int, at_s: float) -> None:
        entry.num_output_tokens += 1
        last_s = entry.last_token_s.get(index)
        entry.last_token_s[index] = at_s
        if last_s is None:
            self.metrics.on_first_token(entry.tenant_id, at_s - entry.arrival_s)
        else:
            self.metrics.on_token(entry.tenant_id, at_s - last_s)

    def _on_finished(self, entry: _Entry, delta: Delta, at_s: float) -> None:
        self.explains.add(delta)
        for recorder in self._recorders:
            recorder.on_finished(delta, at_s)
        explanation = self.explains.get(completion_id(delta.request_id, delta.index))
        if explanation is not None and delta.metrics is not None:
            metrics, gave_up = delta.metrics, delta.finish_reason == "abort"
            # Who gave up waiting says nothing about the server.
            judged = {} if gave_up else entry.slo.attained(metrics.ttft_s, metrics.tpot_s)
            self.metrics.on_finished(explanation, metrics, judged)
            if self._tracer is not None:
                self._tracer.on_finished(explanation, metrics, entry.traceparent)
        entry.num_open -= 1
        if entry.num_open == 0:
            self.close(delta.request_id, at_s)
