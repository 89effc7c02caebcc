"""Who is asking, and on whose account."""

from __future__ import annotations

import hashlib
import hmac
import math
import re
from collections.abc import Mapping
from secrets import token_hex
from typing import Any

from fastapi import Request
from pydantic import SecretStr

from evenflow.config import ServerConfig
from evenflow.core.errors import ConfigError, InvalidRequestError
from evenflow.core.ids import DEFAULT_TENANT, TenantId
from evenflow.core.slo import Slo
from evenflow.fairness.keys import Identity, KeyRing
from evenflow.fairness.tenants import TenantDirectory
from evenflow.server.errors import AuthenticationError, PermissionDeniedError
from evenflow.server.serving import Caller

TENANT_HEADERS = ("x-llm-d-inference-fairness-id", "x-gateway-inference-fairness-id")
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})

_PORT = re.compile(r":\d*$")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Door:
    """Decides who may do what.

    Args:
        config: keys and whether proxies are trusted.
        keys: the keys file's.
        directory: tenants by name.
    """

    def __init__(self, config: ServerConfig, keys: KeyRing, directory: TenantDirectory) -> None:
        self._config = config
        self._keys = keys
        self._directory = directory
        self.needs_key = bool(len(keys) or config.api_key)
        check_exposure(config, has_keys=self.needs_key)
        is_opened = config.allow_unauthenticated or config.trust_proxy_headers
        self._is_private = config.host in LOOPBACK and not is_opened

    def identify(self, request: Request) -> Identity | None:
        """Return whose key came with a request; None where none is needed.

        Raises:
            AuthenticationError: the key is missing or wrong.
            PermissionDeniedError: no key is needed, and a web page of somebody else asks.
        """
        key = _presented_key(request)
        if key is not None and (identity := self._lookup(key)) is not None:
            return identity
        if not self.needs_key:
            if self._is_private:
                _refuse_foreign_pages(request.headers)
            return None
        raise AuthenticationError(
            "the API key is wrong" if key else "an API key is needed",
            fix="Send it in the header Authorization: Bearer KEY",
        )

    def caller(self, request: Request, body: object) -> Caller:
        """Return who sends a request for the model.

        The tenant is the key's; else, behind a trusted proxy, the one in the header; else the
        body's `user`; else the default one.

        Raises:
            AuthenticationError: the key is missing or wrong.
            InvalidRequestError: a header is malformed.
        """
        identity = self.identify(request)
        wanted_id = request.headers.get("x-request-id", "")
        return Caller(
            tenant_id=self._tenant(identity, request.headers, body),
            request_id=wanted_id if _REQUEST_ID.fullmatch(wanted_id) else token_hex(12),
            slo=_slo(request.headers),
            timeout_s=_milliseconds(request.headers, "x-request-timeout-ms"),
            traceparent=request.headers.get("traceparent"),
            is_admin=identity is not None and identity.is_admin,
        )

    def check_admin(self, request: Request) -> None:
        """Let only an operator pass.

        Raises:
            AuthenticationError: the key is missing or wrong.
            PermissionDeniedError: it is a key, but no operator's, or there is none of that kind.
        """
        identity = self.identify(request)
        if identity is None or not identity.is_admin:
            raise PermissionDeniedError(
                "this needs an admin key",
                fix="Start the server with --admin-api-key, or make one with "
                "`evenflow keys new --admin`",
            )

    def check_observer(self, request: Request) -> Identity | None:
        """Let pass who may see what all tenants do: operators, or everybody where no key is needed.

        Raises:
            AuthenticationError: the key is missing or wrong.
            PermissionDeniedError: it is a tenant's key.
        """
        identity = self.identify(request)
        if identity is not None and not identity.is_admin and self._sees_others():
            raise PermissionDeniedError(
                "this shows what all tenants do and needs an admin key",
                fix="Use the key of --admin-api-key, or one made with `evenflow keys new --admin`",
            )
        return identity

    def may_see(self, identity: Identity, tenant_id: str) -> bool:
        """Return whether a key may see a request of a tenant."""
        return identity.is_admin or identity.tenant_id in (ANY_TENANT, tenant_id)

    def _sees_others(self) -> bool:
        """Whether there is more than one key, so that one tenant could watch another."""
        return len(self._keys) > 0

    def _lookup(self, key: str) -> Identity | None:
        """Compare with every key there is, in constant time."""
        found = self._keys.identify(key)
        if _matches(key, self._config.api_key):
            found = Identity(ANY_TENANT)
        if _matches(key, self._config.admin_api_key):
            found = Identity(ANY_TENANT, is_admin=True)
        return found

    def _tenant(
        self, identity: Identity | None, headers: Mapping[str, str], body: object
    ) -> TenantId:
        if identity is not None and identity.tenant_id != ANY_TENANT:
            return identity.tenant_id
        names: list[Any] = []
        if self._config.trust_proxy_headers:
            names += [headers.get(name) for name in TENANT_HEADERS]
        if isinstance(body, Mapping):
            names.append(body.get("user"))
        name = next((name for name in names if isinstance(name, str) and name), DEFAULT_TENANT)
        return self._directory.canonical(name)


ANY_TENANT = TenantId("")
"""Stands for the tenant of a key that all tenants share; the request says who it is."""


def check_exposure(config: ServerConfig, *, has_keys: bool) -> None:
    """Refuse to serve strangers without keys.

    Raises:
        ConfigError: the address can be reached from other machines and there are no keys.
    """
    if config.host in LOOPBACK or has_keys or config.allow_unauthenticated:
        return
    raise ConfigError(
        f"--host {config.host} can be reached from other machines and there are no API keys",
        why="anybody there could use the model and see what others do",
        fix="Set --api-key or --keys-file, or say --allow-unauthenticated if that is what you want",
    )


def _refuse_foreign_pages(headers: Mapping[str, str]) -> None:
    """Keep web pages that a user of this machine looks at from using a server without keys.

    A browser sends a page's requests to loopback too. It says whose page it is in `Origin`; and a
    name that somebody's name server makes point at loopback stands in `Host`.

    Raises:
        PermissionDeniedError: the page is not the server's own.
    """
    host = headers.get("host", "").lower()
    name = host.rpartition(":")[0] if _PORT.search(host) else host
    origin = headers.get("origin")
    if (not host or name.strip("[]") in LOOPBACK) and origin in (None, f"http://{host}"):
        return
    raise PermissionDeniedError(
        "without API keys only this machine may use the server, and no web page but its own",
        why=f"the request is for {host[:100]!r}, from a page of {(origin or 'nobody')[:100]!r}",
        fix="Ask for localhost or 127.0.0.1, set --api-key, or say --allow-unauthenticated",
    )


def _presented_key(request: Request) -> str | None:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key:
        return key.strip()
    return request.headers.get("x-api-key")


def _matches(key: str, expected: SecretStr | None) -> bool:
    """Compare digests, so that not even the length of the expected key shows in the time."""
    if expected is None:
        return False
    digests = [
        hashlib.sha256(text.encode(errors="surrogateescape")).digest()
        for text in (key, expected.get_secret_value())
    ]
    return hmac.compare_digest(*digests)


def _slo(headers: Mapping[str, str]) -> Slo | None:
    ttft_s = _milliseconds(headers, "x-slo-ttft-ms", "x-llm-d-slo-ttft-ms")
    tpot_s = _milliseconds(headers, "x-slo-tpot-ms", "x-llm-d-slo-tpot-ms")
    return None if ttft_s is None and tpot_s is None else Slo(ttft_s, tpot_s)


def _milliseconds(headers: Mapping[str, str], *names: str) -> float | None:
    """Read a header of milliseconds as seconds."""
    for name in names:
        text = headers.get(name)
        if text is None:
            continue
        try:
            seconds = float(text) / 1000
        except ValueError:
            seconds = math.nan
        if not 0 < seconds < math.inf:
            raise InvalidRequestError(
                f"{name} must be a positive number of milliseconds",
                param=name,
                why=f"it is {text[:40]!r}",
            )
        return seconds
    return None
