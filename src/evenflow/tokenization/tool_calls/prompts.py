"""Messages and tools as a chat template needs them, whether it knows tools or not."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

from evenflow.core.errors import InvalidRequestError
from evenflow.tokenization.chat_template import check_messages, plain_json
from evenflow.tokenization.tool_calls.formats import ToolFormat

MAX_CALLS_PER_MESSAGE = 128

_Message = dict[str, Any]


def native_messages(messages: object, form: ToolFormat) -> list[_Message]:
    """Return messages for a template that knows tools.

    Arguments of calls become objects, which is what templates expect; OpenAI has them as text.

    Raises:
        InvalidRequestError: the messages are malformed.
    """
    checked = _checked(messages)
    if form.one_call_per_turn:
        checked = list(_one_call_per_turn(checked))
    if form.id_length is not None:
        for call in (call for message in checked for call in message.get("tool_calls", ())):
            call["id"] = _fitting_id(call["id"], form.id_length)
        for message in checked:
            if "tool_call_id" in message:
                message["tool_call_id"] = _fitting_id(message["tool_call_id"], form.id_length)
    return checked


def plain_messages(
    messages: object, form: ToolFormat, tools: Sequence[Mapping[str, object]] | None
) -> list[_Message]:
    """Return messages for a template that knows no tools: everything becomes text.

    Tools are described in the system message. Calls are written in `form`, and results stand in
    the user's turn, so that roles still alternate for templates that insist on it.

    Raises:
        InvalidRequestError: the messages are malformed.
    """
    plain: list[_Message] = []
    is_result = False
    for message in _checked(messages):
        follows_result = is_result
        is_result = message["role"] == "tool"
        if is_result:
            text = f"<tool_response>\n{message['content']}\n</tool_response>"
            message = {"role": "user", "content": text}
        elif "tool_calls" in message:
            message = _with_calls_as_text(message, form)
        if message["role"] == "user" and plain and follows_result:
            plain[-1]["content"] += "\n" + message["content"]
        else:
            plain.append(message)
    if tools:
        _describe_tools(plain, form, tools)
    return plain


def _describe_tools(
    messages: list[_Message], form: ToolFormat, tools: Sequence[Mapping[str, object]]
) -> None:
    listing = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    example = form.write(
        [form.write_call("name of the function", {"name of an argument": "value"})]
    )
    text = (
        "You can call functions. Each line within <tools></tools> describes one, with a JSON "
        f"schema of its arguments:\n<tools>\n{listing}\n</tools>\n"
        f"To call a function, write nothing but its name and its arguments, like this:\n{example}\n"
        "You then get its result within <tool_response></tool_response>. "
        "Answer in plain words when no function is needed."
    )
    if messages[0]["role"] == "system":
        messages[0] = {**messages[0], "content": f"{messages[0]['content']}\n\n{text}"}
    else:
        messages.insert(0, {"role": "system", "content": text})


def _with_calls_as_text(message: _Message, form: ToolFormat) -> _Message:
    functions = [call["function"] for call in message["tool_calls"]]
    calls = form.write(form.write_call(each["name"], each["arguments"]) for each in functions)
    content = f"{message['content']}\n{calls}" if message["content"] else calls
    return {"role": message["role"], "content": content}


def _one_call_per_turn(messages: Sequence[_Message]) -> Iterator[_Message]:
    """Follow each call by its own result, as if they had been made one after the other."""
    position = 0
    while position < len(messages):
        message = messages[position]
        position += 1
        calls = message.get("tool_calls", ())
        if len(calls) < 2:
            yield message
            continue
        results = list(takewhile(lambda later: later["role"] == "tool", messages[position:]))
        position += len(results)
        for number, call in enumerate(calls):
            yield {
                **message,
                "content": message["content"] if number == 0 else "",
                "tool_calls": [call],
            }
            yield from (each for each in results if each.get("tool_call_id") == call["id"])
        known = {call["id"] for call in calls}
        yield from (each for each in results if each.get("tool_call_id") not in known)


def _fitting_id(call_id: str, length: int) -> str:
    if re.fullmatch(rf"[A-Za-z0-9]{{{length}}}", call_id):
        return call_id
    return hashlib.blake2b(call_id.encode(errors="replace"), digest_size=length).hexdigest()[
        :length
    ]


def _checked(messages: object) -> list[_Message]:
    """Check messages; afterwards calls have objects as arguments, and results have names."""
    checked: list[_Message] = check_messages(messages)
    names: dict[str, str] = {}
    for index, message in enumerate(checked):
        calls = message.pop("tool_calls", None)
        if calls and message["role"] == "assistant":
            message["content"] = message.get("content") or ""
            message["tool_calls"] = _checked_calls(f"messages[{index}].tool_calls", calls)
            names.update((call["id"], call["function"]["name"]) for call in message["tool_calls"])
        elif calls:
            raise _wrong(f"messages[{index}].tool_calls", "belongs into messages of the assistant")
        call_id = message.get("tool_call_id")
        if call_id is None:
            message.pop("tool_call_id", None)
        elif not isinstance(call_id, str):
            raise _wrong(f"messages[{index}].tool_call_id", "must be a string")
        elif call_id in names:
            message.setdefault("name", names[call_id])
    return checked


def _checked_calls(param: str, calls: object) -> list[_Message]:
    if not isinstance(calls, list) or len(calls) > MAX_CALLS_PER_MESSAGE:
        raise _wrong(param, f"must be a list of at most {MAX_CALLS_PER_MESSAGE} calls")
    return [_checked_call(f"{param}[{index}]", call) for index, call in enumerate(calls)]


def _checked_call(param: str, call: object) -> _Message:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping):
        raise _wrong(param, 'must be {"id": ..., "function": {"name": ..., "arguments": ...}}')
    call_id, name = call.get("id", ""), function.get("name")
    if not isinstance(call_id, str):
        raise _wrong(f"{param}.id", "must be a string")
    if not isinstance(name, str):
        raise _wrong(f"{param}.function.name", "must be a string")
    arguments = _arguments(f"{param}.function.arguments", function.get("arguments"))
    return {
        "id": call_id,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def _arguments(param: str, arguments: object) -> Mapping[str, object]:
    if isinstance(arguments, str) and arguments.strip():
        try:
            arguments = json.loads(arguments)
        except (RecursionError, ValueError) as error:
            raise _wrong(param, "must be a JSON object", f"{error}") from error
    arguments = arguments or {}
    if not isinstance(arguments, Mapping):
        raise _wrong(param, "must be a JSON object", f"it is {type(arguments).__name__}")
    plain_json(arguments, param)  # bounds the depth
    return arguments


def _wrong(param: str, what: str, why: str = "") -> InvalidRequestError:
    return InvalidRequestError(f"{param} {what}", param=param, why=why)
