"""The load client against a scripted server: what it sends, and what it makes of the answers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Any

import pytest

from evenflow.workloads.client import LoadClient, RequestRecord, Target
from evenflow.workloads.request import WorkloadRequest
from support.fake_openai import FakeOpenAI, Fault, serve_fake_openai

NUM_OUTPUT = 4


def request(prompt: str | tuple[int, ...], **fields: Any) -> WorkloadRequest:
    values = {"num_prompt_tokens": 9, "num_output_tokens": NUM_OUTPUT, **fields}
    return WorkloadRequest(prompt=prompt, **values)


def run(
    url: str,
    requests: Sequence[WorkloadRequest],
    *,
    is_chat: bool = False,
    max_concurrency: int | None = None,
    **target: Any,
) -> list[RequestRecord]:
    path = "/v1/chat/completions" if is_chat else "/v1/completions"
    to = Target(url=url + path, is_chat=is_chat, model="fake-model", **target)
    client = LoadClient(to, max_concurrency=max_concurrency, keep_text=True)
    return asyncio.run(client.run(requests))


def run_one(fake: FakeOpenAI, prompt: str, **settings: Any) -> RequestRecord:
    return run(fake.url, [request(prompt)], **settings)[0]


def test_client_records_text_counts_and_times() -> None:
    with serve_fake_openai() as fake:
        record = run_one(fake, "one two")
    assert record.failure is None
    assert record.text == " w0 w1 w2 w3"
    assert (record.num_prompt_tokens, record.num_output_tokens) == (2, NUM_OUTPUT)
    times = [record.due_s, record.start_s, *record.chunk_times, record.end_s]
    assert times == sorted(times)
    assert len(record.chunk_times) == NUM_OUTPUT


def test_client_takes_the_servers_count_when_a_chunk_has_several_tokens() -> None:
    with serve_fake_openai(tokens_per_chunk=3) as fake:
        record = run_one(fake, "a")
    assert (len(record.chunk_times), record.num_output_tokens) == (2, NUM_OUTPUT)
    assert record.is_counted


def test_client_counts_chunks_when_the_server_does_not_count() -> None:
    with serve_fake_openai(sends_usage=False) as fake:
        record = run_one(fake, "a")
    assert (record.num_prompt_tokens, record.num_output_tokens) == (9, NUM_OUTPUT)
    assert not record.is_counted


def test_client_speaks_chat() -> None:
    with serve_fake_openai() as fake:
        record = run_one(fake, "Hello", is_chat=True)
    assert fake.bodies[0]["messages"] == [{"role": "user", "content": "Hello"}]
    assert len(record.chunk_times) == NUM_OUTPUT


def test_client_sends_token_ids_as_they_are() -> None:
    with serve_fake_openai() as fake:
        run(fake.url, [request((5, 6))])
    assert fake.bodies[0]["prompt"] == [5, 6]


def test_client_sends_what_the_target_wants() -> None:
    with serve_fake_openai() as fake:
        run_one(fake, "a", headers={"x-test": "7"}, body={"temperature": 0.5, "max_tokens": 2})
    assert fake.headers[0]["x-test"] == "7"
    assert fake.bodies[0] == {
        "model": "fake-model",
        "prompt": "a",
        "max_tokens": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
    }


def test_client_names_tenants_by_user_or_by_key() -> None:
    requests = [request("a", tenant="named"), request("b", tenant="keyed"), request("c")]
    with serve_fake_openai() as fake:
        run(
            fake.url,
            requests,
            max_concurrency=1,
            headers={"Authorization": "Bearer all"},
            tenant_keys={"keyed": "secret"},
        )
    users = [body.get("user") for body in fake.bodies]
    keys = [headers["authorization"] for headers in fake.headers]
    assert users == ["named", None, None]
    assert keys == ["Bearer all", "Bearer secret", "Bearer all"]


def test_client_sends_everything_at_once_without_a_limit() -> None:
    with serve_fake_openai(gate=8) as fake:
        records = run(fake.url, [request("a")] * 8)
    assert fake.most_concurrent == 8
    assert not any(record.failure for record in records)


def test_client_keeps_to_the_limit_and_records_the_waiting() -> None:
    with serve_fake_openai(gate=2) as fake:
        records = run(fake.url, [request("a")] * 6, max_concurrency=2)
    assert fake.most_concurrent == 2
    assert len(fake.bodies) == 6
    assert records[5].start_s >= min(record.end_s for record in records)


def test_client_waits_for_arrivals() -> None:
    with serve_fake_openai() as fake:
        records = run(fake.url, [request("late", arrival_s=0.1), request("early")])
    late, early = records
    assert late.start_s >= late.due_s == 0.1
    assert early.start_s < late.start_s


def turns(*prompts: str) -> list[WorkloadRequest]:
    return [request(p, session="s", continues=index > 0) for index, p in enumerate(prompts)]


def test_client_sends_the_conversation_back_as_messages() -> None:
    with serve_fake_openai() as fake:
        run(fake.url, turns("first", "second"), is_chat=True)
    assert fake.bodies[1]["messages"] == [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": " w0 w1 w2 w3"},
        {"role": "user", "content": "second"},
    ]


def test_client_sends_the_conversation_back_as_text() -> None:
    with serve_fake_openai() as fake:
        run(fake.url, turns("first", "second"))
    assert fake.bodies[1]["prompt"] == "first w0 w1 w2 w3\nsecond"


def test_client_thinks_before_the_next_turn() -> None:
    with serve_fake_openai() as fake:
        first, second = run(
            fake.url, [request("a", session="s"), request("b", session="s", think_time_s=0.1)]
        )
    assert second.start_s >= second.due_s >= first.end_s + 0.1
    assert fake.bodies[1]["prompt"] == "b", "a turn that does not continue stands alone"


def test_client_gives_up_a_session_whose_turn_failed() -> None:
    with serve_fake_openai(faults={"bad": "status_429"}) as fake:
        records = run(fake.url, [*turns("bad", "next"), request("other")])
    kinds = [record.failure.kind if record.failure else None for record in records]
    assert kinds == ["http_429", "session", None]
    assert len(fake.bodies) == 2


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        ("status_429", "http_429", "the queue is full"),
        ("dies", "incomplete_stream", ""),
        ("stops_early", "incomplete_stream", "ended before the answer did"),
        ("malformed", "malformed_stream", "{not json"),
        ("error_event", "server_error", "out of memory"),
    ],
)
def test_client_tells_failures_apart_and_goes_on(fault: Fault, kind: str, message: str) -> None:
    with serve_fake_openai(faults={"bad": fault}) as fake:
        failed, fine = run(fake.url, [request("bad"), request("good")])
    assert failed.failure is not None
    assert failed.failure.kind == kind
    assert message in failed.failure.message
    assert fine.failure is None


def test_client_gives_up_an_answer_that_does_not_end() -> None:
    with serve_fake_openai(faults={"bad": "hangs"}) as fake:
        record = run_one(fake, "bad", timeout_s=0.2)
    assert record.failure == ("timeout", "no end after 0.2 s")


def test_client_says_that_nobody_listens() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        (record,) = run(f"http://127.0.0.1:{port}", [request("a")])
    assert record.failure is not None
    assert record.failure.kind == "connection"
