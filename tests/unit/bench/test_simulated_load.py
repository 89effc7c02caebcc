from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from evenflow.bench.config import BenchConfig
from evenflow.bench.simulated.load import DrawnLoad, TraceLoad, open_load
from evenflow.core.errors import InvalidRequestError
from evenflow.workloads.request import WorkloadRequest


def a_trace(path: Path, *times_ms: float | None, **fields: object) -> Path:
    rows = [{"input_length": 10 + i, "output_length": 5, **fields} for i in range(len(times_ms))]
    for row, time_ms in zip(rows, times_ms, strict=True):
        if time_ms is not None:
            row["timestamp"] = time_ms
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config(path: Path | None = None, **values: object) -> BenchConfig:
    source = {"dataset_name": "trace", "dataset_path": path} if path else {}
    return BenchConfig(**{"num_prompts": 20, **source, **values})  # type: ignore[arg-type]


def times(requests: object) -> list[float]:
    assert isinstance(requests, list)
    return [request.arrival_s for request in requests]


def test_trace_keeps_its_times_from_zero_when_no_rate_is_wanted(tmp_path: Path) -> None:
    load = TraceLoad(a_trace(tmp_path / "t.jsonl", 5000, 6000, 9000))
    assert load.num_requests == 3
    assert load.recorded_rate == pytest.approx(0.75)
    assert times(list(load.at_rate(math.inf))) == [0.0, 1.0, 4.0]


def test_trace_is_stretched_to_a_rate(tmp_path: Path) -> None:
    load = TraceLoad(a_trace(tmp_path / "t.jsonl", 5000, 6000, 9000))
    assert times(list(load.at_rate(3.0))) == pytest.approx([0.0, 0.25, 1.0])


def test_trace_can_be_read_again_and_is_cut_at_the_limit(tmp_path: Path) -> None:
    load = TraceLoad(a_trace(tmp_path / "t.jsonl", 0, 1, 2, 3), limit=2)
    assert load.num_requests == 2
    assert list(load.at_rate(math.inf)) == list(load.at_rate(math.inf))


def test_trace_reports_a_bad_row_before_anything_is_simulated(tmp_path: Path) -> None:
    path = a_trace(tmp_path / "t.jsonl", 0, 1)
    path.write_text(path.read_text() + '{"timestamp": 2, "input_length": "many"}\n')
    with pytest.raises(InvalidRequestError, match="line 3"):
        TraceLoad(path)


def test_trace_is_put_in_order(tmp_path: Path) -> None:
    load = TraceLoad(a_trace(tmp_path / "t.jsonl", 2000, 1000, 3000))
    assert times(list(load.at_rate(math.inf))) == [0.0, 1.0, 2.0]
    assert load.recorded_rate == pytest.approx(1.5)


def test_trace_without_requests_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="no requests"):
        TraceLoad(a_trace(tmp_path / "t.jsonl"))


def test_drawn_requests_are_the_same_at_every_rate() -> None:
    load = DrawnLoad(config(random_range_ratio=0.5), "random")
    slow, fast = load.at_rate(1.0), load.at_rate(10.0)
    assert [r.num_prompt_tokens for r in slow] == [r.num_prompt_tokens for r in fast]
    assert times(slow) == pytest.approx([10 * t for t in times(fast)])


def test_turns_come_no_earlier_than_their_session() -> None:
    load = DrawnLoad(config(num_turns=4), "random")
    requests = load.at_rate(2.0)
    starts: dict[str | None, WorkloadRequest] = {}
    for request in requests:
        first = starts.setdefault(request.session, request)
        assert request.continues == (request is not first)
        assert request.arrival_s >= first.arrival_s
    assert times(requests) == sorted(times(requests))
    assert len(starts) == 5


@pytest.mark.parametrize(
    ("timestamp", "values", "is_streamed"),
    [
        (0.0, {}, True),
        (None, {"request_rate": 2.0}, False),
        (0.0, {"tenants": {"a": 1.0}}, False),
        (0.0, {"self_timed": False, "request_rate": 2.0}, False),
    ],
)
def test_trace_is_streamed_unless_something_is_drawn(
    tmp_path: Path, timestamp: float | None, values: dict[str, object], is_streamed: bool
) -> None:
    path = a_trace(tmp_path / "t.jsonl", timestamp, timestamp)
    assert isinstance(open_load(config(path, **values), "t.jsonl"), TraceLoad) == is_streamed


def test_tenants_are_drawn_for_a_trace(tmp_path: Path) -> None:
    path = a_trace(tmp_path / "t.jsonl", *range(10))
    load = open_load(config(path, tenants={"a": 4.0, "b": 1.0}), "t.jsonl")
    tenants = [request.tenant for request in load.at_rate(math.inf)]
    assert (tenants.count("a"), tenants.count("b")) == (8, 2)
