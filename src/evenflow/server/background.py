"""What a server does beside answering: jobs that run from its start to its end.

Knows: the jobs, and how to stop them.
Does not know: requests, endpoints.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from threading import Thread
from typing import Any, TypeVar

from evenflow.core.clock import Clock
from evenflow.server.books import Books
from evenflow.server.metrics import ServerMetrics

logger = logging.getLogger(__name__)

_SUMMARY_S = 10.0
_LAG_PROBE_S = 0.1

T = TypeVar("T")

Job = Callable[[], Coroutine[Any, Any, None]]


class Background:
    """Jobs that run from `start` to `stop`; one that breaks is logged and hurts no other."""

    def __init__(self) -> None:
        self._jobs: list[Job] = []
        self._tasks: list[asyncio.Task[None]] = []

    def add(self, job: Job) -> None:
        """Have a job run from `start` on."""
        self._jobs.append(job)

    def start(self) -> None:
        """Begin all jobs."""
        for job in self._jobs:
            task = asyncio.create_task(job())
            task.add_done_callback(_log_failure)
            self._tasks.append(task)

    async def stop(self) -> None:
        """End all jobs, and return when they have."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def watch_loop(metrics: ServerMetrics) -> None:
    """Measure for ever how late the event loop runs what is due."""
    loop = asyncio.get_running_loop()
    while True:
        due_s = loop.time() + _LAG_PROBE_S
        await asyncio.sleep(_LAG_PROBE_S)
        metrics.on_loop_lag(max(0.0, loop.time() - due_s))


async def log_summary(metrics: ServerMetrics, books: Books, clock: Clock) -> None:
    """Log for ever, while there is something to tell, what the server does."""
    while True:
        await asyncio.sleep(_SUMMARY_S)
        snapshot = metrics.snapshot
        if snapshot is None or not (snapshot.steps or len(books)):
            continue
        now_s = clock.now_s()
        logger.info(
            "%d running, %d waiting, %.0f prompt and %.0f output tokens/s, KV %.0f %% used",
            snapshot.num_running,
            snapshot.num_waiting,
            sum(metrics.prompt_rate.per_second(now_s).values()),
            sum(metrics.generation_rate.per_second(now_s).values()),
            100 * snapshot.kv.num_used / snapshot.kv.num_blocks,
        )


async def in_daemon_thread(work: Callable[[], T]) -> T:
    """Return what `work` returns. The end of the process does not wait for it.

    It may be fetching a model, and who interrupts that wants it to end.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001  # it is raised where it is awaited
            outcome.set_exception(error)

    Thread(target=run, name=work.__name__, daemon=True).start()
    return await asyncio.wrap_future(outcome)


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (bug := task.exception()) is not None:
        logger.error("a background job ended", exc_info=bug)
