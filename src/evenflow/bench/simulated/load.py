"""The load of simulated runs: requests that can be had any number of times, at any rate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Protocol

from evenflow.bench.config import BenchConfig
from evenflow.bench.workload import draw_workload
from evenflow.core.errors import InvalidRequestError
from evenflow.workloads.request import WorkloadRequest
from evenflow.workloads.traces import iter_trace
from evenflow.workloads.transforms import faster, in_order, starting_at_zero


class Load(Protocol):
    """Requests in order of arrival.

    Attributes:
        name: of the trace or the generator.
        num_requests: how many there are.
        recorded_rate: requests per second of the recording; None if they have no times.
    """

    name: str
    num_requests: int
    recorded_rate: float | None

    def at_rate(self, rate: float) -> Iterable[WorkloadRequest]:
        """Return the requests, at `rate` per second; infinite for as recorded, else all at once."""
        ...


class TraceLoad:
    """A trace with arrival times, read from its file again each time, so it may be of any length.

    It is read once at the start, so that a bad row, or one out of order, is reported before
    anything is simulated.

    Args:
        path: the file.
        limit: stop after so many requests.

    Raises:
        InvalidRequestError: the file cannot be read or holds no requests.
    """

    def __init__(self, path: Path, limit: int | None = None) -> None:
        self._path = path
        self._limit = limit
        self.name = path.name
        self.num_requests = 0
        span_s = 0.0
        for request in self.at_rate(math.inf):
            self.num_requests += 1
            span_s = request.arrival_s
        if not self.num_requests:
            raise InvalidRequestError(f"{path} holds no requests", param="trace")
        self.recorded_rate: float | None = self.num_requests / span_s if span_s else None

    def at_rate(self, rate: float) -> Iterator[WorkloadRequest]:
        """Return the requests, their times stretched to a mean rate."""
        rows = islice(iter_trace(self._path), self._limit)
        requests = starting_at_zero(in_order(rows))
        if math.isinf(rate) or self.recorded_rate is None:
            return requests
        return faster(requests, rate / self.recorded_rate)


class DrawnLoad:
    """Requests of which something is drawn at random: lengths, arrivals or tenants.

    Args:
        config: what a benchmark would send; other rates draw the same requests.
        name: of the trace or the generator.
    """

    def __init__(self, config: BenchConfig, name: str) -> None:
        self._config = config
        self.name = name
        requests = self.at_rate(config.request_rate)
        self.num_requests = len(requests)
        span_s = requests[-1].arrival_s
        self.recorded_rate: float | None = self.num_requests / span_s if span_s else None

    def at_rate(self, rate: float) -> list[WorkloadRequest]:
        """Return the requests, arriving at a mean rate."""
        # No data set that gets here consists of text, whose tokens would have to be counted.
        requests, _ = draw_workload(replace(self._config, request_rate=rate), len)
        return sorted(requests, key=lambda request: request.arrival_s)


def open_load(config: BenchConfig, name: str) -> Load:
    """Return the load that settings of a benchmark describe."""
    is_drawn = config.tenants or config.ramp_up_strategy or config.self_timed is False
    if config.dataset_path is None or is_drawn or not iter_trace(config.dataset_path).is_timed:
        return DrawnLoad(config, name)
    return TraceLoad(config.dataset_path, config.num_prompts)
