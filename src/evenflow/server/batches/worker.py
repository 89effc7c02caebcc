"""Answers batches, one after the other, a bounded number of lines at a time."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from evenflow.core.errors import (
    EngineFailedError,
    EvenflowError,
    InvalidRequestError,
    RejectedError,
)
from evenflow.core.ids import TenantId
from evenflow.engine.batch_file import BatchFile, BatchLine
from evenflow.server.batches.files import FileStore
from evenflow.server.batches.records import Batch, BatchStatus, BatchStore

logger = logging.getLogger(__name__)

Answer = Callable[[TenantId, str, object], Awaitable[dict[str, Any]]]
"""Called with tenant, URL and body; returns the response body or raises an EvenflowError."""

MAX_LINES = 50_000
"""Most requests in a batch, as in OpenAI's API."""

_SAVE_EVERY = 16


class BatchWorker:
    """Works through the open batches, oldest first.

    Args:
        files: where input and output are.
        batches: what is to be done.
        answer: answers one request.
        status_code: the HTTP status of an error.
        num_at_once: lines that are answered at the same time.
    """

    def __init__(
        self,
        files: FileStore,
        batches: BatchStore,
        answer: Answer,
        status_code: Callable[[EvenflowError], int],
        *,
        num_at_once: int,
    ) -> None:
        self._files = files
        self._batches = batches
        self._answer = answer
        self._status_code = status_code
        self._num_at_once = num_at_once
        self._new = asyncio.Event()

    def notify(self) -> None:
        """Say that there is a new batch."""
        self._new.set()

    def cancel(self, batch: Batch) -> None:
        """Stop a batch; lines that are being answered are finished first."""
        if batch.status is BatchStatus.IN_PROGRESS:
            self._batches.move(batch, BatchStatus.CANCELLING)

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            self._new.clear()
            for batch in self._batches.open_batches():
                try:
                    await self._work(batch)
                except (OSError, ValueError) as error:
                    logger.exception("batch %s failed", batch.id)
                    self._fail(batch, "batch_failed", str(error))
            await self._new.wait()

    async def _work(self, batch: Batch) -> None:
        try:
            source = self._files.get(batch.input_file_id, batch.tenant_id)
            lines = await asyncio.to_thread(
                BatchFile, self._files.content_path(source.id), self._batches.answers_path(batch)
            )
        except InvalidRequestError as error:
            self._fail(batch, error.code, str(error))
            return
        if not 0 < lines.num_lines <= MAX_LINES:
            why = f"it has {lines.num_lines} requests; from 1 to {MAX_LINES} are accepted"
            self._fail(batch, "invalid_input_file", why)
            return
        self._count(batch, lines)
        with lines:
            await self._answer_lines(batch, lines)
        self._count(batch, lines)
        await asyncio.to_thread(self._finish, batch, lines)
        logger.info(
            "batch %s %s: %d answered, %d failed",
            batch.id,
            batch.status,
            batch.num_completed,
            batch.num_failed,
        )

    async def _answer_lines(self, batch: Batch, lines: BatchFile) -> None:
        """Answer lines until there are no more, or the batch is cancelled or out of time."""
        missing = lines.missing()

        async def answer_some() -> None:
            for line in missing:
                if batch.status is not BatchStatus.IN_PROGRESS or self._batches.is_expired(batch):
                    return
                await self._answer_line(batch, lines, line)
                if lines.num_done % _SAVE_EVERY == 0:
                    self._count(batch, lines)

        async with asyncio.TaskGroup() as group:
            for _ in range(self._num_at_once):
                group.create_task(answer_some())

    async def _answer_line(self, batch: Batch, lines: BatchFile, line: BatchLine) -> None:
        try:
            url, body = line.parse()
            if url != batch.endpoint:
                raise InvalidRequestError(
                    f"the line asks for {url!r}",
                    param="url",
                    why=f"the batch is for {batch.endpoint}",
                )
            lines.answer(line, await self._answer_when_possible(batch, url, body))
        except EngineFailedError:
            raise asyncio.CancelledError from None  # the server ends; the line stays unanswered
        except EvenflowError as error:
            lines.fail(line, self._status_code(error), error)

    async def _answer_when_possible(self, batch: Batch, url: str, body: object) -> dict[str, Any]:
        """Answer a request, waiting while the server is full: a batch has time."""
        while True:
            try:
                return await self._answer(batch.tenant_id, url, body)
            except RejectedError as refusal:
                await asyncio.sleep(refusal.retry_after_s)

    def _count(self, batch: Batch, lines: BatchFile) -> None:
        batch.num_lines = lines.num_lines
        batch.num_failed = lines.num_failed
        batch.num_completed = lines.num_done - lines.num_failed
        self._batches.save(batch)

    def _finish(self, batch: Batch, lines: BatchFile) -> None:
        """Hand out what was answered, and end the batch."""
        if batch.status is BatchStatus.CANCELLING:
            ending = BatchStatus.CANCELLED
        elif lines.num_missing:
            ending = BatchStatus.EXPIRED
        else:
            ending = BatchStatus.COMPLETED
            self._batches.move(batch, BatchStatus.FINALIZING)
        answers = self._batches.answers_path(batch)
        batch.output_file_id = self._hand_out(batch, answers, "output", are_errors=False)
        batch.error_file_id = self._hand_out(batch, answers, "error", are_errors=True)
        self._batches.move(batch, ending)
        answers.unlink()

    def _hand_out(self, batch: Batch, answers: Path, name: str, *, are_errors: bool) -> str | None:
        """Make a file of the good or of the bad answers; return its id, None if there are none."""
        path = self._files.temporary_path()
        with answers.open("rb") as lines, path.open("wb") as sink:
            sink.writelines(
                line for line in lines if (json.loads(line)["error"] is not None) == are_errors
            )
        if not path.stat().st_size:
            path.unlink()
            return None
        filename = f"{batch.id}_{name}.jsonl"
        return self._files.add(path, batch.tenant_id, filename, "batch_output").id

    def _fail(self, batch: Batch, code: str, message: str) -> None:
        batch.errors = [{"code": code, "message": message, "param": "input_file_id", "line": None}]
        self._batches.move(batch, BatchStatus.FAILED)
