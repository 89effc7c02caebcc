"""What anybody may send: each test attacks a real server that somebody else is using.

At the end the other's streams have all come out right, the engine's memory adds up, and nothing in
the log speaks of a failure.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from support.server_process import (
    ADMIN,
    CHAT,
    COMPLETIONS,
    Answer,
    Bystander,
    ServerProcess,
    admin,
    ask,
    generation,
    get,
    post,
    running,
    wait_for,
)

BODY_TIMEOUT_S = 2.0
MAX_BYTES = 4 * 1024 * 1024
HEALTH_S = 2.0
"""Generous: the machine is shared, and what is to be found holds up everybody for seconds."""

HUGE = "9" * 500
NUMBERS = [
    "NaN", "Infinity", "-Infinity", "1e400", "-1e400", HUGE, f"-{HUGE}", "-1", "0", "1e-320",
    "2147483648", "9223372036854775808", "18446744073709551616", "-9223372036854775809", "1.5",
]  # fmt: skip
OTHERS = [
    '""', '"x"', "true", "null", "{}", "[]", "[[[]]]", '{"a":1}', '{"type":1}', '[null]', "[1.5]",
    '"\\ud800"', '"\\u0000"', '["\\udfff"]', f"[{HUGE}]", f'{{"{HUGE}":1}}', f'{{"1":{HUGE}}}',
    f'"{"A" * 100_000}"', "[" * 120 + "]" * 120, "[" * 900 + "]" * 900,
]  # fmt: skip
NUMERIC_FIELDS = [
    "n", "max_tokens", "min_tokens", "temperature", "top_k", "top_p", "min_p",
    "repetition_penalty", "presence_penalty", "frequency_penalty", "seed", "logprobs",
    "prompt_logprobs", "priority",
]  # fmt: skip
COMMON_FIELDS = [
    *NUMERIC_FIELDS, "logit_bias", "stop", "stop_token_ids", "include_stop_str_in_output",
    "ignore_eos", "skip_special_tokens", "structured_outputs", "response_format", "stream",
    "stream_options", "session_id", "cache_salt", "user", "metadata", "store", "model", "nonsense",
]  # fmt: skip
CHAT_FIELDS = [
    *COMMON_FIELDS, "max_completion_tokens", "top_logprobs", "messages", "tools", "tool_choice",
    "parallel_tool_calls", "chat_template_kwargs",
]  # fmt: skip
CHAT_BODY = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
PATHS = [
    (CHAT, CHAT_FIELDS, CHAT_BODY),
    (COMPLETIONS, [*COMMON_FIELDS, "prompt", "echo"], {"prompt": "hi", "max_tokens": 2}),
    ("/v1/embeddings", ["input", "model", "encoding_format", "normalize", "dimensions", "user"],
     {"input": "hi"}),
    ("/tokenize", ["messages", "prompt", "add_special_tokens", "tools", "model"], {}),
    ("/detokenize", ["tokens", "model"], {}),
    ("/v1/batches", ["input_file_id", "endpoint", "completion_window", "metadata"],
     {"endpoint": COMPLETIONS, "input_file_id": "file-0"}),
    ("/admin/sessions", ["session_id", "tenant", "ttl_s"], {}),
    ("/admin/abort", ["request_id"], {}),
]  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Serve, and check at the end that nobody else noticed what the tests did."""
    folder = tmp_path_factory.mktemp("hostile")
    flags = ["--admin-api-key", "adm-1", "--body-timeout", str(BODY_TIMEOUT_S)]
    with running(folder, *flags, "--log-level", "debug") as server:
        with Bystander(server.address) as bystander:
            yield server
        wait_for(lambda: not live_requests(server), "nothing runs any more")
        assert admin(server.address, "check_integrity") == {"sound": True}
        assert bystander.failures == []
        assert bystander.num_streams > 3
        assert max(bystander.health_s) < HEALTH_S
        assert " ERROR " not in server.log
        assert "Traceback" not in server.log


@pytest.fixture(scope="module")
def address(server: ServerProcess) -> str:
    return server.address


def live_requests(server: ServerProcess) -> list[Any]:
    answer = ask(server.address, "GET", "/admin/requests", None, ADMIN)
    return list(answer.json()["requests"])


def refuse(answer: Answer, status: int, code: str) -> dict[str, Any]:
    """Check that a request was refused in the right way, and return the error."""
    assert answer.status == status, answer.body[:500]
    assert answer.error["code"] == code, answer.body[:500]
    return answer.error


def check_polite(answer: Answer, sent: str) -> None:
    """Check that an answer is a good one or a refusal, in the form that is documented."""
    assert answer.status in (200, 400, 404), (sent[:200], answer.status, answer.body[:500])
    if answer.status != 200:
        assert answer.error["message"], sent[:200]


def field_body(base: dict[str, Any], field: str, value: str) -> bytes:
    """Write a body in which a field has a value that need not be JSON."""
    rest = {name: content for name, content in base.items() if name != field}
    pairs = [f"{json.dumps(name)}:{json.dumps(content)}" for name, content in rest.items()]
    return ("{" + ",".join([*pairs, f'"{field}":{value}']) + "}").encode()


def connect(address: str) -> socket.socket:
    host, port = address.split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def read_answer(connection: socket.socket) -> Answer:
    response = http.client.HTTPResponse(connection)
    response.begin()
    names = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, names, response.read())


def is_hung_up(connection: socket.socket) -> bool:
    """Whether the server has closed its end, after whatever it wrote."""
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


# Sizes


def test_body_is_refused_before_it_is_sent_when_it_says_that_it_is_too_large(address: str) -> None:
    with closing(connect(address)) as connection:
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {10**12}\r\n\r\n"
        connection.sendall(head.encode())
        error = refuse(read_answer(connection), 413, "request_too_large")
    assert str(MAX_BYTES) in error["message"]


def test_client_that_waits_for_leave_never_sends_a_body_that_is_too_large(address: str) -> None:
    with closing(connect(address)) as connection:
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {10**12}\r\n"
        connection.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
        refuse(read_answer(connection), 413, "request_too_large")


def test_body_is_refused_when_it_comes_in_chunks_without_end(address: str) -> None:
    chunk = b"10000\r\n" + b"a" * 0x10000 + b"\r\n"
    with closing(connect(address)) as connection:
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
        connection.sendall(f"{head}\r\n".encode())
        try:
            for _ in range(100_000):
                connection.sendall(chunk)
        except ConnectionError:
            return  # at last the server hangs up
    pytest.fail("6 GB were taken")


def test_answer_to_a_body_that_is_too_large_reaches_a_client_that_sends_first(address: str) -> None:
    refuse(post(address, COMPLETIONS, b"x" * (MAX_BYTES + 1)), 413, "request_too_large")


def test_endless_prompt_is_refused_before_it_is_tokenised(address: str) -> None:
    refuse(post(address, COMPLETIONS, {"prompt": "a" * 10_000_000}), 413, "request_too_large")
    for path, body in (
        (COMPLETIONS, {"prompt": "a" * 3_000_000}),
        (CHAT, {"messages": [{"role": "user", "content": "a b" * 1_000_000}]}),
        ("/tokenize", {"prompt": "ab c" * 700_000, "add_special_tokens": False}),
        ("/v1/embeddings", {"input": "a" * 3_000_000}),
        (COMPLETIONS, {"prompt": [1] * 500_000}),
    ):
        refuse(post(address, path, body), 400, "context_length_exceeded")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": "a", "stop": ["ab"] * 100_000}, "stop"),
        ({"prompt": "a", "stop": "a" * 100_000}, "stop"),
        ({"prompt": "a", "stop_token_ids": [1] * 100_000}, "stop_token_ids"),
        ({"prompt": "a", "logit_bias": {str(i): 1 for i in range(50_000)}}, "logit_bias"),
        ({"prompt": ["a"] * 5000}, "prompt"),
        ({"prompt": ["a"] * 500, "n": 128}, "n"),
        ({"prompt": "a", "n" * 500_000: 1}, "n" * 1000 + "..."),
    ],
)
def test_list_that_every_step_would_walk_is_refused_when_it_is_long(
    address: str, body: dict[str, Any], param: str
) -> None:
    assert refuse(post(address, COMPLETIONS, body), 400, "invalid_request")["param"] == param


def test_headers_are_refused_when_they_never_end(address: str) -> None:
    with closing(connect(address)) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: ")
        try:
            for _ in range(1000):
                connection.sendall(b"a" * 10_000)
        except ConnectionError:
            return
    pytest.fail("10 MB of a header were taken")


# JSON


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe{}",
        b'{"prompt": "\xc3\x28"}',
        b'{"prompt": "\xed\xa0\x80"}',
        b"\xef\xbb\xbf" + b'{"prompt": "a"}',
        b'{"prompt": "a"} {"prompt": "b"}',
        b"[1, 2",
        b'"text"',
        b"null",
        b'{"prompt": "a",}',
        b"{'prompt': 'a'}",
        b'{"prompt": "\x01"}',
        b"\x00" * 100,
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        b'{"prompt":[' + b"[]," * 1_000_000 + b"1]}",
        b'{"prompt":"a","metadata":' + b"[" * 200 + b"]" * 200 + b"}",
    ],
)
def test_body_is_refused_when_it_is_no_sound_json(address: str, body: bytes) -> None:
    for path in (COMPLETIONS, CHAT):
        refuse(post(address, path, body), 400, "invalid_request")


@pytest.mark.parametrize(("path", "fields", "base"), PATHS, ids=[path for path, *_ in PATHS])
def test_every_field_is_answered_or_refused_whatever_it_holds(
    address: str, path: str, fields: list[str], base: dict[str, Any]
) -> None:
    for field in fields:
        for value in NUMBERS + OTHERS:
            body = field_body(base, field, value)
            check_polite(post(address, path, body, **ADMIN), f"{path} {field}={value}")


@pytest.mark.parametrize("field", ["role", "content", "name", "tool_calls", "tool_call_id", "x"])
def test_every_field_of_a_message_is_answered_or_refused_whatever_it_holds(
    address: str, field: str
) -> None:
    for value in NUMBERS + OTHERS:
        message = field_body({"role": "user", "content": "hi"}, field, value).decode()
        body = field_body(CHAT_BODY, "messages", f"[{message}]")
        check_polite(post(address, CHAT, body), f"{field}={value}")


@pytest.mark.parametrize("field", NUMERIC_FIELDS)
def test_number_is_refused_by_name_when_it_is_out_of_all_bounds(address: str, field: str) -> None:
    for value in (HUGE, f"-{HUGE}", "18446744073709551616"):
        body = field_body({"prompt": "hi", "max_tokens": 2}, field, value)
        assert refuse(post(address, COMPLETIONS, body), 400, "invalid_request")["param"] == field


def test_last_of_two_equal_keys_counts(address: str) -> None:
    body = b'{"prompt":"a","max_tokens":50,"max_tokens":"x","max_tokens":3,"temperature":0}'
    answer = post(address, COMPLETIONS, body)
    assert answer.json()["usage"]["completion_tokens"] <= 3


def test_half_of_a_surrogate_pair_is_refused_wherever_it_stands(address: str) -> None:
    for field in ("prompt", "stop", "user", "cache_salt", "model", "\\ud800"):
        body = field_body({"prompt": "a", "max_tokens": 2}, field, '"\\udc80"')
        refuse(post(address, COMPLETIONS, body), 400, "invalid_request")


# Slow clients


def test_body_that_drips_is_refused_when_its_time_is_up(address: str) -> None:
    with closing(connect(address)) as connection:
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
        connection.sendall(head.encode())
        connection.settimeout(0.2)
        started_s = time.monotonic()
        while time.monotonic() < started_s + 10 * BODY_TIMEOUT_S:
            connection.sendall(b" ")
            try:
                answer = read_answer(connection)
            except TimeoutError:
                continue
            refuse(answer, 408, "body_timeout")
            return
    pytest.fail("the body was waited for without end")


@pytest.mark.parametrize("begin", [b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nHost: x\r\n"])
def test_connection_is_given_up_when_no_whole_request_comes(address: str, begin: bytes) -> None:
    with closing(connect(address)) as connection:
        connection.sendall(begin)
        refuse(read_answer(connection), 408, "body_timeout")
        assert is_hung_up(connection)


def test_stream_that_nobody_reads_costs_little_memory_and_ends(server: ServerProcess) -> None:
    process = psutil.Process(server.process.pid)
    before_bytes = process.memory_info().rss
    raw = json.dumps(generation(400, n=8, logprobs=5, stream=True)).encode()
    connections = []
    for _ in range(8):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(raw)}\r\n"
        connection.sendall(f"{head}\r\n".encode() + raw)
        connections.append(connection)
    wait_for(lambda: len(live_requests(server)) > 8, "they run")
    wait_for(lambda: len(live_requests(server)) <= 1, "the engine is done with them")
    assert process.memory_info().rss < before_bytes + 200 * 2**20
    for connection in connections:
        connection.close()


def test_connection_is_refused_when_there_are_too_many(tmp_path: Path) -> None:
    with running(tmp_path, "--max-connections", "8") as server:
        open_ones = [connect(server.address) for _ in range(8)]
        refusal = get(server.address, "/health")
        refuse(refusal, 503, "too_many_connections")
        assert refusal.headers["retry-after"] == "1"
        with closing(connect(server.address)) as silent:
            refuse(read_answer(silent), 408, "body_timeout")
        for connection in open_ones:
            connection.close()
        wait_for(lambda: server.answers("/health"), "there is room again")


# Headers and the protocol itself


@pytest.mark.parametrize(
    "name", ["x-slo-ttft-ms", "x-slo-tpot-ms", "x-request-timeout-ms", "x-llm-d-slo-ttft-ms"]
)
@pytest.mark.parametrize("value", ["", "x", "-1", "0", "nan", "inf", "1e400", "9" * 5000, "1,2"])
def test_header_of_milliseconds_is_refused_by_name_when_it_is_none(
    address: str, name: str, value: str
) -> None:
    answer = ask(address, "POST", COMPLETIONS, generation(2), {name: value})
    assert refuse(answer, 400, "invalid_request")["param"] == name


@pytest.mark.parametrize("value", ["x" * 129, "a b", "../../x", "ä", "<script>", "", "a\tb"])
def test_request_id_is_replaced_when_it_is_not_fit_to_be_one(address: str, value: str) -> None:
    answer = ask(address, "POST", COMPLETIONS, generation(2), {"X-Request-Id": value})
    assert answer.status == 200
    own = answer.headers["x-request-id"].removeprefix("cmpl-")
    assert len(own) == 24
    assert own.isalnum()


def test_header_with_a_line_break_in_it_is_refused(address: str) -> None:
    for break_ in ("\n", "\r", "\0"):
        with closing(connect(address)) as connection:
            head = f"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: a{break_}b\r\n\r\n"
            connection.sendall(head.encode())
            refuse(read_answer(connection), 400, "invalid_request")


@pytest.mark.parametrize("value", ["x", "00-0-0-00", "00-" + "g" * 32 + "-1-01", "9" * 10_000])
def test_malformed_trace_does_not_matter(address: str, value: str) -> None:
    headers = {"traceparent": value, "tracestate": value, "baggage": value}
    assert ask(address, "POST", COMPLETIONS, generation(2), headers).status == 200


def test_stream_begins_at_its_beginning_when_a_client_wants_to_resume(address: str) -> None:
    bodies = [
        ask(address, "POST", COMPLETIONS, generation(5, stream=True, seed=1), headers).body
        for headers in ({}, {"Last-Event-ID": "3"}, {"Last-Event-ID": "x" * 5000})
    ]
    texts = [
        [json.loads(line[6:])["choices"][0]["text"] for line in body.splitlines()
         if line.startswith(b"data: {")]
        for body in bodies
    ]  # fmt: skip
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20,
        b"\x00" * 1000,
        b"GARBAGE\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: " + b"9" * 500 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused_and_hung_up_on(address: str, garbage: bytes) -> None:
    with closing(connect(address)) as connection:
        connection.sendall(garbage)
        answer = read_answer(connection)
        assert 400 <= answer.status < 500
        assert answer.error["message"]
        assert is_hung_up(connection)


def test_requests_in_a_row_are_answered_in_order(address: str) -> None:
    paths = ["/version", "/nothing", "/v1/models", "/x"]
    with closing(connect(address)) as connection:
        requests = [f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n" for path in paths]
        connection.sendall("".join(requests).encode())
        answers = b""
        while answers.count(b"HTTP/1.1") < 4 or not answers.endswith(b"}"):
            answers += connection.recv(65536)
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"200", b"404", b"200", b"404"]


def test_client_is_hung_up_on_when_it_asks_for_more_than_it_waits_for(address: str) -> None:
    with closing(connect(address)) as connection:
        connection.sendall(b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000)
        assert is_hung_up(connection)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", COMPLETIONS, 405, "method_not_allowed"),
        ("DELETE", "/health", 405, "method_not_allowed"),
        ("POST", "/v1/nothing", 404, "not_found"),
        ("GET", "/v1/files/../../../etc/passwd", 404, "not_found"),
        ("GET", "/v1/files/..%2F..%2F..%2Fetc%2Fpasswd/content", 404, "not_found"),
        ("GET", "/v1/files/file-0%00/content", 404, "not_found"),
        ("GET", "/v1/files/%FF%FE/content", 404, "not_found"),
        ("DELETE", "/v1/files/..%2Flock", 404, "not_found"),
        ("GET", "/v1/batches/..%2F..%2Fx", 404, "not_found"),
        ("POST", "/v1/batches/%2e%2e/cancel", 404, "not_found"),
        ("GET", "/ui/..%2F..%2Fapp.py", 404, "not_found"),
        ("GET", "/ui/../app.py", 404, "not_found"),
        ("GET", "/v1/requests/%0a%0dX/explain", 404, "not_found"),
        ("GET", "/v1/files?limit=99999999999999999999", 400, "invalid_request"),
        ("GET", "/v1/files?after=" + "x" * 5000, 404, "not_found"),
    ],
)
def test_path_leads_nowhere_else(
    address: str, method: str, path: str, status: int, code: str
) -> None:
    refuse(ask(address, method, path), status, code)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Host": "evil.example"},
        {"Host": "localhost.evil.example:8000"},
        {"Host": "evil.example", "Origin": "http://evil.example"},
    ],
)
def test_web_page_of_somebody_else_may_not_use_a_server_without_keys(
    address: str, headers: dict[str, str]
) -> None:
    refuse(ask(address, "POST", COMPLETIONS, generation(2), headers), 403, "permission_denied")
    refuse(ask(address, "GET", "/ui/state", None, headers), 403, "permission_denied")


def test_own_web_page_may_use_a_server_without_keys(address: str) -> None:
    headers = {"Origin": f"http://{address}"}
    assert ask(address, "POST", COMPLETIONS, generation(2), headers).status == 200


# Templates and grammars


def rendered(address: str, **body: Any) -> str:
    """Return the prompt that a chat becomes."""
    answer = post(address, "/tokenize", body)
    assert answer.status == 200, answer.body
    detokenized = post(address, "/detokenize", {"tokens": answer.json()["tokens"]})
    return str(detokenized.json()["prompt"])


def test_message_is_text_to_the_template_whatever_it_says(address: str) -> None:
    content = "{{ 7 * 7 }} {% for x in range(10 ** 9) %}{% endfor %} {{ self.__init__ }}"
    prompt = rendered(address, messages=[{"role": "user", "content": content}])
    assert content in prompt


def test_template_variable_is_text_to_the_template(address: str) -> None:
    body = CHAT_BODY | {"chat_template_kwargs": {"custom": "{{ 7 * 7 }}", "x": {"a": [1]}}}
    assert post(address, CHAT, body).status == 200


@pytest.mark.parametrize(
    "names",
    [["messages"], ["self"], ["tools"], ["add_generation_prompt"], ["raise_exception"],
     ["chat_template"], ["range"], ["namespace"], ["__class__"], ["loop"], ["", "a b", "1"],
     [f"x{number}" for number in range(20_000)]],
    ids=str,
)  # fmt: skip
def test_template_variable_cannot_break_the_template(address: str, names: list[str]) -> None:
    body = CHAT_BODY | {"chat_template_kwargs": dict.fromkeys(names, "x")}
    check_polite(post(address, CHAT, body), str(names[:3]))


BOMBS: list[dict[str, Any]] = [
    {"regex": "(a{1,1000}){1000}"},
    {"regex": "((a{1,100}){1,100}){1,100}"},
    {"regex": "(a|b)*" * 2700},
    {"regex": "(.*a.{20})|(.*b.{200})"},
    {"regex": r"\p{L}{100}.*\p{L}{100}x"},
    {"regex": "(" * 1000 + ")" * 1000},
    {"regex": "a" * 100_000},
    {"regex": "("},
    {"json": {"$ref": "#"}},
    {"json": {"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}] * 9}}}},
    {"json": {"$ref": "#/$defs/a0", "$defs": {
        f"a{i}": {"anyOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 8} for i in range(60)}}},
    {"json": {"$ref": "http://127.0.0.1:1/schema.json"}},
    {"json": {"$ref": "file:///etc/passwd"}},
    {"json": {"allOf": [{"anyOf": [{"properties": {f"p{i}-{j}": {}}} for j in range(8)]}
                        for i in range(12)]}},
    {"json": {"enum": [f"x{i}" for i in range(8000)]}},
    {"json": {"enum": ["x" * 100_000]}},
    {"json": {"type": "string", "maxLength": 10**9}},
    {"json": {"type": "string", "minLength": 10**9}},
    {"json": {"type": "array", "minItems": 10**6, "items": {"type": "integer"}}},
    {"json": {"type": "number", "minimum": -1e300, "maximum": 1e300, "multipleOf": 1e-300}},
    {"json": {"type": "string", "pattern": "(a{1,1000}){1000}"}},
    {"json": "{" * 1000},
    {"choice": [f"x{i}" for i in range(6000)]},
    {"choice": []},
    {"grammar": "start: " + "a " * 8000 + '\na: "x"*'},
    {"grammar": 'start: start start | "a" | '},
    {"grammar": "start: start"},
    {"grammar": "root ::= root root"},
    {"grammar": "\n".join(f'r{i}: r{i + 1} "x"' for i in range(5000))},
]  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: json.dumps(bomb)[:50])
def test_form_of_output_is_had_or_refused_in_bounded_time(
    address: str, bomb: dict[str, Any]
) -> None:
    body = {"prompt": "a", "max_tokens": 3, "structured_outputs": bomb}
    raw = json.dumps(body).encode()
    check_polite(ask(address, "POST", COMPLETIONS, raw, timeout_s=30), str(bomb)[:200])


# Uploads


def upload(address: str, raw: bytes, kind: str = "multipart/form-data; boundary=B") -> Answer:
    return ask(address, "POST", "/v1/files", raw, {"Content-Type": kind})


def part(name: str, content: str, filename: str = "") -> str:
    named = f'; filename="{filename}"' if filename else ""
    return f'--B\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n{content}\r\n'


def form(*parts: str) -> bytes:
    return ("".join(parts) + "--B--\r\n").encode()


PURPOSE = part("purpose", "batch")


@pytest.mark.parametrize(
    "raw",
    [
        form(*(part(f"x{i}", "y") for i in range(10_000))),
        form(*(part("file", "{}", "a.jsonl") for _ in range(1000)), PURPOSE),
        form(PURPOSE, part("file", "no file")),
        form(part("file", "{}", "a.jsonl")),
        form(part("purpose", "fine-tune"), part("file", "{}", "a.jsonl")),
        form(part("purpose", "p", "purpose.txt"), part("file", "{}", "a.jsonl")),
        form(part("purpose", "x" * 3_000_000), part("file", "{}", "a.jsonl")),
        form(f"--B\r\n{'X-Header: y' * 100_000}\r\n\r\nz\r\n"),
        form("--B\r\n" + "X: y\r\n" * 10_000 + "\r\nz\r\n"),
        form("--B\r\n\r\nno disposition\r\n"),
        form('--B\r\nContent-Disposition: form-data; name="file"; filename="\xff'),
        b"--B\r\n",
        b"\r\n" * 100_000,
        b"",
        b"\x00" * 100_000,
    ],
)
def test_form_is_refused_when_it_is_malformed_or_too_much(address: str, raw: bytes) -> None:
    refuse(upload(address, raw), 400, "invalid_request")


@pytest.mark.parametrize(
    "kind",
    ["multipart/form-data", "multipart/form-data; boundary=", "application/json", "text/plain",
     "application/x-www-form-urlencoded", "multipart/form-data; boundary=" + "x" * 5000, ""],
)  # fmt: skip
def test_upload_is_refused_when_its_type_does_not_fit(address: str, kind: str) -> None:
    raw = form(PURPOSE, part("file", "{}", "a.jsonl"))
    refuse(upload(address, raw, kind), 400, "invalid_request")


def test_file_name_leads_nowhere(server: ServerProcess) -> None:
    for name in ("../../evil", "/etc/evil", "..\\evil", "a" * 1000, "\x7f", "%00"):
        answer = upload(server.address, form(PURPOSE, part("file", "content", name)))
        assert answer.status == 200, answer.body
        stored = answer.json()
        assert len(stored["filename"]) <= 255
        content = get(server.address, f"/v1/files/{stored['id']}/content")
        assert content.body == b"content"
    folder = server.log_path.parent / "data" / "files"
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".jsonl"}


def test_lines_of_a_batch_keep_to_the_rules_for_bodies(address: str) -> None:
    lines = [
        "not JSON",
        "[" * 100_000,
        '{"custom_id": "\\ud800", "method": "POST", "url": "/v1/completions", "body": 5}',
        *(
            json.dumps({"custom_id": str(number), "method": "POST", "url": COMPLETIONS}
                       | {"body": json.loads(body)})
            for number, body in enumerate([
                '{"prompt": "\\ud800"}',
                '{"prompt": "a", "stop": "\\ud800"}',
                f'{{"prompt": "a", "max_tokens": {HUGE}}}',
                '{"prompt": "a", "temperature": NaN}',
                '{"prompt": "a", "metadata": ' + "[" * 300 + "]" * 300 + "}",
                '{"prompt": "a", "stream": true}',
            ])
        ),
        json.dumps({"custom_id": "good", "method": "POST", "url": COMPLETIONS,
                    "body": generation(3)}),
    ]  # fmt: skip
    stored = upload(address, form(PURPOSE, part("file", "\n".join(lines), "a.jsonl"))).json()
    body = {"input_file_id": stored["id"], "endpoint": COMPLETIONS, "completion_window": "24h"}
    batch = post(address, "/v1/batches", body).json()

    def ended() -> bool:
        nonlocal batch
        batch = get(address, f"/v1/batches/{batch['id']}").json()
        return batch["status"] not in ("in_progress", "finalizing")

    wait_for(ended, "the batch has ended")
    assert batch["status"] == "completed", batch
    assert batch["request_counts"] == {"total": 10, "completed": 1, "failed": 9}
    errors = get(address, f"/v1/files/{batch['error_file_id']}/content").body
    statuses = {json.loads(line)["response"]["status_code"] for line in errors.splitlines()}
    assert statuses == {400}
