"""`/v1/embeddings`."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from secrets import token_hex
from typing import Any

from fastapi import APIRouter, Request, Response

from evenflow.core.errors import ContextLengthError, InvalidRequestError
from evenflow.core.pooling import PoolingParams, embedding_entries
from evenflow.server.endpoint import Shared
from evenflow.server.fields import known_fields
from evenflow.server.generation import raise_if_cut_short
from evenflow.server.http import CLIENT_CLOSED_REQUEST, JSONBytes, unless_disconnected
from evenflow.server.schemas import json_body
from evenflow.server.serving import Caller, Serving, prompt_id

MAX_INPUTS = 2048
"""Most texts in one request, as in OpenAI's API."""

_FIELDS = frozenset({"dimensions", "encoding_format", "input", "model", "normalize", "user"})

routes = APIRouter(tags=["text"])


@routes.post("/v1/embeddings", openapi_extra=json_body("EmbeddingRequest"))
async def create_embedding(request: Request, shared: Shared) -> Response:
    """Embed texts, by the sentence model if there is one."""
    caller, body, _ = await shared.receive(request)
    answer = await unless_disconnected(request, _embed(shared.serving, caller, body))
    if answer is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return JSONBytes(answer)


async def _embed(serving: Serving, caller: Caller, body: object) -> dict[str, Any]:
    fields = known_fields(body, _FIELDS)
    serving.check_model(fields.get("model"))
    encoding = fields.get("encoding_format", "float")
    if encoding not in ("float", "base64"):
        raise InvalidRequestError(
            "encoding_format must be float or base64", param="encoding_format"
        )
    params = PoolingParams(
        normalize=fields.get("normalize", True), dimensions=fields.get("dimensions")
    )
    serving.admit(caller.tenant_id)
    model, sentences = serving.model, serving.sentence_tokenizer
    uses_sentences = sentences is not None and fields.get("model") != serving.name
    if sentences is not None and uses_sentences:
        inputs = await asyncio.to_thread(_read_inputs, fields.get("input"), sentences.encode)
    else:
        encode = _bounded(model.tokenizer.encode, model.max_prompt_chars)
        inputs = await asyncio.to_thread(_read_inputs, fields.get("input"), encode)
        for token_ids in inputs:
            model.info.limits.check(token_ids, params)
    num_tokens = sum(map(len, inputs))
    serving.admit(caller.tenant_id, num_tokens)
    if uses_sentences:
        vectors = await _encode_sentences(serving, caller, inputs, params)
    else:
        vectors = await _pool(serving, caller, inputs, params)
    write = embedding_entries if encoding == "float" else _base64
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": write(vector)}
            for index, vector in enumerate(vectors)
        ],
        "model": serving.config.model.embedding_model if uses_sentences else serving.name,
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
    }


async def _encode_sentences(
    serving: Serving, caller: Caller, inputs: list[list[int]], params: PoolingParams
) -> list[bytes]:
    """Return the sentence model's embedding of each input, which counts as queued until then."""
    admission, request_id = serving.books.admission, f"embd-{token_hex(12)}"
    admission.queued(request_id, caller.tenant_id, sum(map(len, inputs)))
    try:
        return await serving.engine.encode_sentences(inputs, params)
    finally:
        admission.ended(request_id, 0, serving.clock.now_s())


async def _pool(
    serving: Serving, caller: Caller, inputs: list[list[int]], params: PoolingParams
) -> list[bytes]:
    """Return the mean of the language model's last hidden states for each input."""
    request_id = serving.unused_id(f"embd-{caller.request_id}", len(inputs))
    positions = {prompt_id(request_id, position): position for position in range(len(inputs))}
    vectors = [b""] * len(inputs)
    stream = serving.submit(caller, request_id, inputs, params)
    try:
        while batch := await stream.next_batch():
            for delta in batch:
                raise_if_cut_short(delta)
                vectors[positions[delta.request_id]] = delta.embedding or b""
    finally:
        serving.abandon(stream)
    return vectors


def _read_inputs(value: object, encode: Callable[[str], list[int]]) -> list[list[int]]:
    """Read one text, a list of token ids, or a list of either."""
    inputs = value if isinstance(value, list) and not _is_tokens(value) else [value]
    if len(inputs) > MAX_INPUTS:
        raise InvalidRequestError(
            f"there are {len(inputs)} inputs", param="input", why=f"the limit is {MAX_INPUTS}"
        )
    return [_read_input(item, encode) for item in inputs]


def _read_input(value: object, encode: Callable[[str], list[int]]) -> list[int]:
    if isinstance(value, str) and value:
        return encode(value)
    if isinstance(value, list) and _is_tokens(value):
        return value
    raise InvalidRequestError(
        "input must be a text that is not empty, a list of token ids, or a list of these",
        param="input",
    )


def _is_tokens(value: list[Any]) -> bool:
    return bool(value) and all(type(item) is int and 0 <= item < 2**31 for item in value)


def _bounded(encode: Callable[[str], list[int]], max_chars: int) -> Callable[[str], list[int]]:
    """Refuse texts that cannot fit before they are tokenised."""

    def encode_bounded(text: str) -> list[int]:
        if len(text) > max_chars:
            raise ContextLengthError(
                f"an input has {len(text)} characters",
                param="input",
                why=f"no text of more than {max_chars} fits into the model's context",
                fix="Send it in parts",
            )
        return encode(text)

    return encode_bounded


def _base64(vector: bytes) -> str:
    return base64.b64encode(vector).decode()
