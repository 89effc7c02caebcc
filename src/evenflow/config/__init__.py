"""Settings: one module per area, and a loader that layers default < file < environment < flag.

Knows: every setting, its unit, its limits and where its value came from.
Does not know: what the settings do.

Invariants:
    Nothing outside this room reads environment variables.
    An unknown key is an error, wherever it comes from.
    No two areas have a setting of the same name, so a flag and a variable need no area.
"""

from __future__ import annotations

from evenflow.config.area import Area, Option, options_of
from evenflow.config.cache import CacheConfig
from evenflow.config.execution import ExecutionConfig
from evenflow.config.loader import Layer, Loaded, Origin, load_config
from evenflow.config.logging import LoggingConfig
from evenflow.config.model import ModelConfig
from evenflow.config.paths import PathsConfig
from evenflow.config.root import AREAS, EvenflowConfig
from evenflow.config.scheduler import SchedulerConfig
from evenflow.config.server import ServerConfig

__all__ = [
    "AREAS",
    "Area",
    "CacheConfig",
    "EvenflowConfig",
    "ExecutionConfig",
    "Layer",
    "Loaded",
    "LoggingConfig",
    "ModelConfig",
    "Option",
    "Origin",
    "PathsConfig",
    "SchedulerConfig",
    "ServerConfig",
    "load_config",
    "options_of",
]
