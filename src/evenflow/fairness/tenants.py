"""Who is served, with what weight, within which limits."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from evenflow.core.errors import ConfigError
from evenflow.core.ids import DEFAULT_TENANT, TenantId

if TYPE_CHECKING:
    from evenflow.config.scheduler import SchedulerConfig

OTHER_TENANT = TenantId("other")
"""Stands for all strangers beyond those the directory remembers."""

MAX_NAME_LENGTH = 128


@dataclass(slots=True, frozen=True)
class TenantLimits:
    """What a tenant is owed and what it may use. None means no limit of its own.

    Attributes:
        weight: its share of the service, relative to the weights of the others.
        max_running: most completions that run at once.
        max_queued_requests: most requests that wait for their first step.
        max_queued_tokens: most prompt tokens of these.
        tokens_per_minute: most prompt and output tokens in a minute, on average.
    """

    weight: float = 1.0
    max_running: int | None = None
    max_queued_requests: int | None = None
    max_queued_tokens: int | None = None
    tokens_per_minute: int | None = None

    def __post_init__(self) -> None:
        is_number = isinstance(self.weight, int | float) and not isinstance(self.weight, bool)
        if not (is_number and 0 < self.weight < math.inf):
            raise ConfigError("weight must be a number above 0", why=f"it is {self.weight!r}")
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            if value is not None and not (type(value) is int and value >= 1):
                raise ConfigError(
                    f"{field.name} must be a whole number, at least 1",
                    why=f"it is {value!r}",
                    fix="Leave it out for the default, or write none for no limit",
                )

    @classmethod
    def from_config(cls, config: SchedulerConfig) -> TenantLimits:
        """Return the limits of tenants that have none of their own."""
        return cls(
            max_running=config.tenant_max_running,
            max_queued_requests=config.tenant_max_queued_requests,
            max_queued_tokens=config.tenant_max_queued_tokens,
            tokens_per_minute=config.tenant_tokens_per_minute,
        )


NO_LIMITS = TenantLimits()


@dataclass(slots=True, frozen=True)
class Tenant:
    """A tenant that was introduced by name."""

    tenant_id: TenantId
    limits: TenantLimits = NO_LIMITS


class TenantDirectory:
    """All tenants there are.

    Whoever names a stranger, such as the `user` field of a request, goes through `canonical` once,
    at the door. The first `max_num_strangers` names stay tenants of their own for as long as the
    server runs; all further ones are the one tenant `other`. So neither counters nor metrics can be
    made to grow by making up names. Tenants in the keys file never have to share.

    Args:
        tenants: the known ones.
        default_limits: of everybody else.
        max_num_strangers: names that are told apart beyond the known ones.

    Raises:
        ConfigError: a known tenant has an unusable name or there are two of the same.
    """

    def __init__(
        self,
        tenants: Iterable[Tenant] = (),
        default_limits: TenantLimits = NO_LIMITS,
        *,
        max_num_strangers: int = 128,
    ) -> None:
        self.default_limits = default_limits
        self.max_num_strangers = max_num_strangers
        self._known: dict[TenantId, TenantLimits] = {}
        self._strangers: set[TenantId] = set()
        for tenant in tenants:
            check_name(tenant.tenant_id)
            if tenant.tenant_id in self._known:
                raise ConfigError(f"there are two tenants named {tenant.tenant_id!r}")
            self._known[tenant.tenant_id] = tenant.limits

    def canonical(self, name: str) -> TenantId:
        """Return the tenant that a name stands for, and remember it if there is room."""
        tenant_id = TenantId(name)
        if tenant_id in self._known or tenant_id in self._strangers or name == DEFAULT_TENANT:
            return tenant_id
        if len(self._strangers) >= self.max_num_strangers or not _is_usable(name):
            return OTHER_TENANT
        self._strangers.add(tenant_id)
        return tenant_id

    def limits(self, tenant_id: TenantId) -> TenantLimits:
        """Return what a tenant is owed and may use."""
        return self._known.get(tenant_id, self.default_limits)


def check_name(name: str) -> None:
    """Refuse a name that no tenant may have.

    Raises:
        ConfigError: it is empty, too long, not printable, or the one kept for strangers.
    """
    if not _is_usable(name) or name == OTHER_TENANT:
        raise ConfigError(
            f"{name[:MAX_NAME_LENGTH]!r} cannot be the name of a tenant",
            why=f"a name has 1 to {MAX_NAME_LENGTH} printable characters, and {OTHER_TENANT!r} "
            "stands for the tenants that nobody named",
            fix="Choose another name",
        )


def _is_usable(name: str) -> bool:
    return 1 <= len(name) <= MAX_NAME_LENGTH and name.isprintable()
