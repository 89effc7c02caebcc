"""OpenAI's request and response bodies, turned into engine terms and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from evenflow.core.errors import InvalidRequestError
from evenflow.core.sampling import SamplingParams
from evenflow.engine.outputs import CompletionOutput, RequestOutput
from evenflow.scheduling.plan import TokenLogprobs
from evenflow.tokenization.tokenizer import Tokenizer

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"

_SAMPLING = frozenset(SamplingParams.__dataclass_fields__) - {"logprobs", "prompt_logprobs"}
_IGNORED = frozenset({"model", "user", "store", "metadata"})
_COMMON = _SAMPLING | _IGNORED | {"prompt_logprobs", "logprobs", "priority"}
_KNOWN = {
    CHAT: _COMMON | {"messages", "max_completion_tokens", "top_logprobs", "chat_template_kwargs"},
    COMPLETIONS: _COMMON | {"prompt", "echo"},
}


@dataclass(slots=True, frozen=True)
class ParsedRequest:
    """A request body in engine terms.

    Attributes:
        url: which endpoint's body it was.
        prompt: the text that was tokenised, None if tokens came.
        prompt_token_ids: the prompt.
        params: how to sample.
        priority: lower is earlier.
        echo: put the prompt before the completion's text.
    """

    url: str
    prompt: str | None
    prompt_token_ids: list[int]
    params: SamplingParams
    priority: int
    echo: bool


def parse_request(url: object, body: object, tokenizer: Tokenizer) -> ParsedRequest:
    """Read the body of a completion request.

    Raises:
        InvalidRequestError: a field is unknown, missing or wrong; `param` names it.
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
    text, ids = _PROMPTS[url](fields, tokenizer)
    priority = fields.get("priority", 0)
    if not isinstance(priority, int) or isinstance(priority, bool):
        raise InvalidRequestError("priority must be a whole number", param="priority")
    params = _sampling(url, fields)
    return ParsedRequest(url, text, ids, params, priority, _switch(fields, "echo"))


def response_body(
    parsed: ParsedRequest, output: RequestOutput, *, model: str, created: int, tokenizer: Tokenizer
) -> dict[str, Any]:
    """Return the answer as the endpoint's response body.

    Args:
        parsed: the request.
        output: its result.
        model: name to report.
        created: Unix time in seconds.
        tokenizer: names tokens in logprobs.
    """
    is_chat = parsed.url == CHAT
    choice = _chat_choice if is_chat else _completion_choice
    num_output = sum(len(completion.token_ids) for completion in output.outputs)
    body: dict[str, Any] = {
        "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{output.request_id}",
        "object": "chat.completion" if is_chat else "text_completion",
        "created": created,
        "model": model,
        "choices": [choice(parsed, completion, tokenizer) for completion in output.outputs],
        "usage": {
            "prompt_tokens": len(output.prompt_token_ids),
            "completion_tokens": num_output,
            "total_tokens": len(output.prompt_token_ids) + num_output,
            "prompt_tokens_details": {"cached_tokens": output.num_cached_tokens},
        },
    }
    if output.prompt_logprobs is not None:
        body["prompt_logprobs"] = [
            None if entry is None else _prompt_logprob(entry, tokenizer)
            for entry in output.prompt_logprobs
        ]
    return body


def error_body(error: InvalidRequestError) -> dict[str, Any]:
    """Return an error as OpenAI's body."""
    return {
        "message": str(error),
        "type": "invalid_request_error",
        "param": error.param,
        "code": error.code,
    }


def _sampling(url: str, fields: Mapping[str, Any]) -> SamplingParams:
    values = {name: value for name, value in fields.items() if name in _SAMPLING}
    if "max_completion_tokens" in fields:
        values["max_tokens"] = fields["max_completion_tokens"]
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
    return SamplingParams(**values)


def _switch(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name, False)
    if not isinstance(value, bool):
        raise InvalidRequestError(
            f"{name} must be true or false", param=name, why=f"it is {value!r}"
        )
    return value


def _token_keys(bias: object) -> dict[int, float]:
    try:
        return {int(key): value for key, value in bias.items()}  # type: ignore[attr-defined]
    except (AttributeError, ValueError):
        raise InvalidRequestError(
            "logit_bias must map token ids to numbers", param="logit_bias"
        ) from None


def _chat_prompt(fields: Mapping[str, Any], tokenizer: Tokenizer) -> tuple[None, list[int]]:
    if "messages" not in fields:
        raise InvalidRequestError("messages are missing", param="messages")
    extra = fields.get("chat_template_kwargs", {})
    if not isinstance(extra, dict) or extra.keys() & {"messages", "self"}:
        raise InvalidRequestError(
            "chat_template_kwargs must be an object of template variables",
            param="chat_template_kwargs",
        )
    return None, tokenizer.encode_chat(fields["messages"], **extra)


def _completion_prompt(
    fields: Mapping[str, Any], tokenizer: Tokenizer
) -> tuple[str | None, list[int]]:
    prompt = fields.get("prompt")
    if isinstance(prompt, str):
        return prompt, tokenizer.encode(prompt)
    if isinstance(prompt, list) and all(type(token) is int for token in prompt):
        return None, prompt
    raise InvalidRequestError("prompt must be a text or a list of token ids", param="prompt")


_PROMPTS: dict[str, Callable[[Mapping[str, Any], Tokenizer], tuple[str | None, list[int]]]] = {
    CHAT: _chat_prompt,
    COMPLETIONS: _completion_prompt,
}


def _chat_choice(
    parsed: ParsedRequest,  # noqa: ARG001  # the signature of both kinds of choice
    completion: CompletionOutput,
    tokenizer: Tokenizer,
) -> dict[str, Any]:
    entries = completion.logprobs
    return {
        "index": completion.index,
        "message": {"role": "assistant", "content": completion.text},
        "logprobs": None
        if entries is None
        else {"content": [_chat_logprob(entry, tokenizer) for entry in entries]},
        "finish_reason": completion.finish_reason,
        "stop_reason": completion.stop_reason,
    }


def _chat_logprob(entry: TokenLogprobs, tokenizer: Tokenizer) -> dict[str, Any]:
    def describe(token_id: int, logprob: float) -> dict[str, Any]:
        return {
            "token": tokenizer.token_text(token_id),
            "logprob": logprob,
            "bytes": list(tokenizer.token_bytes(token_id)),
        }

    top = [describe(token_id, logprob) for token_id, logprob in entry.top]
    return {**describe(entry.token_id, entry.logprob), "top_logprobs": top}


def _prompt_logprob(entry: TokenLogprobs, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return vLLM's form: by token id, the token that stands there among the likeliest."""
    ranked = {token_id: (value, rank) for rank, (token_id, value) in enumerate(entry.top, start=1)}
    ranked.setdefault(entry.token_id, (entry.logprob, entry.rank))
    return {
        str(token_id): {
            "logprob": value,
            "rank": rank,
            "decoded_token": tokenizer.token_text(token_id),
        }
        for token_id, (value, rank) in ranked.items()
    }


def _completion_choice(
    parsed: ParsedRequest, completion: CompletionOutput, tokenizer: Tokenizer
) -> dict[str, Any]:
    entries = completion.logprobs
    prompt = ""
    if parsed.echo:
        prompt = parsed.prompt or tokenizer.decode(parsed.prompt_token_ids)
    return {
        "index": completion.index,
        "text": prompt + completion.text,
        "logprobs": None
        if entries is None
        else {
            "tokens": [tokenizer.token_text(entry.token_id) for entry in entries],
            "token_logprobs": [entry.logprob for entry in entries],
            "top_logprobs": [
                {tokenizer.token_text(token_id): logprob for token_id, logprob in entry.top}
                for entry in entries
            ],
        },
        "finish_reason": completion.finish_reason,
        "stop_reason": completion.stop_reason,
    }
