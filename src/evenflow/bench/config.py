"""All that defines a run of the load tool, named like the flags of `vllm bench serve`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from evenflow.core.errors import ConfigError
from evenflow.workloads.arrivals import RampStrategy

Backend = Literal["openai", "openai-chat", "vllm"]
DatasetName = Literal["random", "sharegpt", "burstgpt", "trace", "prefix_repetition", "custom"]

ENDPOINTS: Mapping[Backend, str] = {
    "openai": "/v1/completions",
    "vllm": "/v1/completions",
    "openai-chat": "/v1/chat/completions",
}
GOODPUT_METRICS = ("ttft", "tpot", "e2el")
LATENCY_METRICS = ("ttft", "tpot", "itl", "e2el")

_POSITIVE = (
    *("num_prompts", "request_rate", "burstiness", "max_concurrency", "num_turns"),
    *("random_input_len", "random_output_len", "prefix_repetition_num_prefixes"),
    *("prefix_repetition_suffix_len", "prefix_repetition_output_len", "sharegpt_output_len"),
    *("custom_output_len", "request_timeout_s"),
)
_NOT_NEGATIVE = (
    *("num_warmups", "seed", "random_prefix_len", "prefix_repetition_prefix_len"),
    *("turn_think_time_s", "ready_check_timeout_s"),
)
_SECRET = {"api_key", "tenant_keys", "header"}
_NOT_WORKLOAD = {
    *("backend", "base_url", "endpoint", "label", "model", "tokenizer", "request_timeout_s"),
    *("ready_check_timeout_s", "metric_percentiles", "keep_text"),
}


@dataclass(slots=True, frozen=True, kw_only=True)
class BenchConfig:
    """One run. `evenflow bench serve --help` explains each field under the flag of its name.

    Attributes:
        goodput: by metric (ttft, tpot, e2el), the most milliseconds of a good request.
        tenants: by tenant, its share of the requests in any unit.
        self_timed: None means: when the data set has arrival times.
        keep_text: keep the answers, for the detailed result.

    Raises:
        ConfigError: a value is out of range or contradicts another one.
    """

    backend: Backend = "openai"
    base_url: str = "http://127.0.0.1:8000"
    endpoint: str | None = None
    model: str | None = None
    tokenizer: str | None = None
    label: str | None = None
    api_key: str | None = None
    header: Mapping[str, str] = field(default_factory=dict)
    request_timeout_s: float = 6 * 3600.0
    ready_check_timeout_s: float = 0.0

    dataset_name: DatasetName = "random"
    dataset_path: Path | None = None
    num_prompts: int = 1000
    num_warmups: int = 0
    seed: int = 0
    random_input_len: int = 1024
    random_output_len: int = 128
    random_range_ratio: float = 0.0
    random_prefix_len: int = 0
    prefix_repetition_prefix_len: int = 256
    prefix_repetition_suffix_len: int = 256
    prefix_repetition_num_prefixes: int = 10
    prefix_repetition_output_len: int = 128
    sharegpt_output_len: int | None = None
    custom_output_len: int | None = 256

    request_rate: float = math.inf
    burstiness: float = 1.0
    ramp_up_strategy: RampStrategy | None = None
    ramp_up_start_rps: float | None = None
    ramp_up_end_rps: float | None = None
    self_timed: bool | None = None
    max_concurrency: int | None = None
    num_turns: int = 1
    turn_think_time_s: float = 0.0
    tenants: Mapping[str, float] = field(default_factory=dict)
    tenant_keys: Mapping[str, str] = field(default_factory=dict)

    ignore_eos: bool = False
    sampling: Mapping[str, float] = field(default_factory=dict)
    extra_body: Mapping[str, Any] = field(default_factory=dict)

    goodput: Mapping[str, float] = field(default_factory=dict)
    metric_percentiles: tuple[float, ...] = (50.0, 90.0, 99.0)
    keep_text: bool = False

    def __post_init__(self) -> None:
        self._check_ranges()
        self._check_ramp()
        for metric in self.goodput:
            if metric not in GOODPUT_METRICS:
                raise ConfigError(
                    f"--goodput knows no metric {metric!r}",
                    fix=f"Name one of {', '.join(GOODPUT_METRICS)}",
                )
        if self.dataset_name in ("burstgpt", "trace", "custom") and self.dataset_path is None:
            raise ConfigError(
                f"--dataset-name {self.dataset_name} needs a file",
                why="no such data comes with evenflow",
                fix="Name it with --dataset-path",
            )
        unknown = self.tenant_keys.keys() - self.tenants.keys()
        if unknown:
            raise ConfigError(
                f"--tenant-keys names {', '.join(sorted(unknown))}, which --tenants does not"
            )

    def _check_ranges(self) -> None:
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{_flag(name)} must be positive", why=f"it is {value}")
        for name in _NOT_NEGATIVE:
            value = getattr(self, name)
            if not value >= 0:
                raise ConfigError(f"{_flag(name)} must not be negative", why=f"it is {value}")
        if not 0 <= self.random_range_ratio < 1:
            raise ConfigError(
                "--random-range-ratio must be at least 0 and below 1",
                why=f"it is {self.random_range_ratio}",
            )
        if any(not 0 <= percentile <= 100 for percentile in self.metric_percentiles):
            raise ConfigError("--metric-percentiles must be between 0 and 100")
        if any(not share > 0 for share in self.tenants.values()):
            raise ConfigError("the shares of --tenants must be positive")

    def _check_ramp(self) -> None:
        bounds = (self.ramp_up_start_rps, self.ramp_up_end_rps)
        if self.ramp_up_strategy is None:
            if bounds != (None, None):
                raise ConfigError("a ramp needs --ramp-up-strategy linear or exponential")
            return
        if any(bound is None or not bound > 0 for bound in bounds):
            raise ConfigError(
                "--ramp-up-strategy needs positive --ramp-up-start-rps and --ramp-up-end-rps"
            )
        if not math.isinf(self.request_rate):
            raise ConfigError(
                "--request-rate contradicts --ramp-up-strategy", why="the ramp sets the rate"
            )

    @property
    def url(self) -> str:
        """Where requests go."""
        return self.root_url + self.path

    @property
    def path(self) -> str:
        """The endpoint."""
        return self.endpoint or ENDPOINTS[self.backend]

    @property
    def is_chat(self) -> bool:
        """Requests carry messages instead of a prompt."""
        return self.backend == "openai-chat"

    @property
    def root_url(self) -> str:
        """The base URL without the /v1 that clients of OpenAI's write at its end."""
        return self.base_url.rstrip("/").removesuffix("/v1")

    @property
    def headers(self) -> dict[str, str]:
        """What is sent with each request, the API key included."""
        key = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        return {**key, **self.header}

    def workload_settings(self) -> dict[str, Any]:
        """Return what two runs must have in common to be comparable, without secrets, for JSON."""
        others = tuple(f"{name}_" for name in get_args(DatasetName) if name != self.dataset_name)
        left_out = _SECRET | _NOT_WORKLOAD
        names = [
            f.name for f in fields(self) if f.name not in left_out and not f.name.startswith(others)
        ]
        settings = {name: getattr(self, name) for name in names}
        path = settings["dataset_path"]
        return {
            **settings,
            "dataset_path": None if path is None else path.name,
            "request_rate": rate_for_json(self.request_rate),
            "burstiness": rate_for_json(self.burstiness),
        }


def rate_for_json(value: float) -> float | str:
    """Return a number, or "inf", which JSON has no number for."""
    return "inf" if math.isinf(value) else value


def _flag(name: str) -> str:
    return "--" + name.removesuffix("_s").replace("_", "-")
