"""Anthropic's Messages API, judged by the official client over canned chat completions."""

from __future__ import annotations

import asyncio
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic import Anthropic, AsyncAnthropic

from evenflow.core.errors import GenerationError, InvalidRequestError, QueueFullError
from evenflow.server.errors import AuthenticationError
from evenflow.server.messages import (
    MessagesStream,
    error_body,
    message_object,
    parse_count_request,
    parse_request,
)
from support.chat_chunks import CALLS, MODEL, chunks, completion, server_sent, transport

TEXT = completion("Hello, wörld")
BOTH = completion("Let me see.", CALLS)
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"name": "weather", "description": "W", "input_schema": SCHEMA}
ASK: dict[str, Any] = {
    "model": MODEL,
    "max_tokens": 9,
    "messages": [{"role": "user", "content": "Hi"}],
}
URL = "http://test"


def answering(whole: dict[str, Any]) -> httpx2.MockTransport:
    """Translate as the real server does; the chat completion is given."""

    def answer(body: Any) -> bytes | dict[str, Any]:
        if not parse_request(body).is_stream:
            return message_object(whole, "msg_1")
        stream = MessagesStream("msg_1", model=MODEL, num_prompt_tokens=12)
        events = stream.start()
        for chunk in chunks(whole):
            events += stream.push(chunk)
        return server_sent(events + stream.finish())

    return transport(answer)


def client(whole: dict[str, Any]) -> Anthropic:
    http = httpx2.Client(transport=answering(whole))
    return Anthropic(api_key="key", base_url=URL, http_client=http)


def test_client_reads_text() -> None:
    message = client(TEXT).messages.create(**ASK)
    assert [block.to_dict() for block in message.content] == [
        {"type": "text", "text": "Hello, wörld"}
    ]
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    usage = message.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (4, 8, 5)


def test_client_reads_calls() -> None:
    message = client(BOTH).messages.create(**ASK, tools=[TOOL])
    assert message.stop_reason == "tool_use"
    assert [block.type for block in message.content] == ["text", "tool_use", "tool_use"]
    assert [block.input for block in message.content[1:]] == [{"city": "Oslo"}, {"city": "Rome"}]


@pytest.mark.parametrize("whole", [TEXT, BOTH, completion(None, CALLS), completion("")])
def test_client_puts_a_stream_together_as_the_whole_answer(whole: dict[str, Any]) -> None:
    with client(whole).messages.stream(**ASK) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == (whole["choices"][0]["message"]["content"] or "")
    message = client(whole).messages.create(**ASK)
    assert final.to_dict(exclude_none=True) == message.to_dict(exclude_none=True)


def test_stream_starts_with_the_input_tokens_and_numbers_its_blocks() -> None:
    events = list(client(BOTH).messages.create(**ASK, stream=True))
    assert events[0].message.usage.input_tokens == 12
    kinds = [event.type for event in events if event.type != "content_block_delta"]
    block = ["content_block_start", "content_block_stop"]
    assert kinds == ["message_start", *block * 3, "message_delta", "message_stop"]
    starts = [event for event in events if event.type == "content_block_start"]
    assert [event.index for event in starts] == [0, 1, 2]


def test_async_client_reads_whole_and_streamed_answers() -> None:
    async def ask() -> tuple[str, str]:
        http = httpx2.AsyncClient(transport=answering(TEXT))
        asking = AsyncAnthropic(api_key="key", base_url=URL, http_client=http)
        whole = await asking.messages.create(**ASK)
        async with asking.messages.stream(**ASK) as stream:
            return whole.content[0].text, await stream.get_final_text()

    assert asyncio.run(ask()) == ("Hello, wörld",) * 2


@pytest.mark.parametrize(
    ("choice", "reason", "sequence"),
    [
        ({"finish_reason": "length"}, "max_tokens", None),
        ({"finish_reason": "stop", "stop_reason": "END"}, "stop_sequence", "END"),
        ({"finish_reason": "stop", "stop_reason": 2}, "end_turn", None),
    ],
)
def test_message_says_why_it_ended(choice: Any, reason: str, sequence: str | None) -> None:
    whole = completion("Hello", **choice)
    message = client(whole).messages.create(**ASK)
    *_, delta, _ = client(whole).messages.create(**ASK, stream=True)
    assert (message.stop_reason, message.stop_sequence) == (reason, sequence)
    assert (delta.delta.stop_reason, delta.delta.stop_sequence) == (reason, sequence)


def test_message_has_no_input_when_the_length_limit_cuts_a_call() -> None:
    function = {"name": "weather", "arguments": '{"city": "Os'}
    cut = {"id": "call_1", "type": "function", "function": function}
    message = client(completion(None, [cut], finish_reason="length")).messages.create(**ASK)
    assert (message.content[0].input, message.stop_reason) == ({}, "max_tokens")


def test_request_turns_blocks_into_messages() -> None:
    text = {"type": "text", "text": "T", "cache_control": {"type": "ephemeral"}}
    messages = [
        {"role": "user", "content": [text, text]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                text,
                {"type": "tool_use", "id": "a", "name": "weather", "input": {"city": "Ås"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "a", "content": [text]},
                {"type": "tool_result", "tool_use_id": "b", "content": "no", "is_error": True},
                {"type": "tool_result", "tool_use_id": "c"},
                {"type": "text", "text": "And?"},
            ],
        },
    ]
    function = {"name": "weather", "arguments": '{"city": "Ås"}'}
    request = parse_request({**ASK, "messages": messages, "system": [text, text]})
    assert request.chat["messages"] == [
        {"role": "system", "content": "T\nT"},
        {"role": "user", "content": "T\nT"},
        {
            "role": "assistant",
            "content": "T",
            "tool_calls": [{"id": "a", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "a", "content": "T"},
        {"role": "tool", "tool_call_id": "b", "content": "Error: no"},
        {"role": "tool", "tool_call_id": "c", "content": ""},
        {"role": "user", "content": "And?"},
    ]


def test_request_translates_fields() -> None:
    form = {"type": "json_schema", "schema": SCHEMA}
    fields = {
        "stop_sequences": ["END"],
        "temperature": 0.5,
        "top_k": 4,
        "metadata": {"user_id": "u"},
        "tools": [TOOL],
        "output_config": {"format": form},
        "stream": True,
        "thinking": {"type": "disabled"},
        "service_tier": "auto",
    }
    function = {"name": "weather", "description": "W", "parameters": SCHEMA}
    assert parse_request({**ASK, **fields}).chat == {
        "model": MODEL,
        "messages": ASK["messages"],
        "max_completion_tokens": 9,
        "stop": ["END"],
        "temperature": 0.5,
        "top_k": 4,
        "user": "u",
        "tools": [{"type": "function", "function": function}],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "output", "schema": SCHEMA, "strict": True},
        },
        "stream": True,
        "stream_options": {"include_usage": True},
    }


@pytest.mark.parametrize(
    ("choice", "fields"),
    [
        ({"type": "auto"}, {"tool_choice": "auto"}),
        ({"type": "none"}, {"tool_choice": "none"}),
        (
            {"type": "any", "disable_parallel_tool_use": True},
            {"tool_choice": "required", "parallel_tool_calls": False},
        ),
        (
            {"type": "tool", "name": "weather"},
            {"tool_choice": {"type": "function", "function": {"name": "weather"}}},
        ),
    ],
)
def test_request_translates_the_choice_of_tools(choice: Any, fields: dict[str, Any]) -> None:
    assert parse_request({**ASK, "tool_choice": choice}).chat.items() >= fields.items()


def test_count_request_needs_no_max_tokens() -> None:
    body = {"model": MODEL, "messages": ASK["messages"], "system": "S", "tools": [TOOL]}
    chat = parse_count_request(body)
    assert [message["role"] for message in chat["messages"]] == ["system", "user"]
    assert len(chat["tools"]) == 1


IMAGE = {"type": "image", "source": {}}
DEEP: dict[str, Any] = {}
for _ in range(500):
    DEEP = {"a": DEEP}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "9"}, "max_tokens"),
        ({"messages": None}, "messages"),
        ({"messages": [1]}, "messages[0]"),
        ({"messages": [{"role": "tool", "content": ""}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0].type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]},
            "messages[0].content[0].type",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "content": [{"type": "tool_use", "id": "a", "name": "b", "input": DEEP}],
                    }
                ]
            },
            "messages[0].content[0].input",
        ),
        ({"messages": [*ASK["messages"], {"role": "assistant", "content": "I"}]}, "messages"),
        ({"system": [IMAGE]}, "system[0].type"),
        ({"system": 1}, "system"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"stop_sequences": "END"}, "stop_sequences"),
        ({"metadata": {"user_id": 1}}, "metadata.user_id"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
        ({"container": "c"}, "container"),
    ],
)
def test_request_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        parse_request({**ASK, **fields})
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("error", "status", "kind", "raised"),
    [
        (InvalidRequestError("no"), 400, "invalid_request_error", anthropic.BadRequestError),
        (AuthenticationError("no"), 401, "authentication_error", anthropic.AuthenticationError),
        (QueueFullError("no", retry_after_s=1), 429, "rate_limit_error", anthropic.RateLimitError),
        (GenerationError("no"), 500, "api_error", anthropic.InternalServerError),
    ],
)
def test_client_raises_the_matching_error(
    error: Any, status: int, kind: str, raised: type[anthropic.APIStatusError]
) -> None:
    def refuse(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(status, json=error_body(error))

    http = httpx2.Client(transport=httpx2.MockTransport(refuse))
    asking = Anthropic(api_key="key", base_url=URL, http_client=http, max_retries=0)
    with pytest.raises(raised) as caught:
        asking.messages.create(**ASK)
    assert caught.value.body["error"] == {"type": kind, "message": "no."}


def test_client_raises_when_a_stream_breaks_off() -> None:
    def answer(_: Any) -> bytes:
        stream = MessagesStream("msg_1", model=MODEL, num_prompt_tokens=1)
        return server_sent([*stream.start(), error_body(GenerationError("it broke"))])

    http = httpx2.Client(transport=transport(answer))
    asking = Anthropic(api_key="key", base_url=URL, http_client=http)
    with pytest.raises(anthropic.APIStatusError, match="it broke"):
        list(asking.messages.create(**ASK, stream=True))
