"""Writes response bodies, and the parts that they share with streamed chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evenflow.engine.openai.request import CHAT, ParsedRequest, Prompt
from evenflow.engine.outputs import CompletionOutput, RequestOutput
from evenflow.scheduling.plan import TokenLogprobs
from evenflow.tokenization.tokenizer import Tokenizer
from evenflow.tokenization.tool_calls import assistant_message


def response_body(
    parsed: ParsedRequest,
    outputs: Sequence[RequestOutput],
    *,
    request_id: str,
    model: str,
    created: int,
    tokenizer: Tokenizer,
) -> dict[str, Any]:
    """Return the answer as the endpoint's response body.

    Args:
        parsed: the request.
        outputs: the result of each prompt.
        request_id: the answer's id.
        model: name to report.
        created: Unix time in seconds.
        tokenizer: names tokens in logprobs.
    """
    is_chat = parsed.url == CHAT
    choices = [
        _chat_choice(parsed, request_id, completion, tokenizer)
        if is_chat
        else _completion_choice(parsed, position, output, completion, tokenizer)
        for position, output in enumerate(outputs)
        for completion in output.outputs
    ]
    body: dict[str, Any] = {
        "id": request_id,
        "object": "chat.completion" if is_chat else "text_completion",
        "created": created,
        "model": model,
        "choices": choices,
        "usage": usage(
            parsed.num_prompt_tokens,
            sum(len(done.token_ids) for output in outputs for done in output.outputs),
            sum(output.num_cached_tokens for output in outputs),
        ),
    }
    if is_chat and outputs[0].prompt_logprobs is not None:
        body["prompt_logprobs"] = prompt_logprobs(outputs[0].prompt_logprobs, tokenizer)
    return body


def usage(num_prompt: int, num_output: int, num_cached: int) -> dict[str, Any]:
    """Return the token counts of a request."""
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_output,
        "total_tokens": num_prompt + num_output,
        "prompt_tokens_details": {"cached_tokens": num_cached},
    }


def finish_reason_with_calls(finish_reason: str | None, num_calls: int) -> str | None:
    """Return "tool_calls" for an answer that ended by itself and has calls."""
    return "tool_calls" if finish_reason == "stop" and num_calls else finish_reason


def chat_logprobs(entries: Sequence[TokenLogprobs], tokenizer: Tokenizer) -> dict[str, Any]:
    """Return what a chat choice says of its tokens."""
    return {"content": [_chat_logprob(entry, tokenizer) for entry in entries]}


def completion_logprobs(
    entries: Sequence[TokenLogprobs], tokenizer: Tokenizer, first_offset: int
) -> dict[str, Any]:
    """Return what a text completion choice says of its tokens; offsets count characters."""
    tokens = [tokenizer.token_text(entry.token_id) for entry in entries]
    offsets = [first_offset]
    for token in tokens:
        offsets.append(offsets[-1] + len(token))
    return {
        "tokens": tokens,
        "token_logprobs": [entry.logprob for entry in entries],
        "top_logprobs": [
            {tokenizer.token_text(token_id): logprob for token_id, logprob in entry.top}
            for entry in entries
        ],
        "text_offset": offsets[:-1],
    }


def prompt_logprobs(
    entries: Sequence[TokenLogprobs | None], tokenizer: Tokenizer
) -> list[dict[str, Any] | None]:
    """Return vLLM's form: by token id, the token that stands there among the likeliest."""
    return [None if entry is None else _prompt_logprob(entry, tokenizer) for entry in entries]


def _prompt_logprob(entry: TokenLogprobs, tokenizer: Tokenizer) -> dict[str, Any]:
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


def echoed(prompt: Prompt, tokenizer: Tokenizer) -> str:
    """Return the prompt's text, for requests that want it back."""
    return prompt.text if prompt.text is not None else tokenizer.decode(prompt.token_ids)


def _chat_choice(
    parsed: ParsedRequest, request_id: str, completion: CompletionOutput, tokenizer: Tokenizer
) -> dict[str, Any]:
    entries = completion.logprobs
    message: dict[str, Any] = {"role": "assistant", "content": completion.text, "refusal": None}
    finish_reason = completion.finish_reason
    if parsed.new_parser is not None:
        parser = parsed.new_parser(f"{request_id}.{completion.index}")
        message |= assistant_message([*parser.push(completion.text), *parser.finish()])
        finish_reason = finish_reason_with_calls(finish_reason, parser.num_calls)
    return {
        "index": completion.index,
        "message": message,
        "logprobs": None if entries is None else chat_logprobs(entries, tokenizer),
        "finish_reason": finish_reason,
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


def _completion_choice(
    parsed: ParsedRequest,
    position: int,
    output: RequestOutput,
    completion: CompletionOutput,
    tokenizer: Tokenizer,
) -> dict[str, Any]:
    entries = completion.logprobs
    prompt = echoed(parsed.prompts[position], tokenizer) if parsed.echo else ""
    choice = {
        "index": position * parsed.params.n + completion.index,
        "text": prompt + completion.text,
        "logprobs": None
        if entries is None
        else completion_logprobs(entries, tokenizer, len(prompt)),
        "finish_reason": completion.finish_reason,
        "stop_reason": completion.stop_reason,
    }
    if output.prompt_logprobs is not None:
        choice["prompt_logprobs"] = prompt_logprobs(output.prompt_logprobs, tokenizer)
    return choice
