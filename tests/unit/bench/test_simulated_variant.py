from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from evenflow.bench.simulated.variant import Variant, variants_of
from evenflow.core.errors import ConfigError

PROFILE = {
    "format": 1,
    "source": "made up",
    "machine": "an abacus",
    "date": "2026-11-22",
    "model": "tiny",
    "best": "closed_form",
    "closed_form": {
        "prefill": {"constant_s": 0.01, "per_token_s": 0.0, "per_square_s": 0.0},
        "decodes": [{"constant_s": 0.01, "per_context_token_s": 0.0, "per_request_s": 0.0}],
    },
}


@pytest.fixture
def profile(tmp_path: Path) -> str:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(PROFILE))
    return f"profile:{path}"


def test_variants_are_all_combinations_by_what_differs() -> None:
    sweep = {"policy": ("fcfs", "priority"), "request_rate": (1.0, 2.5), "tp": (2,)}
    variants = variants_of(Variant(block_size=32), sweep)
    assert list(variants) == [
        "fcfs rate=1",
        "fcfs rate=2.5",
        "priority rate=1",
        "priority rate=2.5",
    ]
    assert all((v.tp, v.block_size) == (2, 32) for v in variants.values())
    assert variants["priority rate=2.5"].request_rate == 2.5


def test_single_variant_is_called_by_its_policy() -> None:
    assert list(variants_of(Variant(), {"policy": ("priority",)})) == ["priority"]


def test_memory_is_what_the_model_leaves_of_the_device() -> None:
    whole = Variant().settings()
    assert Variant(memory_utilization=0.5).settings().num_blocks < whole.num_blocks
    # 8 KV heads of 128 entries of 2 bytes, keys and values, in 32 layers.
    assert Variant(kv_memory="16GiB").settings().num_blocks == 2**34 // (16 * 131072)
    assert Variant(num_blocks=7).settings().num_blocks == 7


def test_longest_request_is_bounded_by_model_and_memory() -> None:
    assert Variant().settings().max_model_len == 8192
    assert Variant(kv_memory="1GiB").settings().max_model_len == 8192
    assert Variant(kv_memory="64MiB").settings().max_model_len == 512
    assert Variant(max_model_len=99).settings().max_model_len == 99


def test_settings_are_refused_when_memory_cannot_hold_the_longest_request() -> None:
    assert Variant(num_blocks=4, max_model_len=64).settings().max_model_len == 64
    with pytest.raises(ConfigError, match="cannot hold one request of 65 tokens"):
        Variant(num_blocks=4, max_model_len=65).settings()


def test_profile_needs_no_model_and_no_device_when_blocks_are_given(profile: str) -> None:
    variant = Variant(costs=profile, num_blocks=10)
    assert (variant.model_name, variant.device_name) == ("tiny", "an abacus")
    assert variant.settings().max_model_len == 160
    assert variant.price_per_hour() is None
    assert list(variant.sources()) == ["step times"]
    assert "made up" in variant.sources()["step times"]


def test_sources_tell_where_figures_come_from() -> None:
    assert {"step times", "model", "device"} <= Variant().sources().keys()
    assert all(Variant().sources().values())


def test_price_is_that_of_all_devices() -> None:
    one, four = Variant().price_per_hour(), Variant(tp=2, pp=2).price_per_hour()
    assert one is not None
    assert four == pytest.approx(4 * one)


def test_settings_can_be_written_as_json() -> None:
    written = json.loads(json.dumps(Variant().for_json()))
    assert (written["model"], written["request_rate"]) == ("llama-3-8b", "inf")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tp": 0}, "--tp must be positive"),
        ({"num_blocks": 0}, "--num-blocks-override must be positive"),
        ({"request_rate": math.nan}, "--request-rate must be positive"),
        ({"max_model_len": 0}, "--max-model-len must be positive"),
        ({"max_num_batched_tokens": 1}, "--max-num-batched-tokens must be at least 2"),
        ({"memory_utilization": 1.5}, "--gpu-memory-utilization"),
        ({"costs": "profile:x.json"}, "does not say how much memory"),
    ],
)
def test_variant_is_refused_when_a_value_is_out_of_range(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Variant(**values)


@pytest.mark.parametrize("amount", ["much", "0.5", "-1GiB"])
def test_kv_memory_has_to_be_an_amount(amount: str) -> None:
    with pytest.raises(ConfigError, match="no amount of memory"):
        Variant(kv_memory=amount).settings()


@pytest.mark.parametrize("costs", ["guess", "profile", "table:x"])
def test_costs_have_to_be_of_a_known_kind(costs: str) -> None:
    with pytest.raises(ConfigError, match="there are no costs"):
        Variant(costs=costs).cost_model()


def test_tables_know_no_pipeline(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no pipeline"):
        Variant(costs=f"tables:{tmp_path}", pp=2).cost_model()
