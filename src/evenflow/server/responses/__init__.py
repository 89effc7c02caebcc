"""OpenAI's Responses API for text and functions, as a translation to chat completions and back.

Knows: bodies of requests, response objects, the events of a stream, what a conversation needs.
Does not know: HTTP, tokens, the engine; `/v1/chat/completions` does the work.

Invariants:
    A field is translated, or in `IGNORED`, or an error that names it.
    The events of a stream, put together, are the response object that the last one carries.
    What is stored is bounded, and seen by its own tenant only.
"""

from evenflow.server.responses.reply import response_object
from evenflow.server.responses.request import IGNORED, ResponsesRequest, parse_request
from evenflow.server.responses.store import ResponseStore, StoredResponse
from evenflow.server.responses.stream import ResponsesStream

__all__ = [
    "IGNORED",
    "ResponseStore",
    "ResponsesRequest",
    "ResponsesStream",
    "StoredResponse",
    "parse_request",
    "response_object",
]
