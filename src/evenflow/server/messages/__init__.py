"""Anthropic's Messages API, as a translation to chat completions and back.

Knows: bodies of requests, messages, the events of a stream, the form of errors.
Does not know: HTTP, tokens, the engine; `/v1/chat/completions` does the work.

Invariants:
    A field is translated, or in `IGNORED`, or an error that names it.
    The events of a stream, put together, are the message that the whole answer would be.
"""

from evenflow.server.messages.reply import error_body, message_object
from evenflow.server.messages.request import (
    IGNORED,
    MessagesRequest,
    parse_count_request,
    parse_request,
)
from evenflow.server.messages.stream import PING, MessagesStream

__all__ = [
    "IGNORED",
    "PING",
    "MessagesRequest",
    "MessagesStream",
    "error_body",
    "message_object",
    "parse_count_request",
    "parse_request",
]
