"""Where the log goes and how a line looks. Components only ever call `logging.getLogger`."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

from evenflow.config import LoggingConfig

_OWN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def configure_logging(config: LoggingConfig) -> None:
    """Send evenflow's log to stderr in the wanted form, and replace an earlier set-up."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if config.log_format == "json" else TextFormatter())
    root = logging.getLogger("evenflow")
    root.handlers = [handler]
    root.propagate = False
    root.setLevel(config.log_level.upper())


class TextFormatter(logging.Formatter):
    """One line for people: time, level, logger, message, then the extras as key=value."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        extras = "".join(f" {key}={value}" for key, value in _extras(record).items())
        line = f"{_time(record)} {record.levelname} {record.name}: {record.getMessage()}{extras}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object per line, with the extras as keys of their own."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object."""
        content = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extras(record),
        }
        if record.exc_info:
            content["exception"] = self.formatException(record.exc_info)
        return json.dumps(content, default=str, ensure_ascii=False)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def _extras(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _OWN_FIELDS}
