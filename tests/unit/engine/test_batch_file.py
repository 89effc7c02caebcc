from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evenflow.core.errors import InvalidRequestError
from evenflow.engine.batch_file import BatchFile
from evenflow.engine.batch_run import BatchRun
from support.text_engine import make_fake_llm

COMPLETION = "/v1/completions"


def request(custom_id: str | None, prompt: str = "Hi", url: str = COMPLETION, **body: Any) -> bytes:
    entry = {"method": "POST", "url": url, "body": {"prompt": prompt, "max_tokens": 99, **body}}
    if custom_id is not None:
        entry = {"custom_id": custom_id, **entry}
    return json.dumps(entry).encode()


def write_input(folder: Path, *lines: bytes) -> Path:
    path = folder / "in.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def reply(request_id: str) -> str:
    return f"reply to {request_id} ✓"


def answer(
    input_path: Path, output_path: Path, num_answers: int | None = None, llm: Any = None
) -> BatchFile:
    """Answer what is missing, or the first few of it."""
    batch = BatchFile(input_path, output_path)
    answers = BatchRun(batch, llm or make_fake_llm(reply), lambda: 1700000000.5).answer()
    for number, _ in enumerate(answers, start=1):
        if number == num_answers:
            break
    return batch


def read(path: Path) -> dict[Any, Any]:
    entries = [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
    assert len({entry["id"] for entry in entries}) == len(entries), "a line was answered twice"
    return {entry["custom_id"]: entry for entry in entries}


def test_answer_writes_openais_batch_format(tmp_path: Path) -> None:
    chat = json.dumps(
        {
            "custom_id": "b",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "fake", "messages": [{"role": "user", "content": "Hi"}]},
        }
    ).encode()
    batch = answer(write_input(tmp_path, request("a"), chat), tmp_path / "out.jsonl")
    entries = read(tmp_path / "out.jsonl")
    assert (batch.num_lines, batch.num_done, batch.num_failed, batch.num_missing) == (2, 2, 0, 0)
    for number, custom_id in enumerate(("a", "b"), start=1):
        entry = entries[custom_id]
        assert set(entry) == {"id", "custom_id", "response", "error"}
        assert set(entry["response"]) == {"status_code", "request_id", "body"}
        assert (entry["response"]["status_code"], entry["error"]) == (200, None)
        assert entry["id"] == f"batch_req_{number}"
    text = entries["a"]["response"]["body"]["choices"][0]["text"]
    assert text == "reply to batch_req_1 ✓"
    body = entries["b"]["response"]["body"]
    assert body["choices"][0]["message"]["content"] == "reply to batch_req_2 ✓"
    assert (body["model"], body["created"]) == ("fake", 1700000000)


DEEP = b'{"custom_id": "deep", "url": "/v1/completions", "body": ' + b"[" * 10**5
BAD_LINES: list[tuple[bytes, str | None, str]] = [
    (b"not json", None, "not JSON"),
    (b'{"custom_id": "cut", ', None, "not JSON"),
    (b'"a string"', None, "not a JSON object"),
    (DEEP, None, "not JSON"),
    (request("url", url="/v1/nowhere"), "url", "no endpoint"),
    (b'{"custom_id": "no url", "body": {"prompt": "a"}}', "no url", "no endpoint"),
    (b'{"custom_id": "no body", "url": "/v1/completions"}', "no body", "must be a JSON object"),
    (b'{"custom_id": "method", "method": "GET", "url": "/v1/completions"}', "method", "POST"),
    (request("field", colour="red"), "field", "unknown field 'colour'"),
    (request("value", max_tokens=0), "value", "max_tokens must be"),
    (request("long", prompt="a b c " * 600), "long", "the prompt has"),
    (request("raw \udcff bytes").replace(b"\\udcff", b"\xff"), "raw \udcff bytes", "not UTF-8"),
    (request("in prompt", prompt="\udcff").replace(b"\\udcff", b"\xff"), "in prompt", "not UTF-8"),
    (request("half", prompt="\ud83d"), "half", "cannot be encoded"),
    (b'{"custom_id": ["x"], "url": "/v1/completions", "body": {"prompt": "a"}}', None, "custom_id"),
    (b'{"custom_id": %s1%s}' % (b"[" * 500, b"]" * 500), None, "custom_id"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "custom_id", "message"), BAD_LINES)
def test_answer_reports_a_bad_line_and_goes_on(
    tmp_path: Path, line: bytes, custom_id: str | None, message: str
) -> None:
    path = write_input(tmp_path, request("before"), line, request("after"))
    batch = answer(path, tmp_path / "out.jsonl")
    entries = read(tmp_path / "out.jsonl")
    assert set(entries) == {"before", custom_id, "after"}
    assert entries["before"]["error"] is entries["after"]["error"] is None
    entry = entries[custom_id]
    assert entry["id"] == "batch_req_2"
    assert entry["response"]["status_code"] == 400
    assert message in entry["error"]["message"]
    assert entry["response"]["body"] == {"error": entry["error"]}
    assert set(entry["error"]) == {"message", "type", "param", "code"}
    assert batch.num_failed == 1
    assert BatchFile(path, tmp_path / "out.jsonl").num_missing == 0


def test_answer_reports_a_request_that_fails_and_goes_on(tmp_path: Path) -> None:
    path = write_input(tmp_path, request("a"), request("b"))
    batch = BatchFile(path, tmp_path / "out.jsonl")
    llm = make_fake_llm(lambda _: "text")
    llm.engine._executor.failing.add("batch_req_1")
    assert sorted(BatchRun(batch, llm, lambda: 0.0).answer()) == [1, 2]
    entries = read(tmp_path / "out.jsonl")
    assert entries["a"]["response"]["status_code"] == 500
    assert entries["a"]["error"]["message"] == "the test says so."
    assert entries["b"]["error"] is None
    assert batch.num_failed == 1


def test_answer_skips_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = write_input(tmp_path, b"\xef\xbb\xbf" + request("a"), b"", b"  \r", request("b"), b"")
    batch = answer(path, tmp_path / "out.jsonl")
    assert (batch.num_lines, batch.num_failed) == (2, 0)
    assert [e["id"] for e in read(tmp_path / "out.jsonl").values()] == [
        "batch_req_1",
        "batch_req_4",
    ]


def test_answer_handles_more_lines_than_the_engine_holds(tmp_path: Path) -> None:
    path = write_input(tmp_path, *(request(f"r{n}", max_tokens=1 + n % 7) for n in range(100)))
    answer(path, tmp_path / "out.jsonl")
    entries = read(tmp_path / "out.jsonl")
    assert set(entries) == {f"r{n}" for n in range(100)}
    for n in range(100):
        usage = entries[f"r{n}"]["response"]["body"]["usage"]
        assert usage["completion_tokens"] == 1 + n % 7


def test_run_resumes_after_a_cut_at_every_byte(tmp_path: Path) -> None:
    """A killed process leaves any beginning of the file behind."""
    lines = (request("é", max_tokens=1), b"bad line", request(None, max_tokens=1))
    path = write_input(tmp_path, *lines)
    llm = make_fake_llm(reply)
    whole_path, cut_path = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    answer(path, whole_path, llm=llm)
    whole = whole_path.read_bytes()
    expected = sorted(whole.split(b"\n"))
    for size in range(len(whole) + 1):
        cut_path.write_bytes(whole[:size])
        batch = answer(path, cut_path, llm=llm)
        resumed = cut_path.read_bytes()
        kept = whole[: whole[:size].rfind(b"\n") + 1]
        assert resumed.startswith(kept), "an answered line was touched"
        assert sorted(resumed.split(b"\n")) == expected
        assert (batch.num_lines, batch.num_done, batch.num_failed) == (3, 3, 1)


@pytest.mark.parametrize("num_answers", [1, 5, 9])
def test_run_resumes_after_a_stop_between_answers(tmp_path: Path, num_answers: int) -> None:
    path = write_input(tmp_path, *(request(f"r{n}", max_tokens=1 + n % 3) for n in range(10)))
    stopped = answer(path, tmp_path / "out.jsonl", num_answers)
    assert stopped.num_missing == 10 - num_answers
    resumed = answer(path, tmp_path / "out.jsonl")
    assert resumed.num_missing == 0
    assert set(read(tmp_path / "out.jsonl")) == {f"r{n}" for n in range(10)}


@pytest.mark.parametrize(
    "content",
    [
        b"dear diary",
        b"dear diary\n",
        b'{"a": 1}\n',
        b"[]\n",
        b'{"id": "batch_req_x", "custom_id": "a", "error": null}\n',
        b'{"id": "batch_req_1", "custom_id": "another", "error": null}\n',
        b'{"id": "batch_req_7", "custom_id": "a", "error": null}\n',
        b'{"id": "batch_req_1", "custom_id": "a", "error": null}\ndear diary',
    ],
)
def test_run_refuses_a_foreign_output_file_and_leaves_it_alone(
    tmp_path: Path, content: bytes
) -> None:
    output_path = tmp_path / "out.jsonl"
    output_path.write_bytes(content)
    with pytest.raises(InvalidRequestError, match="something else than results") as caught:
        BatchFile(write_input(tmp_path, request("a")), output_path)
    assert caught.value.param == "output_file"
    assert output_path.read_bytes() == content


def test_run_refuses_its_own_input_as_output(tmp_path: Path) -> None:
    path = write_input(tmp_path, request("a"))
    before = path.read_bytes()
    with pytest.raises(InvalidRequestError):
        BatchFile(path, path)
    assert path.read_bytes() == before


def test_run_refuses_an_output_file_that_cannot_be_written(tmp_path: Path) -> None:
    path = write_input(tmp_path, request("a"))
    for output_path in (tmp_path / "nowhere" / "out.jsonl", tmp_path):
        with pytest.raises(InvalidRequestError, match="cannot be written"):
            BatchFile(path, output_path)
