"""The dashboard's page: static files, served with headers that let a browser run nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

HEADERS = {
    # Everything comes from this server, and nobody may put the page into a frame.
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "object-src 'none'"
    ),
    # A page of one release never runs with a script of another: ask each time, send if changed.
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def ui_files() -> Path:
    """Return the folder of the page's files."""
    return Path(__file__).parent / "ui"


def dashboard_router() -> APIRouter:
    """Return the routes of the page: `/ui`, `/ui/` and one for each file, read once.

    The data under `/ui/` (`state`, `events`, `blocks`) are routes of the server.
    """
    router = APIRouter(include_in_schema=False)

    @router.get("/ui")
    async def add_slash() -> Response:
        # Relative, so that a proxy may serve evenflow under any path.
        return RedirectResponse("ui/")

    for path in sorted(ui_files().iterdir()):
        name = "" if path.name == "index.html" else path.name
        router.add_api_route(f"/ui/{name}", _file_endpoint(path), methods=["GET", "HEAD"])
    return router


def _file_endpoint(path: Path) -> Callable[[Request], Awaitable[Response]]:
    """Return an endpoint that sends a file, or says that the browser has it already."""
    content = path.read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**HEADERS, "ETag": tag, "Content-Type": MEDIA_TYPES[path.suffix]}

    async def send(request: Request) -> Response:
        if tag in request.headers.get("If-None-Match", ""):
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers)

    return send
