"""What of a request is recorded, where rows go, and what happens when they cannot."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from evenflow.core.errors import ConfigError
from evenflow.core.ids import TenantId
from evenflow.core.pooling import PoolingParams
from evenflow.engine.outputs import Delta, RequestMetrics
from evenflow.engine.process.messages import AddRequest
from evenflow.server.recording import RowFile, RowQueue, TrafficRecorder
from evenflow.workloads.traces import read_trace

BLOCK_TOKENS = 512
PROMPT = [90_000 + number for number in range(2 * BLOCK_TOKENS + 10)]


class Recording:
    """A recorder that began at 100 s, and the rows it wrote."""

    def __init__(self, **settings: Any) -> None:
        self.rows: list[dict[str, Any]] = []
        self.is_wanted = True
        self.recorder = TrafficRecorder(self._write, 100.0, **settings)
        self._num_requests = 0

    def _write(self, row: bytes) -> bool:
        self.rows.append(json.loads(row))
        return self.is_wanted

    def open(self, prompt: list[int], at_s: float = 100.0, **fields: Any) -> str:
        self._num_requests += 1
        name = f"r{self._num_requests}"
        self.recorder.on_opened(
            AddRequest(request_id=name, prompt_token_ids=prompt, **fields), at_s
        )
        return name

    def finish(
        self, name: str, num_tokens: int = 3, at_s: float = 101.0, index: int = 0, why: str = "stop"
    ) -> None:
        metrics = RequestMetrics(100.0, None, at_s, num_tokens, 0, 0)
        delta = Delta(name, index, None, "", finish_reason=why, metrics=metrics)
        self.recorder.on_finished(delta, at_s)

    def record(self, prompt: list[int], **fields: Any) -> dict[str, Any]:
        """Return the row of a request."""
        self.finish(self.open(prompt, **fields))
        return self.rows[-1]


def test_recorder_tells_time_lengths_tenant_and_priority() -> None:
    recording = Recording()
    row = recording.record([1, 2, 3], at_s=100.25, tenant_id=TenantId("blue"), priority=-5)
    assert row.pop("hash_ids")
    assert row == {
        "timestamp": 250,
        "input_length": 3,
        "output_length": 3,
        "tenant": "blue",
        "priority": -5,
    }


def test_recorder_gives_prompts_the_same_ids_as_far_as_they_are_equal() -> None:
    recording = Recording()
    ids = recording.record(PROMPT)["hash_ids"]
    assert len(set(ids)) == 3
    assert recording.record(PROMPT)["hash_ids"] == ids
    assert recording.record(PROMPT[:-1])["hash_ids"][:2] == ids[:2]
    assert recording.record(PROMPT[:-1])["hash_ids"][2] != ids[2]
    other_start = recording.record([5, *PROMPT[1:]])["hash_ids"]
    assert not set(other_start) & set(ids), "an id stands for all of the text before"
    repeated = recording.record(PROMPT[:BLOCK_TOKENS] * 2)["hash_ids"]
    assert repeated[0] == ids[0] != repeated[1]


def test_recorder_hashes_under_a_key_of_its_own() -> None:
    first, second = (Recording().record(PROMPT, session_id="s") for _ in range(2))
    assert not set(first["hash_ids"]) & set(second["hash_ids"])
    assert first["session"] != second["session"]


def test_recorder_keeps_prompts_of_different_salts_apart() -> None:
    recording = Recording()
    plain, salted = recording.record(PROMPT), recording.record(PROMPT, cache_salt="x")
    assert not set(plain["hash_ids"]) & set(salted["hash_ids"])


def test_recorder_tells_no_text_and_no_token_ids_unless_asked() -> None:
    silent, asked = (
        Recording(with_prompts=with_prompts).record(PROMPT, session_id="my talk")
        for with_prompts in (False, True)
    )
    written = json.dumps(silent)
    assert "prompt" not in silent
    assert "my talk" not in written
    assert "90000," not in written
    assert asked["prompt"] == PROMPT


def test_recorder_counts_turns_of_a_session_and_the_pauses_between() -> None:
    recording = Recording()
    for start_s in (100.0, 103.5):
        name = recording.open(PROMPT, start_s, session_id="s")
        recording.finish(name, at_s=start_s + 1)
    elsewhere = recording.record(PROMPT, tenant_id=TenantId("b"), session_id="s")
    first, second = recording.rows[:2]
    assert first["session"] == second["session"] != elsewhere["session"]
    assert "turn" not in first
    assert (second["turn"], second["think_time_s"]) == (1, 2.5)


def test_recorder_writes_a_row_per_completion_and_counts_one_turn() -> None:
    recording = Recording()
    name = recording.open(PROMPT, session_id="s")
    recording.finish(name, 4, index=1)
    recording.finish(name, 5, index=0)
    assert [row["output_length"] for row in recording.rows] == [4, 5]
    assert ["session" in row for row in recording.rows] == [False, True]
    recording.record(PROMPT, session_id="s")
    assert recording.rows[-1]["turn"] == 1


@pytest.mark.parametrize("why", ["abort", "error", "timeout"])
def test_recorder_keeps_requests_that_ended_early_if_they_had_output(why: str) -> None:
    recording = Recording()
    recording.finish(recording.open(PROMPT), 0, why=why)
    recording.finish(recording.open(PROMPT), 2, why=why)
    assert [row["output_length"] for row in recording.rows] == [2]


def test_recorder_leaves_out_embeddings_and_what_it_did_not_see_begin() -> None:
    recording = Recording()
    recording.finish(recording.open(PROMPT, pooling=PoolingParams()))
    recording.finish("from before")
    gone = recording.open(PROMPT)
    recording.recorder.on_closed(gone)
    recording.finish(gone)
    assert recording.rows == []


def test_recorder_stops_when_no_more_rows_are_wanted() -> None:
    recording = Recording()
    open_one = recording.open(PROMPT)
    recording.is_wanted = False
    recording.record(PROMPT)
    recording.finish(open_one)
    recording.finish(recording.open(PROMPT))
    assert len(recording.rows) == 1


@pytest.mark.parametrize("with_prompts", [False, True])
def test_row_file_reads_back_as_a_trace(tmp_path: Path, with_prompts: bool) -> None:
    rows = RowFile(tmp_path / "t.jsonl")
    recorder = TrafficRecorder(rows.write, 0.0, with_prompts=with_prompts)
    metrics = RequestMetrics(0.0, None, 9.0, 7, 0, 0)
    commands = [
        AddRequest(request_id=name, prompt_token_ids=PROMPT, session_id="s", priority=2)
        for name in ("a", "b")
    ]
    for arrival_s, command in enumerate(commands, start=1):
        recorder.on_opened(command, float(arrival_s))
    for name in ("b", "a"):
        delta = Delta(name, 0, None, "", finish_reason="stop", metrics=metrics)
        recorder.on_finished(delta, 9.0)
    rows.close()
    [first, second], is_timed = read_trace(rows.path)
    assert is_timed
    assert (first.arrival_s, second.arrival_s) == (1.0, 2.0)
    assert (first.num_prompt_tokens, first.num_output_tokens) == (len(PROMPT), 7)
    assert (first.tenant, first.priority) == ("default", 2)
    assert first.segments == second.segments != ()
    assert first.prompt == (tuple(PROMPT) if with_prompts else None)


def test_row_file_is_its_users_alone_and_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("mine", encoding="utf-8")
    files = [RowFile(path) for _ in range(2)]
    assert [file.path.name for file in files] == ["t-1.jsonl", "t-2.jsonl"]
    assert files[0].path.stat().st_mode & 0o777 == 0o600
    assert path.read_text(encoding="utf-8") == "mine"
    for file in files:
        file.close()
    assert list(tmp_path.iterdir()) == [path], "files without rows are not left behind"


@pytest.mark.parametrize("name", ["t.jsonl.gz", "t.csv", "none/t.jsonl"])
def test_row_file_is_refused_when_it_could_not_be_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be recorded"):
        RowFile(tmp_path / name)


def test_row_file_ends_with_a_whole_row_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows = RowFile(tmp_path / "t.jsonl")
    recorder = TrafficRecorder(rows.write, 0.0)
    metrics = RequestMetrics(0.0, None, 1.0, 1, 0, 0)
    write, room = os.write, 150

    def write_while_there_is_room(descriptor: int, data: bytes) -> int:
        nonlocal room
        if not room:
            raise OSError(28, "No space left on device")
        num_written = write(descriptor, data[: min(room, 40)])
        room -= num_written
        return num_written

    monkeypatch.setattr(os, "write", write_while_there_is_room)
    with caplog.at_level(logging.ERROR):
        for name in "abcde":
            recorder.on_opened(AddRequest(request_id=name, prompt_token_ids=[1]), 0.5)
            delta = Delta(name, 0, None, "", finish_reason="stop", metrics=metrics)
            recorder.on_finished(delta, 1.0)
    rows.close()
    assert [record.message for record in caplog.records] == [
        f"traffic is no longer recorded to {rows.path}: [Errno 28] No space left on device"
    ]
    assert len(read_trace(rows.path)[0]) == 1


async def test_row_queue_gives_what_came_until_too_much_is_unread() -> None:
    queue = RowQueue(max_rows=2)
    await queue.wait(0.0)
    assert queue.take() == b""
    assert queue.write(b"1\n")
    await queue.wait(60.0)
    assert queue.take() == b"1\n"
    assert [queue.write(row) for row in (b"2\n", b"3\n", b"4\n", b"5\n")] == [1, 1, 0, 0]
    assert queue.is_overrun
    assert queue.take() == b"2\n3\n"
