"""Reads the answer of a streaming completion: server-sent events into text, chunks and counts.

    data: {"choices": [...], "usage": ...}    one chunk
    data: {"error": {...}}                    the server gives up on this request
    data: [DONE]                              the end
    : comment, event: name, blank lines       ignored

A chunk counts as output when it has text, or when it is neither the opening chunk of a chat (a
role without text) nor the closing one (a finish reason without text): a token may have no text of
its own, such as the first half of a character.
"""

from __future__ import annotations

import json
from array import array
from typing import Any

_MAX_LINE_BYTES = 16 * 1024 * 1024
_TEXT_FIELDS = ("content", "reasoning_content", "reasoning", "tool_calls")


class StreamError(Exception):
    """The stream cannot be read, or carries an error.

    Args:
        kind: "malformed_stream", "server_error" or "incomplete_stream".
        message: what is wrong, or what the server says.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class CompletionStream:
    """What has been read of one answer.

    Args:
        keep_text: remember the text, not only its timing.

    Attributes:
        chunk_times: when each chunk with output was read, in the caller's seconds.
        end_s: when the last chunk with a choice was read.
        usage: what the server counted, None if it does not tell.
        is_complete: a finish reason or the end mark has been seen.
    """

    __slots__ = ("_pieces", "_rest", "chunk_times", "end_s", "is_complete", "usage")

    def __init__(self, keep_text: bool) -> None:
        self.chunk_times = array("d")
        self.end_s: float | None = None
        self.usage: dict[str, Any] | None = None
        self.is_complete = False
        self._pieces: list[str] | None = [] if keep_text else None
        self._rest = b""

    @property
    def text(self) -> str:
        """The answer so far, "" when texts are not kept."""
        return "".join(self._pieces or ())

    def feed(self, data: bytes, now_s: float) -> None:
        """Take in bytes that arrived at `now_s`.

        Raises:
            StreamError: they are no stream of completion chunks, or carry an error.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _MAX_LINE_BYTES:
            raise StreamError("malformed_stream", f"a line is longer than {_MAX_LINE_BYTES} bytes")
        for line in lines:
            if line.startswith(b"data:"):
                self._take(line[5:].strip(), now_s)

    def close(self) -> None:
        """Check that the answer has come to its end.

        Raises:
            StreamError: it has not.
        """
        if not self.is_complete:
            raise StreamError("incomplete_stream", "the stream ended before the answer did")

    def _take(self, payload: bytes, now_s: float) -> None:
        if payload == b"[DONE]":
            self.is_complete = True
            return
        try:
            chunk = json.loads(payload)
            if error := chunk.get("error"):
                message = error.get("message") if isinstance(error, dict) else error
                raise StreamError("server_error", str(message))
            self.usage = chunk.get("usage") or self.usage
            for choice in chunk.get("choices") or ():
                self._take_choice(choice, now_s)
        except (ValueError, AttributeError, TypeError) as error:
            raise StreamError("malformed_stream", f"{error}: {payload[:200]!r}") from error

    def _take_choice(self, choice: dict[str, Any], now_s: float) -> None:
        self.end_s = now_s
        delta = choice.get("delta")
        if delta is None:
            text, is_opening, has_output = choice.get("text") or "", False, False
        else:
            text, is_opening = delta.get("content") or "", "role" in delta
            has_output = any(delta.get(name) for name in _TEXT_FIELDS)
        is_closing = choice.get("finish_reason") is not None
        self.is_complete = self.is_complete or is_closing
        if text or has_output or not (is_opening or is_closing):
            self.chunk_times.append(now_s)
            if self._pieces is not None:
                self._pieces.append(text)
