"""OpenAI's bodies for chat and text completions, turned into engine terms and back.

Knows: every field of the two request bodies, response bodies, streamed chunks, error bodies.
Does not know: HTTP, tenants, where the engine runs.

Invariants:
    A field that is not known is an error that names it; one without effect is in `IGNORED`, which
    the documentation lists.
    The chunks of a stream, put together, say what the whole response body says.
"""

from evenflow.engine.openai.errors import error_body
from evenflow.engine.openai.request import (
    CHAT,
    COMPLETIONS,
    IGNORED,
    ParsedRequest,
    Prompt,
    parse_priority,
    parse_request,
)
from evenflow.engine.openai.response import response_body
from evenflow.engine.openai.stream import ChunkWriter

__all__ = [
    "CHAT",
    "COMPLETIONS",
    "IGNORED",
    "ChunkWriter",
    "ParsedRequest",
    "Prompt",
    "error_body",
    "parse_priority",
    "parse_request",
    "response_body",
]
