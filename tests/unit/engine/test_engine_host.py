"""The engine's side of the two processes, with a wire that the test holds."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from evenflow.core.errors import InvalidRequestError
from evenflow.core.ids import TenantId
from evenflow.core.pooling import PoolingParams
from evenflow.core.sampling import SamplingParams
from evenflow.core.slo import Slo
from evenflow.core.structured import StructuredOutput
from evenflow.engine.outputs import Delta
from evenflow.engine.process.messages import (
    Abort,
    Accepted,
    AddRequest,
    AdminCall,
    AdminReply,
    Command,
    EncodeSentences,
    Output,
    Rejected,
    Shutdown,
    Snapshot,
    StepOutput,
)
from support.engine_host import STEP_S, Desk, FreeGrammar
from support.scripted_engine import scripted_token

LETTERS = StructuredOutput("regex", "[a-z]+")


def add(request_id: str, *, num_tokens: int = 3, num_prompt: int = 4, **fields: Any) -> AddRequest:
    sampling = {name: fields.pop(name) for name in ("structured", "n") if name in fields}
    return AddRequest(
        request_id=request_id,
        prompt_token_ids=list(range(1, num_prompt + 1)),
        params=SamplingParams(max_tokens=num_tokens, **sampling),
        **fields,
    )


def deltas_of(outputs: Sequence[Output], request_id: str) -> list[Delta]:
    return [
        delta
        for output in outputs
        if isinstance(output, StepOutput)
        for delta in output.deltas
        if delta.request_id == request_id
    ]


def endings(outputs: Sequence[Output], request_id: str) -> list[str | None]:
    return [delta.finish_reason for delta in deltas_of(outputs, request_id) if delta.finish_reason]


def rejections(outputs: Sequence[Output]) -> dict[str, str]:
    return {o.request_id: o.error.code for o in outputs if isinstance(o, Rejected)}


def accepted(outputs: Sequence[Output]) -> list[str]:
    return [output.request_id for output in outputs if isinstance(output, Accepted)]


# ---- Requests ------------------------------------------------------------------------------------


def test_host_answers_a_request_with_its_tokens_and_one_ending() -> None:
    outputs = Desk().run([add("a", num_tokens=3)])
    assert outputs[0] == Accepted("a")
    assert [delta.token_id for delta in deltas_of(outputs, "a")] == [
        scripted_token("a", length) for length in (4, 5, 6)
    ]
    assert endings(outputs, "a") == ["length"]
    steps = [output for output in outputs if isinstance(output, StepOutput)]
    assert [step.started for step in steps] == [["a"], [], []]
    assert [round(step.at_s - 100, 6) for step in steps] == [STEP_S, 2 * STEP_S, 3 * STEP_S]


def test_host_carries_out_commands_in_their_order() -> None:
    outputs = Desk().run([add("a"), add("b"), Abort("a", "the test"), add("a", num_tokens=1)])
    # The first `a` is gone, but not reported yet, so the second one cannot have its id.
    assert accepted(outputs) == ["a", "b"]
    assert rejections(outputs) == {"a": "duplicate_request_id"}
    assert endings(outputs, "a") == ["abort"]
    assert endings(outputs, "b") == ["length"]


def test_host_rejects_a_request_that_the_engine_refuses_and_serves_the_others() -> None:
    outputs = Desk().run([add("a", num_prompt=0), add("b"), add("c", session_id="none")])
    assert rejections(outputs) == {"a": "invalid_request", "c": "session_not_found"}
    (refusal, _) = [output.error for output in outputs if isinstance(output, Rejected)]
    assert (refusal.param, refusal.is_request_error) == ("prompt", True)
    assert endings(outputs, "b") == ["length"]


def test_host_hands_on_everything_that_a_request_says(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()
    said: list[tuple[Any, ...]] = []
    monkeypatch.setattr(desk.engine, "add_request", lambda *args, **kw: said.append((args, kw)))
    fields: dict[str, Any] = {
        "priority": 3,
        "tenant_id": "blue",
        "cache_salt": "salt",
        "slo": Slo(ttft_s=0.5),
        "deadline_s": 200.0,
        "session_id": "s",
    }
    desk.run([add("a", **fields), add("b", pooling=PoolingParams(dimensions=2))])
    (request, pooled) = said
    assert request[0] == ("a", [1, 2, 3, 4], SamplingParams(max_tokens=3))
    assert request[1] == {**fields, "grammar": None}
    assert pooled[0][2] == PoolingParams(dimensions=2)


def test_host_ends_a_running_request_when_it_is_aborted() -> None:
    desk = Desk()
    desk.during[1] = [Abort("a", "the client went away")]
    outputs = desk.run([add("a", num_tokens=50)])
    *_, last = deltas_of(outputs, "a")
    assert (last.finish_reason, last.events[-1].cause) == ("abort", "the client went away")
    assert len(desk.executor.steps) == 2
    desk.engine.scheduler.check_integrity()


def test_host_passes_over_the_abort_of_an_unknown_request() -> None:
    assert Desk().run([Abort("nobody", "x")]) == []


def test_host_gives_an_embedding_for_a_pooling_request() -> None:
    (delta,) = deltas_of(Desk().run([add("a", pooling=PoolingParams(normalize=False))]), "a")
    mean = np.frombuffer(delta.embedding or b"", dtype="<f4")
    assert mean.tolist() == [1.0, 1.5, 2.5]
    assert delta.token_id is None


@pytest.mark.parametrize("is_paused", [False, True])
def test_host_ends_a_waiting_request_at_its_deadline(is_paused: bool) -> None:
    desk = Desk()
    first: list[Command] = [AdminCall(1, "pause")] if is_paused else []
    outputs = desk.run([*first, add("a", num_tokens=100, deadline_s=100.05)], [], [])
    assert endings(outputs, "a") == ["timeout"]


def test_host_takes_no_more_commands_than_its_time_allows() -> None:
    """A command takes 0.2 ms, so that three of them use up the time between two steps."""
    desk = Desk(recv_s=0.0002)
    desk.during[0] = [Abort(f"nobody-{number}", "x") for number in range(7)]
    outputs = desk.run([add("a", num_tokens=4)], [])
    (snapshot,) = [output for output in outputs if isinstance(output, Snapshot)]
    gaps_ms = [round(1000 * sample.handover_s, 6) for sample in snapshot.steps]
    assert gaps_ms == [0, 0.6, 0.6, 0.2]


# ---- Grammars ------------------------------------------------------------------------------------


class SlowCompiler:
    """Compiles once it may."""

    def __init__(self, error: Exception | None = None) -> None:
        self.num_calls = 0
        self._may_go_on = threading.Event()
        self._error = error

    def __call__(self, params: SamplingParams) -> Any:
        self.num_calls += 1
        assert self._may_go_on.wait(30)
        if self._error is not None:
            raise self._error
        return FreeGrammar()

    def finish(self) -> Sequence[Command]:
        self._may_go_on.set()
        return []


def test_host_serves_others_while_a_grammar_is_compiled() -> None:
    compiler = SlowCompiler()
    desk = Desk(compile_grammar=compiler)
    requests = [add("a", structured=LETTERS), add("b")]
    outputs = desk.run(requests, compiler.finish, desk.wait_for_grammars)
    assert accepted(outputs) == ["b", "a"]
    assert endings(outputs, "a") == endings(outputs, "b") == ["length"]


def test_host_rejects_a_request_that_is_aborted_while_its_grammar_is_compiled() -> None:
    compiler = SlowCompiler()
    desk = Desk(compile_grammar=compiler)
    outputs = desk.run(
        [add("a", structured=LETTERS), add("b", structured=LETTERS)],
        [Abort("a", "the client went away"), Abort("b", "the client went away")],
        compiler.finish,
        [add("c", structured=LETTERS)],
        desk.wait_for_grammars,
    )
    assert rejections(outputs) == {"a": "request_aborted", "b": "request_aborted"}
    assert accepted(outputs) == ["c"]
    assert compiler.num_calls == 2, "what nobody wants any more is not compiled"


def test_host_rejects_a_request_whose_time_is_up_before_its_grammar_is_there() -> None:
    compiler = SlowCompiler()
    waits: list[Sequence[Command]] = [[]] * 6  # each of them 2 ms
    outputs = Desk(compile_grammar=compiler).run(
        [add("a", structured=LETTERS, deadline_s=100.01)], *waits, compiler.finish
    )
    assert rejections(outputs) == {"a": "deadline_exceeded"}
    assert accepted(outputs) == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidRequestError("no such form", param="response_format"), "invalid_request"),
        (RuntimeError("a bug"), "generation_failed"),
    ],
)
def test_host_rejects_a_request_whose_grammar_cannot_be_compiled(
    error: Exception, code: str
) -> None:
    compiler = SlowCompiler(error)
    desk = Desk(compile_grammar=compiler)
    request = add("a", structured=LETTERS)
    outputs = desk.run([request], compiler.finish, desk.wait_for_grammars, [add("b")])
    assert rejections(outputs) == {"a": code}
    assert endings(outputs, "b") == ["length"]


# ---- Sentences -----------------------------------------------------------------------------------


class CountingEncoder:
    """A sentence model whose vectors say how long a text is."""

    num_dimensions = 2

    def check(self, text: Sequence[int]) -> None:
        if len(text) > 200:
            raise InvalidRequestError("too long", param="input")

    def encode(self, texts: Sequence[Sequence[int]]) -> list[Any]:
        return [np.array([len(text), 1], dtype=np.float32) for text in texts]


def test_host_answers_calls_for_embeddings_in_the_order_of_their_inputs() -> None:
    params = PoolingParams(normalize=False)
    calls = [
        EncodeSentences(1, [[5] * 100, [5], [5] * 90], params),
        EncodeSentences(2, [[5, 5]], params),
    ]
    outputs = Desk(sentence=CountingEncoder()).run(calls)
    replies = {reply.call_id: reply.result for reply in outputs if isinstance(reply, AdminReply)}
    lengths = {
        call_id: [np.frombuffer(vector, dtype="<f4")[0] for vector in vectors]
        for call_id, vectors in replies.items()
    }
    assert lengths == {1: [100, 1, 90], 2: [2]}


@pytest.mark.parametrize(
    ("sentence", "inputs", "param"),
    [
        (None, [[1]], "model"),
        (CountingEncoder(), [], "input"),
        (CountingEncoder(), [[1] * 201], "input"),
    ],
)
def test_host_says_why_it_gives_no_embedding(
    sentence: Any, inputs: list[list[int]], param: str
) -> None:
    (reply,) = Desk(sentence=sentence).run([EncodeSentences(1, inputs, PoolingParams())])
    assert isinstance(reply, AdminReply)
    assert reply.error is not None
    assert reply.error.param == param


# ---- Operators -----------------------------------------------------------------------------------


def test_host_takes_no_step_while_it_is_paused() -> None:
    desk = Desk()
    desk.during[1] = [AdminCall(1, "pause")]
    outputs = desk.run([add("a", num_tokens=5)], [], [AdminCall(2, "resume")])
    replies = [index for index, o in enumerate(outputs) if isinstance(o, AdminReply)]
    between = outputs[replies[0] + 1 : replies[1]]
    assert all(isinstance(output, Snapshot) for output in between)
    assert any(isinstance(output, Snapshot) and output.is_paused for output in between)
    assert endings(outputs, "a") == ["length"]


def test_host_reports_an_abort_while_it_is_paused() -> None:
    outputs = Desk().run([AdminCall(1, "pause"), add("a")], [Abort("a", "an operator")])
    assert endings(outputs, "a") == ["abort"]


def test_host_tells_of_live_requests() -> None:
    desk = Desk(max_num_seqs=1)
    desk.during[1] = [AdminCall(1, "list_requests", {"limit": 5}), AdminCall(2, "block_map")]
    desk.during[2] = [AdminCall(3, "explain", {"request_id": "a"})]
    outputs = desk.run([add("a", tenant_id=TenantId("blue"), priority=3), add("b", n=2)])
    replies = {o.call_id: o.result for o in outputs if isinstance(o, AdminReply)}
    running, *waiting = replies[1]
    assert running == {
        "id": "a",
        "tenant": "blue",
        "status": "running",
        "priority": 3,
        "num_prompt_tokens": 4,
        "num_output_tokens": 2,
        "num_computed_tokens": 5,
        "num_blocks": 2,
        "num_preemptions": 0,
        "age_s": pytest.approx(2 * STEP_S),
        "waiting_for": None,
    }
    assert [entry["id"] for entry in waiting] == ["b", "b#1"]
    assert all(entry["waiting_for"] and not entry["num_blocks"] for entry in waiting)
    (held,) = [run for run in replies[2]["runs"] if run[4] == 0]
    assert (replies[2]["requests"], replies[2]["tenants"], held[1]) == (["a"], ["blue"], 2)
    assert sum(run[1] for run in replies[2]["runs"]) == replies[2]["num_blocks"] == 64
    assert replies[3] is None


def test_host_flushes_and_checks_when_told() -> None:
    desk = Desk()
    desk.run([add("a", num_prompt=9)])
    assert desk.engine.scheduler.kv.stats().num_cached
    assert desk.call("flush_prefix_cache") == AdminReply(7)
    assert not desk.engine.scheduler.kv.stats().num_cached
    assert desk.call("check_integrity") == AdminReply(7)
    desk.engine.scheduler.kv._pool._ref_counts[0] += 1
    reply = desk.call("check_integrity")
    assert (reply.error.code, reply.error.is_request_error) == ("integrity_violation", False)


def test_host_opens_pins_and_releases_sessions() -> None:
    desk = Desk()
    opened = desk.call("open_session", tenant_id="blue", ttl_s=5.0, session_id="s")
    assert (opened.result["id"], opened.result["tenant"]) == ("s", "blue")
    desk.run([add("a", num_prompt=9, tenant_id=TenantId("blue"), session_id="s")])
    (session,) = desk.call("list_sessions").result
    assert session["num_pinned_tokens"] == 8
    pinned = desk.call("pin_session", tenant_id="blue", session_id="s", ttl_s=60.0)
    assert pinned.result["expires_in_s"] == pytest.approx(60.0)
    assert desk.call("release_session", tenant_id="blue", session_id="s") == AdminReply(7)
    assert desk.call("list_sessions").result == []
    assert desk.engine.scheduler.kv.stats().num_pinned == 0


def test_host_says_why_an_admin_call_failed() -> None:
    reply = Desk().call("release_session", tenant_id="blue", session_id="none")
    assert (reply.error.code, reply.error.param) == ("session_not_found", "session_id")


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("no_such_method", {}),
        ("pause", {"for_s": 3}),
        ("open_session", {"tenant_id": "blue", "ttl_s": 5.0, "session_id": 5}),
    ],
)
def test_host_survives_an_admin_call_that_is_wrong(
    method: str, arguments: dict[str, object]
) -> None:
    outputs = Desk().run([AdminCall(1, method, arguments)], [add("a")])
    assert isinstance(outputs[0], AdminReply)
    assert outputs[0].error is not None
    assert (outputs[0].error.code, outputs[0].error.is_request_error) == ("internal_error", False)
    assert endings(outputs, "a") == ["length"]


# ---- The end -------------------------------------------------------------------------------------


def test_host_reports_what_was_aborted_before_it_leaves() -> None:
    desk = Desk()
    desk.during[1] = [Abort("a", "the server shuts down"), Shutdown()]
    outputs = desk.run([add("a", num_tokens=50)])
    assert endings(outputs, "a") == ["abort"]
    assert len(desk.executor.steps) == 2


def test_host_leaves_while_a_grammar_is_compiled() -> None:
    compiler = SlowCompiler()
    try:
        assert Desk(compile_grammar=compiler).run([add("a", structured=LETTERS)]) == []
    finally:
        compiler.finish()
