"""A server that is killed while it answers batches, at every moment in which the disk changes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any

import pytest

from evenflow.core.errors import InvalidRequestError
from evenflow.engine.batch_file import BatchFile
from evenflow.server.batches import BatchStatus
from evenflow.server.batches.records import WINDOW_S
from support.batch_folder import BLUE, GREEN, BatchFolder, line, refuse

NAMES = ["a", "bad", "c"]
ANSWERS = {"a": "a", "bad": "invalid_request", "c": "c"}
REPLY = refuse("bad", error=InvalidRequestError("no"))


class CrashPoints:
    """Copies of a folder, one for each moment in which what is on disk has changed.

    Args:
        live: the folder.
        copies: where the copies go.
    """

    def __init__(self, live: Path, copies: Path) -> None:
        self.found: list[Path] = []
        self._live = live
        self._copies = copies
        self._seen: set[tuple[tuple[str, bytes], ...]] = set()
        # The worker changes the disk in threads, too.
        self._lock = RLock()

    def note(self) -> None:
        """Copy the folder, unless it was like this before."""
        files = [path for path in sorted(self._live.rglob("*")) if path.is_file()]
        state = tuple((str(path), path.read_bytes()) for path in files)
        if state not in self._seen:
            self._seen.add(state)
            copy = self._copies / str(len(self.found))
            shutil.copytree(self._live, copy)
            self.found.append(copy)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note the state around every change of the disk."""
        with pytest.MonkeyPatch.context() as patch:
            for kind, name in (
                (Path, "rename"),
                (Path, "replace"),
                (Path, "unlink"),
                (BatchFile, "_write"),
            ):
                patch.setattr(kind, name, self._around(getattr(kind, name)))
            yield

    def _around(self, change: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any, **options: Any) -> Any:
            with self._lock:
                self.note()
                result = change(*arguments, **options)
                self.note()
                return result

        return noted


async def crash_points(
    folder: Path, copies: Path, act: Callable[[BatchFolder], None] = lambda _: None
) -> list[Path]:
    """Let a server work to the end in a folder, and return the states it could be killed in."""
    points = CrashPoints(folder, copies)
    with points.watching():
        opened = BatchFolder(folder, REPLY, num_at_once=2)
        act(opened)
        await opened.work()
    return points.found


async def restart(folder: Path) -> BatchFolder:
    """Start a server again where one was killed, and let it finish."""
    restarted = BatchFolder(folder, REPLY)
    await restarted.work()
    assert restarted.leftovers() == {}
    return restarted


def check_all_is_answered(folder: BatchFolder) -> None:
    (batch,) = folder.batches.of_tenant(BLUE)
    assert batch.status is BatchStatus.COMPLETED
    assert (batch.num_lines, batch.num_completed, batch.num_failed) == (3, 2, 1)
    assert folder.answers(batch) == ANSWERS
    kept = {file.id for file in folder.files.of_tenant(BLUE)}
    assert kept == {batch.input_file_id, batch.output_file_id, batch.error_file_id}
    assert folder.batches.of_tenant(GREEN) == folder.files.of_tenant(GREEN) == []


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """Return a folder with a batch that nobody has worked on."""
    folder = tmp_path / "begun"
    BatchFolder(folder).create([line(name) for name in NAMES])
    return folder


async def test_every_line_is_answered_once_wherever_the_server_is_killed(
    begun: Path, tmp_path: Path
) -> None:
    points = await crash_points(begun, tmp_path / "points")
    assert len(points) > 12
    for point in points:
        already = [path.read_bytes().count(b"\n") for path in point.rglob("*.answers")]
        folder = await restart(point)
        check_all_is_answered(folder)
        if already:
            assert len(folder.asked) == len(NAMES) - already[0], "no line is answered again"


async def test_every_line_is_answered_once_when_the_server_is_killed_twice(
    begun: Path, tmp_path: Path
) -> None:
    points = await crash_points(begun, tmp_path / "points")
    for first in points[::3]:
        seconds = await crash_points(first, tmp_path / f"{first.name}-again")
        for second in seconds[::2]:
            check_all_is_answered(await restart(second))


async def test_answer_that_was_torn_is_given_again(begun: Path, tmp_path: Path) -> None:
    points = await crash_points(begun, tmp_path / "points")
    (half,) = [point for point in points if _num_answers(point) == 2][:1]
    (answers,) = half.rglob("*.answers")
    content = answers.read_bytes()
    start_of_last = content.rindex(b"\n", 0, -1) + 1
    for end in range(start_of_last, len(content), 5):
        torn = tmp_path / f"torn-{end}"
        shutil.copytree(half, torn)
        next(torn.rglob("*.answers")).write_bytes(content[:end])
        folder = await restart(torn)
        check_all_is_answered(folder)
        assert len(folder.asked) == 2


def _num_answers(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.rglob("*.answers"))


@pytest.mark.parametrize("ending", [BatchStatus.CANCELLED, BatchStatus.EXPIRED])
async def test_batch_that_was_ended_stays_so_wherever_the_server_is_killed(
    begun: Path, tmp_path: Path, ending: BatchStatus
) -> None:
    def act(folder: BatchFolder) -> None:
        (batch,) = folder.batches.open_batches()

        async def end(body: dict[str, Any]) -> None:
            if body["say"] == "bad":
                if ending is BatchStatus.CANCELLED:
                    folder.worker.cancel(batch)
                else:
                    folder.now += WINDOW_S

        folder.before_answer = end

    points = await crash_points(begun, tmp_path / "points", act)
    for point in points:
        statuses = {batch.status for batch in BatchFolder(point).batches.of_tenant(BLUE)}
        folder = BatchFolder(point, REPLY)
        if ending is BatchStatus.EXPIRED:
            folder.now += WINDOW_S
        await folder.work()
        (batch,) = folder.batches.of_tenant(BLUE)
        answers = folder.answers(batch)
        assert answers.items() <= ANSWERS.items()
        if statuses == {BatchStatus.IN_PROGRESS} and ending is BatchStatus.CANCELLED:
            assert answers == ANSWERS, "nobody knows any more that it was to be cancelled"
        else:
            assert batch.status is ending


async def test_file_is_whole_or_not_there_wherever_the_server_is_killed(tmp_path: Path) -> None:
    live = tmp_path / "live"
    points = CrashPoints(live, tmp_path / "points")
    with points.watching():
        folder = BatchFolder(live)
        kept, dropped = folder.upload("content"), folder.upload("other", GREEN)
        folder.files.delete(dropped, GREEN)
    seen = set()
    for point in points.found:
        restarted = BatchFolder(point)
        assert restarted.leftovers() == {}
        for tenant_id in (BLUE, GREEN):
            for file in restarted.files.of_tenant(tenant_id):
                content = restarted.files.content_path(file.id).read_bytes()
                assert len(content) == file.num_bytes
                seen.add((file.id, content))
    assert seen == {(kept, b"content"), (dropped, b"other")}
