"""The Responses API, judged by the official client over canned chat completions."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from evenflow.core.errors import InvalidRequestError
from evenflow.server.responses import (
    ResponsesStream,
    ResponseStore,
    parse_request,
    response_object,
)
from support.chat_chunks import CALLS, CREATED, MODEL, chunks, completion, server_sent, transport

TOOL = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": True,
}
TEXT = completion("Hello, wörld")
BOTH = completion("Let me see.", CALLS)
URL = "http://test/v1"


class FakeServer:
    """Translates as the real server does; the chat completion is given."""

    def __init__(self, whole: dict[str, Any]) -> None:
        self.whole = whole
        self.store = ResponseStore(1 << 20)
        self.chats: list[dict[str, Any]] = []

    def answer(self, body: Any) -> bytes | dict[str, Any]:
        request = parse_request(body, lambda name: self.store.get("t", name))
        self.chats.append(request.chat)
        response_id = f"resp_{len(self.chats)}"
        if not request.is_stream:
            response = response_object(request, self.whole, response_id)
            self.store.put("t", request.stored(response))
            return response
        stream = ResponsesStream(request, response_id, created=CREATED, model=MODEL)
        events = stream.start()
        for chunk in chunks(self.whole):
            events += stream.push(chunk)
        return server_sent(events + stream.finish())

    @property
    def client(self) -> OpenAI:
        http = httpx2.Client(transport=transport(self.answer))
        return OpenAI(api_key="key", base_url=URL, http_client=http)


def events_of(whole: dict[str, Any], **body: object) -> list[Any]:
    server = FakeServer(whole)
    return list(server.client.responses.create(model=MODEL, input="Hi", stream=True, **body))


def test_client_reads_text() -> None:
    response = FakeServer(TEXT).client.responses.create(model=MODEL, input="Hi", temperature=0.5)
    assert response.output_text == "Hello, wörld"
    assert (response.status, response.temperature, response.model) == ("completed", 0.5, MODEL)
    assert response.usage is not None
    assert response.usage.input_tokens_details.cached_tokens == 8
    assert (response.usage.input_tokens, response.usage.output_tokens) == (12, 5)


def test_client_reads_calls() -> None:
    response = FakeServer(BOTH).client.responses.create(model=MODEL, input="Hi", tools=[TOOL])
    message, *calls = response.output
    assert message.type == "message"
    assert [(call.type, call.call_id, call.arguments) for call in calls] == [
        ("function_call", "call_Oslo", '{"city": "Oslo"}'),
        ("function_call", "call_Rome", '{"city": "Rome"}'),
    ]


@pytest.mark.parametrize("whole", [TEXT, BOTH, completion(None, CALLS), completion("")])
def test_stream_ends_in_the_response_of_the_whole_answer(whole: dict[str, Any]) -> None:
    events = events_of(whole)
    request = parse_request({"input": "Hi", "model": MODEL}, lambda _: None)
    assert events[-1].type == "response.completed"
    assert events[-1].response.to_dict() == response_object(request, whole, "resp_1")


def test_stream_counts_events_and_brackets_items() -> None:
    events = events_of(BOTH)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    deltas = {"output_text.delta", "function_call_arguments.delta"}
    call = ["output_item.added", "function_call_arguments.done", "output_item.done"]
    assert [kind for kind in kinds if kind not in deltas] == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *("output_text.done", "content_part.done", "output_item.done"),
        *call,
        *call,
        "completed",
    ]
    added = [event for event in events if event.type == "response.output_item.added"]
    assert [event.item.status for event in added] == ["in_progress"] * 3
    assert added[0].item.content == []
    assert added[1].item.arguments == ""


def test_client_puts_a_stream_together() -> None:
    client = FakeServer(BOTH).client
    with client.responses.stream(model=MODEL, input="Hi", tools=[TOOL]) as stream:
        texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(texts) == "Let me see." == final.output_text
    assert [item.parsed_arguments for item in final.output[1:]] == [
        {"city": "Oslo"},
        {"city": "Rome"},
    ]


def test_async_client_reads_whole_and_streamed_answers() -> None:
    async def ask() -> tuple[str, str]:
        http = httpx2.AsyncClient(transport=transport(FakeServer(TEXT).answer))
        client = AsyncOpenAI(api_key="key", base_url=URL, http_client=http)
        whole = await client.responses.create(model=MODEL, input="Hi")
        async with client.responses.stream(model=MODEL, input="Hi") as stream:
            final = await stream.get_final_response()
        return whole.output_text, final.output_text

    assert asyncio.run(ask()) == ("Hello, wörld",) * 2


def test_client_parses_structured_output() -> None:
    class Answer(BaseModel):
        number: int

    server = FakeServer(completion('{"number": 42}'))
    response = server.client.responses.parse(model=MODEL, input="Hi", text_format=Answer)
    assert response.output_parsed == Answer(number=42)
    form = server.chats[0]["response_format"]
    assert (form["type"], form["json_schema"]["name"]) == ("json_schema", "Answer")
    assert form["json_schema"]["schema"]["required"] == ["number"]


@pytest.mark.parametrize("is_stream", [False, True])
def test_response_is_incomplete_when_the_length_limit_cuts_it(is_stream: bool) -> None:
    whole = completion("Hello", finish_reason="length")
    if is_stream:
        last = events_of(whole)[-1]
        assert last.type == "response.incomplete"
        response = last.response
    else:
        response = FakeServer(whole).client.responses.create(model=MODEL, input="Hi")
    assert response.status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output[0].status == "incomplete"


def test_stream_fails_with_what_it_has_when_the_generation_breaks_off() -> None:
    request = parse_request({"input": "Hi", "stream": True}, lambda _: None)
    stream = ResponsesStream(request, "resp_1", created=CREATED, model=MODEL)
    stream.start()
    for chunk in list(chunks(TEXT))[:6]:
        stream.push(chunk)
    *_, last = stream.fail("the engine stopped")
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert last["response"]["error"] == {"code": "server_error", "message": "the engine stopped"}
    assert last["response"]["output"][0]["content"][0]["text"] == "Hello"


def test_logprobs_reach_the_client() -> None:
    entry = {"token": "Hi", "logprob": -0.5, "bytes": [72, 105], "top_logprobs": []}
    server = FakeServer(completion("Hi", logprobs={"content": [entry]}))
    include = ["message.output_text.logprobs"]
    response = server.client.responses.create(model=MODEL, input="Hi", include=include)
    assert server.chats[0]["logprobs"] is True
    assert response.output[0].content[0].logprobs[0].logprob == -0.5


def test_request_turns_items_into_messages() -> None:
    items = [
        {"role": "developer", "content": "D"},
        {"role": "user", "content": [{"type": "input_text", "text": "Q"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "A"}]},
        {"type": "function_call", "call_id": "c", "name": "weather", "arguments": "{}"},
        {
            "type": "function_call_output",
            "call_id": "c",
            "output": [{"type": "input_text", "text": "R"}],
        },
    ]
    function = {"name": "weather", "arguments": "{}"}
    request = parse_request({"input": items, "instructions": "I"}, lambda _: None)
    assert request.chat["messages"] == [
        {"role": "system", "content": "I\n\nD"},
        {"role": "user", "content": "Q"},
        {
            "role": "assistant",
            "content": "A",
            "tool_calls": [{"id": "c", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "c", "content": "R"},
    ]


def test_request_translates_fields() -> None:
    body = {
        "input": "Q",
        "model": MODEL,
        "max_output_tokens": 7,
        "top_p": 0.5,
        "tools": [TOOL],
        "tool_choice": {"type": "function", "name": "weather"},
        "parallel_tool_calls": False,
        "stream": True,
        "seed": 3,
        "store": False,
        "service_tier": "auto",
        "reasoning": None,
    }
    request = parse_request(body, lambda _: None)
    function = {name: value for name, value in TOOL.items() if name != "type"}
    assert request.chat == {
        "messages": [{"role": "user", "content": "Q"}],
        "model": MODEL,
        "max_completion_tokens": 7,
        "top_p": 0.5,
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "parallel_tool_calls": False,
        "stream": True,
        "stream_options": {"include_usage": True},
        "seed": 3,
    }
    assert (request.is_stream, request.is_stored) == (True, False)


def test_request_translates_allowed_tools() -> None:
    allowed = {"type": "allowed_tools", "mode": "required"}
    choice = {**allowed, "tools": [{"type": "function", "name": "weather"}]}
    request = parse_request({"input": "Q", "tools": [TOOL], "tool_choice": choice}, lambda _: None)
    named = [{"type": "function", "function": {"name": "weather"}}]
    assert request.chat["tool_choice"] == {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "required", "tools": named},
    }


def test_client_goes_on_from_a_stored_response() -> None:
    server = FakeServer(BOTH)
    first = server.client.responses.create(model=MODEL, input="Q", instructions="I")
    output = [{"type": "function_call_output", "call_id": "call_Oslo", "output": "rain"}]
    server.client.responses.create(model=MODEL, input=output, previous_response_id=first.id)
    assert server.chats[1]["messages"] == [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "Let me see.", "tool_calls": CALLS},
        {"role": "tool", "tool_call_id": "call_Oslo", "content": "rain"},
    ]
    assert server.chats[0]["messages"][1:] == server.chats[1]["messages"][:1]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": 1}, "input"),
        ({"input": [1]}, "input[0]"),
        ({"input": [{}]}, "input[0].type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "robot", "content": ""}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0].type",
        ),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].arguments"),
        ({"input": [{"type": "function_call_output", "output": ""}]}, "input[0].call_id"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": True}, "max_output_tokens"),
        ({"instructions": []}, "instructions"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"include": [[]]}, "include[0]"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"previous_response_id": "resp_9"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"truncation": "auto"}, "truncation"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_request_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        parse_request({"input": "Q", **fields}, lambda _: None)
    assert refused.value.param == param


def test_request_is_refused_in_few_words_whatever_was_sent() -> None:
    with pytest.raises(InvalidRequestError) as refused:
        parse_request({"input": [{"type": "x" * 100_000}]}, lambda _: None)
    assert len(str(refused.value)) < 500
