"""One request for text on its way through the engine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterator
from secrets import token_hex
from typing import Any

from evenflow.core.errors import (
    DeadlineError,
    GenerationError,
    RequestAbortedError,
)
from evenflow.core.ids import TenantId
from evenflow.core.structured import StructuredOutput
from evenflow.engine.openai import (
    CHAT,
    COMPLETIONS,
    ChunkWriter,
    ParsedRequest,
    parse_request,
    response_body,
)
from evenflow.engine.outputs import CompletionOutput, Delta, RequestOutput
from evenflow.server.serving import Caller, Model, Received, Serving, prompt_id

logger = logging.getLogger(__name__)

_INLINE_BYTES = 4096
"""Bodies up to this size are parsed and tokenised at once; larger ones on a thread."""

ID_PREFIXES = {CHAT: "chatcmpl-", COMPLETIONS: "cmpl-"}
"""What the ids of answers begin with, as in OpenAI's API."""


class Generation:
    """A request that was let in, from its first token to its last.

    `start` makes one; then either `result` or `chunks` is used, once; `abandon` must follow, and
    does nothing if all is done.

    Args:
        serving: what all requests share.
        model: the model.
        caller: who asked.
        parsed: for what.
        request_id: under which id.

    Attributes:
        created: when, in seconds of Unix time.
        model_name: the name to report.
    """

    def __init__(
        self, serving: Serving, model: Model, caller: Caller, parsed: ParsedRequest, request_id: str
    ) -> None:
        self.parsed = parsed
        self.request_id = request_id
        self.created = serving.unix_time()
        self.model_name = serving.name
        self._serving = serving
        self._model = model
        self._positions = {
            prompt_id(request_id, position): position for position in range(len(parsed.prompts))
        }
        self._stream = serving.submit(
            caller,
            request_id,
            [prompt.token_ids for prompt in parsed.prompts],
            parsed.params,
            priority=parsed.priority,
            cache_salt=parsed.cache_salt,
            session_id=parsed.session_id,
        )

    @classmethod
    async def start(
        cls, serving: Serving, url: str, received: Received, id_prefix: str
    ) -> Generation:
        """Read a body, let the request in, and wait until the engine has queued it.

        Args:
            serving: what all requests share.
            url: whose body it is, `CHAT` or `COMPLETIONS`.
            received: the request.
            id_prefix: what the request's id begins with.

        Raises:
            EvenflowError: the request is wrong, or cannot be taken now.
        """
        caller, body, num_bytes = received
        serving.admit(caller.tenant_id)
        model = serving.model
        if isinstance(body, dict):
            serving.check_model(body.get("model"))
        arguments = (url, body, model.tokenizer, model.tools)
        limit = model.max_prompt_chars
        if num_bytes <= _INLINE_BYTES:
            parsed = parse_request(*arguments, max_prompt_chars=limit)
        else:
            parsed = await asyncio.to_thread(parse_request, *arguments, max_prompt_chars=limit)
        for prompt in parsed.prompts:
            model.info.limits.check(prompt.token_ids, parsed.params)
        serving.admit(caller.tenant_id, parsed.num_prompt_tokens)
        request_id = serving.unused_id(id_prefix + caller.request_id, len(parsed.prompts))
        generation = cls(serving, model, caller, parsed, request_id)
        if serving.config.server.enable_log_requests:
            logger.debug("request %s: %s", generation.request_id, body)
        try:
            await generation._stream.accepted()
        except BaseException:
            generation.abandon()
            raise
        return generation

    async def result(self) -> dict[str, Any]:
        """Return the whole answer as a response body.

        Raises:
            EvenflowError: it could not be finished.
        """
        outputs = [
            RequestOutput(
                own_id,
                prompt.text,
                prompt.token_ids,
                [CompletionOutput(index) for index in range(self.parsed.params.n)],
            )
            for own_id, prompt in zip(self._positions, self.parsed.prompts, strict=True)
        ]
        while batch := await self._stream.next_batch():
            for delta in batch:
                raise_if_cut_short(delta, self.parsed.params.structured)
                outputs[self._positions[delta.request_id]].add(delta)
        return response_body(
            self.parsed,
            outputs,
            request_id=self.request_id,
            model=self.model_name,
            created=self.created,
            tokenizer=self._model.tokenizer,
        )

    async def chunks(self) -> AsyncGenerator[list[dict[str, Any]]]:
        """Yield the answer's chunks, those that are there at once together.

        Raises:
            EvenflowError: it could not be finished.
        """
        writer = ChunkWriter(
            self.parsed,
            request_id=self.request_id,
            model=self.model_name,
            created=self.created,
            tokenizer=self._model.tokenizer,
        )
        yield list(writer.opening())
        while batch := await self._stream.next_batch():
            if chunks := list(self._write(writer, batch)):
                yield chunks
        if closing := list(writer.closing()):
            yield closing

    def abandon(self) -> None:
        """End what still runs: nobody wants it any more."""
        self._serving.abandon(self._stream)

    def _write(self, writer: ChunkWriter, batch: list[Delta]) -> Iterator[dict[str, Any]]:
        for delta in batch:
            raise_if_cut_short(delta, self.parsed.params.structured)
            chunk = writer.write(self._positions[delta.request_id], delta)
            if chunk is not None:
                yield chunk


async def answer_for_batch(
    serving: Serving, tenant_id: TenantId, url: str, body: object
) -> dict[str, Any]:
    """Answer a line of a batch; others come first unless it says otherwise.

    Raises:
        EvenflowError: it is wrong, cannot be taken now, or could not be finished.
    """
    if isinstance(body, dict):
        body = {"priority": "batch", **body}
    caller = Caller(tenant_id, token_hex(12))
    # It may be long, and nobody waits for it.
    received = Received(caller, body, _INLINE_BYTES + 1)
    generation = await Generation.start(serving, url, received, ID_PREFIXES[url])
    try:
        return await generation.result()
    finally:
        generation.abandon()


def raise_if_cut_short(delta: Delta, structured: StructuredOutput | None = None) -> None:
    """Raise the error with which a completion ended, if it did.

    Args:
        delta: any of its deltas.
        structured: the form that its text must have. If it fails, that was too complex.

    Raises:
        EvenflowError: the completion was aborted, failed or ran out of time.
    """
    why = delta.error or ""
    match delta.finish_reason:
        case "timeout":
            raise DeadlineError("the request's time was up", why=why)
        case "error" if structured is not None:
            raise structured.refusal(why)
        case "error":
            raise GenerationError("the request failed", why=why)
        case "abort":
            raise RequestAbortedError("the request was ended before it was done", why=why)
