"""Runs the server: from an open port to the last answer after SIGTERM."""

from __future__ import annotations

import asyncio
import gc
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import uvicorn
import uvloop

from evenflow.config import EvenflowConfig
from evenflow.models.progress import Progress
from evenflow.server.app import create_app
from evenflow.server.connections import BACKLOG, GuardedProtocol, listen
from evenflow.server.serving import Serving

_FLUSH_S = 2
"""Seconds that open connections get to take their last bytes."""

_ACCEPTS_AT_ONCE = 8
"""Connections that are accepted in one turn of the event loop, which takes one from each listening
socket. With a single socket, newcomers to a busy server would wait for seconds."""


def run_server(
    config: EvenflowConfig,
    *,
    on_ready: Callable[[str, Serving], None],
    progress: Progress | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then finish what runs; a second signal stops at once.

    Args:
        config: the settings.
        on_ready: called with the server's URL once requests are taken.
        progress: told how far fetching and preparing the model are.

    Raises:
        EvenflowError: the server cannot start, or its engine died.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config, on_ready, progress))


async def _serve(
    config: EvenflowConfig,
    on_ready: Callable[[str, Serving], None],
    progress: Progress | None,
) -> None:
    settings = config.server
    listener = listen(settings.host, settings.port)
    serving = Serving(config)
    app = create_app(serving)
    _allow_many_files(settings.max_connections)
    protocol: Any = partial(
        GuardedProtocol,
        max_connections=settings.max_connections,
        head_timeout_s=settings.body_timeout,
    )
    web = _WebServer(
        uvicorn.Config(
            app,
            http=protocol,
            ws="none",
            log_config=None,
            log_level="error",
            access_log=False,
            lifespan="off",
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=_FLUSH_S,
            backlog=BACKLOG,
        )
    )
    with _signals() as stop:
        listeners = [listener, *(listener.dup() for _ in range(_ACCEPTS_AT_ONCE - 1))]
        web_task = asyncio.create_task(web.serve(sockets=listeners))
        try:
            ready = partial(on_ready, _url(listener, settings.host), serving)
            await _until_stopped(serving, stop, ready, progress)
        finally:
            serving.stopping.set()
            web.should_exit = True
            await serving.close()
            await web_task
            for own in listeners:
                own.close()
    if serving.engine.failure is not None:
        raise serving.engine.failure


async def _until_stopped(
    serving: Serving,
    stop: asyncio.Event,
    on_ready: Callable[[], None],
    progress: Progress | None,
) -> None:
    """Load the model, serve until a signal or the engine's end, and let what runs finish."""
    starting = asyncio.create_task(serving.start(progress))
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if stopped.done():
        starting.cancel()
        return
    await starting
    # What is there now stays: the collector need not look at it again while requests wait.
    gc.collect()
    gc.freeze()
    on_ready()
    failed = asyncio.create_task(serving.failed.wait())
    await asyncio.wait({stopped, failed}, return_when=asyncio.FIRST_COMPLETED)
    stop.clear()
    ending = asyncio.create_task(serving.shut_down(serving.config.server.shutdown_timeout))
    impatient = asyncio.create_task(stop.wait())
    await asyncio.wait({ending, impatient}, return_when=asyncio.FIRST_COMPLETED)
    ending.cancel()


class _WebServer(uvicorn.Server):
    """uvicorn without its own signal handlers: what a signal means is decided above."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


@contextmanager
def _signals() -> Iterator[asyncio.Event]:
    """Set an event at SIGTERM and SIGINT."""
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, event.set)
    try:
        yield event
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _url(listener: socket.socket, host: str) -> str:
    port = listener.getsockname()[1]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _allow_many_files(num_connections: int) -> None:
    """Raise the soft limit of open files so that every allowed connection can be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * num_connections + 256  # those beyond the limit are open until they are refused
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
