"""Tool calls: functions are shown to the model, and the calls it writes are read back.

Knows: the forms in which models write calls, chat templates that know tools and those that do not,
OpenAI's shape of tools and calls.
Does not know: token ids, HTTP, how a grammar is enforced.

Invariants:
    Reading depends on the text only, never on how it was cut into pieces.
    Nothing is lost: what is no sound call of a function that may be called is content. Only
    whitespace next to a call is dropped, calls beyond the first when one was asked for, and what
    the length limit leaves of a forced call that has no name yet.
    A call's arguments are a JSON object, except when the length limit cuts a forced call short.

One request, from body to answer:

    tools    = parse_tool_request(body)              None: the request is not about tools
    calling  = ToolCalling(tokenizer)                once for a model
    messages, shown = calling.prompt(messages, tools)        for `Tokenizer.encode_chat`
    grammar  = calling.grammar(tools)                None: the model writes freely
    parser   = calling.parser(tools, request_id)     only with tools; push text, then finish
"""

from evenflow.tokenization.tool_calls.calling import ToolCalling
from evenflow.tokenization.tool_calls.events import (
    ArgumentsDelta,
    ContentDelta,
    ToolCallEvent,
    ToolCallStarted,
    assistant_message,
    chat_delta,
)
from evenflow.tokenization.tool_calls.formats import FORMATS, ToolFormat, detect_format
from evenflow.tokenization.tool_calls.functions import Function, ToolRequest, parse_tool_request
from evenflow.tokenization.tool_calls.parser import ToolCallParser

__all__ = [
    "FORMATS",
    "ArgumentsDelta",
    "ContentDelta",
    "Function",
    "ToolCallEvent",
    "ToolCallParser",
    "ToolCallStarted",
    "ToolCalling",
    "ToolFormat",
    "ToolRequest",
    "assistant_message",
    "chat_delta",
    "detect_format",
    "parse_tool_request",
]
