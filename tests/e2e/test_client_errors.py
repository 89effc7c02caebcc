"""Which errors the official clients raise when a server turns them away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import anthropic
import httpx
import openai
import pytest

from support.served_model import ADMIN_KEY, metric, post, served

KEY = "key-1"
ADMIN = {"authorization": f"Bearer {ADMIN_KEY}"}
ASKED: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Hi"}],
    "max_tokens": 2,
}


class Service(NamedTuple):
    """One way to ask for an answer.

    Attributes:
        ask: called with address and key.
        errors: the client's module, which has its errors.
        error_types: what stands in the bodies of errors, by status.
    """

    ask: Callable[[str, str], Any]
    errors: Any
    error_types: dict[int, str]

    def check_form(self, error: Any) -> None:
        """Check that an error's body is in the API's own form."""
        body = error.body if self.errors is openai else error.body["error"]
        assert body["type"] == self.error_types[error.status_code]
        if self.errors is anthropic:
            assert error.body["type"] == "error"


def ask_openai(address: str, key: str) -> Any:
    client = openai.OpenAI(base_url=f"http://{address}/v1", api_key=key, max_retries=0)
    return client.chat.completions.create(**ASKED)


def ask_anthropic(address: str, key: str) -> Any:
    client = anthropic.Anthropic(base_url=f"http://{address}", api_key=key, max_retries=0)
    return client.messages.create(**ASKED)


OPENAI_TYPES = {401: "invalid_request_error", 429: "rate_limit_error", 503: "server_error"}
ANTHROPIC_TYPES = {401: "authentication_error", 429: "rate_limit_error", 503: "overloaded_error"}
SERVICES = [
    pytest.param(Service(ask_openai, openai, OPENAI_TYPES), id="openai"),
    pytest.param(Service(ask_anthropic, anthropic, ANTHROPIC_TYPES), id="anthropic"),
]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    keys = ("--api-key", KEY, "--admin-api-key", ADMIN_KEY)
    queue = ("--max-num-queued-reqs", "1", "--max-model-len", "256")
    named = ("--served-model-name", "tiny", "--num-blocks-override", "64")
    # A template of our own, because the tiny tokeniser has none.
    folder = tmp_path_factory.mktemp("served")
    (folder / "template.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")
    template = ("--chat-template", str(folder / "template.jinja"))
    with served(folder, *keys, *queue, *named, *template) as running:
        yield running


@pytest.mark.parametrize("service", SERVICES)
def test_right_key_gets_an_answer(address: str, service: Service) -> None:
    assert service.ask(address, KEY).usage


@pytest.mark.parametrize("service", SERVICES)
def test_wrong_key_raises_authentication_error(address: str, service: Service) -> None:
    with pytest.raises(service.errors.AuthenticationError, match="key is wrong") as caught:
        service.ask(address, "other")
    service.check_form(caught.value)


@pytest.mark.parametrize("service", SERVICES)
def test_full_queue_raises_rate_limit_error_with_retry_after(
    address: str, service: Service
) -> None:
    assert post(address, "/admin/pause", {}, **ADMIN) == 200
    waiting = threading.Thread(target=ask_openai, args=(address, KEY))
    waiting.start()
    try:
        while not num_waiting(address):
            time.sleep(0.02)
        with pytest.raises(service.errors.RateLimitError) as caught:
            service.ask(address, KEY)
        assert int(caught.value.response.headers["retry-after"]) >= 1
        service.check_form(caught.value)
    finally:
        assert post(address, "/admin/resume", {}, **ADMIN) == 200
        waiting.join()


@pytest.mark.parametrize("service", SERVICES)
def test_draining_server_raises_503_with_retry_after(address: str, service: Service) -> None:
    assert post(address, "/admin/drain", {}, **ADMIN) == 200
    try:
        with pytest.raises(service.errors.InternalServerError) as caught:
            service.ask(address, KEY)
        assert caught.value.status_code == 503
        assert int(caught.value.response.headers["retry-after"]) >= 1
        service.check_form(caught.value)
    finally:
        assert post(address, "/admin/resume", {}, **ADMIN) == 200


def test_admin_endpoints_refuse_a_key_that_is_no_admin_key(address: str) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    assert post(address, "/admin/pause", {}, **headers) == 403


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"messages": [{"role": "user", "content": "x " * 400}]}, openai.BadRequestError),
        ({"logit_bias": {"999999": 1}}, openai.BadRequestError),
        ({"extra_body": {"session_id": "none"}}, openai.NotFoundError),
    ],
)
def test_refused_request_is_not_counted(
    address: str, wrong: dict[str, Any], error: type[Exception]
) -> None:
    client = openai.OpenAI(base_url=f"http://{address}/v1", api_key=KEY, max_retries=0)
    before = metric(address, "evenflow:tenant_requests_total")
    with pytest.raises(error):
        client.chat.completions.create(**ASKED | wrong)
    assert metric(address, "evenflow:tenant_requests_total") == before
    ask_openai(address, KEY)
    assert metric(address, "evenflow:tenant_requests_total") == before + 1


def num_waiting(address: str) -> int:
    return len(httpx.get(f"http://{address}/admin/requests", headers=ADMIN).json()["requests"])
