"""The events of a streamed response.

response.created, response.in_progress
for each output item:
    response.output_item.added
        message:  content_part.added, output_text.delta ..., output_text.done, content_part.done
        call:     function_call_arguments.delta ..., function_call_arguments.done
    response.output_item.done
response.completed | response.incomplete | response.failed
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from evenflow.server.responses.reply import (
    call_item,
    ending,
    failure,
    message_item,
    new_item_id,
    new_response,
    text_part,
)
from evenflow.server.responses.request import ResponsesRequest

_Event = dict[str, Any]


class ResponsesStream:
    """Turns the chunks of a streamed chat completion into events.

    Each event goes out as `event: <its type>` and `data: <the event>`; nothing follows the last.

    Args:
        request: the request.
        response_id: the response's id.
        created: Unix time in seconds.
        model: name to report.

    Attributes:
        response: the response object; whole after `finish`.
    """

    def __init__(
        self, request: ResponsesRequest, response_id: str, *, created: int, model: str
    ) -> None:
        self.response = new_response(request, response_id, created=created, model=model)
        self._response_id = response_id
        self._num_events = 0
        self._finish_reason = "unknown"
        self._usage: Mapping[str, Any] | None = None
        self._is_open = False  # whether the last output item is still written

    def start(self) -> list[_Event]:
        """Return the first events."""
        return [self._lifecycle("response.created"), self._lifecycle("response.in_progress")]

    def push(self, chunk: Mapping[str, Any]) -> list[_Event]:
        """Take a chunk and return the events it causes."""
        events: list[_Event] = []
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk["choices"]:
            delta = choice["delta"]
            if delta.get("content"):
                logprobs = (choice.get("logprobs") or {}).get("content") or []
                events += self._add_text(delta["content"], logprobs)
            for call in delta.get("tool_calls") or ():
                events += self._add_call(call)
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
        return events

    def finish(self) -> list[_Event]:
        """Return the last events; the chat stream has ended."""
        events: list[_Event] = []
        if not self._output:
            events += self._open_message()
        events += self._close(is_cut=self._finish_reason == "length")
        self.response |= ending(self._finish_reason, self._usage)
        events.append(self._lifecycle(f"response.{self.response['status']}"))
        return events

    def fail(self, message: str) -> list[_Event]:
        """Return the last events; the chat stream has broken off."""
        events = self._close(is_cut=True)
        self.response |= {"status": "failed", "error": failure(message)}
        events.append(self._lifecycle("response.failed"))
        return events

    @property
    def _output(self) -> list[dict[str, Any]]:
        output: list[dict[str, Any]] = self.response["output"]
        return output

    def _add_text(self, text: str, logprobs: list[Any]) -> list[_Event]:
        events: list[_Event] = []
        if not self._is_open or self._output[-1]["type"] != "message":
            events += self._close()
            events += self._open_message()
        part = self._output[-1]["content"][0]
        part["text"] += text
        part["logprobs"] += logprobs
        events.append(self._text_event("response.output_text.delta", delta=text, logprobs=logprobs))
        return events

    def _add_call(self, call: Mapping[str, Any]) -> list[_Event]:
        events: list[_Event] = []
        function = call["function"]
        if "id" in call:
            events += self._close()
            begun = {"id": call["id"], "function": {"name": function["name"], "arguments": ""}}
            events += self._open(call_item(self._new_id("fc"), begun))
        if function["arguments"]:
            self._output[-1]["arguments"] += function["arguments"]
            event = "response.function_call_arguments.delta"
            events.append(self._item_event(event, delta=function["arguments"]))
        return events

    def _open_message(self) -> list[_Event]:
        item = message_item(self._new_id("msg"), "", [])
        events = self._open(item | {"content": []})
        self._output[-1]["content"] = item["content"]
        part = text_part("", [])
        events.append(self._text_event("response.content_part.added", part=part))
        return events

    def _open(self, item: dict[str, Any]) -> list[_Event]:
        self._output.append(item | {"status": "in_progress"})
        self._is_open = True
        return [self._whole_item_event("response.output_item.added")]

    def _close(self, *, is_cut: bool = False) -> list[_Event]:
        if not self._is_open:
            return []
        item = self._output[-1]
        item["status"] = "incomplete" if is_cut else "completed"
        self._is_open = False
        if item["type"] == "message":
            part = copy.deepcopy(item["content"][0])
            text, logprobs = part["text"], part["logprobs"]
            events = [
                self._text_event("response.output_text.done", text=text, logprobs=logprobs),
                self._text_event("response.content_part.done", part=part),
            ]
        else:
            event = "response.function_call_arguments.done"
            said = {"name": item["name"], "arguments": item["arguments"]}
            events = [self._item_event(event, **said)]
        return [*events, self._whole_item_event("response.output_item.done")]

    def _new_id(self, kind: str) -> str:
        return new_item_id(kind, self._response_id, len(self._output))

    def _lifecycle(self, event: str) -> _Event:
        return self._event(event, response=copy.deepcopy(self.response))

    def _text_event(self, event: str, **fields: object) -> _Event:
        return self._item_event(event, content_index=0, **fields)

    def _item_event(self, event: str, **fields: object) -> _Event:
        item_id = self._output[-1]["id"]
        return self._event(event, output_index=len(self._output) - 1, item_id=item_id, **fields)

    def _whole_item_event(self, event: str) -> _Event:
        item = copy.deepcopy(self._output[-1])
        return self._event(event, output_index=len(self._output) - 1, item=item)

    def _event(self, event: str, **fields: object) -> _Event:
        self._num_events += 1
        return {"type": event, "sequence_number": self._num_events - 1, **fields}
