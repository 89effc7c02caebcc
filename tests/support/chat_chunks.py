"""Chat completions as `/v1/chat/completions` answers them, whole and in chunks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import httpx2

CREATED = 1_700_000_000
MODEL = "smollm2"
USAGE = {
    "prompt_tokens": 12,
    "completion_tokens": 5,
    "total_tokens": 17,
    "prompt_tokens_details": {"cached_tokens": 8},
}
CALLS = [
    {
        "id": f"call_{city}",
        "type": "function",
        "function": {"name": "weather", "arguments": json.dumps({"city": city})},
    }
    for city in ("Oslo", "Rome")
]


def completion(content: str | None, calls: Sequence[Any] = (), **choice: object) -> dict[str, Any]:
    """Return a whole chat completion."""
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if calls:
        message["tool_calls"] = list(calls)
    reason = "tool_calls" if calls else "stop"
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": CREATED,
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": reason, **choice}],
        "usage": USAGE,
    }


def chunks(whole: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the chunks of a chat completion: a character of text, three of arguments at a time."""
    choice = whole["choices"][0]
    yield _chunk({"delta": {"role": "assistant", "content": ""}})
    for character in choice["message"]["content"] or "":
        yield _chunk({"delta": {"content": character}})
    for index, call in enumerate(choice["message"].get("tool_calls", ())):
        function = call["function"]
        begun = {**call, "index": index, "function": {**function, "arguments": ""}}
        yield _chunk({"delta": {"tool_calls": [begun]}})
        for at in range(0, len(function["arguments"]), 3):
            more = {"index": index, "function": {"arguments": function["arguments"][at : at + 3]}}
            yield _chunk({"delta": {"tool_calls": [more]}})
    ending = {name: value for name, value in choice.items() if name not in ("index", "message")}
    yield _chunk({"delta": {}, **ending})
    yield {**_chunk({}), "choices": [], "usage": whole["usage"]}


def server_sent(events: Iterable[dict[str, Any]]) -> bytes:
    """Return events as a response body."""
    lines = (f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)
    return "".join(lines).encode()


def transport(answer: Callable[[Any], bytes | dict[str, Any]]) -> httpx2.MockTransport:
    """Return a server that answers each body; bytes are a stream of events."""

    def handle(request: httpx2.Request) -> httpx2.Response:
        answered = answer(json.loads(request.content))
        if isinstance(answered, bytes):
            headers = {"content-type": "text/event-stream"}
            return httpx2.Response(200, content=answered, headers=headers)
        return httpx2.Response(200, json=answered)

    return httpx2.MockTransport(handle)


def _chunk(choice: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": CREATED,
        "model": MODEL,
        "choices": [{"index": 0, "finish_reason": None, **choice}],
        "usage": None,
    }
