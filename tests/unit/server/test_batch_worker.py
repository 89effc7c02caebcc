"""Batches from the first line to the last."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from evenflow.core.errors import (
    EngineFailedError,
    InvalidRequestError,
    QueueFullError,
    RejectedError,
)
from evenflow.server.batches import BatchStatus, worker
from evenflow.server.batches.records import WINDOW_S
from support.batch_folder import BLUE, GREEN, BatchFolder, echo, line, refuse

NAMES = [f"n{number}" for number in range(7)]
LINES = [line(name) for name in NAMES]
ALL = {name: name for name in NAMES}
FULL = QueueFullError("the queue is full", retry_after_s=9.0)
DEAD = EngineFailedError("the engine is gone")


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Make long sleeps short, and return how long they would have been."""
    waited: list[float] = []
    really_sleep = asyncio.sleep

    async def sleep(seconds: float, result: Any = None) -> Any:
        if seconds < 1:
            return await really_sleep(seconds, result)
        waited.append(seconds)
        return await really_sleep(0, result)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return waited


async def test_batch_answers_every_line_once(tmp_path: Path) -> None:
    folder = BatchFolder(tmp_path)
    batch = folder.create(LINES)
    await folder.work()
    assert folder.answers(batch) == ALL
    assert sorted(folder.asked) == [(BLUE, name) for name in NAMES]
    body = batch.as_body()
    assert body["status"] == "completed"
    assert body["request_counts"] == {"total": 7, "completed": 7, "failed": 0}
    assert (body["error_file_id"], body["errors"]) == (None, None)
    assert [body[f"{name}_at"] for name in ("in_progress", "finalizing", "completed")] == [1000] * 3
    assert [body[f"{name}_at"] for name in ("failed", "expired", "cancelled")] == [None] * 3


async def test_batch_answers_no_more_lines_at_once_than_it_may(tmp_path: Path) -> None:
    folder = BatchFolder(tmp_path, num_at_once=3)
    folder.create(LINES)
    at_once, most = 0, 0

    async def count(_: object) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.001)
        at_once -= 1

    folder.before_answer = count
    await folder.work()
    assert most == 3


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        ("nonsense", "invalid_request"),
        ("[]", "invalid_request"),
        ('{"custom_id": "x"', "invalid_request"),
        (line("x", custom_id=7), "invalid_request"),
        (line("x", url="/v1/completions"), "invalid_request"),
        (line("x", url=None), "invalid_request"),
        (line("x", method="GET"), "invalid_request"),
        (line("x", body={"stream": True}), "invalid_request"),
        ('{"body": ' + "[" * 900 + "]" * 900 + "}", "invalid_request"),
    ],
)
async def test_batch_says_what_is_wrong_with_a_line_and_answers_the_others(
    tmp_path: Path, bad: str, code: str
) -> None:
    folder = BatchFolder(tmp_path)
    batch = folder.create(["", line("good"), bad, "  ", line("fine")])
    await folder.work()
    assert (batch.num_lines, batch.num_completed, batch.num_failed) == (3, 2, 1)
    answers = folder.answers(batch)
    assert {name: answers.pop(name) for name in ("good", "fine")} == {
        "good": "good",
        "fine": "fine",
    }
    assert list(answers.values()) == [code]
    assert len(folder.asked) == 2


async def test_batch_takes_lines_with_the_ends_and_marks_of_other_systems(tmp_path: Path) -> None:
    folder = BatchFolder(tmp_path)
    content = b"\xef\xbb\xbf" + "\r\n".join([line("é"), line("\u2028")]).encode()
    batch = folder.batches.create(BLUE, folder.upload(content), "/v1/chat/completions", {})
    await folder.work()
    assert folder.answers(batch).keys() == {"é", "\u2028"}


async def test_batch_answers_a_line_that_is_no_utf8_with_an_error(tmp_path: Path) -> None:
    folder = BatchFolder(tmp_path)
    content = line("a").encode() + b"\n" + line("b").encode().replace(b'"b"', b'"\xff"') + b"\n"
    batch = folder.batches.create(BLUE, folder.upload(content), "/v1/chat/completions", {})
    await folder.work()
    assert (batch.num_completed, batch.num_failed) == (1, 1)


@pytest.mark.parametrize("error", [InvalidRequestError("no", param="n"), ValueError("a bug")])
async def test_batch_keeps_the_error_of_a_line(tmp_path: Path, error: Exception) -> None:
    folder = BatchFolder(tmp_path, refuse("n3", error=error))
    batch = folder.create(LINES)
    await folder.work()
    code = "internal_error" if isinstance(error, ValueError) else "invalid_request"
    assert folder.answers(batch) == ALL | {"n3": code}
    assert batch.status is BatchStatus.COMPLETED


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "0 requests"),
        ("\n \n", "0 requests"),
        ("{}\n" * 4, "4 requests"),
        (line("x" * 2000), "characters"),
    ],
)
async def test_batch_fails_as_a_whole_when_its_file_is_unusable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, said: str
) -> None:
    monkeypatch.setattr(worker, "MAX_LINES", 3)
    folder = BatchFolder(tmp_path)
    batch = folder.batches.create(BLUE, folder.upload(content), "/v1/chat/completions", {})
    after = folder.create(LINES[:3])
    await folder.work()
    assert batch.status is BatchStatus.FAILED
    assert (batch.output_file_id, batch.error_file_id) == (None, None)
    assert said in batch.errors[0]["message"]
    assert after.status is BatchStatus.COMPLETED


@pytest.mark.parametrize("whose", ["nobody", "green"])
async def test_batch_fails_when_its_tenant_has_no_such_file(tmp_path: Path, whose: str) -> None:
    folder = BatchFolder(tmp_path)
    file_id = folder.upload(LINES[0], GREEN)
    if whose == "nobody":
        folder.files.delete(file_id, GREEN)
    batch = folder.batches.create(BLUE, file_id, "/v1/chat/completions", {})
    await folder.work()
    assert batch.status is BatchStatus.FAILED
    assert folder.asked == []


# ---- Waiting -------------------------------------------------------------------------------------


async def test_batch_waits_while_the_server_is_full(tmp_path: Path, sleeps: list[float]) -> None:
    refusals: list[RejectedError] = [FULL] * 3
    folder = BatchFolder(
        tmp_path, lambda body: refusals.pop() if refusals else echo(body), num_at_once=1
    )
    batch = folder.create(LINES)
    await folder.work()
    assert folder.answers(batch) == ALL
    assert sleeps == [9.0] * 3
    assert [name for _, name in folder.asked] == ["n0"] * 3 + NAMES


@pytest.mark.parametrize("ending", ["cancelled", "expired"])
async def test_batch_does_not_wait_beyond_its_end(
    tmp_path: Path, sleeps: list[float], ending: str
) -> None:
    folder = BatchFolder(tmp_path, lambda _: FULL, num_at_once=1)
    batch = folder.create(LINES)

    async def end(_: object) -> None:
        if len(sleeps) == 2:
            _end(folder, batch, ending)

    folder.before_answer = end
    await folder.work()
    assert (batch.status, batch.num_completed, batch.num_failed) == (ending, 0, 0)
    assert (batch.output_file_id, batch.error_file_id) == (None, None)


def _end(folder: BatchFolder, batch: Any, ending: str) -> None:
    if ending == "cancelled":
        folder.worker.cancel(batch)
    else:
        folder.now += WINDOW_S


@pytest.mark.parametrize("ending", ["cancelled", "expired"])
async def test_batch_keeps_what_was_answered_before_it_was_ended(
    tmp_path: Path, ending: str
) -> None:
    folder = BatchFolder(tmp_path)
    batch = folder.create(LINES)

    async def end(body: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        if body["say"] == "n2":
            _end(folder, batch, ending)

    folder.before_answer = end
    await folder.work()
    assert batch.status == ending
    answers = folder.answers(batch)
    assert "n2" in answers, "lines that are being answered are finished"
    assert len(folder.asked) == len(answers) < len(NAMES)


async def test_batch_that_is_cancelled_while_it_waits_is_not_begun(tmp_path: Path) -> None:
    folder = BatchFolder(tmp_path)
    batch = folder.create(LINES)
    folder.worker.cancel(batch)
    assert batch.status is BatchStatus.CANCELLING
    await folder.work()
    assert batch.status is BatchStatus.CANCELLED
    assert folder.asked == []


async def test_batch_that_has_ended_stays_as_it_is_when_it_is_cancelled(tmp_path: Path) -> None:
    folder = BatchFolder(tmp_path)
    batch = folder.create(LINES)
    await folder.work()
    folder.worker.cancel(batch)
    assert batch.status is BatchStatus.COMPLETED


async def test_batches_are_answered_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    folder = BatchFolder(tmp_path)
    for group in range(8):  # all in the same second
        folder.create([line(f"{group}-{number}") for number in range(3)])
    await folder.work()
    groups = [int(name.partition("-")[0]) for _, name in folder.asked]
    assert groups == sorted(groups)


async def test_batch_that_comes_later_is_noticed(tmp_path: Path) -> None:
    folder = BatchFolder(tmp_path)
    over = asyncio.Event()
    running = asyncio.create_task(folder.work(over.is_set))
    await asyncio.sleep(0)
    for _ in range(2):
        batch = folder.create(LINES)
        folder.worker.notify()
        while batch.status is not BatchStatus.COMPLETED:
            await asyncio.sleep(0.001)
    over.set()
    await running
    assert len(folder.asked) == 14


async def test_batch_lets_others_run_while_it_refuses_lines(tmp_path: Path) -> None:
    folder = BatchFolder(tmp_path, num_at_once=1)
    batch = folder.create(["nonsense"] * 50)
    num_turns = 0

    def seen_running() -> bool:
        nonlocal num_turns
        num_turns += 0 < batch.num_failed < 50
        return batch.status is BatchStatus.COMPLETED

    async def watch() -> None:
        while not seen_running():
            await asyncio.sleep(0)

    await asyncio.gather(watch(), folder.work())
    assert num_turns > 10


# ---- When something breaks -----------------------------------------------------------------------


async def test_batch_waits_for_the_next_start_when_the_engine_is_gone(tmp_path: Path) -> None:
    folder = BatchFolder(tmp_path, refuse(*NAMES[3:], error=DEAD))
    batch, other = folder.create(LINES), folder.create(LINES[:3])
    await folder.work(lambda: other.status is BatchStatus.COMPLETED)
    assert (batch.status, batch.num_completed) == (BatchStatus.IN_PROGRESS, 3)

    restarted = BatchFolder(tmp_path)
    await restarted.work()
    assert restarted.answers(restarted.batches.get(batch.id, BLUE)) == ALL
    assert sorted(restarted.asked) == [(BLUE, name) for name in NAMES[3:]]


async def test_batch_goes_on_after_its_worker_was_stopped(tmp_path: Path) -> None:
    folder = BatchFolder(tmp_path)
    batch = folder.create(LINES)

    async def hang(body: dict[str, Any]) -> None:
        if body["say"] in NAMES[4:]:
            await asyncio.Event().wait()

    folder.before_answer = hang
    await folder.work(lambda: batch.num_completed == 4)
    assert batch.status is BatchStatus.IN_PROGRESS
    folder.before_answer = lambda _: asyncio.sleep(0)
    await folder.work()
    assert folder.answers(batch) == ALL
    assert len(folder.asked) == len(NAMES)


async def test_batch_that_breaks_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = BatchFolder(tmp_path)
    batch, other = folder.create(LINES), folder.create(LINES)
    really_work = folder.worker._work

    async def work(this: Any) -> None:
        if this is batch:
            raise RuntimeError("a bug")
        await really_work(this)

    monkeypatch.setattr(folder.worker, "_work", work)
    await folder.work()
    assert (batch.status, other.status) == (BatchStatus.FAILED, BatchStatus.COMPLETED)
    assert batch.errors[0]["message"] == "RuntimeError: a bug"
