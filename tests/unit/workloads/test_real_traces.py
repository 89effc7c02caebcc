"""The published data, against the figures that its documentation gives."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from evenflow.workloads.analysis import fit_traffic, summarize
from evenflow.workloads.generators import ClientMix
from evenflow.workloads.traces import iter_trace
from evenflow.workloads.transforms import in_order
from support.workload_data import workload_data


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def figures_of(name: str, window_s: float = 60.0) -> dict:
    return summarize(in_order(iter_trace(workload_data(name))), rng(), window_s=window_s).figures


@pytest.mark.parametrize(
    ("name", "requests", "gap_cv", "prompt", "output", "hit_ratio"),
    [
        ("conversation", 9_017, 2.99, (12_209, 7_110, 87_172), (347, 355, 1_179), 0.353),
        ("synthetic", 3_194, 1.01, (13_968, 8_656, 61_607), (172, 105, 775), 0.527),
        ("arxiv_first1000", 1_000, 4.03, (9_792, 6_558, 77_828), (199, 34, 831), 0.380),
    ],
)
def test_mooncake_has_its_published_figures(
    name: str, requests: int, gap_cv: float, prompt: tuple, output: tuple, hit_ratio: float
) -> None:
    figures = figures_of(f"mooncake/{name}.csv.gz")
    assert figures["requests"] == requests
    assert figures["gap_cv"] == pytest.approx(gap_cv, abs=0.01)
    assert figures["prefix_hit_ratio"] == pytest.approx(hit_ratio, abs=0.001)
    for quantity, published in (("prompt_tokens", prompt), ("output_tokens", output)):
        found = [figures[quantity][statistic] for statistic in ("mean", "p50", "p99")]
        assert found == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize(
    ("name", "requests", "gap_cv", "window_s", "dispersion"),
    [
        ("code", 7_491, 12.6, 60.0, 151),
        ("code", 7_491, 12.6, 1.0, 12.9),
        ("conv", 14_453, 1.08, 60.0, 15.0),
        ("conv", 14_453, 1.08, 1.0, 1.33),
    ],
)
def test_azure_has_its_published_figures(
    name: str, requests: int, gap_cv: float, window_s: float, dispersion: float
) -> None:
    figures = figures_of(f"azure_llm_2023/{name}.csv.gz", window_s)
    assert figures["requests"] == requests
    assert figures["gap_cv"] == pytest.approx(gap_cv, rel=0.01)
    assert figures["count_dispersion"] == pytest.approx(dispersion, rel=0.03)


def test_sharegpt_turns_make_sessions() -> None:
    """An answer at the beginning of a slice has no question, and becomes part of the next."""
    rows = list(iter_trace(workload_data("chat_lengths/sharegpt_turns.csv.gz")))
    assert 15_000 < len(rows) < 26_106
    assert np.mean([r.num_prompt_tokens for r in rows]) > 103
    assert np.mean([r.num_output_tokens for r in rows]) == pytest.approx(359, rel=0.08)
    assert max(r.turn for r in rows) > 10


def test_claude_code_runs_have_their_published_tool_times() -> None:
    rows = list(iter_trace(workload_data("agent_traces/claude_code_swe_llm_calls.csv.gz")))
    assert len(rows) == 6_323 - 2
    assert len({request.session for request in rows}) == 149
    assert np.mean([r.num_prompt_tokens for r in rows]) == pytest.approx(43_200, rel=0.01)
    pauses = np.array([(r.think_time_s, r.tool_time_s) for r in rows if r.turn])
    assert (pauses[:, 1] <= pauses[:, 0]).all()
    assert pauses[:, 1].sum() / pauses[:, 0].sum() > 0.8


def test_lmcache_agents_share_the_published_part_of_their_prompts() -> None:
    rows = list(iter_trace(workload_data("agent_traces/lmcache_agents.csv.gz")))
    miniswe = [request for request in rows if request.tenant == "miniswe"]
    assert len(miniswe) == 291
    seen: set[str] = set()
    shared = 0
    for request in miniswe:
        keys = [segment.key for segment in request.segments]
        shared += next((i for i, key in enumerate(keys) if key not in seen), len(keys)) * 64
        seen.update(keys)
    assert shared / sum(r.num_prompt_tokens for r in miniswe) == pytest.approx(0.93, abs=0.02)


@pytest.mark.parametrize(("service", "rate"), [("deepseek-r1", 16.8), ("mm-image", 9.25)])
def test_servegen_services_have_their_published_rates(service: str, rate: float) -> None:
    mix = ClientMix(workload_data(f"servegen/{service}_arrivals.csv.gz"))
    assert mix.mean_rate(0.0, 43_200.0) == pytest.approx(rate, rel=0.01)


def test_servegen_clients_are_drawn_as_often_as_recorded() -> None:
    mix = ClientMix(workload_data("servegen/deepseek-r1_arrivals.csv.gz"))
    span = {"start_s": 0.0, "end_s": 3_600.0}
    requests = list(mix.requests(rng(), **span, rate_factor=0.5))
    assert len(requests) == pytest.approx(mix.mean_rate(**span) * 1_800, rel=0.1)
    assert len({request.tenant for request in requests}) > 20


def test_azure_code_is_burstier_than_any_poisson_process() -> None:
    rows = iter_trace(workload_data("azure_llm_2023/code.csv.gz"))
    model = fit_traffic(islice(rows, 5_000), rng())
    distances = {fit.kind: fit.goodness.distance for fit in model.gaps}
    assert distances["exponential"] > 2 * min(distances.values())
