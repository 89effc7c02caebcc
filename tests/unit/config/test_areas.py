from __future__ import annotations

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


def test_step_budget_is_refused_when_decodes_could_take_all_of_it() -> None:
    with pytest.raises(ConfigError) as caught:
        SchedulerConfig(max_num_seqs=64, max_num_batched_tokens=64)
    assert "--max-num-batched-tokens to 65 or more" in caught.value.fix
    assert "--max-num-seqs to 63 or less" in caught.value.fix


def test_step_budget_is_accepted_when_one_token_is_left_for_prefill() -> None:
    assert SchedulerConfig(max_num_seqs=64, max_num_batched_tokens=65).max_num_seqs == 64
