from pathlib import Path

import pytest

from evenflow.core.errors import ConfigError
from evenflow.simulation.shapes import load_device, load_model
from evenflow.simulation.tables import load_table_costs
from support.profile_folder import real_profiles, write_layer_tables


def test_tables_prefer_whole_layers_of_the_very_device() -> None:
    costs = load_table_costs(
        real_profiles(), load_model("qwen-3-30b-a3b"), load_device("rtx-pro-6000")
    )
    assert "Qwen3-30B-A3B-Instruct-2507 on RTXPRO6000" in costs.description


def test_tables_put_operators_together_for_other_models() -> None:
    costs = load_table_costs(real_profiles(), load_model("llama-3-8b"), load_device("a100"))
    assert costs.description.startswith("operator times of llama-3-8b on a100")


def test_tables_of_one_device_are_not_taken_for_another() -> None:
    with pytest.raises(ConfigError, match="no tables of llama-3-8b on a10 "):
        load_table_costs(real_profiles(), load_model("llama-3-8b"), load_device("a10"))


def test_tables_that_are_missing_are_told_with_those_there_are(tmp_path: Path) -> None:
    write_layer_tables(tmp_path)
    with pytest.raises(ConfigError, match="it has Tiny-1B on GPU"):
        load_table_costs(tmp_path, load_model("llama-3-8b"), load_device("a100"))


def test_tables_name_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="it has none at all"):
        load_table_costs(tmp_path, load_model("llama-3-8b"), load_device("a100"))
