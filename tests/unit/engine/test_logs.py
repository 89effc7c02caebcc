from __future__ import annotations

import json
import logging
import sys

import pytest

from evenflow.config import LoggingConfig
from evenflow.engine.logs import JsonFormatter, TextFormatter, configure_logging

LOGGER = logging.getLogger("evenflow.test")


def record(**extras: object) -> logging.LogRecord:
    fields = {"name": "evenflow.a", "levelname": "INFO", "msg": "moved %d", "args": (3,)}
    return logging.makeLogRecord(fields | {"created": 0.25} | extras)


def test_text_line_ends_with_the_extras() -> None:
    line = TextFormatter().format(record(num_blocks=7, tenant="a"))
    assert line == "1970-01-01T00:00:00.250+00:00 INFO evenflow.a: moved 3 num_blocks=7 tenant=a"


def test_json_line_has_the_extras_as_keys() -> None:
    assert json.loads(JsonFormatter().format(record(num_blocks=7, tenant="a"))) == {
        "time": "1970-01-01T00:00:00.250+00:00",
        "level": "info",
        "logger": "evenflow.a",
        "message": "moved 3",
        "num_blocks": 7,
        "tenant": "a",
    }


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_line_holds_the_traceback(formatter: logging.Formatter) -> None:
    try:
        raise ValueError("seven")
    except ValueError:
        line = formatter.format(record(exc_info=sys.exc_info()))
    assert "Traceback" in line
    assert "ValueError: seven" in line


def test_configure_logs_to_stderr_from_the_level_on(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LoggingConfig(log_level="info"))
    LOGGER.debug("unheard")
    LOGGER.info("heard")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "evenflow.test: heard" in captured.err
    assert "unheard" not in captured.err


def test_configure_replaces_the_earlier_set_up(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LoggingConfig())
    configure_logging(LoggingConfig(log_format="json"))
    LOGGER.warning("once")
    assert json.loads(capsys.readouterr().err)["message"] == "once"
