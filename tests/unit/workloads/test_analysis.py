"""Analysis of workloads whose parameters are known."""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import islice, takewhile

import numpy as np
import pytest

from evenflow.core.errors import InvalidRequestError
from evenflow.workloads.analysis import (
    TrafficModel,
    WindowedArrivals,
    Windows,
    all_fits,
    fit_traffic,
    kolmogorov_smirnov,
    summarize,
)
from evenflow.workloads.analysis.fits import DURATION_KINDS, LENGTH_KINDS
from evenflow.workloads.analysis.sampling import Reservoir
from evenflow.workloads.analysis.summary import ServiceTime
from evenflow.workloads.distributions import Constant, Floats, Gamma, Lengths, LogNormal, Weibull
from evenflow.workloads.generators import (
    Conversations,
    IndependentPairs,
    burst_times,
    conversations,
    lone_requests,
)
from evenflow.workloads.request import Segment, WorkloadRequest

PAIRS = IndependentPairs(Lengths(LogNormal(100.0, 1.0)), Lengths(LogNormal(50.0, 0.5)))


def rng(seed: int = 3) -> np.random.Generator:
    return np.random.default_rng(seed)


def bursty(num: int, rate: float, burstiness: float) -> list[WorkloadRequest]:
    return list(islice(lone_requests(burst_times(rate, burstiness, rng()), PAIRS, rng(4)), num))


# -- goodness ------------------------------------------------------------------------------------


def test_kolmogorov_smirnov_finds_the_greatest_difference() -> None:
    """Of a uniform distribution, the sample 0.1, 0.2 has its greatest difference after 0.2."""
    uniform = Weibull(1.0, 1.0)
    values = -np.log(1 - np.array([0.1, 0.2]))
    assert kolmogorov_smirnov(values, uniform).distance == pytest.approx(0.8)


def test_kolmogorov_smirnov_has_the_published_critical_value() -> None:
    """At 1.36 / sqrt(n) the probability is 5 % (Massey 1951)."""
    num = 1_000_000
    levels = (np.arange(num) + 0.5) / num
    shifted = np.clip(levels - 1.36 / math.sqrt(num), 1e-12, None)
    goodness = kolmogorov_smirnov(-np.log1p(-shifted), Weibull(1.0, 1.0))
    assert goodness.p_value == pytest.approx(0.049, abs=0.001)


def test_kolmogorov_smirnov_p_values_are_uniform_for_the_right_distribution() -> None:
    source = rng(0)
    p_values = [
        kolmogorov_smirnov(Gamma(0.5, 2.0).draw(200, source), Gamma(0.5, 2.0)).p_value
        for _ in range(200)
    ]
    assert kolmogorov_smirnov(np.array(p_values), _Uniform()).p_value > 0.01


class _Uniform(Constant):
    def __init__(self) -> None:
        pass

    def cdf(self, values: Floats) -> Floats:
        return np.clip(values, 0.0, 1.0)


def test_kolmogorov_smirnov_does_not_mind_rounding_when_told() -> None:
    lengths = np.array(Lengths(LogNormal(3.0, 0.7)).draw(5000, rng()), dtype=float)
    plain = kolmogorov_smirnov(lengths, LogNormal(3.0, 0.7)).distance
    told = kolmogorov_smirnov(lengths, LogNormal(3.0, 0.7), step=1.0).distance
    assert told < 0.06 < plain


# -- samples -------------------------------------------------------------------------------------


def test_reservoir_keeps_every_value_equally_often() -> None:
    source, counts = rng(), Counter()
    for _ in range(2000):
        reservoir = Reservoir[int](5, source)
        for value in range(20):
            reservoir.add(value)
        counts.update(reservoir.values)
    assert len(counts) == 20
    assert min(counts.values()) > 420
    assert max(counts.values()) < 580


def test_reservoir_keeps_all_of_a_short_stream() -> None:
    reservoir = Reservoir[str](3, rng())
    for value in "ab":
        reservoir.add(value)
    assert reservoir.values == ["a", "b"]


# -- burstiness ----------------------------------------------------------------------------------


def windows_of(times: list[float], window_s: float = 100.0) -> Windows:
    arrivals = WindowedArrivals(window_s, rng())
    for time_s in times:
        arrivals.add(time_s)
    return arrivals.finish()


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_windows_have_the_shape_that_was_drawn(burstiness: float) -> None:
    times = list(islice(burst_times(10.0, burstiness, rng()), 20_000))
    windows = windows_of(times)
    assert windows.typical("gamma_shape") == pytest.approx(burstiness, rel=0.05)
    assert windows.typical("cv") == pytest.approx(1 / math.sqrt(burstiness), rel=0.05)


def test_windows_see_through_times_rounded_to_seconds() -> None:
    """Rounding makes a Poisson process look bursty unless its ties are spread again."""
    times = [math.floor(t) * 1.0 for t in islice(burst_times(5.0, 1.0, rng()), 20_000)]
    assert windows_of(times).typical("gamma_shape") == pytest.approx(1.0, rel=0.1)


def test_windows_count_from_the_first_arrival_and_leave_out_empty_ones() -> None:
    windows = windows_of([1000.0, 1050.0, 1310.0])
    assert windows.index.tolist() == [0, 3]
    assert windows.num_requests.tolist() == [2, 1]
    assert windows.typical("cv") is None


def test_windows_of_a_metronome_have_no_shape() -> None:
    windows = windows_of([float(t) for t in range(50)])
    assert windows.cv.tolist() == [0.0]
    assert np.isnan(windows.gamma_shape).all()


# -- fits ----------------------------------------------------------------------------------------


def test_fits_put_the_right_kind_first() -> None:
    values = LogNormal(5.0, 1.0).draw(5000, rng())
    fits = [fit for fit in all_fits(values, DURATION_KINDS) if fit.kind != "empirical"]
    assert fits[0].kind == "lognormal"
    assert fits[0].goodness.distance < 0.02 < fits[1].goodness.distance


def test_fits_of_one_value_are_that_value() -> None:
    (fit,) = all_fits(np.full(9, 64.0), LENGTH_KINDS, step=1.0)
    assert (fit.kind, fit.distribution) == ("constant", Constant(64.0))


# -- models --------------------------------------------------------------------------------------


def test_model_draws_a_trace_like_the_one_it_was_fitted_to() -> None:
    original = bursty(20_000, 5.0, 0.4)
    model = fit_traffic(original, rng())
    drawn = list(islice(model.generate(rng(8)), 20_000))
    again = fit_traffic(drawn, rng())
    assert model.gaps[0].kind == "gamma"
    assert again.as_dict()["rate_mean"] == pytest.approx(5.0, rel=0.07)
    for name in ("gamma_shape", "cv"):
        assert again.windows.typical(name) == pytest.approx(model.windows.typical(name), rel=0.1)
    for index in (0, 1):
        assert np.log(again.pairs[:, index]).mean() == pytest.approx(
            np.log(model.pairs[:, index]).mean(), rel=0.02
        )


def test_model_keeps_bursts_at_another_rate() -> None:
    model = fit_traffic(bursty(20_000, 5.0, 0.4), rng())
    drawn = [r.arrival_s for r in islice(model.generate(rng(), rate_factor=10.0), 20_000)]
    gaps = np.diff(drawn)
    assert 1 / gaps.mean() == pytest.approx(50.0, rel=0.15)
    assert gaps.std() / gaps.mean() == pytest.approx(1 / math.sqrt(0.4), rel=0.15)


@pytest.mark.parametrize(("lengths", "kind"), [("fitted", None), ("zipf", "zipf")])
def test_model_draws_lengths_from_its_fits(lengths: str, kind: str | None) -> None:
    model = fit_traffic(bursty(5_000, 5.0, 1.0), rng())
    drawn = [r.num_prompt_tokens for r in islice(model.generate(rng(), lengths=lengths), 5_000)]
    fit = next(fit for fit in model.prompt if kind is None or fit.kind == kind)
    values = np.array(drawn, dtype=float)
    assert kolmogorov_smirnov(values, fit.distribution, step=1.0).distance < 0.03
    assert max(drawn) <= model.pairs[:, 0].max()


def test_model_draws_sessions_with_turns_and_pauses() -> None:
    kind = Conversations(turns=Lengths(Constant(3)), lengths=PAIRS, think_s=Gamma(4.0, 2.0))
    original = islice(conversations(burst_times(1.0, 1.0, rng()), kind, rng()), 3000)
    model = fit_traffic(original, rng())
    assert model.turns == {3: 1000}
    assert model.think_s[0].kind in ("gamma", "empirical")
    drawn = list(islice(model.generate(rng()), 300))
    assert [r.turn for r in drawn[:6]] == [0, 1, 2, 0, 1, 2]
    assert [r.continues for r in drawn[:3]] == [False, True, True]
    pauses = [r.think_time_s for r in drawn if r.turn]
    assert np.mean(pauses) == pytest.approx(2.0, rel=0.15)


def test_model_draws_tenants_by_their_shares() -> None:
    names = ["a", "b", "b", "b"]
    requests = [
        WorkloadRequest(num_prompt_tokens=1, num_output_tokens=1, arrival_s=i, tenant=names[i % 4])
        for i in range(400)
    ]
    drawn = Counter(r.tenant for r in islice(fit_traffic(requests, rng()).generate(rng()), 4000))
    assert drawn["b"] / 4000 == pytest.approx(0.75, abs=0.03)


def test_model_is_plain_json() -> None:
    figures = fit_traffic(bursty(500, 5.0, 0.4), rng()).as_dict()
    assert json.loads(json.dumps(figures, allow_nan=False))["sessions"] == 500


def test_model_of_a_short_trace_is_memoryless() -> None:
    model: TrafficModel = fit_traffic(bursty(5, 1.0, 1.0), rng())
    assert model.gaps == []
    assert len(list(takewhile(lambda r: r.arrival_s < 600, model.generate(rng())))) > 5


def test_model_refuses_a_trace_of_one_request() -> None:
    with pytest.raises(InvalidRequestError, match="at least two"):
        fit_traffic(bursty(1, 1.0, 1.0), rng())


# -- summary -------------------------------------------------------------------------------------


def request(arrival_s: float, **fields) -> WorkloadRequest:
    values = {"num_prompt_tokens": 10, "num_output_tokens": 11} | fields
    return WorkloadRequest(arrival_s=arrival_s, **values)


def test_summary_counts_requests_sessions_and_tenants() -> None:
    requests = [
        request(0, tenant="a", session="s"),
        request(0, tenant="a", session="s", turn=1, continues=True, think_time_s=2.0),
        request(4, tenant="b", num_prompt_tokens=30),
        request(10, tenant="a"),
    ]
    figures = summarize(requests, rng(), service=ServiceTime(0.5, 0.05)).figures
    assert (figures["requests"], figures["sessions"], figures["tenants"]) == (4, 3, 2)
    assert figures["busiest_tenant_ratio"] == 0.75
    assert figures["turns"]["max"] == 2
    assert figures["prompt_tokens"]["p50"] == 10
    assert figures["prompt_tokens"]["max"] == 31
    assert figures["own_prompt_tokens"]["mean"] == 15
    assert figures["think_s"]["mean"] == 2.0
    assert (figures["span_s"], figures["rate"]) == (10, 0.4)
    gaps = np.array([3, 1, 6])
    assert figures["gap_cv"] == pytest.approx(gaps.std() / gaps.mean())


def test_summary_lets_turns_come_when_the_one_before_is_answered() -> None:
    requests = [
        request(0, session="s", think_time_s=9.0),
        request(0, session="s", turn=1, think_time_s=3.0),
        request(2),
        request(5, session="s", turn=2),
        request(50, session="s", turn=3),
    ]
    summary = summarize(requests, rng(), window_s=1.0, service=ServiceTime(1.0, 0.1))
    assert summary.windows.index.tolist() == [0, 2, 5, 7, 50]


def test_summary_estimates_concurrency_from_lengths() -> None:
    requests = [request(0), request(1), request(2.5), request(9)]
    figures = summarize(requests, rng(), service=ServiceTime(1.0, 0.1)).figures
    assert figures["running_peak"] == 2
    assert figures["running_mean"] == pytest.approx(4 * 2.0 / 9)


def test_summary_finds_the_prefixes_that_a_cache_would() -> None:
    blocks = [Segment(f"block {i}", 512) for i in range(4)]
    requests = [
        request(0, num_prompt_tokens=1024, segments=(blocks[0], blocks[1])),
        request(1, num_prompt_tokens=1536, segments=(blocks[0], blocks[1], blocks[2])),
        request(2, num_prompt_tokens=1024, segments=(blocks[3], blocks[2])),
    ]
    assert summarize(requests, rng()).figures["prefix_hit_ratio"] == pytest.approx(2 / 7)


def test_summary_finds_the_prefixes_of_conversations() -> None:
    requests = [
        request(0, session="s", num_prompt_tokens=1024),
        request(1, session="s", turn=1, continues=True, num_prompt_tokens=501),
    ]
    assert summarize(requests, rng()).figures["prefix_hit_ratio"] == pytest.approx(2 / 5)


def test_summary_does_not_guess_prefixes() -> None:
    figures = summarize([request(0, session="s"), request(1, session="s", turn=1)], rng()).figures
    assert figures["prefix_hit_ratio"] is None


def test_summary_has_the_dispersion_of_a_poisson_process() -> None:
    figures = summarize(bursty(20_000, 2.0, 1.0), rng(), window_s=10.0).figures
    assert figures["count_dispersion"] == pytest.approx(1.0, abs=0.12)


def test_summary_of_nothing_is_an_error() -> None:
    with pytest.raises(InvalidRequestError, match="no requests"):
        summarize([], rng())
