"""The fields of a chat body that are about tools, checked."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evenflow.core.errors import InvalidRequestError
from evenflow.tokenization.chat_template import plain_json

MAX_TOOLS = 128
MAX_TOOLS_CHARS = 512 * 1024

_NAME = re.compile(r"[A-Za-z0-9_-]{1,128}")


@dataclass(slots=True, frozen=True)
class Function:
    """A function that the model may call.

    Attributes:
        name: letters, digits, `_` and `-`.
        parameters: the JSON schema of its arguments, an object's.
        strict: its calls must satisfy the schema even when the model may choose not to call.
    """

    name: str
    parameters: Mapping[str, object]
    strict: bool


@dataclass(slots=True, frozen=True, kw_only=True)
class ToolRequest:
    """What a request says of tools.

    Attributes:
        tools: OpenAI's `tools`, for a chat template.
        functions: those that may be called.
        must_call: the answer is at least one call.
        max_calls: calls beyond it do not count; None: no limit.
    """

    tools: Sequence[Mapping[str, object]]
    functions: tuple[Function, ...]
    must_call: bool
    max_calls: int | None

    @property
    def names(self) -> frozenset[str]:
        """Names of the functions that may be called."""
        return frozenset(function.name for function in self.functions)

    @property
    def is_constrained(self) -> bool:
        """Whether calls are forced into shape while they are generated."""
        return self.must_call or any(function.strict for function in self.functions)


def parse_tool_request(body: Mapping[str, object]) -> ToolRequest | None:
    """Read `tools`, `tool_choice` and `parallel_tool_calls` of a chat body.

    Returns:
        None if no tool is to be shown to the model.

    Raises:
        InvalidRequestError: a field is wrong; `param` names it.
    """
    tools = body.get("tools")
    parallel = body.get("parallel_tool_calls")
    if parallel is not None and not isinstance(parallel, bool):
        raise _wrong("parallel_tool_calls", "must be true or false", f"it is {parallel!r}")
    choice = body.get("tool_choice")
    if tools is None or tools == []:
        if choice not in (None, "none", "auto"):
            raise _wrong("tool_choice", "asks for a call", "the request has no tools")
        return None
    if not isinstance(tools, list):
        raise _wrong("tools", "must be a list", f"it is {type(tools).__name__}")
    functions = _parse_tools(tools)
    must_call, callable_names = _parse_choice(choice, frozenset(functions))
    is_one_call = parallel is False or (isinstance(choice, Mapping) and "function" in choice)
    if not callable_names:
        return None
    return ToolRequest(
        tools=tools,
        functions=tuple(functions[name] for name in functions if name in callable_names),
        must_call=must_call,
        max_calls=1 if is_one_call else None,
    )


def _parse_tools(tools: list[object]) -> dict[str, Function]:
    if len(tools) > MAX_TOOLS:
        raise _wrong("tools", f"has {len(tools)} entries", f"a request may have {MAX_TOOLS}")
    functions: dict[str, Function] = {}
    for index, tool in enumerate(tools):
        function = _parse_tool(f"tools[{index}]", tool)
        if function.name in functions:
            raise _wrong(
                f"tools[{index}].function.name", "is not unique", f"it is {function.name!r}"
            )
        functions[function.name] = function
    num_chars = len(json.dumps(plain_json(tools, "tools")))
    if num_chars > MAX_TOOLS_CHARS:
        raise _wrong(
            "tools", f"has {num_chars} characters as JSON", f"a request may have {MAX_TOOLS_CHARS}"
        )
    return functions


def _parse_tool(param: str, tool: object) -> Function:
    if not isinstance(tool, Mapping):
        raise _wrong(param, "must be an object", f"it is {type(tool).__name__}")
    if tool.get("type") != "function":
        raise _wrong(f"{param}.type", 'must be "function"', f"it is {tool.get('type')!r}")
    function = tool.get("function")
    if not isinstance(function, Mapping):
        raise _wrong(f"{param}.function", "must be an object", f"it is {type(function).__name__}")
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise _wrong(
            f"{param}.function.name",
            "must be 1 to 128 letters, digits, _ or -",
            f"it is {type(name).__name__ if not isinstance(name, str) else repr(name[:140])}",
        )
    description = function.get("description")
    if description is not None and not isinstance(description, str):
        raise _wrong(f"{param}.function.description", "must be a string", "")
    strict = function.get("strict")
    if strict is not None and not isinstance(strict, bool):
        raise _wrong(f"{param}.function.strict", "must be true or false", f"it is {strict!r}")
    parameters = function.get("parameters")
    if parameters is None:
        parameters = {}
    if not isinstance(parameters, Mapping) or parameters.get("type", "object") != "object":
        raise _wrong(f"{param}.function.parameters", "must be the JSON schema of an object", "")
    return Function(name, {"type": "object", **parameters}, strict is True)


def _parse_choice(choice: object, names: frozenset[str]) -> tuple[bool, frozenset[str]]:
    """Return whether a call must be made, and of which functions."""
    match choice:
        case None | "auto":
            return False, names
        case "required":
            return True, names
        case "none":
            return False, frozenset()
        case {"type": "function", "function": {"name": str(name)}}:
            return True, _existing([name], names)
        case {
            "type": "allowed_tools",
            "allowed_tools": {"mode": "auto" | "required" as mode, "tools": [_, *_] as allowed},
        }:
            return mode == "required", _existing([_allowed_name(tool) for tool in allowed], names)
    raise _wrong(
        "tool_choice",
        'must be "none", "auto", "required", a function or a list of allowed tools',
        'a function is {"type": "function", "function": {"name": ...}}',
    )


def _allowed_name(tool: object) -> str:
    match tool:
        case {"type": "function", "function": {"name": str(name)}}:
            return name
    raise _wrong("tool_choice", "allows something else than functions", "")


def _existing(chosen: list[str], names: frozenset[str]) -> frozenset[str]:
    for name in chosen:
        if name not in names:
            raise _wrong(
                "tool_choice", f"names {name[:140]!r}", "no function in tools has that name"
            )
    return frozenset(chosen)


def _wrong(param: str, what: str, why: str) -> InvalidRequestError:
    return InvalidRequestError(f"{param} {what}", param=param, why=why)
