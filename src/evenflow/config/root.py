"""All areas together."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from evenflow.config.area import Area
from evenflow.config.cache import CacheConfig
from evenflow.config.execution import ExecutionConfig
from evenflow.config.logging import LoggingConfig
from evenflow.config.model import ModelConfig
from evenflow.config.paths import PathsConfig
from evenflow.config.scheduler import SchedulerConfig
from evenflow.config.server import ServerConfig

AREAS: tuple[type[Area], ...] = (
    ModelConfig,
    CacheConfig,
    SchedulerConfig,
    ExecutionConfig,
    PathsConfig,
    ServerConfig,
    LoggingConfig,
)


class EvenflowConfig(BaseModel):
    """Everything that can be set, one attribute per area, named as the area's table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelConfig = ModelConfig()
    cache: CacheConfig = CacheConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    execution: ExecutionConfig = ExecutionConfig()
    paths: PathsConfig = Field(default_factory=PathsConfig)
    server: ServerConfig = ServerConfig()
    logging: LoggingConfig = LoggingConfig()
