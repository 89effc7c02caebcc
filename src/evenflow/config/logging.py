"""What is told while running."""

from __future__ import annotations

from typing import ClassVar, Literal

from evenflow.config.area import Area


class LoggingConfig(Area):
    """Amount and form of the log, which always goes to stderr."""

    table: ClassVar[str] = "logging"

    log_level: Literal["debug", "info", "warning", "error"] = "warning"
    """Least severity that is logged; debug also shows tracebacks of reported errors."""

    log_format: Literal["text", "json"] = "text"
    """Lines for people (text), or one JSON object per line (json)."""
