"""Answers batches, one after the other, a bounded number of lines at a time."""

from __future__ import annotations

import asyncio
import hashlib
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
from evenflow.server.http import decode_json

logger = logging.getLogger(__name__)

Answer = Callable[[TenantId, str, object], Awaitable[dict[str, Any]]]
"""Called with tenant, URL and body; returns the response body or raises an EvenflowError."""

MAX_LINES = 50_000
"""Most requests in a batch, as in OpenAI's API."""


class BatchWorker:
    """Works through the open batches, oldest first.

    Args:
        files: where input and output are.
        batches: what is to be done.
        answer: answers one request.
        status_code: the HTTP status of an error.
        num_at_once: lines that are answered at the same time.
        max_line_chars: no line may be longer; as for other bodies, it is held in memory.
    """

    def __init__(
        self,
        files: FileStore,
        batches: BatchStore,
        answer: Answer,
        status_code: Callable[[EvenflowError], int],
        *,
        num_at_once: int,
        max_line_chars: int,
    ) -> None:
        self._files = files
        self._batches = batches
        self._answer = answer
        self._status_code = status_code
        self._num_at_once = num_at_once
        self._max_line_chars = max_line_chars
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
                await self._try(batch)
            await self._new.wait()

    async def _try(self, batch: Batch) -> None:
        """Work on a batch. Whatever goes wrong, the other batches must go on."""
        try:
            await self._work(batch)
        except* OSError:
            # A full disk, say. What is written stays good, so the next start goes on from there.
            logger.exception("batch %s is interrupted", batch.id)
        except* Exception as bugs:
            logger.exception("batch %s failed", batch.id)
            bug = bugs.exceptions[0]
            self._fail(batch, "batch_failed", f"{type(bug).__name__}: {bug}")

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
        if lines.longest_line > self._max_line_chars:
            why = f"a line has {lines.longest_line} characters; {self._max_line_chars} are accepted"
            self._fail(batch, "invalid_input_file", why)
            return
        self._count(batch, lines)
        with lines:
            await self._answer_lines(batch, lines)
        self._count(batch, lines)
        if self._goes_on(batch) and lines.num_missing:
            return  # the engine is gone; a restarted server answers the rest
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
                if not self._goes_on(batch):
                    return
                try:
                    await self._answer_line(batch, lines, line)
                except EngineFailedError:
                    return
                self._count(batch, lines)
                # A line that is refused at once has not let anybody else run.
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as group:
            for _ in range(self._num_at_once):
                group.create_task(answer_some())

    async def _answer_line(self, batch: Batch, lines: BatchFile, line: BatchLine) -> None:
        try:
            # A line keeps to the rules for bodies that come by HTTP.
            decode_json(line.text.encode(errors="surrogateescape"))
            url, body = line.parse()
            if url != batch.endpoint:
                raise InvalidRequestError(
                    f"the line asks for {url!r}",
                    param="url",
                    why=f"the batch is for {batch.endpoint}",
                )
            answer = await self._answer_when_possible(batch, url, body)
        except EngineFailedError:
            raise
        except EvenflowError as error:
            lines.fail(line, self._status_code(error), error)
        except Exception:
            logger.exception("line %d of batch %s failed", line.number, batch.id)
            bug = EvenflowError("the server failed on this request", fix="Report this bug")
            lines.fail(line, self._status_code(bug), bug)
        else:
            if answer is not None:
                lines.answer(line, answer)

    async def _answer_when_possible(
        self, batch: Batch, url: str, body: object
    ) -> dict[str, Any] | None:
        """Answer a request, waiting while the server is full: a batch has time.

        Returns:
            The response body; None if the batch was cancelled or ran out of time meanwhile.
        """
        while self._goes_on(batch):
            try:
                return await self._answer(batch.tenant_id, url, body)
            except RejectedError as refusal:
                await asyncio.sleep(refusal.retry_after_s)
        return None

    def _goes_on(self, batch: Batch) -> bool:
        return batch.status is BatchStatus.IN_PROGRESS and not self._batches.is_expired(batch)

    def _count(self, batch: Batch, lines: BatchFile) -> None:
        """Note how far a batch is. It is not saved: the answers themselves say it after a crash."""
        batch.num_lines = lines.num_lines
        batch.num_failed = lines.num_failed
        batch.num_completed = lines.num_done - lines.num_failed

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
        # Always the same id, so that an end that is repeated after a crash replaces the first one.
        file_id = f"file-{hashlib.sha256(filename.encode()).hexdigest()[:24]}"
        stored = self._files.add(path, batch.tenant_id, filename, "batch_output", file_id=file_id)
        return stored.id

    def _fail(self, batch: Batch, code: str, message: str) -> None:
        batch.errors = [{"code": code, "message": message, "param": "input_file_id", "line": None}]
        self._batches.move(batch, BatchStatus.FAILED)
        self._batches.answers_path(batch).unlink(missing_ok=True)
