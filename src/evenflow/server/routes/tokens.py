"""`/v1/models`, `/tokenize`, `/detokenize`."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from evenflow.core.errors import InvalidRequestError
from evenflow.engine.openai import CHAT, COMPLETIONS, parse_request
from evenflow.server.endpoint import Shared
from evenflow.server.errors import NotFoundError
from evenflow.server.fields import known_fields
from evenflow.server.schemas import json_body
from evenflow.server.serving import Model, Serving

_TOKENIZE_FIELDS = frozenset(
    {"add_special_tokens", "chat_template_kwargs", "messages", "model", "prompt", "tools"}
)

routes = APIRouter(tags=["models and tokens"])


@routes.get("/v1/models")
async def list_models(request: Request, shared: Shared) -> dict[str, Any]:
    """List the model that is served, and the sentence model if there is one."""
    shared.door.identify(request)
    return {"object": "list", "data": _models(shared.serving)}


@routes.get("/v1/models/{name:path}")
async def retrieve_model(name: str, request: Request, shared: Shared) -> dict[str, Any]:
    """Describe a model."""
    shared.door.identify(request)
    for model in _models(shared.serving):
        if model["id"] == name:
            return model
    raise NotFoundError(f"there is no model {name[:200]!r}", param="model")


@routes.post("/tokenize", openapi_extra=json_body("TokenizeRequest"))
async def tokenize(request: Request, shared: Shared) -> dict[str, Any]:
    """Turn a prompt or a conversation into token ids."""
    received = await shared.receive(request)
    return await asyncio.to_thread(_tokenize, shared.serving.model, received.body)


@routes.post("/detokenize", openapi_extra=json_body("DetokenizeRequest"))
async def detokenize(request: Request, shared: Shared) -> dict[str, Any]:
    """Turn token ids into text."""
    received = await shared.receive(request)
    return await asyncio.to_thread(_detokenize, shared.serving.model, received.body)


def _models(serving: Serving) -> list[dict[str, Any]]:
    names = [serving.name]
    if serving.config.model.embedding_model is not None:
        names.append(serving.config.model.embedding_model)
    models = [
        {"id": name, "object": "model", "created": serving.created, "owned_by": "evenflow"}
        for name in names
    ]
    if serving.is_ready:
        models[0]["max_model_len"] = serving.model.info.limits.max_model_len
    return models


def _tokenize(model: Model, body: object) -> dict[str, Any]:
    fields = known_fields(body, _TOKENIZE_FIELDS)
    special = fields.pop("add_special_tokens", True)
    if not isinstance(special, bool):
        raise InvalidRequestError(
            "add_special_tokens must be true or false", param="add_special_tokens"
        )
    url = CHAT if "messages" in fields else COMPLETIONS
    parsed = parse_request(
        url, fields, model.tokenizer, model.tools, max_prompt_chars=model.max_prompt_chars
    )
    prompt = parsed.prompts[0]
    ids = prompt.token_ids
    if prompt.text is not None and not special:
        ids = model.tokenizer.encode(prompt.text, add_special_tokens=False)
    return {"tokens": ids, "count": len(ids), "max_model_len": model.info.limits.max_model_len}


def _detokenize(model: Model, body: object) -> dict[str, Any]:
    tokens = known_fields(body, frozenset({"model", "tokens"})).get("tokens")
    limits = model.info.limits
    if not isinstance(tokens, list) or not all(
        type(token) is int and 0 <= token < limits.vocab_size for token in tokens
    ):
        raise InvalidRequestError(
            f"tokens must be a list of token ids from 0 to {limits.vocab_size - 1}", param="tokens"
        )
    if len(tokens) > limits.max_model_len:
        raise InvalidRequestError(
            f"there are {len(tokens)} tokens",
            param="tokens",
            why=f"the model's context has {limits.max_model_len}",
            fix="Send them in parts",
        )
    return {"prompt": model.tokenizer.decode(tokens, skip_special_tokens=False)}
