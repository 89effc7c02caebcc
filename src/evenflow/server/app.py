"""Puts the endpoints together, and turns every error into an answer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from evenflow.core.errors import EvenflowError, InvalidRequestError
from evenflow.server import routes
from evenflow.server.auth import Door
from evenflow.server.batches import BatchStore, BatchWorker, FileStore, lock_folder
from evenflow.server.connections import LingeringClose
from evenflow.server.dashboard import dashboard_router
from evenflow.server.endpoint import Endpoint
from evenflow.server.errors import (
    MethodNotAllowedError,
    NotFoundError,
    error_response,
    status_code,
)
from evenflow.server.generation import answer_for_batch
from evenflow.server.http import CLIENT_CLOSED_REQUEST
from evenflow.server.messages import error_body as messages_error_body
from evenflow.server.responses import ResponseStore
from evenflow.server.serving import Serving

logger = logging.getLogger(__name__)


def create_app(serving: Serving) -> FastAPI:
    """Return the application.

    Raises:
        ConfigError: strangers could use the server, and nobody allowed that.
    """
    config = serving.config.server
    door = Door(config, serving.keys, serving.directory)
    app = FastAPI(
        title="evenflow",
        version=serving.version,
        description="Serves large language models the way an operating system runs processes.",
        redoc_url=None,
    )
    data_dir = config.data_dir or serving.config.paths.cache / "server" / str(config.port)
    app.state.data_lock = lock_folder(data_dir)
    files = FileStore(data_dir / "files", serving.unix_time)
    batches = BatchStore(data_dir / "batches", serving.unix_time)
    worker = BatchWorker(
        files,
        batches,
        partial(answer_for_batch, serving),
        status_code,
        num_at_once=serving.config.scheduler.max_num_seqs,
        max_line_chars=config.max_request_bytes,
    )
    serving.background.add(worker.run)
    responses = ResponseStore(config.max_stored_response_bytes)
    app.state.endpoint = Endpoint(serving, door, files, batches, worker, responses)
    for family in routes.ALL:
        app.include_router(family)
    app.include_router(dashboard_router())
    app.add_exception_handler(EvenflowError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(ClientDisconnect, _answer_nobody)
    app.add_exception_handler(Exception, _answer_bug)
    app.add_middleware(HttpMeter, on_answer=serving.metrics.on_http)
    app.add_middleware(LingeringClose)
    return app


class HttpMeter:
    """Counts answers by route and status."""

    def __init__(self, app: ASGIApp, on_answer: Callable[[str, int], None]) -> None:
        self._app = app
        self._on_answer = on_answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and note how it was answered."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def note(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = scope.get("route")
                # Paths that nobody serves are not labels: a scanner would make thousands.
                self._on_answer(route.path if route else "unknown", message["status"])
            await send(message)

        await self._app(scope, receive, note)


async def _answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, EvenflowError)
    # No more than its code: what an error says may quote the request.
    logger.debug("%s %r is refused: %s", request.method, request.url.path, error.code)
    return _in_form_of(request, error)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path[:200]}"
    match error.status_code:
        case 404:
            refusal: InvalidRequestError = NotFoundError(f"{where} is not served")
        case 405:
            refusal = MethodNotAllowedError(f"{where} is not served")
        case _:
            refusal = InvalidRequestError("the request cannot be read", why=str(error.detail))
    answer = _in_form_of(request, refusal)
    answer.headers.update(error.headers or {})
    return answer


async def _answer_nobody(request: Request, error: Exception) -> Response:  # noqa: ARG001
    """The client went away in the middle of its body."""
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def _answer_bug(request: Request, error: Exception) -> Response:
    logger.error("%s %r failed", request.method, request.url.path, exc_info=error)
    failure = EvenflowError("the server failed on this request", fix="Report this bug")
    return _in_form_of(request, failure)


def _in_form_of(request: Request, error: EvenflowError) -> Response:
    """Return an error as the API that was asked writes it."""
    is_anthropic = request.url.path.startswith("/v1/messages")
    return error_response(error, messages_error_body(error) if is_anthropic else None)
