from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from evenflow.core.errors import InvalidRequestError
from evenflow.workloads.request import Segment, WorkloadRequest
from evenflow.workloads.traces import read_trace, write_trace


@pytest.mark.parametrize("name", ["trace.jsonl", "trace.jsonl.gz"])
def test_trace_reads_back_what_was_written(tmp_path: Path, name: str) -> None:
    message = {"role": "user", "content": "naïve"}
    requests = [
        WorkloadRequest(num_prompt_tokens=5, num_output_tokens=6),
        WorkloadRequest(
            num_prompt_tokens=2,
            num_output_tokens=3,
            arrival_s=0.25,
            tenant="a",
            session="s",
            continues=True,
            think_time_s=1.5,
            segments=(Segment("prefix", 1), Segment("own", 1)),
        ),
        WorkloadRequest(num_prompt_tokens=1, num_output_tokens=1, arrival_s=1.0, prompt="hé"),
        WorkloadRequest(num_prompt_tokens=2, num_output_tokens=1, arrival_s=2.0, prompt=(7, 8)),
        WorkloadRequest(
            num_prompt_tokens=1, num_output_tokens=1, arrival_s=3.0, messages=(message,)
        ),
    ]
    write_trace(tmp_path / name, requests)
    assert read_trace(tmp_path / name) == (requests, True)


@pytest.mark.parametrize(
    "content",
    [
        "arrival_s,prompt_tokens,output_tokens\n0.5,10,20\n",
        "Timestamp,Model,Request tokens,Response tokens,Total tokens\n0.5,GPT-4,10,20,30\n",
        "timestamp_ms,input_length,output_length,hash_ids\n500,10,20,7\n",
    ],
)
def test_trace_reads_the_columns_of_published_traces(tmp_path: Path, content: str) -> None:
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(gzip.compress(content.encode()))
    (request,), is_timed = read_trace(path)
    assert is_timed
    assert (request.arrival_s, request.num_prompt_tokens, request.num_output_tokens) == (
        0.5,
        10,
        20,
    )


def test_trace_turns_block_hashes_into_segments(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    row = {"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [4, 9, 2]}
    path.write_text(json.dumps(row))
    (request,), _ = read_trace(path)
    assert request.segments == (("block 4", 512), ("block 9", 512), ("block 2", 76))


def test_trace_without_arrival_times_says_so(tmp_path: Path) -> None:
    path = tmp_path / "lengths.csv"
    path.write_text("prompt_tokens,output_tokens\n10,20\n11,21\n")
    requests, is_timed = read_trace(path)
    assert not is_timed
    assert [r.num_prompt_tokens for r in requests] == [10, 11]


def test_trace_leaves_out_failed_requests_and_sorts_the_others(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n9,1,1\n5,2,0\n2,3,1\n")
    requests, _ = read_trace(path)
    assert [r.num_prompt_tokens for r in requests] == [3, 1]


def test_trace_stops_reading_at_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0,1,1\n1,2,1\n2,broken,1\n")
    assert len(read_trace(path, 2)[0]) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("arrival_s,prompt_tokens,output_tokens\n0,1,1\n1,many,1\n", "line 3 .* is no row"),
        ("arrival_s,words\n0,1\n", "none of the columns num_prompt_tokens"),
        ("arrival_s,prompt_tokens,output_tokens\n", "holds no requests"),
    ],
)
def test_trace_says_what_is_wrong_with_a_file(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(content)
    with pytest.raises(InvalidRequestError, match=message):
        read_trace(path)


def test_trace_says_that_a_line_is_not_json(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text("[1]\n")
    with pytest.raises(InvalidRequestError, match="line 1 is not a JSON object"):
        read_trace(path)
