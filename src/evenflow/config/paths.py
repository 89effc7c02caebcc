"""Where files are kept."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import platformdirs
from pydantic import Field, field_validator

from evenflow.config.area import Area


class PathsConfig(Area):
    """Folders evenflow writes to."""

    table: ClassVar[str] = "paths"

    cache: Path = Field(
        default_factory=lambda: platformdirs.user_cache_path("evenflow"),
        json_schema_extra={"default": "evenflow in the user's cache folder"},
    )
    """Folder for fetched models and weights in loaded form."""

    @field_validator("cache")
    @classmethod
    def _expand_home(cls, value: Path) -> Path:
        return value.expanduser()
