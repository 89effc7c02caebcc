"""Every error there is, as HTTP tells it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from evenflow.core.errors import (
    ConfigError,
    EvenflowError,
    InvalidRequestError,
    QueueFullError,
    RejectedError,
)
from evenflow.engine.openai import error_body
from evenflow.engine.process.client import remote_error
from evenflow.engine.process.host import error_info
from evenflow.server.errors import (
    STATUS_CODES,
    AuthenticationError,
    error_headers,
    error_response,
    status_code,
)


def kinds(kind: type[EvenflowError] = EvenflowError) -> Iterator[type[EvenflowError]]:
    """Yield a kind of error and all narrower ones that evenflow itself defines."""
    if kind.__module__.startswith("evenflow."):
        yield kind
    for narrower in kind.__subclasses__():
        yield from kinds(narrower)


KINDS = sorted(kinds(), key=lambda kind: kind.__name__)


def instance(kind: type[EvenflowError]) -> EvenflowError:
    if issubclass(kind, RejectedError):
        return kind("it happened", retry_after_s=2.5)
    return kind("it happened")


def test_no_two_kinds_of_error_share_a_code() -> None:
    assert len({kind.code for kind in KINDS}) == len(KINDS)


def test_every_listed_code_is_raised_by_somebody() -> None:
    assert STATUS_CODES.keys() <= {kind.code for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_status_says_whose_fault_an_error_is(kind: type[EvenflowError]) -> None:
    status = status_code(instance(kind))
    if issubclass(kind, InvalidRequestError):
        assert 400 <= status < 500
    elif issubclass(kind, RejectedError) and kind is not RejectedError:
        assert status in (429, 503), "the caller may try again"
    else:
        assert status in (404, 408, 500, 503)


@pytest.mark.parametrize("kind", [k for k in KINDS if not issubclass(k, RejectedError)])
def test_status_is_the_same_for_an_error_of_the_engine_process(kind: type[EvenflowError]) -> None:
    here = instance(kind)
    assert status_code(remote_error(error_info(here))) == status_code(here)
    assert error_body(remote_error(error_info(here))) == error_body(here)


@pytest.mark.parametrize(("wait_s", "said"), [(0.0, "1"), (0.2, "1"), (2.5, "3"), (60.0, "60")])
def test_refusal_says_when_to_come_back(wait_s: float, said: str) -> None:
    error = QueueFullError("the queue is full", retry_after_s=wait_s)
    assert error_headers(error) == {"Retry-After": said}


def test_missing_key_is_asked_for() -> None:
    assert error_headers(AuthenticationError("a key is needed")) == {"WWW-Authenticate": "Bearer"}
    assert error_headers(ConfigError("no")) == {}


def test_error_response_is_openais_and_short_whatever_it_quotes() -> None:
    error = InvalidRequestError("x" * 100_000, param="p" * 100_000, why="a\nb")
    response = error_response(error)
    said = json.loads(response.body)["error"]
    assert (response.status_code, said["type"]) == (400, "invalid_request_error")
    assert (said["code"], said["param"][:3]) == ("invalid_request", "ppp")
    assert len(response.body) < 3000


def test_error_response_can_have_another_apis_form() -> None:
    response = error_response(ConfigError("no"), {"type": "error"})
    assert (response.status_code, response.body) == (500, b'{"type":"error"}')
