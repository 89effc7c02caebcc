"""`/v1/files` and `/v1/batches`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse
from starlette.datastructures import UploadFile
from starlette.types import Message

from evenflow.core.errors import InvalidRequestError
from evenflow.engine.openai import CHAT, COMPLETIONS
from evenflow.server.endpoint import Endpoint, Shared
from evenflow.server.errors import BodyTimeoutError, NotFoundError
from evenflow.server.fields import known_fields
from evenflow.server.http import check_declared_size, too_large
from evenflow.server.schemas import json_body

UPLOAD_FACTOR = 64
"""How much larger than other bodies an uploaded file may be."""

MAX_METADATA = 16
_MAX_METADATA_CHARS = 512
_CHUNK_BYTES = 1 << 20
_PAGE = 20
_MAX_PAGE = 100

routes = APIRouter(tags=["batches"])


@routes.post(
    "/v1/files",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "properties": {
                            "file": {"type": "string", "format": "binary"},
                            "purpose": {"enum": ["batch"]},
                        },
                        "required": ["file", "purpose"],
                    }
                }
            },
        }
    },
)
async def upload_file(request: Request, shared: Shared) -> dict[str, Any]:
    """Keep a file of requests."""
    tenant_id = shared.door.caller(request, None).tenant_id
    files = shared.files
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise InvalidRequestError("a file must be sent as multipart/form-data", param="file")
    async with _bounded(request, shared).form(max_files=1, max_fields=8) as form:
        upload, purpose = form.get("file"), form.get("purpose")
        if not isinstance(upload, UploadFile):
            raise InvalidRequestError("file must be an uploaded file", param="file")
        if purpose != "batch":
            raise InvalidRequestError("purpose must be batch", param="purpose")
        path = files.temporary_path()
        try:
            await _copy(upload, path)
            stored = files.add(path, tenant_id, upload.filename or "", "batch")
        finally:
            path.unlink(missing_ok=True)
    return stored.as_body()


@routes.get("/v1/files")
async def list_files(request: Request, shared: Shared) -> dict[str, Any]:
    """List the tenant's files, newest first."""
    tenant_id = shared.door.caller(request, None).tenant_id
    mine = await asyncio.to_thread(shared.files.of_tenant, tenant_id)
    return _page(request, [file.as_body() for file in mine])


@routes.get("/v1/files/{file_id}")
async def retrieve_file(file_id: str, request: Request, shared: Shared) -> dict[str, Any]:
    """Describe a file."""
    tenant_id = shared.door.caller(request, None).tenant_id
    return shared.files.get(file_id, tenant_id).as_body()


@routes.delete("/v1/files/{file_id}")
async def delete_file(file_id: str, request: Request, shared: Shared) -> dict[str, Any]:
    """Remove a file."""
    shared.files.delete(file_id, shared.door.caller(request, None).tenant_id)
    return {"id": file_id, "object": "file", "deleted": True}


@routes.get("/v1/files/{file_id}/content")
async def file_content(file_id: str, request: Request, shared: Shared) -> Response:
    """Return what is in a file."""
    files = shared.files
    file = files.get(file_id, shared.door.caller(request, None).tenant_id)
    return FileResponse(files.content_path(file.id), media_type="application/jsonl")


@routes.post("/v1/batches", openapi_extra=json_body("BatchRequest"))
async def create_batch(request: Request, shared: Shared) -> dict[str, Any]:
    """Answer a file of requests when there is room."""
    caller, body, _ = await shared.receive(request)
    known = {"completion_window", "endpoint", "input_file_id", "metadata"}
    fields = known_fields(body, frozenset(known))
    if fields.get("endpoint") not in (CHAT, COMPLETIONS):
        raise InvalidRequestError(f"endpoint must be {CHAT} or {COMPLETIONS}", param="endpoint")
    if fields.get("completion_window", "24h") != "24h":
        raise InvalidRequestError("completion_window must be 24h", param="completion_window")
    file_id = fields.get("input_file_id")
    if not isinstance(file_id, str):
        raise InvalidRequestError("input_file_id must name a file", param="input_file_id")
    shared.files.get(file_id, caller.tenant_id)
    batch = shared.batches.create(
        caller.tenant_id, file_id, fields["endpoint"], _metadata(fields.get("metadata", {}))
    )
    shared.batch_worker.notify()
    return batch.as_body()


@routes.get("/v1/batches")
async def list_batches(request: Request, shared: Shared) -> dict[str, Any]:
    """List the tenant's batches, newest first."""
    tenant_id = shared.door.caller(request, None).tenant_id
    return _page(request, [batch.as_body() for batch in shared.batches.of_tenant(tenant_id)])


@routes.get("/v1/batches/{batch_id}")
async def retrieve_batch(batch_id: str, request: Request, shared: Shared) -> dict[str, Any]:
    """Tell how far a batch is."""
    tenant_id = shared.door.caller(request, None).tenant_id
    return shared.batches.get(batch_id, tenant_id).as_body()


@routes.post("/v1/batches/{batch_id}/cancel")
async def cancel_batch(batch_id: str, request: Request, shared: Shared) -> dict[str, Any]:
    """Stop a batch. What is answered by then is kept."""
    batch = shared.batches.get(batch_id, shared.door.caller(request, None).tenant_id)
    shared.batch_worker.cancel(batch)
    return batch.as_body()


def _bounded(request: Request, shared: Endpoint) -> Request:
    """Return a request whose body is refused once it is too large or too slow."""
    limits = shared.serving.config.server
    max_bytes = UPLOAD_FACTOR * limits.max_request_bytes
    check_declared_size(request, max_bytes)
    num_bytes = 0

    async def receive() -> Message:
        nonlocal num_bytes
        try:
            message = await asyncio.wait_for(request.receive(), limits.body_timeout)
        except TimeoutError:
            raise BodyTimeoutError("the upload stalled") from None
        num_bytes += len(message.get("body", b""))
        if num_bytes > max_bytes:
            raise too_large(max_bytes)
        return message

    return Request(request.scope, receive)


async def _copy(upload: UploadFile, path: Path) -> None:
    with path.open("wb") as sink:
        while chunk := await upload.read(_CHUNK_BYTES):
            await asyncio.to_thread(sink.write, chunk)


def _metadata(value: object) -> dict[str, str]:
    if isinstance(value, dict) and len(value) <= MAX_METADATA:
        texts = [text for pair in value.items() for text in pair]
        if all(isinstance(text, str) and len(text) <= _MAX_METADATA_CHARS for text in texts):
            return value
    raise InvalidRequestError(
        f"metadata must be at most {MAX_METADATA} pairs of strings of at most "
        f"{_MAX_METADATA_CHARS} characters",
        param="metadata",
    )


def _page(request: Request, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the items after the one named by the query's `after`, as many as its `limit` says."""
    limit_text = request.query_params.get("limit", str(_PAGE))
    if (
        not limit_text.isascii()
        or not limit_text.isdigit()
        or not 1 <= int(limit_text[:9]) <= _MAX_PAGE
    ):
        raise InvalidRequestError(f"limit must be a number from 1 to {_MAX_PAGE}", param="limit")
    after = request.query_params.get("after")
    start = 0
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise NotFoundError(f"there is nothing named {after[:200]!r}", param="after")
        start = ids.index(after) + 1
    page = list(items[start : start + int(limit_text)])
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": start + len(page) < len(items),
    }
