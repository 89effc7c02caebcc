"""How a server ends, and what is there after it was killed."""

from __future__ import annotations

import json
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from support.server_process import (
    COMPLETIONS,
    ServerProcess,
    Stream,
    admin,
    ask,
    generation,
    get,
    post,
    running,
    wait_for,
)

ADMIN_FLAGS = ["--admin-api-key", "adm-1"]
PROMPT_S = 5.0
"""Far below any timeout that would otherwise end what is ended by hand."""


def paused_streams(server: ServerProcess, count: int) -> list[Stream]:
    """Open streams and stop the engine in the middle of them."""
    streams = [Stream(server.address, generation(400)) for _ in range(count)]
    for stream in streams:
        stream.read(2)
    admin(server.address, "pause")
    return streams


def check_ends_soon(process: psutil.Process, timeout_s: float = PROMPT_S) -> None:
    wait_for(
        lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE,
        f"process {process.pid} has ended",
        timeout_s,
    )


# Signals


def test_running_requests_finish_after_a_signal_and_new_ones_are_refused(tmp_path: Path) -> None:
    with running(tmp_path, *ADMIN_FLAGS) as server:
        expected = Stream(server.address, generation(400)).read_all()
        streams = paused_streams(server, 3)
        server.signal(signal.SIGTERM)
        wait_for(lambda: get(server.address, "/ready").status == 503, "it drains")
        refusal = post(server.address, COMPLETIONS, generation(2))
        assert refusal.status == 503
        assert refusal.error["code"] == "draining"
        assert int(refusal.headers["retry-after"]) >= 1
        assert get(server.address, "/health").status == 200
        assert admin(server.address, "resume") == {"paused": False, "draining": True}
        assert [stream.read_all() for stream in streams] == [expected] * 3
        assert server.wait() == 0


def test_requests_are_handed_back_when_the_time_to_finish_is_over(tmp_path: Path) -> None:
    with running(tmp_path, *ADMIN_FLAGS, "--shutdown-timeout", "0.2") as server:
        streams = paused_streams(server, 2)
        with ThreadPoolExecutor(1) as threads:
            whole = threads.submit(post, server.address, COMPLETIONS, generation(2))
            wait_for(lambda: num_live(server) == 3, "all of them are there")
            server.signal(signal.SIGTERM)
            for stream in streams:
                stream.read_all()
                assert stream.error is not None
                assert stream.error["code"] == "request_aborted"
                assert stream.is_done
            assert whole.result().status == 503
            assert whole.result().error["code"] == "request_aborted"
        assert server.wait() == 0
        assert "3 requests did not finish in time" in server.log


def num_live(server: ServerProcess) -> int:
    answer = get(server.address, "/admin/requests", Authorization="Bearer adm-1")
    return len(answer.json()["requests"])


def test_second_signal_ends_everything_at_once(tmp_path: Path) -> None:
    with running(tmp_path, *ADMIN_FLAGS, "--shutdown-timeout", "600") as server:
        [stream] = paused_streams(server, 1)
        server.signal(signal.SIGINT)
        wait_for(lambda: get(server.address, "/ready").status == 503, "it drains")
        server.signal(signal.SIGINT)
        stream.read_all()
        assert stream.error is not None
        assert server.process.wait(timeout=PROMPT_S) == 0


def test_idle_connections_do_not_hold_up_the_end(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(5)]
        feed = ask_and_keep_open(server, "/ui/events")
        server.signal(signal.SIGTERM)
        assert server.process.wait(timeout=PROMPT_S) == 0
        for connection in [*idle, feed]:
            connection.close()


def ask_and_keep_open(server: ServerProcess, path: str) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert connection.recv(100).startswith(b"HTTP/1.1 200")
    return connection


@pytest.fixture
def loading(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server whose model comes from a place that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silence:
        hub = f"http://127.0.0.1:{silence.getsockname()[1]}"
        flags = ["--cache", str(tmp_path / "cache")]
        server = ServerProcess(
            tmp_path, *flags, model=Path("some/model"), HF_ENDPOINT=hub, HF_HUB_OFFLINE="0"
        )
        try:
            wait_for(lambda: server.answers("/health"), "it answers")
            asking = [silence.accept()[0] for _ in ("for the tokeniser", "for the weights")]
            yield server
            for connection in asking:
                connection.close()
        finally:
            server.process.kill()
            server.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_a_server_that_still_loads_its_model(
    loading: ServerProcess, number: signal.Signals
) -> None:
    engine = loading.engine
    assert get(loading.address, "/ready").status == 503
    assert post(loading.address, COMPLETIONS, generation(2)).status == 503
    loading.signal(number)
    assert loading.process.wait(timeout=PROMPT_S) == 0
    check_ends_soon(engine)
    assert "Traceback" not in loading.log


# Kills


def test_engine_ends_when_the_server_is_killed(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        engine = server.engine
        Stream(server.address, generation(400)).read(2)
        server.signal(signal.SIGKILL)
        check_ends_soon(engine, timeout_s=2.0)


def test_engine_ends_when_the_server_is_killed_while_it_loads(loading: ServerProcess) -> None:
    engine = loading.engine
    loading.signal(signal.SIGKILL)
    check_ends_soon(engine)


def test_streams_and_server_end_with_an_error_when_the_engine_is_killed(tmp_path: Path) -> None:
    with running(tmp_path, *ADMIN_FLAGS) as server:
        streams = paused_streams(server, 2)
        server.engine.kill()
        for stream in streams:
            stream.read_all()
            assert stream.error is not None
            assert stream.error["code"] == "engine_failed"
        assert server.wait() == 1
        assert "Error [engine_failed]: the engine process ended by itself" in server.log
        assert "Traceback" not in server.log


# Starting beside another one


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with running(tmp_path_factory.mktemp("first")) as server:
        yield server


def test_second_server_is_refused_at_once_when_the_port_is_taken(
    first: ServerProcess, tmp_path: Path
) -> None:
    second = ServerProcess(tmp_path, port=first.port)
    assert second.wait() == 2
    assert "cannot listen on 127.0.0.1" in second.log.lower()
    assert "Choose another --port" in second.log


def test_second_server_is_refused_when_its_files_are_another_ones(first: ServerProcess) -> None:
    second = ServerProcess(first.log_path.parent)
    assert second.wait() == 2
    assert "Choose another --data-dir" in second.log


# Batches

NUM_LINES = 150


def start_batch(address: str) -> str:
    """Upload a file of requests and return the id of its batch."""
    lines = [
        {"custom_id": f"line-{number}", "method": "POST", "url": COMPLETIONS}
        | {"body": generation(30, seed=number)}
        for number in range(NUM_LINES)
    ]
    content = "\n".join(map(json.dumps, lines))
    form = (
        '--B\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        '--B\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
        f"{content}\r\n--B--\r\n"
    )
    kind = {"Content-Type": "multipart/form-data; boundary=B"}
    file_id = ask(address, "POST", "/v1/files", form.encode(), kind).json()["id"]
    body = {"input_file_id": file_id, "endpoint": COMPLETIONS, "completion_window": "24h"}
    return str(post(address, "/v1/batches", body).json()["id"])


def batch_of(server: ServerProcess, batch_id: str) -> dict[str, Any]:
    return dict(get(server.address, f"/v1/batches/{batch_id}").json())


def wait_for_answers(server: ServerProcess, batch_id: str, count: int) -> None:
    def are_there() -> bool:
        return batch_of(server, batch_id)["request_counts"]["completed"] >= count

    wait_for(are_there, f"{count} lines are answered")


def check_complete(server: ServerProcess, batch_id: str) -> None:
    """Check that a batch comes to its end, with one good answer to each line."""
    wait_for(lambda: batch_of(server, batch_id)["status"] == "completed", "the batch is done")
    batch = batch_of(server, batch_id)
    counts = {"total": NUM_LINES, "completed": NUM_LINES, "failed": 0}
    assert batch["request_counts"] == counts
    assert batch["error_file_id"] is None
    content = get(server.address, f"/v1/files/{batch['output_file_id']}/content").body
    answers = [json.loads(line) for line in content.splitlines()]
    assert Counter(answer["custom_id"] for answer in answers) == {
        f"line-{number}": 1 for number in range(NUM_LINES)
    }
    for answer in answers:
        assert answer["response"]["body"]["usage"]["completion_tokens"] == 30
    files = get(server.address, "/v1/files").json()["data"]
    assert sorted(file["purpose"] for file in files) == ["batch", "batch_output"]


def check_only_the_input_is_served(server: ServerProcess, batch_id: str) -> None:
    """Check that nothing of an unfinished batch can be had."""
    files = get(server.address, "/v1/files").json()["data"]
    assert [file["purpose"] for file in files] == ["batch"]
    content = get(server.address, f"/v1/files/{files[0]['id']}/content").body
    assert len(content.splitlines()) == NUM_LINES
    batch = batch_of(server, batch_id)
    assert batch["output_file_id"] is None


@pytest.mark.slow
def test_batch_goes_on_after_everything_was_killed(tmp_path: Path) -> None:
    flags = ["--max-num-seqs", "4"]
    batch_id = ""
    for num_answers in (20, 70):
        with running(tmp_path, *flags) as server:
            batch_id = batch_id or start_batch(server.address)
            wait_for_answers(server, batch_id, num_answers)
            check_only_the_input_is_served(server, batch_id)
            engine = server.engine
            server.signal(signal.SIGKILL)
            engine.kill()
            server.wait()
    # What a kill in the middle of a write leaves:
    [answers] = (tmp_path / "data" / "batches").glob("*.answers")
    num_whole = answers.read_bytes().count(b"\n")
    assert num_whole < NUM_LINES
    with answers.open("ab") as file:
        file.write(b'{"id": "batch_req_150", "custom_id": "line-1')
    (tmp_path / "data" / "files" / "0123.part").write_bytes(b"half an upload")
    (tmp_path / "data" / "files" / f"file-{'0' * 24}.jsonl").write_bytes(b"without a record")
    with running(tmp_path, *flags) as server:
        check_complete(server, batch_id)
        assert get(server.address, f"/v1/files/file-{'0' * 24}/content").status == 404


def test_batch_goes_on_after_a_signal_without_failed_lines(tmp_path: Path) -> None:
    flags = [*ADMIN_FLAGS, "--max-num-seqs", "4", "--shutdown-timeout", "0"]
    with running(tmp_path, *flags) as server:
        batch_id = start_batch(server.address)
        wait_for_answers(server, batch_id, 10)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    with running(tmp_path, *flags) as server:
        check_complete(server, batch_id)


def test_batch_goes_on_after_the_engine_was_killed_without_failed_lines(tmp_path: Path) -> None:
    flags = ["--max-num-seqs", "4"]
    with running(tmp_path, *flags) as server:
        batch_id = start_batch(server.address)
        wait_for_answers(server, batch_id, 10)
        server.engine.kill()
        assert server.wait() == 1
    with running(tmp_path, *flags) as server:
        check_complete(server, batch_id)


def test_end_of_a_batch_can_be_repeated(tmp_path: Path) -> None:
    """A kill after the output was handed out, but before the batch was noted as ended."""
    with running(tmp_path) as server:
        batch_id = start_batch(server.address)
        wait_for(lambda: batch_of(server, batch_id)["status"] == "completed", "it is done")
        output_id = batch_of(server, batch_id)["output_file_id"]
        output = get(server.address, f"/v1/files/{output_id}/content").body
    folder = tmp_path / "data" / "batches"
    record = folder / f"{batch_id}.json"
    before = json.loads(record.read_bytes())
    record.write_text(json.dumps(before | {"status": "finalizing", "output_file_id": None}))
    (folder / f"{batch_id}.answers").write_bytes(output)
    with running(tmp_path) as server:
        check_complete(server, batch_id)
        assert batch_of(server, batch_id)["output_file_id"] == output_id
