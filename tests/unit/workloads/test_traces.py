from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path

import pytest

from evenflow.core.errors import InvalidRequestError
from evenflow.workloads.request import Segment, WorkloadRequest
from evenflow.workloads.traces import BadRow, iter_trace, read_trace, write_trace


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
            priority=-1,
            session="s",
            turn=3,
            continues=True,
            think_time_s=1.5,
            tool_time_s=0.5,
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
        (
            "arrival_s,num_prompt_tokens,output_tokens\n0,1,1\n1,many,1\n",
            "line 3: num_prompt_tokens is 'many'",
        ),
        ("arrival_s,words\n0,1\n", "none of the columns input_length"),
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
    with pytest.raises(InvalidRequestError, match="line 1: it is not a JSON object"):
        read_trace(path)


def test_trace_names_several_bad_rows_at_once(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\nsoon,1,1\n0,1,1\n1,-5,1\n2,1\n")
    with pytest.raises(InvalidRequestError) as caught:
        list(iter_trace(path))
    assert caught.value.why == (
        "line 2: arrival_s is 'soon', which is no number; "
        "line 4: prompt_tokens is '-5', which is no whole number from 0 up; "
        "line 5: it has 2 columns where the header has 3"
    )


def test_trace_hands_bad_rows_over_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    good = '{"timestamp": 1500, "input_length": 7, "output_length": 2}'
    path.write_text(f'not json\n{good}\n\n{{"input_length": 7}}\n{good}\n')
    bad: list[BadRow] = []
    rows = iter_trace(path, on_bad_row=bad.append)
    assert [request.arrival_s for request in rows] == [1.5, 1.5]
    assert [row.line for row in bad] == [1, 4]
    assert (rows.num_requests, rows.num_bad_rows, rows.is_timed) == (2, 2, True)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"hash_ids": [1, 2]}, "2 hash_ids where 7 tokens are 1 blocks of 512"),
        ({"hash_ids": ["x"]}, "no whole numbers"),
        ({"segments": [["a", 3]]}, "not 7 tokens together"),
        ({"think_time_s": -1}, "less than 0"),
        ({"timestamp": float("nan")}, "no number"),
        ({"input_length": 7.5}, "no whole number"),
        ({"input_length": None}, "no number"),
        ({"segments": 5}, "TypeError"),
    ],
)
def test_trace_says_why_a_row_is_bad(tmp_path: Path, row: dict[str, object], reason: str) -> None:
    path = tmp_path / "trace.jsonl"
    sound = {"timestamp": 0, "input_length": 7, "output_length": 2}
    path.write_text(json.dumps(sound | row))
    bad: list[BadRow] = []
    assert list(iter_trace(path, on_bad_row=bad.append)) == []
    assert reason in bad[0].reason


def test_trace_says_that_a_file_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv.gz"
    content = gzip.compress(b"prompt_tokens,output_tokens\n" + b"10,20\n" * 1000)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InvalidRequestError, match="cannot be read"):
        list(iter_trace(path))


def test_trace_is_read_as_far_as_it_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0,1,1\nbroken,1,1\n")
    assert next(iter_trace(path)).num_prompt_tokens == 1


def test_trace_is_written_with_the_columns_of_mooncake(tmp_path: Path) -> None:
    segments = (Segment("system", 600), Segment("own", 100))
    request = WorkloadRequest(
        num_prompt_tokens=700, num_output_tokens=3, arrival_s=0.25, tenant="a", segments=segments
    )
    write_trace(tmp_path / "ours.jsonl", [request])
    write_trace(tmp_path / "theirs.jsonl", [request], "mooncake")
    ours, theirs = (
        json.loads((tmp_path / name).read_text()) for name in ("ours.jsonl", "theirs.jsonl")
    )
    assert theirs.keys() == {"timestamp", "input_length", "output_length", "hash_ids"}
    assert theirs.items() <= ours.items()
    assert (theirs["timestamp"], len(theirs["hash_ids"])) == (250, 2)


def test_trace_is_not_written_as_csv(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"\.jsonl"):
        write_trace(tmp_path / "trace.csv", [])


def test_trace_leaves_the_old_file_alone_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    write_trace(path, [WorkloadRequest(num_prompt_tokens=1, num_output_tokens=1)])
    before = path.read_text()

    def broken():
        yield WorkloadRequest(num_prompt_tokens=2, num_output_tokens=1)
        raise RuntimeError("lost")

    with pytest.raises(RuntimeError):
        write_trace(path, broken())
    assert [file.name for file in tmp_path.iterdir()] == ["trace.jsonl"]
    assert path.read_text() == before


def test_trace_is_read_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "burst.csv"
    header = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Log Type"
    with path.open("w") as file:
        file.write(header + "\n")
        for index in range(20_000):
            file.write(f"{index},{index % 50},1,GPT-4,10,{index % 3},API log\n")
    tracemalloc.start()
    try:
        num_requests = sum(1 for _ in iter_trace(path))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert num_requests == 13_333
    assert peak_bytes < path.stat().st_size / 2
