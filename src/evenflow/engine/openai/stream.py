"""Writes the chunks of a streamed answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from evenflow.engine.openai.request import CHAT, ParsedRequest
from evenflow.engine.openai.response import (
    chat_logprobs,
    completion_logprobs,
    echoed,
    finish_reason_with_calls,
    prompt_logprobs,
    usage,
)
from evenflow.engine.outputs import Delta
from evenflow.scheduling.plan import TokenLogprobs
from evenflow.tokenization.tokenizer import Tokenizer
from evenflow.tokenization.tool_calls import chat_delta


class ChunkWriter:
    """Turns the deltas of one request into the endpoint's chunks.

    Args:
        parsed: the request.
        request_id: the answer's id.
        model: name to report.
        created: Unix time in seconds.
        tokenizer: names tokens in logprobs.
    """

    def __init__(
        self,
        parsed: ParsedRequest,
        *,
        request_id: str,
        model: str,
        created: int,
        tokenizer: Tokenizer,
    ) -> None:
        self._parsed = parsed
        self._tokenizer = tokenizer
        self._is_chat = parsed.url == CHAT
        self._head: dict[str, Any] = {
            "id": request_id,
            "object": "chat.completion.chunk" if self._is_chat else "text_completion",
            "created": created,
            "model": model,
        }
        num_choices = len(parsed.prompts) * parsed.params.n
        self._offsets = [0] * num_choices
        self._unsent: list[list[TokenLogprobs]] = [[] for _ in range(num_choices)]
        self._parsers = [
            parsed.new_parser(f"{request_id}.{choice}") if parsed.new_parser else None
            for choice in range(num_choices)
        ]
        self._prompt_scores: dict[int, list[TokenLogprobs | None]] = {}
        self._num_output = 0
        self._num_cached = 0

    def opening(self) -> Iterator[dict[str, Any]]:
        """Yield the chunks that come before any token: a chat's role, an echoed prompt."""
        num_each = self._parsed.params.n
        for choice in range(len(self._offsets)):
            if self._is_chat:
                yield self._chunk(choice, {"delta": {"role": "assistant", "content": ""}})
            elif self._parsed.echo:
                text = echoed(self._parsed.prompts[choice // num_each], self._tokenizer)
                self._offsets[choice] = len(text)
                yield self._chunk(choice, {"text": text})

    def write(self, position: int, delta: Delta) -> dict[str, Any] | None:
        """Return the chunk for a delta of prompt `position`; None if it brings nothing to show.

        Log-probabilities of tokens whose text is still held back come with the text.
        """
        choice = position * self._parsed.params.n + delta.index
        self._num_output += delta.token_id is not None
        if delta.logprobs is not None:
            self._unsent[choice].append(delta.logprobs)
        if delta.metrics is not None and delta.index == 0:
            self._num_cached += delta.metrics.num_cached_tokens
        content, finish_reason = self._content(choice, delta)
        scored = self._scored(position, delta)
        if not content and finish_reason is None and not scored:
            return None
        said: dict[str, Any] = {"delta": content} if self._is_chat else {"text": "", **content}
        said["logprobs"] = self._logprobs(choice)
        said["finish_reason"] = finish_reason
        if finish_reason is not None:
            said["stop_reason"] = delta.stop_reason
        if self._is_chat:
            return self._chunk(choice, said) | scored
        return self._chunk(choice, said | scored)

    def closing(self) -> Iterator[dict[str, Any]]:
        """Yield the chunk with the token counts, if it was asked for."""
        if self._parsed.include_usage:
            counts = usage(self._parsed.num_prompt_tokens, self._num_output, self._num_cached)
            yield {**self._head, "choices": [], "usage": counts}

    def _content(self, choice: int, delta: Delta) -> tuple[dict[str, Any], str | None]:
        """Return what a delta adds to the answer, and how the answer ended, if it did."""
        parser = self._parsers[choice]
        if parser is None:
            name = "content" if self._is_chat else "text"
            return {name: delta.text} if delta.text else {}, delta.finish_reason
        events = parser.push(delta.text)
        if delta.finish_reason is not None:
            events += parser.finish()
        reason = finish_reason_with_calls(delta.finish_reason, parser.num_calls)
        return chat_delta(events) if events else {}, reason

    def _scored(self, position: int, delta: Delta) -> dict[str, Any]:
        """Return what was asked about the prompt's tokens: of a chat once, else for each choice."""
        if delta.prompt_logprobs is None or (self._is_chat and self._prompt_scores):
            return {}
        # Completions that share the first one's prompt bring no scores of their own.
        scores = self._prompt_scores.setdefault(position, [None, *delta.prompt_logprobs])
        return {"prompt_logprobs": prompt_logprobs(scores, self._tokenizer)}

    def _chunk(self, choice: int, content: dict[str, Any]) -> dict[str, Any]:
        base = {"index": choice, "logprobs": None, "finish_reason": None}
        chunk = {**self._head, "choices": [base | content]}
        if self._parsed.include_usage:
            chunk["usage"] = None
        return chunk

    def _logprobs(self, choice: int) -> dict[str, Any] | None:
        entries = self._unsent[choice]
        if not entries:
            return None
        self._unsent[choice] = []
        if self._is_chat:
            return chat_logprobs(entries, self._tokenizer)
        written = completion_logprobs(entries, self._tokenizer, self._offsets[choice])
        self._offsets[choice] += sum(map(len, written["tokens"]))
        return written
