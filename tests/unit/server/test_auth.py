"""Who is who at the door, and what they may do."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import Request

from evenflow.config import ServerConfig
from evenflow.core.errors import ConfigError, InvalidRequestError
from evenflow.core.ids import TenantId
from evenflow.core.slo import Slo
from evenflow.fairness.keys import NUM_RANDOM_BYTES, Identity, KeyRing, new_key
from evenflow.fairness.tenants import OTHER_TENANT, Tenant, TenantDirectory
from evenflow.server.auth import Door
from evenflow.server.errors import AuthenticationError, PermissionDeniedError

BLUE = new_key(Identity(TenantId("blue")), bytes(NUM_RANDOM_BYTES))
BOSS = new_key(Identity(TenantId("ops"), is_admin=True), bytes([1]) * NUM_RANDOM_BYTES)
RING = KeyRing([BLUE.entry, BOSS.entry])
NO_KEYS = KeyRing(())
SHARED, ADMIN = "shared-key", "admin-key"


def make_door(keys: KeyRing = NO_KEYS, *, max_num_strangers: int = 4, **config: Any) -> Door:
    directory = TenantDirectory([Tenant(TenantId("blue"))], max_num_strangers=max_num_strangers)
    return Door(ServerConfig(**config), keys, directory)


def request(**headers: str) -> Request:
    raw = [
        (name.replace("_", "-").encode(), value.encode("latin-1"))
        for name, value in headers.items()
    ]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": raw})


def bearer(key: str) -> Request:
    return request(authorization=f"Bearer {key}")


ALL_KINDS = {"api_key": SHARED, "admin_api_key": ADMIN}


@pytest.mark.parametrize(
    ("sent", "tenant", "is_admin"),
    [
        (bearer(BLUE.text), "blue", False),
        (bearer(BOSS.text), "ops", True),
        (bearer(SHARED), "", False),
        (bearer(ADMIN), "", True),
        (request(x_api_key=BLUE.text), "blue", False),
        (request(authorization=f"bearer   {BLUE.text} "), "blue", False),
        (request(authorization="Basic eA==", x_api_key=BLUE.text), "blue", False),
        (request(authorization=f"Bearer {BLUE.text}", x_api_key="wrong"), "blue", False),
    ],
)
def test_door_knows_the_owner_of_a_key(sent: Request, tenant: str, is_admin: bool) -> None:
    door = make_door(RING, **ALL_KINDS)
    assert door.identify(sent) == Identity(TenantId(tenant), is_admin)


@pytest.mark.parametrize(
    "sent",
    [
        request(),
        bearer("wrong"),
        bearer(""),
        bearer("  "),
        bearer(BLUE.text[:-1]),
        bearer(BLUE.text + "x"),
        bearer("k" * 100_000),
        bearer("\xff\x80"),
        request(authorization=BLUE.text),
        request(authorization=f"Basic {BLUE.text}"),
        request(x_api_key=""),
        request(api_key=BLUE.text),
    ],
)
def test_door_opens_to_no_other_key(sent: Request) -> None:
    door = make_door(RING, **ALL_KINDS)
    for ask in (door.identify, door.check_admin, door.check_observer):
        with pytest.raises(AuthenticationError) as caught:
            ask(sent)
        assert "Bearer KEY" in str(caught.value)
    with pytest.raises(AuthenticationError):
        door.caller(sent, {})


def test_door_never_repeats_a_key() -> None:
    with pytest.raises(AuthenticationError) as caught:
        make_door(RING).identify(bearer("secret-but-wrong"))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("sent", [request(), bearer("EMPTY"), request(x_api_key="anything")])
def test_door_takes_anybody_where_no_key_is_needed(sent: Request) -> None:
    door = make_door()
    assert door.identify(sent) is None
    assert door.check_observer(sent) is None
    assert not door.caller(sent, None).is_admin


def test_door_needs_no_key_of_users_because_operators_have_one() -> None:
    door = make_door(admin_api_key=ADMIN)
    assert door.identify(request()) is None
    assert door.identify(bearer(ADMIN)) == Identity(TenantId(""), is_admin=True)


# ---- What keys are good for ----------------------------------------------------------------------


@pytest.mark.parametrize("key", [BOSS.text, ADMIN])
def test_door_lets_operators_pass(key: str) -> None:
    door = make_door(RING, **ALL_KINDS)
    door.check_admin(bearer(key))
    assert door.caller(bearer(key), None).is_admin


@pytest.mark.parametrize("key", [BLUE.text, SHARED])
def test_door_keeps_users_from_what_operators_do(key: str) -> None:
    with pytest.raises(PermissionDeniedError):
        make_door(RING, **ALL_KINDS).check_admin(bearer(key))


def test_door_has_no_operators_without_an_admin_key() -> None:
    for sent in (request(), bearer("anything")):
        with pytest.raises(PermissionDeniedError):
            make_door().check_admin(sent)


@pytest.mark.parametrize(
    ("keys", "config", "key", "may_watch"),
    [
        (RING, {}, BLUE.text, False),
        (RING, {}, BOSS.text, True),
        (RING, ALL_KINDS, SHARED, False),
        (NO_KEYS, ALL_KINDS, SHARED, True),  # everybody has this key: there is nobody to hide from
        (NO_KEYS, ALL_KINDS, ADMIN, True),
    ],
)
def test_door_lets_watch_who_may_see_all_tenants(
    keys: KeyRing, config: dict[str, str], key: str, may_watch: bool
) -> None:
    door = make_door(keys, **config)
    if may_watch:
        assert door.check_observer(bearer(key)) is not None
    else:
        with pytest.raises(PermissionDeniedError):
            door.check_observer(bearer(key))


@pytest.mark.parametrize(
    ("key", "seen"),
    [(BLUE.text, {"blue"}), (BOSS.text, {"blue", "red"}), (SHARED, {"blue", "red"})],
)
def test_door_shows_a_request_to_its_own_tenant(key: str, seen: set[str]) -> None:
    door = make_door(RING, **ALL_KINDS)
    identity = door.identify(bearer(key))
    assert identity is not None
    assert {tenant for tenant in ("blue", "red") if door.may_see(identity, tenant)} == seen


# ---- On whose account ----------------------------------------------------------------------------

PROXIED = {"x_llm_d_inference_fairness_id": "green"}
GATEWAY = {"x_gateway_inference_fairness_id": "grey"}


@pytest.mark.parametrize(
    ("config", "headers", "body", "tenant"),
    [
        ({}, {}, {}, "default"),
        ({}, {}, None, "default"),
        ({}, {}, {"user": "red"}, "red"),
        ({}, {}, {"user": ""}, "default"),
        ({}, {}, {"user": 7}, "default"),
        ({}, {}, ["user"], "default"),
        ({}, {}, {"user": "no\nline"}, OTHER_TENANT),
        ({}, {}, {"user": "n" * 129}, OTHER_TENANT),
        ({}, PROXIED, {"user": "red"}, "red"),
        ({"trust_proxy_headers": True}, PROXIED, {"user": "red"}, "green"),
        ({"trust_proxy_headers": True}, GATEWAY, {}, "grey"),
        ({"trust_proxy_headers": True}, PROXIED | GATEWAY, {}, "green"),
        ({"trust_proxy_headers": True}, {}, {"user": "red"}, "red"),
        (ALL_KINDS, {"x_api_key": SHARED}, {"user": "red"}, "red"),
        (ALL_KINDS, {"x_api_key": ADMIN}, {"user": "red"}, "red"),
        (ALL_KINDS, {"x_api_key": BLUE.text}, {"user": "red"}, "blue"),
        ({"trust_proxy_headers": True}, {"x_api_key": BLUE.text} | PROXIED, {}, "blue"),
    ],
)
def test_door_charges_the_key_then_the_proxy_then_the_user(
    config: dict[str, Any], headers: dict[str, str], body: object, tenant: str
) -> None:
    door = make_door(RING if "x_api_key" in headers else NO_KEYS, **config)
    assert door.caller(request(**headers), body).tenant_id == tenant


def test_door_tells_only_so_many_strangers_apart() -> None:
    door = make_door(max_num_strangers=2)
    names = ["a", "b", "c", "a", "blue", "default"]
    tenants = [door.caller(request(), {"user": name}).tenant_id for name in names]
    assert tenants == ["a", "b", OTHER_TENANT, "a", "blue", "default"]


# ---- Headers -------------------------------------------------------------------------------------


def test_caller_has_what_the_headers_say() -> None:
    caller = make_door().caller(
        request(
            x_request_id="Order-7:a.b_c",
            x_slo_ttft_ms="250",
            x_slo_tpot_ms="12.5",
            x_request_timeout_ms="3e3",
            traceparent="00-a-b-01",
        ),
        None,
    )
    assert caller.request_id == "Order-7:a.b_c"
    assert caller.slo == Slo(0.25, 0.0125)
    assert (caller.timeout_s, caller.traceparent) == (3.0, "00-a-b-01")


def test_caller_has_objectives_under_the_gateways_names_too() -> None:
    caller = make_door().caller(request(x_llm_d_slo_ttft_ms="250"), None)
    assert caller.slo == Slo(0.25, None)


def test_caller_has_nothing_that_no_header_says() -> None:
    caller = make_door().caller(request(), None)
    assert (caller.slo, caller.timeout_s, caller.traceparent) == (None, None, None)


@pytest.mark.parametrize("wanted", ["", "a b", "a\tb", "é", "x" * 129, "a#1", "a/b", "a\n"])
def test_caller_gets_a_fresh_id_for_one_that_is_unusable(wanted: str) -> None:
    door = make_door()
    ids = {door.caller(request(x_request_id=wanted), None).request_id for _ in range(2)}
    assert len(ids) == 2
    assert wanted not in ids
    assert all(len(request_id) == 24 for request_id in ids)


@pytest.mark.parametrize("header", ["x_slo_ttft_ms", "x_slo_tpot_ms", "x_request_timeout_ms"])
@pytest.mark.parametrize(
    "value", ["", "soon", "0", "-1", "nan", "inf", "1e999", "1 000", "5e-324", "9" * 5000]
)
def test_caller_must_send_positive_milliseconds(header: str, value: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        make_door().caller(request(**{header: value}), None)
    assert caught.value.param == header.replace("_", "-")
    assert len(str(caught.value)) < 200


# ---- Where it stands -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        {"host": "127.0.0.1"},
        {"host": "::1"},
        {"host": "localhost"},
        {"host": "0.0.0.0", "api_key": SHARED},
        {"host": "0.0.0.0", "allow_unauthenticated": True},
    ],
)
def test_door_stands_where_no_stranger_comes_or_keys_are_asked_for(config: dict[str, Any]) -> None:
    make_door(**config)
    make_door(RING, host="0.0.0.0")


@pytest.mark.parametrize("config", [{}, {"admin_api_key": ADMIN}, {"trust_proxy_headers": True}])
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "127.0.0.2", "example.org"])
def test_door_does_not_stand_open_to_strangers(host: str, config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        make_door(host=host, **config)
    assert "--allow-unauthenticated" in str(caught.value)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": "localhost:8000"},
        {"host": "LocalHost:8000"},
        {"host": "127.0.0.1"},
        {"host": "[::1]:8000"},
        {"host": "[::1]"},
        {"host": "localhost:8000", "origin": "http://localhost:8000"},
        {"host": "[::1]:8000", "origin": "http://[::1]:8000"},
    ],
)
def test_door_without_keys_takes_programs_and_its_own_page(headers: dict[str, str]) -> None:
    assert make_door().identify(request(**headers)) is None


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "evil.example:8000"},
        {"host": "localhost.evil.example"},
        {"host": "127.0.0.1.evil:80"},
        {"host": "localhost:8000", "origin": "http://evil.example"},
        {"host": "localhost:8000", "origin": "http://localhost:3000"},
        {"host": "localhost:8000", "origin": "null"},
        {"host": "", "origin": "http://evil.example"},
        {"host": "evil.example", "origin": "http://evil.example"},
    ],
)
def test_door_without_keys_refuses_pages_of_others(headers: dict[str, str]) -> None:
    door = make_door()
    for ask in (door.identify, door.check_admin, door.check_observer):
        with pytest.raises(PermissionDeniedError):
            ask(request(**headers))
    for opening in ("allow_unauthenticated", "trust_proxy_headers"):
        assert make_door(**{opening: True}).identify(request(**headers)) is None
    with_keys = make_door(RING)
    assert with_keys.identify(request(**headers, x_api_key=BLUE.text)) is not None
