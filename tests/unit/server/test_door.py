from __future__ import annotations

from typing import Any

import pytest
from starlette.requests import Request

from evenflow.config import ServerConfig
from evenflow.core.errors import ConfigError
from evenflow.fairness.keys import KeyRing
from evenflow.fairness.tenants import TenantDirectory
from evenflow.server.auth import Door
from evenflow.server.errors import AuthenticationError, PermissionDeniedError


def door(**settings: Any) -> Door:
    return Door(ServerConfig(**settings), KeyRing(()), TenantDirectory())


def request(**headers: str) -> Request:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "headers": raw})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", "127.0.0.2"])
def test_door_refuses_an_open_address_when_there_are_no_keys(host: str) -> None:
    with pytest.raises(ConfigError, match="can be reached from other machines"):
        door(host=host)
    for settings in ({"api_key": "k"}, {"allow_unauthenticated": True}):
        door(host=host, **settings)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "localhost:8000", "[::1]:8000", ""])
def test_door_knows_this_machine_by_its_names(host: str) -> None:
    assert door().identify(request(host=host)) is None
    assert door().identify(request(host=host, origin=f"http://{host}")) is None


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil:80"])
def test_door_refuses_a_name_that_somebody_else_points_here(host: str) -> None:
    with pytest.raises(PermissionDeniedError):
        door().identify(request(host=host))
    for settings in ({"allow_unauthenticated": True}, {"trust_proxy_headers": True}):
        assert door(**settings).identify(request(host=host)) is None
    assert door(api_key="k").identify(request(host=host, authorization="Bearer k")) is not None


def test_door_refuses_a_page_of_somebody_else() -> None:
    for origin in ("https://evil.example", "null", "http://localhost:9000"):
        with pytest.raises(PermissionDeniedError):
            door().identify(request(host="localhost:8000", origin=origin))


def test_door_asks_for_the_whole_key() -> None:
    guarded = door(api_key="secret-key", admin_api_key="admin-key")
    for wrong in ("", "secret-ke", "secret-key0", "SECRET-KEY"):
        with pytest.raises(AuthenticationError):
            guarded.identify(
                request(authorization=f"Bearer {wrong}".encode("utf-8", "replace").decode())
            )
    shared = guarded.identify(request(authorization="Bearer secret-key"))
    operator = guarded.identify(request(**{"x-api-key": "admin-key"}))
    assert shared is not None
    assert operator is not None
    assert (shared.is_admin, operator.is_admin) == (False, True)
