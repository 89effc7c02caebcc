"""Serves a load and notes when every token came, for `context_switch.py`.

The loop is the same in all worlds; in a simulated one the clock jumps where others sleep.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from context_switch_arms import moved, stalls
from context_switch_load import Load
from evenflow.core.clock import Clock, VirtualClock
from evenflow.core.ids import DEFAULT_TENANT
from evenflow.core.sampling import SamplingParams
from evenflow.engine.engine import Engine
from evenflow.engine.outputs import Delta
from evenflow.simulation.arrivals import Arrivals
from evenflow.simulation.prompts import Prompts, answer_token
from evenflow.workloads.priorities import subject_of
from evenflow.workloads.request import WorkloadRequest

PERCENTILES = (50, 95, 99, 99.9)
_SAMPLE_EVERY = 20  # steps
_PIN_S = 1e-6
"""How long sessions keep their KV on the device whoever else wants the room: not at all."""


@dataclass(frozen=True)
class Stage:
    """An engine that is about to serve.

    Attributes:
        engine: with nothing in it.
        clock: its time.
        vocab_size: tokens are below this.
    """

    engine: Engine
    clock: Clock
    vocab_size: int

    def wait_until(self, at_s: float) -> None:
        """Let the time pass."""
        if isinstance(self.clock, VirtualClock):
            self.clock.advance_to(at_s)
        else:
            time.sleep(max(0.0, at_s - self.clock.now_s()))


@dataclass
class Record:
    """What was noted.

    Attributes:
        ttft_s: of each request.
        tbt_s: time between successive tokens of a request, of all requests.
        stall_s: how much of each of these the steps were held up by switches.
        num_output_tokens: of all requests.
        makespan_s: from the first arrival to the last end.
        num_preemptions: of all requests.
        stalls: seconds by cause.
        moved: bytes, copies, and whatever else was counted, by name.
        live_tokens: tokens of all who waited or ran, now and then.
        step_s: mean time of a step.
    """

    ttft_s: array[float] = field(default_factory=lambda: array("d"))
    tbt_s: array[float] = field(default_factory=lambda: array("d"))
    stall_s: array[float] = field(default_factory=lambda: array("d"))
    live_tokens: array[float] = field(default_factory=lambda: array("d"))
    num_output_tokens: int = 0
    makespan_s: float = 0.0
    num_preemptions: int = 0
    stalls: Mapping[str, float] = field(default_factory=dict)
    moved: Mapping[str, float] = field(default_factory=dict)
    num_steps: int = 0

    def figures(self, num_kv_tokens: int) -> dict[str, float]:
        """Return what is reported of a run; times in seconds."""
        tbt, stall = np.array(self.tbt_s), np.array(self.stall_s)
        figures = {
            f"{name}_p{percentile:g}": float(np.percentile(values, percentile))
            for name, values in (("ttft", self.ttft_s), ("tbt", tbt))
            for percentile in PERCENTILES
        }
        without = float(np.percentile(tbt - stall, 99))
        return figures | {
            "throughput": self.num_output_tokens / self.makespan_s,
            "switch_share_p99": 1 - without / figures["tbt_p99"],
            "makespan": self.makespan_s,
            "preemptions": self.num_preemptions,
            "steps": self.num_steps,
            "fitting_share": num_kv_tokens / float(np.mean(self.live_tokens)),
            **{f"stall_{cause}": seconds for cause, seconds in self.stalls.items()},
            **self.moved,
        }


def serve(stage: Stage, load: Load) -> Record:
    """Serve a load to its end."""
    return _Service(stage, load).run()


class _Service:
    """The state of one run."""

    def __init__(self, stage: Stage, load: Load) -> None:
        self._stage = stage
        self._engine = stage.engine
        self._arrivals = Arrivals(load.requests)
        self._num_requests = len(load.requests)
        self._prompts = Prompts()
        self._feed = load.feed()
        self._live: dict[str, WorkloadRequest] = {}
        # When each request had its last token, and how long steps had been held up by then.
        self._last: dict[str, tuple[float, float]] = {}
        self._num_added = 0
        self._record = Record()
        self._start_s = stage.clock.now_s()

    def run(self) -> Record:
        """Serve everything."""
        engine, record, times = self._engine, self._record, self._engine.times
        while len(record.ttft_s) < self._num_requests:
            for due_s, request in self._arrivals.take(self._now_s()):
                self._add(due_s, request)
            if not engine.has_work:
                self._stage.wait_until(self._start_s + self._arrivals.next_s)
                continue
            self._change_priorities()
            self._take_in(engine.step())
            if times.num_steps % _SAMPLE_EVERY == 0:
                record.live_tokens.append(sum(r.num_tokens for r in engine.live_requests))
        record.num_preemptions = engine.scheduler.num_preemptions
        record.num_steps = times.num_steps
        record.stalls, record.moved = dict(stalls(engine)), moved(engine)
        return record

    def _now_s(self) -> float:
        return self._stage.clock.now_s() - self._start_s

    def _change_priorities(self) -> None:
        feed, num_steps = self._feed, self._engine.times.num_steps
        if feed.next_step > num_steps:
            return
        while feed.next_step <= num_steps:
            feed.update()
        for request_id, request in self._live.items():
            self._engine.set_priority(request_id, self._priority(request, request_id))

    def _priority(self, request: WorkloadRequest, request_id: str) -> int:
        return self._feed.priority(subject_of(request, request_id)) or 0

    def _add(self, due_s: float, request: WorkloadRequest) -> None:
        request_id = str(self._num_added)
        self._num_added += 1
        prompt = self._prompts.write(request, request_id)
        params = SamplingParams(
            max_tokens=request.num_output_tokens, ignore_eos=True, temperature=0.0
        )
        self._live[request_id] = request
        if request.session is not None and request.turn == 0:
            self._engine.sessions.open(DEFAULT_TENANT, _PIN_S, request.session)
        self._engine.add_request(
            request_id,
            [token_id % self._stage.vocab_size for token_id in prompt],
            params,
            priority=self._priority(request, request_id),
            session_id=request.session,
            arrival_s=self._start_s + due_s,
        )

    def _take_in(self, deltas: Sequence[Delta]) -> None:
        now_s, record = self._now_s(), self._record
        stalled_s = sum(stalls(self._engine).values())
        for delta in deltas:
            last = self._last.get(delta.request_id)
            if last is not None:
                record.tbt_s.append(now_s - last[0])
                record.stall_s.append(stalled_s - last[1])
            self._last[delta.request_id] = now_s, stalled_s
            if delta.metrics is not None:
                self._end(delta, now_s)

    def _end(self, delta: Delta, now_s: float) -> None:
        request, metrics = self._live.pop(delta.request_id), delta.metrics
        del self._last[delta.request_id]
        if metrics is None or metrics.ttft_s is None or delta.finish_reason != "length":
            raise SystemExit(f"request {delta.request_id} was not served: {delta.finish_reason}")
        self._record.ttft_s.append(metrics.ttft_s)
        self._record.num_output_tokens += metrics.num_output_tokens
        self._record.makespan_s = now_s
        if request.session is not None:
            token_id = answer_token(delta.request_id)
            self._prompts.answer(request.session, token_id, metrics.num_output_tokens)
            self._arrivals.answered(request.session, now_s)
