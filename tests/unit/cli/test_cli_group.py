from __future__ import annotations

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from evenflow.cli import main
from evenflow.cli.group import LazyGroup, describe
from evenflow.core.errors import ConfigError, EvenflowError, InvalidRequestError, KVMemoryError

FAILURES: dict[str, BaseException] = {
    "config": ConfigError("seven is odd", why="it is", fix="Use 8"),
    "request": InvalidRequestError("n is 0"),
    "memory": KVMemoryError("too small"),
    "interrupt": KeyboardInterrupt(),
}


@click.command()
@click.argument("failure")
def fail(failure: str) -> None:
    raise FAILURES[failure]


@pytest.fixture
def group() -> LazyGroup:
    return LazyGroup(name="evenflow", verbs={"fail": (f"{__name__}:fail", "Fail on request.")})


@pytest.mark.parametrize(
    ("failure", "exit_code"), [("config", 2), ("request", 2), ("memory", 1), ("interrupt", 130)]
)
def test_group_exits_with_the_status_of_the_failure(
    group: LazyGroup, failure: str, exit_code: int
) -> None:
    assert CliRunner().invoke(group, ["fail", failure]).exit_code == exit_code


def test_group_prints_errors_to_stderr_only(group: LazyGroup) -> None:
    result = CliRunner().invoke(group, ["fail", "config"])
    assert result.stderr == "Error [invalid_config]: seven is odd\n  It is\n  Use 8\n"
    assert result.stdout == ""


def test_group_lists_verbs_without_importing_them() -> None:
    group = LazyGroup(name="evenflow", verbs={"gone": ("no.such.module:gone", "Never there.")})
    result = CliRunner().invoke(group, ["--help"])
    assert result.exit_code == 0
    assert "Never there." in result.stdout


def test_group_refuses_an_unknown_verb(group: LazyGroup) -> None:
    result = CliRunner().invoke(group, ["fall"])
    assert result.exit_code == 2
    assert "No such command 'fall'" in result.stderr


def test_describe_leaves_out_what_an_error_does_not_say() -> None:
    assert describe(EvenflowError("it broke")) == "Error [internal_error]: it broke"


def test_main_prints_the_version() -> None:
    result = CliRunner().invoke(main, ["--version"], prog_name="evenflow")
    assert result.stdout.startswith("evenflow 0.")


def test_help_imports_neither_torch_nor_pydantic() -> None:
    program = (
        "import sys; from evenflow.cli import main; main(['--help'], standalone_mode=False);"
        "sys.exit(', '.join({'torch', 'pydantic'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stderr.strip() == ""
    assert "run-batch" in result.stdout


def test_command_ends_quietly_when_the_reader_of_stdout_leaves() -> None:
    command = [sys.executable, "-c", "from evenflow.cli import main; main()", "config", "show"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
