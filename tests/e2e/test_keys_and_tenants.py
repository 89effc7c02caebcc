"""Who may do what, and how much of it: keys, tenants, limits, what is said in the log."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from support.served_model import COMMAND
from support.server_process import (
    COMPLETIONS,
    Answer,
    ServerProcess,
    Stream,
    ask,
    generation,
    get,
    post,
    running,
    wait_for,
)

SECRET = "SECRET-PROMPT"
SHARED_KEY = "shared-key-of-everybody"
OPEN_PATHS = {"/health", "/ready", "/version", "/metrics", "/openapi.json"}

Keys = dict[str, str]
"""By name of the tenant its key; `ops` is the operators', `shared` is everybody's."""


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys.toml"
    path.write_text(
        "[tenants.acme]\nmax_running = 1\nmax_queued_requests = 2\n"
        "[tenants.frugal]\ntokens_per_minute = 40\n",
        encoding="utf-8",
    )
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def keys(keys_file: Path) -> Keys:
    """Make keys as an operator does."""

    def new(tenant: str, *flags: str) -> str:
        command = [COMMAND, "keys", "new", "--tenant", tenant, "--keys-file", str(keys_file)]
        return subprocess.check_output([*command, *flags], text=True).strip()

    made = {tenant: new(tenant) for tenant in ("acme", "globex", "frugal")}
    return made | {"ops": new("ops", "--admin"), "shared": SHARED_KEY}


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, keys_file: Path, keys: Keys
) -> Iterator[ServerProcess]:
    flags = ["--keys-file", str(keys_file), "--log-level", "debug", "--max-num-queued-reqs", "6"]
    folder = tmp_path_factory.mktemp("tenants")
    with running(folder, *flags, EVENFLOW_API_KEY=SHARED_KEY) as server:
        yield server


@pytest.fixture
def paused(server: ServerProcess, keys: Keys) -> Iterator[None]:
    """Hold all requests in the queue during a test."""
    assert ask(server.address, "POST", "/admin/pause", None, bearer(keys["ops"])).status == 200
    yield
    ask(server.address, "POST", "/admin/resume", None, bearer(keys["ops"]))
    wait_for(lambda: not live(server, keys), "all requests have ended")


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def live(server: ServerProcess, keys: Keys) -> list[dict[str, Any]]:
    answer = ask(server.address, "GET", "/admin/requests", None, bearer(keys["ops"]))
    return list(answer.json()["requests"])


def complete(
    server: ServerProcess, key: str, headers: dict[str, str] | None = None, **fields: Any
) -> Answer:
    body = generation(2, **fields)
    return ask(server.address, "POST", COMPLETIONS, body, bearer(key) | (headers or {}))


def tenant_of(server: ServerProcess, answer: Answer, key: str) -> str:
    """Return on whose account a request went."""
    path = f"/v1/requests/{answer.json()['id']}/explain"
    return str(get(server.address, path, **bearer(key)).json()["tenant"])


def check_refused_for_now(answer: Answer, code: str) -> None:
    assert answer.status == 429, answer.body
    assert answer.error["code"] == code
    assert 1 <= int(answer.headers["retry-after"]) <= 60


# Keys


def test_every_endpoint_needs_a_key_except_those_of_machines(server: ServerProcess) -> None:
    paths = get(server.address, "/openapi.json").json()["paths"]
    assert "/v1/chat/completions" in paths
    for path, methods in paths.items():
        for method in methods:
            for headers in ({}, bearer("wrong"), {"x-api-key": "wrong"}):
                answer = ask(server.address, method.upper(), path, None, headers)
                if path in OPEN_PATHS:
                    assert answer.status == 200, path
                    continue
                assert answer.status == 401, (path, answer.status, answer.body)
                assert answer.headers["www-authenticate"] == "Bearer"
                assert b"invalid_api_key" in answer.body or b"authentication" in answer.body


def test_key_is_accepted_in_either_header(server: ServerProcess, keys: Keys) -> None:
    key = keys["globex"]
    for headers in (bearer(key), {"Authorization": f"bearer  {key}"}, {"x-api-key": key}):
        assert ask(server.address, "GET", "/v1/models", None, headers).status == 200


def test_key_is_refused_when_it_is_only_nearly_right(server: ServerProcess, keys: Keys) -> None:
    key = keys["globex"]
    for wrong in (key[:-1], key + "0", key.upper(), "", " ", "é" * 64, "x" * 10_000):
        headers = {"Authorization": f"Bearer {wrong}".encode("latin-1")}
        answer = ask(server.address, "GET", "/v1/models", None, headers)  # type: ignore[arg-type]
        assert answer.status == 401, wrong
        assert answer.error["code"] == "invalid_api_key"
        assert key not in answer.body.decode()


def test_key_is_checked_before_the_body_is_read(server: ServerProcess) -> None:
    answer = post(server.address, COMPLETIONS, b"\xff" * 1000)
    assert answer.status == 401


def test_admin_endpoints_need_an_admin_key(server: ServerProcess, keys: Keys) -> None:
    for key in (keys["acme"], SHARED_KEY):
        for method, path in (("POST", "/admin/pause"), ("GET", "/admin/requests")):
            answer = ask(server.address, method, path, None, bearer(key))
            assert answer.status == 403
            assert answer.error["code"] == "permission_denied"
    assert ask(server.address, "GET", "/admin/requests", None, bearer(keys["ops"])).status == 200


def test_tenant_may_not_watch_the_others(server: ServerProcess, keys: Keys) -> None:
    for path in ("/ui/state", "/ui/blocks"):
        assert get(server.address, path, **bearer(keys["acme"])).status == 403
        assert get(server.address, path, **bearer(keys["ops"])).status == 200


def test_server_does_not_start_on_an_open_address_without_keys(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::"):
        result = subprocess.run(
            [COMMAND, "serve", str(tmp_path), "--host", host, "--port", "0"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == 2
        assert "--allow-unauthenticated" in result.stderr
        assert "Traceback" not in result.stderr


# Whose request it is


def test_tenant_is_that_of_the_key_whatever_the_request_says(
    server: ServerProcess, keys: Keys
) -> None:
    headers = {"x-llm-d-inference-fairness-id": "globex"}
    answer = complete(server, keys["acme"], headers, user="globex")
    assert tenant_of(server, answer, keys["acme"]) == "acme"


def test_tenant_is_the_user_when_the_key_is_everybodys(server: ServerProcess) -> None:
    headers = {"x-llm-d-inference-fairness-id": "from-a-header"}
    answer = complete(server, SHARED_KEY, headers, user="alice")
    assert tenant_of(server, answer, SHARED_KEY) == "alice"
    answer = complete(server, SHARED_KEY, headers)
    assert tenant_of(server, answer, SHARED_KEY) == "default"


def test_tenant_is_that_of_the_proxy_when_proxies_are_trusted(tmp_path: Path) -> None:
    flags = ["--trust-proxy-headers", "--enable-log-requests", "--log-level", "debug"]
    with running(tmp_path, *flags) as server:
        headers = {"x-llm-d-inference-fairness-id": "from-the-proxy", "Host": "gateway.example"}
        answer = complete(server, "", headers, user="alice")
        assert tenant_of(server, answer, "") == "from-the-proxy"
        complete(server, "", prompt=SECRET)
        assert SECRET in server.log  # it was asked for


def test_other_tenants_files_batches_and_answers_are_not_there(
    server: ServerProcess, keys: Keys
) -> None:
    address, acme = server.address, bearer(keys["acme"])
    request = {"custom_id": "1", "method": "POST", "url": COMPLETIONS, "body": generation(2)}
    form = (
        '--B\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        '--B\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
        f"{json.dumps(request)}\r\n--B--\r\n"
    )
    kind = {"Content-Type": "multipart/form-data; boundary=B"}
    file_id = ask(address, "POST", "/v1/files", form.encode(), acme | kind).json()["id"]
    batch = {"input_file_id": file_id, "endpoint": COMPLETIONS, "completion_window": "24h"}
    batch_id = ask(address, "POST", "/v1/batches", batch, acme).json()["id"]
    path = f"/v1/batches/{batch_id}"
    wait_for(lambda: get(address, path, **acme).json()["status"] == "completed", "it is done")
    output_id = get(address, path, **acme).json()["output_file_id"]
    response = ask(
        address, "POST", "/v1/responses", {"input": "hi", "max_output_tokens": 16}, acme
    ).json()
    completion = complete(server, keys["acme"]).json()
    own = [
        ("GET", f"/v1/files/{file_id}"),
        ("GET", f"/v1/files/{file_id}/content"),
        ("GET", f"/v1/files/{output_id}/content"),
        ("GET", path),
        ("GET", f"/v1/requests/{completion['id']}/explain"),
        ("GET", f"/v1/responses/{response['id']}"),
    ]
    hidden = [*own, ("POST", f"{path}/cancel"), ("DELETE", f"/v1/files/{file_id}")]
    for method, place in hidden:
        answer = ask(address, method, place, None, bearer(keys["globex"]))
        assert answer.status == 404, (place, answer.body)
    for stranger in (keys["globex"], SHARED_KEY):
        for place in ("/v1/files", "/v1/batches"):
            assert get(address, place, **bearer(stranger)).json()["data"] == []
    answer = ask(address, "POST", "/v1/batches", batch, bearer(keys["globex"]))
    assert answer.status == 404
    answer = ask(
        address,
        "POST",
        "/v1/responses",
        {"input": "more", "previous_response_id": response["id"]},
        bearer(keys["globex"]),
    )
    assert 400 <= answer.status < 500
    for method, place in own:
        assert ask(address, method, place, None, acme).status == 200, place


def test_priority_is_changed_by_its_tenant_and_operators_alone(
    server: ServerProcess, keys: Keys, paused: None
) -> None:
    def change(tenant: str, request_id: str, body: object) -> Answer:
        path = f"/v1/requests/{request_id}/priority"
        return ask(server.address, "POST", path, body, bearer(keys[tenant]))

    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(complete, server, keys["acme"])
        wait_for(lambda: len(live(server, keys)) == 1, "it waits")
        request_id = live(server, keys)[0]["id"]
        assert change("globex", request_id, {"priority": -5}).status == 404
        assert change("acme", "nobody", {"priority": -5}).error["code"] == "not_found"
        for wrong in (None, {}, [], {"priority": "now"}, {"priority": 1.5}, {"urgency": 1}):
            answer = change("acme", request_id, wrong)
            assert (answer.status, answer.error["code"]) == (400, "invalid_request"), wrong
        assert live(server, keys)[0]["priority"] == 0
        for tenant, priority, number in (("acme", "batch", 100), ("ops", -5, -5)):
            answer = change(tenant, request_id, {"priority": priority})
            assert answer.json() == {"id": request_id, "priority": number}
            assert live(server, keys)[0]["priority"] == number
        ask(server.address, "POST", "/admin/resume", None, bearer(keys["ops"]))
        assert waiting.result().json()["id"] == request_id
    assert change("acme", request_id, {"priority": 1}).status == 404


def test_session_is_its_tenants_alone(server: ServerProcess, keys: Keys) -> None:
    ops = bearer(keys["ops"])
    body = {"session_id": "talk", "tenant": "acme", "ttl_s": 60}
    assert ask(server.address, "POST", "/admin/sessions", body, ops).status == 200
    answer = complete(server, keys["globex"], session_id="talk")
    assert answer.status == 404
    assert answer.error["code"] == "session_not_found"
    assert complete(server, keys["acme"], session_id="talk").status == 200


def test_two_requests_of_the_same_id_get_their_own_answers(
    server: ServerProcess, keys: Keys, paused: None
) -> None:
    """One of three prompts would get the id that another tenant's request has."""
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(complete, server, keys["globex"], {"X-Request-Id": "job.1"})
        wait_for(lambda: len(live(server, keys)) == 1, "the first one waits")
        prompts = [[1, 2], [3, 4], [5, 6]]
        second = threads.submit(
            complete, server, keys["frugal"], {"X-Request-Id": "job"}, prompt=prompts
        )
        wait_for(lambda: len(live(server, keys)) == 4, "all of them wait")
        ask(server.address, "POST", "/admin/resume", None, bearer(keys["ops"]))
        assert first.result().json()["usage"]["completion_tokens"] == 2
        assert second.result().json()["usage"]["completion_tokens"] == 6
        assert len({first.result().json()["id"], second.result().json()["id"]}) == 2


# Limits


def test_tenant_is_refused_when_it_has_queued_what_it_may(
    server: ServerProcess, keys: Keys, paused: None
) -> None:
    with ThreadPoolExecutor(8) as threads:
        waiting = [threads.submit(complete, server, keys["acme"]) for _ in range(2)]
        wait_for(lambda: len(live(server, keys)) == 2, "both wait")
        check_refused_for_now(complete(server, keys["acme"]), "queue_full")
        others = [threads.submit(complete, server, keys["globex"]) for _ in range(4)]
        wait_for(lambda: len(live(server, keys)) == 6, "the others wait too")
        check_refused_for_now(complete(server, keys["globex"]), "queue_full")  # everybody's queue
        ask(server.address, "POST", "/admin/resume", None, bearer(keys["ops"]))
        assert [future.result().status for future in [*waiting, *others]] == [200] * 6


def test_tenant_runs_no_more_at_once_than_it_may(server: ServerProcess, keys: Keys) -> None:
    streams = [Stream(server.address, generation(100), bearer(keys["acme"])) for _ in range(2)]
    num_running = []
    while requests := live(server, keys):
        num_running.append(sum(request["num_computed_tokens"] > 0 for request in requests))
        time.sleep(0.01)
    assert max(num_running) == 1
    assert streams[0].read_all() == streams[1].read_all() != ""


def test_tenant_is_refused_when_its_tokens_of_the_minute_are_used(
    server: ServerProcess, keys: Keys
) -> None:
    answer = complete(server, keys["frugal"], max_tokens=60)
    while answer.status == 429:  # an earlier test may have used some
        pytest.skip("the minute of an earlier test is not over")
    assert answer.status == 200
    check_refused_for_now(complete(server, keys["frugal"]), "rate_limit_exceeded")
    assert complete(server, keys["globex"]).status == 200


def test_request_ends_at_its_deadline_even_when_nothing_moves(
    server: ServerProcess, keys: Keys, paused: None
) -> None:
    headers = {"x-request-timeout-ms": "200"}
    answer = complete(server, keys["globex"], headers)
    assert answer.status == 408
    assert answer.error["code"] == "deadline_exceeded"
    stream = Stream(server.address, generation(2), bearer(keys["globex"]) | headers)
    stream.read_all()
    assert stream.error is not None
    assert stream.error["code"] == "deadline_exceeded"
    assert live(server, keys) == []


# What is said


def test_log_has_no_keys_and_no_prompts(server: ServerProcess, keys: Keys) -> None:
    wrong_key = "wrong-" + "k" * 40
    for body in (
        {"prompt": SECRET, "max_tokens": 2},
        {"prompt": SECRET * 5000},
        {"prompt": SECRET, "temperature": SECRET},
        {"prompt": SECRET, "stop": [SECRET, 5]},
        {"prompt": {"text": SECRET}},
        {"prompt": SECRET, SECRET: 1},
        {"prompt": SECRET, "model": SECRET},
        {"prompt": SECRET, "structured_outputs": {"regex": f"({SECRET}"}},
    ):
        for key in (keys["globex"], wrong_key):
            ask(server.address, "POST", COMPLETIONS, body, bearer(key))
    ask(server.address, "POST", COMPLETIONS, f'{{"prompt": "{SECRET}'.encode(), bearer(SHARED_KEY))
    log = server.log
    assert "is refused" in log  # it does say what happens
    for hidden in (SECRET, wrong_key, *keys.values()):
        assert hidden not in log


def test_configuration_is_shown_without_keys() -> None:
    environment = {**os.environ, "EVENFLOW_API_KEY": SHARED_KEY, "EVENFLOW_ADMIN_API_KEY": SECRET}
    for flags in ([], ["--json"], ["--port", "x"], ["--max-request-bytes", "1"]):
        result = subprocess.run(
            [COMMAND, "config", "show", *flags],
            capture_output=True,
            text=True,
            env=environment,
            timeout=60,
            check=False,
        )
        said = result.stdout + result.stderr
        assert SHARED_KEY not in said
        assert SECRET not in said
    assert "EVENFLOW_API_KEY" not in said
