from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from evenflow.config import (
    AREAS,
    CacheConfig,
    EvenflowConfig,
    ModelConfig,
    Option,
    SchedulerConfig,
    options_of,
)
from evenflow.core.errors import ConfigError

GIB = 1024**3


def test_option_names_are_unique_over_all_areas() -> None:
    names = [option.name for option in options_of(*AREAS)]
    assert len(names) == len(set(names))


def test_every_area_is_an_attribute_of_the_root_named_as_its_table() -> None:
    root = {name: field.annotation for name, field in EvenflowConfig.model_fields.items()}
    assert root == {area.table: area for area in AREAS}


@pytest.mark.parametrize("option", options_of(*AREAS), ids=lambda option: option.name)
def test_every_option_has_a_description_and_a_default(option: Option) -> None:
    assert option.description.endswith(".")
    assert option.default
    assert "PydanticUndefined" not in option.default


def test_option_speaks_for_an_optional_number_with_a_bound() -> None:
    option = Option(ModelConfig, "max_model_len")
    assert (option.flag, option.variable) == ("--max-model-len", "EVENFLOW_MAX_MODEL_LEN")
    assert option.limits == "a whole number, at least 2, or none"
    assert (option.default, option.kind, option.choices) == ("none", "INTEGER", ())


def test_model_config_refuses_a_length_without_room_for_an_answer() -> None:
    with pytest.raises(ValidationError, match="max_model_len"):
        ModelConfig(max_model_len=1)


def test_area_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        ModelConfig().model = "other"


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("2GiB", 2 * GIB),
        ("1.5 gib", GIB * 3 // 2),
        ("500MB", 500_000_000),
        ("64k", 64_000),
        ("1073741824", GIB),
        ("12B", 12),
        ("0.25", 250),
        ("1.0", 1000),
        (0.5, 500),
        (4096, 4096),
    ],
)
def test_kv_cache_bytes_reads_bytes_and_ratios(text: str, num_bytes: int) -> None:
    assert CacheConfig(kv_cache_memory=text).kv_cache_bytes(free_bytes=1000) == num_bytes


@pytest.mark.parametrize(
    "text", ["", "0", "0.0", "1.01", "2.5", "-1", "2GG", "30%", "0.0001B", True]
)
def test_kv_cache_memory_is_refused_when_it_is_no_amount(text: str) -> None:
    with pytest.raises(ValidationError, match="kv_cache_memory"):
        CacheConfig(kv_cache_memory=text)


@pytest.mark.parametrize(
    ("text", "num_bytes"), [("2GiB", 2 * GIB), ("0.25", 250), (0, 0), ("0", 0), ("1.0", 1000)]
)
def test_kv_host_bytes_reads_bytes_and_ratios_and_none(text: object, num_bytes: int) -> None:
    assert CacheConfig(kv_host_memory=text).kv_host_bytes(free_bytes=1000) == num_bytes


def test_kv_disk_bytes_reads_bytes() -> None:
    assert CacheConfig(kv_disk_size="3GiB").kv_disk_bytes == 3 * GIB


@pytest.mark.parametrize("text", ["", "none", "-1", "2.5", "0.0"])
def test_kv_host_memory_is_refused_when_it_is_no_amount(text: str) -> None:
    with pytest.raises(ValidationError, match="kv_host_memory"):
        CacheConfig(kv_host_memory=text)


@pytest.mark.parametrize("text", ["", "none", "-1", "0", "0.5", 0.5])
def test_kv_disk_size_is_refused_when_it_is_no_bytes(text: object) -> None:
    with pytest.raises(ValidationError, match="kv_disk_size"):
        CacheConfig(kv_disk_size=text)


def test_kv_disk_path_may_begin_with_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    assert CacheConfig(kv_disk_path="~/kv").kv_disk_path == Path("/home/ann/kv")
    assert CacheConfig().kv_disk_path is None


@pytest.mark.parametrize("share", [0, -0.5, 1.01])
def test_tenant_host_share_is_refused_when_it_is_no_share(share: float) -> None:
    with pytest.raises(ValidationError, match="tenant_host_share"):
        CacheConfig(tenant_host_share=share)


@pytest.mark.parametrize(
    ("name", "value"),
    [("preemption_mode", "swop"), ("swap_timing", "later"), ("max_switch_share", 0)],
)
def test_switching_is_refused_when_it_is_out_of_range(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=name):
        SchedulerConfig(**{name: value})


def test_every_mechanism_of_switching_is_on_by_default_and_can_be_turned_off() -> None:
    parts = {
        CacheConfig: ("keep_host_copies", "swap_by_group"),
        SchedulerConfig: ("swap_write_back", "swap_keep_head", "swap_prefetch"),
    }
    for area, names in parts.items():
        for name in names:
            assert getattr(area(), name) is True
            assert getattr(area(**{name: False}), name) is False


def test_step_budget_is_refused_when_decodes_could_take_all_of_it() -> None:
    with pytest.raises(ConfigError) as caught:
        SchedulerConfig(max_num_seqs=64, max_num_batched_tokens=64)
    assert "--max-num-batched-tokens to 65 or more" in caught.value.fix
    assert "--max-num-seqs to 63 or less" in caught.value.fix


def test_step_budget_is_accepted_when_one_token_is_left_for_prefill() -> None:
    assert SchedulerConfig(max_num_seqs=64, max_num_batched_tokens=65).max_num_seqs == 64
