"""Reads request bodies. Every value is checked, because it comes from anybody."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from evenflow.core.errors import ContextLengthError, InvalidRequestError
from evenflow.core.sampling import SamplingParams
from evenflow.core.structured import StructuredOutput
from evenflow.engine.structured_format import parse_structured
from evenflow.tokenization.tokenizer import Tokenizer
from evenflow.tokenization.tool_calls import (
    ToolCalling,
    ToolCallParser,
    ToolRequest,
    parse_tool_request,
)

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"

IGNORED = frozenset(
    {"metadata", "prompt_cache_key", "safety_identifier", "service_tier", "store", "user"}
)
"""Fields that are accepted and have no effect on the generation."""

PRIORITY_CLASSES = {"interactive": -100, "standard": 0, "batch": 100}
"""Names that may stand for a priority; lower is earlier."""

MAX_PROMPTS = 1024
"""Most prompts in one text completion request, and most completions of all of them."""

_DEFAULT_COMPLETION_TOKENS = 16
_SAMPLING = frozenset(SamplingParams.__dataclass_fields__) - {
    "logprobs",
    "prompt_logprobs",
    "structured",
}
_COMMON = (
    _SAMPLING
    | IGNORED
    | {
        "cache_salt",
        "logprobs",
        "model",
        "priority",
        "prompt_logprobs",
        "response_format",
        "session_id",
        "stream",
        "stream_options",
        "structured_outputs",
    }
)
_KNOWN = {
    CHAT: _COMMON
    | {
        "chat_template_kwargs",
        "max_completion_tokens",
        "messages",
        "parallel_tool_calls",
        "tool_choice",
        "tools",
        "top_logprobs",
    },
    COMPLETIONS: _COMMON | {"echo", "prompt"},
}


@dataclass(slots=True, frozen=True)
class Prompt:
    """A prompt as it came and as the engine takes it.

    Attributes:
        text: what was tokenised, None if tokens or messages came.
        token_ids: at least one token.
    """

    text: str | None
    token_ids: list[int]


@dataclass(slots=True, frozen=True, kw_only=True)
class ParsedRequest:
    """A request body in engine terms.

    Attributes:
        url: which endpoint's body it was.
        prompts: one for a chat; a text completion may have several.
        params: how to sample.
        priority: lower is earlier.
        echo: put the prompt before the completion's text.
        cache_salt: requests with different salts never share cached KV.
        session_id: the session whose KV is kept between its requests, if any.
        stream: answer in chunks.
        include_usage: end a stream with a chunk that has the token counts.
        user: whom the caller says the request is for.
        new_parser: starts reading the tool calls of one answer, given a seed for the calls' ids;
            None if the request is not about tools.
    """

    url: str
    prompts: list[Prompt]
    params: SamplingParams
    priority: int = 0
    echo: bool = False
    cache_salt: str = ""
    session_id: str | None = None
    stream: bool = False
    include_usage: bool = False
    user: str | None = None
    new_parser: Callable[[str], ToolCallParser] | None = None

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(len(prompt.token_ids) for prompt in self.prompts)


def parse_request(
    url: object,
    body: object,
    tokenizer: Tokenizer,
    calling: ToolCalling,
    *,
    max_prompt_chars: int | None = None,
) -> ParsedRequest:
    """Read the body of a completion request.

    Args:
        url: `CHAT` or `COMPLETIONS`.
        body: the decoded JSON.
        tokenizer: the model's.
        calling: how the model is told of tools.
        max_prompt_chars: longer texts are refused before they are tokenised, because they cannot
            fit whatever they say.

    Raises:
        InvalidRequestError: a field is unknown, missing or wrong; `param` names it.
        ContextLengthError: a text is longer than `max_prompt_chars`.
    """
    if not isinstance(url, str) or url not in _KNOWN:
        raise InvalidRequestError(
            f"there is no endpoint {url!r}", param="url", fix=f"Use {CHAT} or {COMPLETIONS}"
        )
    if not isinstance(body, Mapping):
        raise InvalidRequestError("the body must be a JSON object", param="body")
    fields = {name: value for name, value in body.items() if value is not None}
    for name in fields:
        if name not in _KNOWN[url]:
            raise InvalidRequestError(
                f"unknown field {name!r}", param=str(name), why=f"it is not one of {url}"
            )
    params = _sampling(url, fields)
    tools = parse_tool_request(fields) if url == CHAT else None
    if tools is not None:
        params = _with_tools(params, calling, tools)
    reader = _PromptReader(tokenizer, calling, max_prompt_chars)
    prompts = [reader.chat(fields, tools)] if url == CHAT else reader.completion(fields)
    if len(prompts) * params.n > MAX_PROMPTS:
        raise InvalidRequestError(
            f"n is {params.n} for each of {len(prompts)} prompts",
            param="n",
            why=f"one request may have {MAX_PROMPTS} completions",
        )
    stream = _switch(fields, "stream")
    return ParsedRequest(
        url=url,
        prompts=prompts,
        params=params,
        priority=parse_priority(fields.get("priority", 0)),
        echo=_switch(fields, "echo"),
        cache_salt=_text(fields, "cache_salt") or "",
        session_id=_text(fields, "session_id"),
        stream=stream,
        include_usage=_include_usage(fields, stream),
        user=_text(fields, "user"),
        new_parser=partial(calling.parser, tools) if tools is not None else None,
    )


def _sampling(url: str, fields: Mapping[str, Any]) -> SamplingParams:
    values = {name: value for name, value in fields.items() if name in _SAMPLING}
    if "max_completion_tokens" in fields:
        values["max_tokens"] = fields["max_completion_tokens"]
    if url == COMPLETIONS:
        values.setdefault("max_tokens", _DEFAULT_COMPLETION_TOKENS)
    if "logit_bias" in values:
        values["logit_bias"] = _token_keys(values["logit_bias"])
    if "prompt_logprobs" in fields:
        values["prompt_logprobs"] = fields["prompt_logprobs"]
    if url == COMPLETIONS and "logprobs" in fields:
        values["logprobs"] = fields["logprobs"]
    elif _switch(fields, "logprobs"):
        values["logprobs"] = fields.get("top_logprobs", 0)
    for name in ("stop", "stop_token_ids"):
        if isinstance(values.get(name), list):
            values[name] = tuple(values[name])
    return SamplingParams(**values, structured=parse_structured(fields))


def _with_tools(params: SamplingParams, calling: ToolCalling, tools: ToolRequest) -> SamplingParams:
    """Have calls forced into shape where the request wants that, and their marks shown."""
    grammar = calling.grammar(tools, answer_schema=_answer_schema(params.structured))
    structured = None
    if grammar is not None:
        structured = StructuredOutput("tool_calls", grammar, param="tools")
    return replace(
        params,
        structured=structured,
        skip_special_tokens=params.skip_special_tokens and not calling.needs_special_tokens,
    )


def _answer_schema(structured: StructuredOutput | None) -> dict[str, Any] | None:
    """Return the JSON schema that an answer without calls must satisfy, if there is one."""
    match structured:
        case None:
            return None
        case StructuredOutput("json_object"):
            return {"type": "object"}
        case StructuredOutput("json_schema", spec):
            schema: dict[str, Any] = json.loads(spec)
            return schema
    raise InvalidRequestError(
        f"tools cannot be combined with {structured.param}",
        param=structured.param,
        fix="Use response_format json_object or json_schema, or leave one of the two out",
    )


def _switch(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name, False)
    if not isinstance(value, bool):
        raise InvalidRequestError(
            f"{name} must be true or false", param=name, why=f"it is {value!r}"
        )
    return value


def _text(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise InvalidRequestError(f"{name} must be a string", param=name)
    return value


def parse_priority(value: object) -> int:
    """Read a priority: a number, or the name of one.

    Raises:
        InvalidRequestError: it is neither.
    """
    if isinstance(value, str) and value in PRIORITY_CLASSES:
        return PRIORITY_CLASSES[value]
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > 2**31:
        raise InvalidRequestError(
            "priority must be a whole number",
            param="priority",
            fix=f"Lower is earlier; the names {', '.join(PRIORITY_CLASSES)} are accepted too",
        )
    return value


def _include_usage(fields: Mapping[str, Any], stream: bool) -> bool:
    options = fields.get("stream_options", {})
    if not isinstance(options, dict) or options.keys() - {"include_usage", "include_obfuscation"}:
        raise InvalidRequestError(
            "stream_options must be an object with include_usage", param="stream_options"
        )
    if options and not stream:
        raise InvalidRequestError(
            "stream_options is only for streams", param="stream_options", fix="Set stream to true"
        )
    return _switch(options, "include_usage")


def _token_keys(bias: object) -> dict[int, float]:
    try:
        return {int(key): value for key, value in bias.items()}  # type: ignore[attr-defined]
    except (AttributeError, ValueError):
        raise InvalidRequestError(
            "logit_bias must map token ids to numbers", param="logit_bias"
        ) from None


@dataclass(slots=True, frozen=True)
class _PromptReader:
    tokenizer: Tokenizer
    calling: ToolCalling
    max_chars: int | None

    def chat(self, fields: Mapping[str, Any], tools: ToolRequest | None) -> Prompt:
        if "messages" not in fields:
            raise InvalidRequestError("messages are missing", param="messages")
        extra = fields.get("chat_template_kwargs", {})
        if not isinstance(extra, dict) or extra.keys() & {"messages", "rewrite", "self", "tools"}:
            raise InvalidRequestError(
                "chat_template_kwargs must be an object of template variables",
                param="chat_template_kwargs",
            )
        messages, shown = self.calling.prompt(fields["messages"], tools)
        pieces = self.tokenizer.render_chat(messages, tools=shown, **extra)
        self._check_length(sum(len(piece.text) for piece in pieces), "messages")
        return Prompt(None, self.tokenizer.encode_pieces(pieces))

    def completion(self, fields: Mapping[str, Any]) -> list[Prompt]:
        prompt = fields.get("prompt")
        prompts: list[Any] = [prompt]
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
            prompts = prompt
        if len(prompts) > MAX_PROMPTS:
            raise InvalidRequestError(
                f"there are {len(prompts)} prompts",
                param="prompt",
                why=f"one request may have {MAX_PROMPTS}",
            )
        return [self._one(prompt) for prompt in prompts]

    def _one(self, prompt: object) -> Prompt:
        if isinstance(prompt, str):
            self._check_length(len(prompt), "prompt")
            return Prompt(prompt, self.tokenizer.encode(prompt))
        if isinstance(prompt, list) and all(type(token) is int for token in prompt):
            return Prompt(None, prompt)
        raise InvalidRequestError(
            "prompt must be a text, a list of token ids, or a list of these", param="prompt"
        )

    def _check_length(self, num_chars: int, param: str) -> None:
        if self.max_chars is not None and num_chars > self.max_chars:
            raise ContextLengthError(
                f"the prompt has {num_chars} characters",
                param=param,
                why=f"no text of more than {self.max_chars} fits into the model's context",
                fix="Shorten the prompt or start with a larger --max-model-len",
            )
