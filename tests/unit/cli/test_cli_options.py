from __future__ import annotations

import json

import click
import pytest
from click.testing import CliRunner

from evenflow.cli import main
from evenflow.cli.options import config_options
from evenflow.config import AREAS, Layer, Loaded, ModelConfig, SchedulerConfig, options_of


def load_through(*arguments: str, positional: tuple[str, ...] = ()) -> tuple[Loaded, str]:
    """Run a command that has an option of its own besides two areas; return what it was given."""
    received: list[tuple[Loaded, str]] = []

    @click.command()
    @click.option("--own", default="x")
    @config_options(ModelConfig, SchedulerConfig, positional=positional)
    def command(loaded: Loaded, own: str) -> None:
        received.append((loaded, own))

    CliRunner().invoke(command, arguments, catch_exceptions=False)
    return received[0]


def test_flags_reach_the_config_and_leave_the_others_alone() -> None:
    loaded, own = load_through("--max-num-seqs", "8", "--offline", "--own", "y")
    assert loaded.config.scheduler.max_num_seqs == 8
    assert loaded.config.model.offline is True
    assert loaded.origins["max_num_seqs"].place == "--max-num-seqs"
    assert loaded.origins["model"].layer is Layer.DEFAULT
    assert own == "y"


def test_no_flag_turns_a_setting_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENFLOW_OFFLINE", "true")
    loaded, _ = load_through("--no-offline")
    assert loaded.config.model.offline is False
    assert loaded.origins["offline"].layer is Layer.FLAG


def test_positional_setting_is_taken_as_an_argument() -> None:
    loaded, _ = load_through("gemma3-270m", positional=("model",))
    assert loaded.config.model.model == "gemma3-270m"


def test_positional_setting_may_be_left_out() -> None:
    loaded, _ = load_through(positional=("model",))
    assert loaded.origins["model"].layer is Layer.DEFAULT


def test_every_setting_is_a_flag_with_description_and_default_in_the_help() -> None:
    result = CliRunner().invoke(main, ["config", "show", "--help"], terminal_width=10_000)
    for option in options_of(*AREAS):
        assert option.flag in result.stdout
        assert f"{option.description}  [default: {option.default}]" in result.stdout


def test_choice_outside_its_list_is_refused_with_the_list() -> None:
    result = CliRunner().invoke(main, ["config", "show", "--linear", "fast"])
    assert result.exit_code == 2
    assert "'auto', 'exact'" in result.stderr


def test_config_show_prints_values_and_origins_as_a_table() -> None:
    result = CliRunner().invoke(main, ["config", "show", "--max-num-seqs", "8"])
    rows = [line.split(maxsplit=3) for line in result.stdout.splitlines()]
    assert ["scheduler", "max_num_seqs", "8", "flag --max-num-seqs"] in rows
    assert ["model", "max_model_len", "none", "default"] in rows
    assert len(rows) == 1 + len(options_of(*AREAS))


def test_config_show_prints_json() -> None:
    environ = {"EVENFLOW_MAX_NUM_SEQS": "8"}
    result = CliRunner().invoke(main, ["config", "show", "--json"], env=environ)
    assert json.loads(result.stdout)["max_num_seqs"] == {
        "area": "scheduler",
        "value": 8,
        "origin": "environment EVENFLOW_MAX_NUM_SEQS",
    }
