"""Chat messages to prompt text, through a model's own jinja template in a sandbox.

Knows: jinja, OpenAI's shape of messages, the names templates expect to find.
Does not know: token ids, files, HTTP.

Invariants:
    A template sees plain JSON values only, and cannot reach Python through them.
    Whatever a template or a message does wrong ends as `InvalidRequestError`; a template that
    cannot even be parsed is the model's fault and ends as `ModelFormatError`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import NoReturn

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from evenflow.core.errors import InvalidRequestError, ModelFormatError

CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content or '' }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

GEMMA = (
    "{{ bos_token }}"
    "{% if messages[0].role == 'system' %}"
    "{% set preface = messages[0].content + '\n\n' %}{% set turns = messages[1:] %}"
    "{% else %}{% set preface = '' %}{% set turns = messages %}{% endif %}"
    "{% for message in turns %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate: user, assistant, user, ...') }}{% endif %}"
    "<start_of_turn>{{ 'model' if message.role == 'assistant' else message.role }}\n"
    "{{ preface if loop.first }}{{ message.content | trim }}<end_of_turn>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)

_MAX_DEPTH = 64

# What a template may raise by itself, all of it caused by the messages it was given.
_RENDER_ERRORS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}`, a mark for training tools: what it encloses is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 - jinja declares it as a plain class attribute

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """jinja's sandbox, which otherwise prints nothing for what it does not allow."""

    def unsafe_undefined(self, obj: object, attribute: str) -> NoReturn:
        kind = type(obj).__name__
        raise jinja2.exceptions.SecurityError(f"a template may not touch {attribute!r} of {kind}")


class ChatTemplate:
    """One compiled template.

    Args:
        source: the jinja text.
        names: further names a template may use, such as `bos_token`.
        now: the local time, for templates that print the date.

    Raises:
        ModelFormatError: the text is no jinja template.
    """

    def __init__(
        self,
        source: str,
        names: Mapping[str, str],
        *,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        environment = _Sandbox(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[jinja2.ext.loopcontrols, _GenerationTag],
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda pattern: now().strftime(pattern)
        self._names = dict(names)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ModelFormatError(
                "the chat template cannot be compiled",
                why=f"{error}",
                fix="Pass a working one with --chat-template",
            ) from error

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
        rewrite: Callable[[str], str] = str,
        **kwargs: object,
    ) -> str:
        """Write `messages` as one prompt.

        Args:
            messages: OpenAI's shape, see `check_messages`.
            add_generation_prompt: end with the opening of the assistant's turn.
            tools: JSON schemas of functions, for templates that know tools.
            rewrite: called with each text of the caller's before the template sees it.
            **kwargs: further names for the template, such as `enable_thinking`.

        Raises:
            InvalidRequestError: the messages are malformed, or the template refuses them.
        """
        given = {
            **{name: plain_json(value, name) for name, value in kwargs.items()},
            "messages": check_messages(messages),
            "tools": plain_json(tools, "tools"),
            "add_generation_prompt": plain_json(add_generation_prompt, "add_generation_prompt"),
        }
        values = {"documents": None, **self._names} | {
            name: _rewritten(value, rewrite) for name, value in given.items()
        }
        try:
            return self._template.render(values)
        except _RENDER_ERRORS as error:
            raise InvalidRequestError(
                "the chat template refuses these messages", param="messages", why=f"{error}"
            ) from error


def check_messages(messages: object) -> list[dict[str, object]]:
    """Check messages and make them what templates expect.

    A message is `{"role": str, "content": ...}` and may carry more. Content is a string, a list of
    `{"type": "text", "text": str}` parts (joined by newlines, as vLLM does), or None or missing
    when there are `tool_calls`.

    Raises:
        InvalidRequestError: anything else, naming the message and the fault.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        _refuse("messages must be a non-empty list", f"it is {type(messages).__name__}")
    return [_check_message(index, message) for index, message in enumerate(messages)]


def _check_message(index: int, message: object) -> dict[str, object]:
    if not isinstance(message, Mapping):
        _refuse(f"messages[{index}] must be an object", f"it is {type(message).__name__}")
    if not isinstance(message.get("role"), str) or not message["role"]:
        _refuse(f"messages[{index}] needs a role", 'a role is a string such as "user"')
    plain = {name: plain_json(value, "messages") for name, value in message.items()}
    content = message.get("content")
    if isinstance(content, list | tuple):
        plain["content"] = "\n".join(_part_text(index, part) for part in content)
    elif not isinstance(content, str) and not (content is None and message.get("tool_calls")):
        _refuse(
            f"messages[{index}] needs content",
            f"it is {type(content).__name__}, not a string or a list of text parts",
        )
    return plain


def _part_text(index: int, part: object) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    text = part.get("text") if isinstance(part, Mapping) else None
    if kind != "text" or not isinstance(text, str):
        _refuse(
            f"messages[{index}] has a content part that is not text",
            f"its type is {kind!r}; evenflow serves text models",
        )
    return text


def plain_json(value: object, param: str, depth: int = 0) -> object:
    """Copy `value` into exact JSON types, so that no method of a richer one meets a template.

    Raises:
        InvalidRequestError: it holds something else, or is nested too deep; names `param`.
    """
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if depth < _MAX_DEPTH:
        if isinstance(value, Mapping):
            return {str(name): plain_json(item, param, depth + 1) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain_json(item, param, depth + 1) for item in value]
    raise InvalidRequestError(
        f"{param} must hold JSON values, at most {_MAX_DEPTH} levels deep",
        param=param,
        why=f"it holds {type(value).__name__} at level {depth}",
    )


def _rewritten(value: object, rewrite: Callable[[str], str]) -> object:
    """Copy plain JSON with each text replaced, names within objects included."""
    if isinstance(value, str):
        return rewrite(value)
    if isinstance(value, dict):
        return {rewrite(name): _rewritten(item, rewrite) for name, item in value.items()}
    if isinstance(value, list):
        return [_rewritten(item, rewrite) for item in value]
    return value


def _refuse(what: str, why: str) -> NoReturn:
    raise InvalidRequestError(what, param="messages", why=why)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as models were trained on it; jinja's own filter escapes HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
