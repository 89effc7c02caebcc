"""The events of a streamed message.

message_start, ping
for each block:  content_block_start, content_block_delta ..., content_block_stop
message_delta, message_stop
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evenflow.server.messages.reply import new_message, stop_reason, tool_use, usage

PING = {"type": "ping"}
"""May be sent at any time to keep a connection from going idle."""

_Event = dict[str, Any]


class MessagesStream:
    """Turns the chunks of a streamed chat completion into events.

    Each event goes out as `event: <its type>` and `data: <the event>`; nothing follows the last.
    A stream that breaks off ends with `error_body` as its last event.

    Args:
        message_id: the message's id.
        model: name to report.
        num_prompt_tokens: tokens of the prompt.
    """

    def __init__(self, message_id: str, *, model: str, num_prompt_tokens: int) -> None:
        self._usage = usage({"prompt_tokens": num_prompt_tokens, "completion_tokens": 0})
        self._message = new_message(message_id, model, self._usage)
        self._reason = stop_reason(None, None)
        self._num_blocks = 0
        self._open = ""  # the type of the block that is still written

    def start(self) -> list[_Event]:
        """Return the first events."""
        return [{"type": "message_start", "message": self._message}, PING]

    def push(self, chunk: Mapping[str, Any]) -> list[_Event]:
        """Take a chunk and return the events it causes."""
        events: list[_Event] = []
        if chunk.get("usage"):
            self._usage = usage(chunk["usage"])
        for choice in chunk["choices"]:
            delta = choice["delta"]
            if delta.get("content"):
                events += self._add_text(delta["content"])
            for call in delta.get("tool_calls") or ():
                events += self._add_call(call)
            if choice.get("finish_reason"):
                self._reason = stop_reason(choice["finish_reason"], choice.get("stop_reason"))
        return events

    def finish(self) -> list[_Event]:
        """Return the last events; the chat stream has ended."""
        ending = {"type": "message_delta", "delta": self._reason, "usage": self._usage}
        return [*self._close(), ending, {"type": "message_stop"}]

    def _add_text(self, text: str) -> list[_Event]:
        events: list[_Event] = []
        if self._open != "text":
            events += self._begin({"type": "text", "text": ""})
        return [*events, self._delta({"type": "text_delta", "text": text})]

    def _add_call(self, call: Mapping[str, Any]) -> list[_Event]:
        events: list[_Event] = []
        function = call["function"]
        if "id" in call:
            events += self._begin(tool_use(call["id"], function["name"], {}))
        if function["arguments"]:
            json_delta = {"type": "input_json_delta", "partial_json": function["arguments"]}
            events.append(self._delta(json_delta))
        return events

    def _begin(self, block: dict[str, Any]) -> list[_Event]:
        events = self._close()
        self._num_blocks += 1
        self._open = block["type"]
        start = {"type": "content_block_start", "index": self._num_blocks - 1}
        return [*events, start | {"content_block": block}]

    def _delta(self, delta: dict[str, Any]) -> _Event:
        return {"type": "content_block_delta", "index": self._num_blocks - 1, "delta": delta}

    def _close(self) -> list[_Event]:
        if not self._open:
            return []
        self._open = ""
        return [{"type": "content_block_stop", "index": self._num_blocks - 1}]
