"""Fits a model to a trace while it is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from evenflow.core.errors import InvalidRequestError
from evenflow.workloads.analysis.bursts import WindowedArrivals, Windows
from evenflow.workloads.analysis.fits import DURATION_KINDS, LENGTH_KINDS, Fit, all_fits
from evenflow.workloads.analysis.goodness import kolmogorov_smirnov
from evenflow.workloads.analysis.model import TrafficModel
from evenflow.workloads.analysis.sampling import Reservoir
from evenflow.workloads.distributions import Distribution, Floats, Gamma, Weibull
from evenflow.workloads.request import WorkloadRequest
from evenflow.workloads.traces.recent import Recent

WINDOW_S = 60.0

_NUM_SAMPLED = 50_000
_MAX_TENANTS = 1_000
_MAX_WINDOWS = 1_000_000


def fit_traffic(
    requests: Iterable[WorkloadRequest], rng: np.random.Generator, *, window_s: float = WINDOW_S
) -> TrafficModel:
    """Fit a model to a trace, reading it once.

    Args:
        requests: in order of arrival.
        rng: chooses the samples that the fits are made from.
        window_s: length of the windows within which the rate is constant.

    Raises:
        InvalidRequestError: there are fewer than two requests, or the trace is too long for its
            windows.
    """
    observed = _Observed(window_s, rng)
    for request in requests:
        observed.add(request)
    return observed.model()


@dataclass(slots=True)
class _Observed:
    """What has been seen of a trace so far."""

    window_s: float
    rng: np.random.Generator
    turns: Counter[int] = field(default_factory=Counter)
    tenants: Counter[str] = field(default_factory=Counter)
    num_continuing: int = 0
    sessions: Recent[str, int] = field(default_factory=Recent)
    arrivals: WindowedArrivals = field(init=False)
    pairs: Reservoir[tuple[int, int]] = field(init=False)
    pauses: Reservoir[tuple[float, float]] = field(init=False)

    def __post_init__(self) -> None:
        self.arrivals = WindowedArrivals(self.window_s, self.rng)
        self.pairs = Reservoir(_NUM_SAMPLED, self.rng)
        self.pauses = Reservoir(_NUM_SAMPLED, self.rng)

    def add(self, request: WorkloadRequest) -> None:
        self.pairs.add((request.num_prompt_tokens, request.num_output_tokens))
        num_before = 0
        if request.session is not None:
            num_before = self.sessions.get(request.session) or 0
            self.sessions.set(request.session, num_before + 1)
        self.turns[num_before + 1] += 1
        if num_before == 0:
            known = request.tenant in self.tenants or len(self.tenants) < _MAX_TENANTS
            self.tenants[request.tenant if known else "(others)"] += 1
            self.arrivals.add(request.arrival_s)
            return
        self.turns[num_before] -= 1
        self.num_continuing += request.continues
        self.pauses.add((request.think_time_s, request.tool_time_s))

    def model(self) -> TrafficModel:
        if len(self.pairs.values) < 2:
            raise InvalidRequestError("a model needs at least two requests", param="trace")
        windows = self.arrivals.finish()
        if windows.index[-1] >= _MAX_WINDOWS:
            raise InvalidRequestError(
                f"the trace is {windows.index[-1]:.0f} windows long",
                param="window",
                why=f"at most {_MAX_WINDOWS} are kept",
                fix="Use longer windows, or look for a wrong time in the trace",
            )
        pairs = np.array(self.pairs.values, dtype=np.int64)
        prompt, output = pairs.T.astype(np.float64)
        pauses = np.array(self.pauses.values, dtype=np.float64).reshape(-1, 2)
        turns = {turns: times for turns, times in sorted(self.turns.items()) if times}
        num_later = sum((turns - 1) * times for turns, times in turns.items())
        return TrafficModel(
            windows=windows,
            gaps=_gap_fits(windows),
            pairs=pairs,
            prompt=all_fits(prompt, LENGTH_KINDS, step=1.0),
            output=all_fits(output, LENGTH_KINDS, step=1.0),
            turns=turns,
            continues=2 * self.num_continuing > num_later,
            pauses=pauses,
            think_s=_duration_fits(pauses[:, 0]),
            tool_s=_duration_fits(pauses[:, 1]),
            tenants=dict(self.tenants),
        )


def _gap_fits(windows: Windows) -> list[Fit]:
    """Compare the typical shapes, and memoryless gaps, with the gaps seen."""
    if not len(windows.unit_gaps):
        return []
    candidates: dict[str, Distribution] = {
        "gamma": Gamma(windows.typical("gamma_shape") or 1.0, 1.0),
        "weibull": Weibull(windows.typical("weibull_shape") or 1.0, 1.0),
        "exponential": Gamma(1.0, 1.0),
    }
    fits = [
        Fit(kind, distribution, kolmogorov_smirnov(windows.unit_gaps, distribution))
        for kind, distribution in candidates.items()
    ]
    return sorted(fits, key=lambda fit: fit.goodness.distance)


def _duration_fits(durations: Floats) -> list[Fit]:
    positive = durations[durations > 0]
    return all_fits(positive, DURATION_KINDS) if len(positive) > 1 else []
