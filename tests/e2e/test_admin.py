"""What operators can have done to a server that works."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from support.server_process import (
    ADMIN,
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

BLOCK_SIZE = 16


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with running(tmp_path_factory.mktemp("admin"), "--admin-api-key", "adm-1") as server:
        yield server


@pytest.fixture(autouse=True)
def _left_as_found(server: ServerProcess) -> Iterator[None]:
    yield
    assert admin(server.address, "resume") == {"paused": False, "draining": False}
    wait_for(lambda: not live(server), "nothing runs any more")
    assert admin(server.address, "check_integrity") == {"sound": True}


def call(server: ServerProcess, method: str, path: str, body: object = None) -> Any:
    answer = ask(server.address, method, f"/admin{path}", body, ADMIN)
    assert answer.status == 200, answer.body
    return answer.json()


def live(server: ServerProcess) -> list[dict[str, Any]]:
    return list(call(server, "GET", "/requests")["requests"])


def kv(server: ServerProcess) -> dict[str, Any]:
    """Return where the blocks are."""
    return dict(get(server.address, "/ui/state").json()["kv"])


def started(server: ServerProcess) -> Stream:
    stream = Stream(server.address, generation(400))
    stream.read(2)
    return stream


def test_paused_requests_stay_where_they_are_and_go_on(server: ServerProcess) -> None:
    expected = Stream(server.address, generation(400)).read_all()
    stream = started(server)
    admin(server.address, "pause")
    [before], [after] = live(server), live(server)
    assert before["num_output_tokens"] == after["num_output_tokens"] < 400
    assert before["num_blocks"] == after["num_blocks"] > 0
    admin(server.address, "resume")
    assert stream.read_all() == expected


def test_paused_request_can_be_aborted(server: ServerProcess) -> None:
    stream = started(server)
    admin(server.address, "pause")
    [request] = live(server)
    assert admin(server.address, "abort", {"request_id": request["id"]}) == {"num_aborted": 1}
    stream.read_all()
    assert stream.error is not None
    assert stream.error["code"] == "request_aborted"
    assert live(server) == []


def test_paused_request_ends_when_its_client_goes_away(server: ServerProcess) -> None:
    stream = started(server)
    admin(server.address, "pause")
    stream.close()
    wait_for(lambda: not live(server), "it is gone")


def test_paused_request_ends_at_its_deadline(server: ServerProcess) -> None:
    stream = Stream(server.address, generation(400), {"x-request-timeout-ms": "100000"})
    stream.read(2)
    admin(server.address, "pause")
    late = ask(server.address, "POST", COMPLETIONS, generation(2), {"x-request-timeout-ms": "100"})
    assert late.status == 408
    assert len(live(server)) == 1
    stream.close()


def test_structured_request_is_queued_and_ends_while_all_is_paused(server: ServerProcess) -> None:
    admin(server.address, "pause")
    body = generation(5, structured_outputs={"regex": "a+"})
    late = ask(server.address, "POST", COMPLETIONS, body, {"x-request-timeout-ms": "700"})
    assert late.status == 408
    assert late.error["code"] == "deadline_exceeded"


def test_all_requests_are_aborted_at_once(server: ServerProcess) -> None:
    with ThreadPoolExecutor(4) as threads:
        admin(server.address, "pause")
        asked = [
            threads.submit(post, server.address, COMPLETIONS, generation(5, n=2)) for _ in range(4)
        ]
        wait_for(lambda: len(live(server)) == 8, "all are there")
        assert admin(server.address, "abort", {"all": True}) == {"num_aborted": 4}
        for future in asked:
            assert future.result().status == 503
            assert future.result().error["code"] == "request_aborted"


def test_abort_is_refused_when_there_is_no_such_request(server: ServerProcess) -> None:
    for body, status in (({"request_id": "x"}, 404), ({}, 400), ({"all": False}, 400), (None, 400)):
        answer = ask(server.address, "POST", "/admin/abort", body, ADMIN)
        assert answer.status == status
        assert answer.error["param"] in ("request_id", "body")


def test_drained_server_finishes_what_it_has_and_takes_more_after_resume(
    server: ServerProcess,
) -> None:
    stream = started(server)
    admin(server.address, "pause")
    assert admin(server.address, "drain") == {"draining": True, "num_live_requests": 1}
    refusal = post(server.address, COMPLETIONS, generation(2))
    assert refusal.status == 503
    assert refusal.error["code"] == "draining"
    assert int(refusal.headers["retry-after"]) >= 1
    assert get(server.address, "/ready").json() == {"status": "draining"}
    admin(server.address, "resume")
    assert stream.read_all()
    assert post(server.address, COMPLETIONS, generation(2)).status == 200


def test_flushed_cache_gives_no_more_hits(server: ServerProcess) -> None:
    body = generation(2, prompt=[7] * 5 * BLOCK_SIZE)

    def num_cached() -> int:
        usage = post(server.address, COMPLETIONS, body).json()["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    num_cached()
    assert num_cached() == 4 * BLOCK_SIZE
    admin(server.address, "flush_prefix_cache")
    assert num_cached() == 0
    admin(server.address, "flush_prefix_cache")


def test_pin_keeps_a_session_on_the_device_until_its_time_is_over(server: ServerProcess) -> None:
    opened = call(server, "POST", "/sessions", {"session_id": "talk", "ttl_s": 60})
    assert (opened["id"], opened["kept"]) == ("talk", {})
    prompt = [9] * 3 * BLOCK_SIZE
    turn = generation(BLOCK_SIZE + 1, prompt=prompt, session_id="talk")
    assert post(server.address, COMPLETIONS, turn).status == 200
    pinned = call(server, "POST", "/sessions/talk/pin", {"ttl_s": 1.0})
    assert (pinned["num_pinned_tokens"], pinned["kept"]) == (64, {"device": 64})
    wait_for(lambda: kv(server)["pinned"] >= 4, "the turn is pinned")
    admin(server.address, "flush_prefix_cache")
    usage = post(server.address, COMPLETIONS, generation(2, prompt=prompt)).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 2 * BLOCK_SIZE
    wait_for(lambda: kv(server)["pinned"] == 0, "its time is over, though nothing runs")
    [session] = call(server, "GET", "/sessions")["sessions"]
    assert session["num_pinned_tokens"] == 0
    assert session["expires_in_s"] is None
    pinned = call(server, "POST", "/sessions/talk/pin", {"ttl_s": 60})
    assert pinned["num_pinned_tokens"] > 0
    call(server, "DELETE", "/sessions/talk")
    wait_for(lambda: kv(server)["pinned"] == 0, "it is released")
    assert call(server, "GET", "/sessions")["sessions"] == []


def test_session_is_refused_when_it_is_not_there_or_there_twice(server: ServerProcess) -> None:
    missing = post(server.address, COMPLETIONS, generation(2, session_id="none"))
    assert missing.status == 404
    assert missing.error["code"] == "session_not_found"
    call(server, "POST", "/sessions", {"session_id": "one"})
    twice = ask(server.address, "POST", "/admin/sessions", {"session_id": "one"}, ADMIN)
    assert twice.status == 409
    for ttl_s in (0, -1, 1e300, "x", True):
        body = {"session_id": "two", "ttl_s": ttl_s}
        assert ask(server.address, "POST", "/admin/sessions", body, ADMIN).status == 400
    call(server, "DELETE", "/sessions/one")
    gone = ask(server.address, "DELETE", "/admin/sessions/one", None, ADMIN)
    assert gone.status == 404
