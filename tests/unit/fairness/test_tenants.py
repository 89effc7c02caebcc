from __future__ import annotations

import math
from typing import Any

import pytest

from evenflow.config import SchedulerConfig
from evenflow.core.errors import ConfigError
from evenflow.core.ids import DEFAULT_TENANT, TenantId
from evenflow.fairness.tenants import OTHER_TENANT, Tenant, TenantDirectory, TenantLimits

ACME = Tenant(TenantId("acme"), TenantLimits(weight=2.0, max_running=4))


def test_directory_has_own_limits_for_the_known_and_defaults_for_all_others() -> None:
    directory = TenantDirectory([ACME], TenantLimits(max_running=1))
    assert directory.limits(TenantId("acme")) == ACME.limits
    for name in (DEFAULT_TENANT, OTHER_TENANT, TenantId("anybody")):
        assert directory.limits(name).max_running == 1


def test_canonical_folds_strangers_into_other_beyond_the_bound() -> None:
    directory = TenantDirectory([ACME], max_num_strangers=2)
    names = [directory.canonical(f"s{number}") for number in range(5)]
    assert names == ["s0", "s1", OTHER_TENANT, OTHER_TENANT, OTHER_TENANT]


def test_canonical_keeps_its_answers_when_the_bound_is_reached() -> None:
    directory = TenantDirectory([ACME], max_num_strangers=1)
    for name in ("s0", "s1", "acme", "default"):
        directory.canonical(name)
    assert directory.canonical("s0") == "s0"
    assert directory.canonical("acme") == "acme"
    assert directory.canonical("default") == DEFAULT_TENANT


def test_canonical_remembers_no_more_than_the_bound_whatever_it_is_asked() -> None:
    directory = TenantDirectory(max_num_strangers=8)
    seen = {directory.canonical(f"user-{number}") for number in range(10_000)}
    assert len(seen) == 9
    assert len(directory._strangers) == 8


@pytest.mark.parametrize("name", ["", "x" * 129, "a\nb", "tab\t", "nul\0", "\ud800"])
def test_canonical_folds_names_that_no_tenant_may_have(name: str) -> None:
    assert TenantDirectory().canonical(name) == OTHER_TENANT


@pytest.mark.parametrize("name", ["", "x" * 129, "a\nb", "other"])
def test_directory_refuses_a_known_tenant_with_an_unusable_name(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the name of a tenant"):
        TenantDirectory([Tenant(TenantId(name))])


def test_directory_refuses_two_tenants_of_one_name() -> None:
    with pytest.raises(ConfigError, match="two tenants named 'acme'"):
        TenantDirectory([ACME, ACME])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weight", 0),
        ("weight", -1.0),
        ("weight", math.inf),
        ("weight", math.nan),
        ("weight", True),
        ("weight", "2"),
        ("weight", None),
        ("max_running", 0),
        ("max_running", 1.5),
        ("max_queued_requests", True),
        ("max_queued_tokens", "9"),
        ("tokens_per_minute", -5),
    ],
)
def test_limits_refuse_a_bad_value_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be"):
        TenantLimits(**{name: value})


def test_limits_come_from_the_settings() -> None:
    config = SchedulerConfig(
        tenant_max_running=1,
        tenant_max_queued_requests=2,
        tenant_max_queued_tokens=3,
        tenant_tokens_per_minute=4,
    )
    assert TenantLimits.from_config(config) == TenantLimits(1.0, 1, 2, 3, 4)
    assert TenantLimits.from_config(SchedulerConfig()) == TenantLimits()
