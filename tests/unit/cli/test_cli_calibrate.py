from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from evenflow.cli import main
from evenflow.execution.costs.profile import load_profile
from support.served_model import write_model


@pytest.fixture
def calibrate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run `evenflow calibrate` on a model of two layers, in a folder of its own."""
    folder = tmp_path / "tiny model"
    folder.mkdir()
    write_model(folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EVENFLOW_CACHE", str(tmp_path / "cache"))
    flags = ["--load-format", "dummy", "--num-blocks-override", "40", "--max-model-len", "128"]
    flags += ["--max-num-seqs", "4", "--max-num-batched-tokens", "16", "--quick"]

    def run(*arguments: str) -> Result:
        command = ["calibrate", str(folder), *flags, *arguments]
        return CliRunner().invoke(main, command, env={"COLUMNS": "120"})

    return run


def test_calibrate_writes_a_profile_named_after_the_model(
    calibrate: Callable[..., Result], tmp_path: Path
) -> None:
    result = calibrate()
    assert result.exit_code == 0, result.output
    profile = load_profile(str(tmp_path / "tiny-model.profile.json"))
    assert profile.model == "tiny model"
    assert profile.source == "evenflow calibrate"


def test_calibrate_shows_the_errors_of_both_forms_and_says_which_it_chose(
    calibrate: Callable[..., Result], tmp_path: Path
) -> None:
    result = calibrate("-o", str(tmp_path / "own.json"))
    rows = [line for line in result.stdout.splitlines() if "%" in line]
    assert len(rows) == 5
    assert all(row.count("%") == 2 for row in rows)
    best = load_profile(str(tmp_path / "own.json")).best
    assert {"closed_form": "closed form", "measured": "tables"}[best] in result.stderr


def test_calibrate_refuses_a_folder_that_is_not_there_before_it_measures(
    calibrate: Callable[..., Result],
) -> None:
    result = calibrate("--output", "missing/own.json")
    assert result.exit_code == 2
    assert "there is no folder missing" in result.stderr.lower()
