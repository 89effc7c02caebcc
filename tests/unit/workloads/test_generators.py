from __future__ import annotations

import math
from collections import Counter
from itertools import islice, takewhile
from pathlib import Path

import numpy as np
import pytest

from evenflow.core.errors import InvalidRequestError
from evenflow.workloads.distributions import Constant, Gamma, Lengths, Weibull
from evenflow.workloads.generators import (
    Agents,
    ClientMix,
    Conversations,
    IndependentPairs,
    RecordedPairs,
    agents,
    burst_times,
    conversations,
    diurnal_times,
    lone_requests,
    piecewise_times,
    poisson_times,
    prefix_tree_requests,
)
from evenflow.workloads.transforms import merged

NUM = 20_000
PAIRS = IndependentPairs(Lengths(Constant(7)), Lengths(Constant(3)))


def rng(seed: int = 5) -> np.random.Generator:
    return np.random.default_rng(seed)


def cv(times: list[float]) -> float:
    gaps = np.diff(times)
    return float(gaps.std() / gaps.mean())


@pytest.mark.parametrize("burstiness", [0.25, 0.5, 1.0])
def test_burst_times_have_rate_and_variation_as_asked(burstiness: float) -> None:
    times = list(islice(burst_times(4.0, burstiness, rng()), NUM))
    assert cv(times) == pytest.approx(1 / math.sqrt(burstiness), rel=0.05)
    assert NUM / times[-1] == pytest.approx(4.0, rel=0.05)


def test_poisson_times_are_memoryless() -> None:
    gaps = np.diff(list(islice(poisson_times(4.0, rng()), NUM)))
    assert (gaps > gaps.mean()).mean() == pytest.approx(math.exp(-1), abs=0.01)


def test_piecewise_times_have_the_rate_of_their_window() -> None:
    windows = [(20.0, Gamma(1.0, 1.0)), (0.0, Gamma(1.0, 1.0)), (80.0, Gamma(1.0, 1.0))]
    times = np.array(list(piecewise_times(windows, 100.0, rng())))
    counts = np.histogram(times, bins=[0, 100, 200, 300])[0]
    assert counts[1] == 0
    assert counts[[0, 2]] == pytest.approx([2000, 8000], rel=0.06)
    assert (np.diff(times) >= 0).all()


def test_piecewise_times_keep_their_bursts_at_another_rate() -> None:
    """Windows shorter than a gap must not cut bursts to pieces."""

    def variation(rate: float) -> float:
        return cv(list(piecewise_times([(rate, Weibull(0.5, 1.0))] * NUM, 1.0, rng())))

    assert variation(0.5) == pytest.approx(Weibull(0.5, 1.0).cv, rel=0.1)


def test_diurnal_times_follow_the_hours_and_come_around() -> None:
    times = diurnal_times([0.1, 1.0], rng(), noise=0.3, burstiness=0.5)
    counts = Counter(int(t // 3600) for t in takewhile(lambda t: t < 4 * 3600, times))
    assert counts[1] > 5 * counts[0]
    assert counts[3] > 5 * counts[2]


def test_lone_requests_take_times_and_lengths() -> None:
    first, second = lone_requests(iter([1.0, 2.0]), PAIRS, rng(), tenant="a")
    assert (first.arrival_s, first.num_prompt_tokens, first.num_output_tokens) == (1.0, 7, 3)
    assert (second.arrival_s, second.tenant, second.session) == (2.0, "a", None)


def test_recorded_pairs_stay_together() -> None:
    pairs = RecordedPairs(np.array([[1, 10], [2, 20]]))
    assert set(pairs.draw(100, rng())) == {(1, 10), (2, 20)}


def test_conversations_have_turns_that_continue_after_a_pause() -> None:
    kind = Conversations(
        turns=Lengths(Constant(3)), lengths=PAIRS, think_s=Constant(2.5), system_tokens=100
    )
    turns = list(islice(conversations(iter([4.0, 9.0]), kind, rng(), tenant="a"), 4))
    assert [(r.session, r.turn, r.continues) for r in turns] == [
        ("chat 0", 0, False),
        ("chat 0", 1, True),
        ("chat 0", 2, True),
        ("chat 1", 0, False),
    ]
    assert [r.arrival_s for r in turns] == [4.0, 4.0, 4.0, 9.0]
    assert [r.think_time_s for r in turns] == [0.0, 2.5, 2.5, 0.0]
    assert [r.num_prompt_tokens for r in turns] == [107, 7, 7, 107]
    assert turns[0].segments[0] == turns[3].segments[0] == ("chat system", 100)
    assert turns[0].segments[1] != turns[3].segments[1]


def test_agents_pause_for_their_tools() -> None:
    kind = Agents(
        steps=Lengths(Constant(2)),
        task=Lengths(Constant(5)),
        observation=Lengths(Constant(30)),
        action=Lengths(Constant(9)),
        tool_s=Constant(1.25),
        system_tokens=50,
    )
    first, second, third = islice(agents(iter([0.0, 1.0]), kind, rng()), 3)
    assert (first.num_prompt_tokens, first.turn, first.tool_time_s) == (55, 0, 0.0)
    assert (second.num_prompt_tokens, second.continues, second.turn) == (30, True, 1)
    assert second.think_time_s == second.tool_time_s == 1.25
    assert third.session != second.session


def test_agents_need_no_system_prompt() -> None:
    request = next(agents(iter([0.0]), Agents(system_tokens=0), rng()))
    assert request.segments == ()


def test_prefix_tree_requests_share_the_paths_they_have_in_common() -> None:
    stream = prefix_tree_requests(
        poisson_times(1.0, rng()), PAIRS, rng(), level_tokens=(10, 4, 2), branching=2, exponent=0.0
    )
    requests = list(islice(stream, 2000))
    leaves = Counter(r.segments[2].key for r in requests)
    assert set(leaves) == {f"tree.{i}.{j}" for i in (1, 2) for j in (1, 2)}
    assert min(leaves.values()) == pytest.approx(500, rel=0.15)
    assert len({r.segments[3].key for r in requests}) == len(requests)
    assert {r.num_prompt_tokens for r in requests} == {23}


def test_prefix_tree_requests_like_the_first_child_best() -> None:
    stream = prefix_tree_requests(
        poisson_times(1.0, rng()), PAIRS, rng(), level_tokens=(10, 4), branching=3, exponent=1.0
    )
    counts = Counter(r.segments[1].key for r in islice(stream, 5000))
    assert counts["tree.1"] / counts["tree.2"] == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize(
    "make",
    [
        lambda times, rng: lone_requests(times, PAIRS, rng),
        lambda times, rng: conversations(times, Conversations(), rng),
        lambda times, rng: agents(times, Agents(), rng),
        lambda times, rng: prefix_tree_requests(
            times, PAIRS, rng, level_tokens=(5, 5), branching=4
        ),
    ],
)
def test_streams_depend_on_nothing_but_the_generator(make) -> None:
    first, second = (list(islice(make(poisson_times(2.0, rng(1)), rng(2)), 300)) for _ in range(2))
    assert first == second


ARRIVALS = """client,t_s,rate_rps,iat_cv,iat_dist,p1,p2
0,0,2.0,1.0,Gamma,1.0,9
1,0,0.5,2.0,Weibull,0.6,9
0,600,4.0,1.0,Gamma,1.0,9
1,1200,0.5,2.0,Weibull,0.6,9
"""
LENGTHS = """client,t_s,field,mean,p5,p25,p50,p75,p90,p95,p99,max
0,0,input_tokens,10,10,10,10,10,10,10,10,10
0,0,output_tokens,20,20,20,20,20,20,20,20,20
"""


@pytest.fixture
def mix(tmp_path: Path) -> ClientMix:
    (tmp_path / "m_lengths.csv").write_text(LENGTHS)
    (tmp_path / "m_arrivals.csv").write_text(ARRIVALS)
    return ClientMix(tmp_path / "m_arrivals.csv")


def test_client_mix_has_the_rate_of_each_client_and_window(mix: ClientMix) -> None:
    requests = list(mix.requests(rng(), start_s=0.0, end_s=1800.0, rate_factor=10.0))
    counts = Counter((r.tenant, int(r.arrival_s // 600)) for r in requests)
    assert counts.keys() == {("client 0", 0), ("client 0", 1), ("client 1", 0), ("client 1", 2)}
    assert counts["client 0", 0] == pytest.approx(12_000, rel=0.03)
    assert counts["client 0", 1] == pytest.approx(24_000, rel=0.03)
    assert counts["client 1", 2] == pytest.approx(3_000, rel=0.12)
    times = [r.arrival_s for r in requests]
    assert times == sorted(times)


def test_client_mix_knows_its_mean_rate(mix: ClientMix) -> None:
    assert mix.mean_rate(0.0, 1800.0) == pytest.approx((2.0 + 0.5 + 4.0 + 0.5) / 3)


def test_client_mix_starts_where_it_is_told(mix: ClientMix) -> None:
    requests = list(mix.requests(rng(), start_s=600.0, end_s=1200.0))
    assert {r.tenant for r in requests} == {"client 0"}
    assert requests[0].arrival_s < 10


def test_client_mix_gives_clients_without_lengths_typical_ones(mix: ClientMix) -> None:
    requests = list(mix.requests(rng(), start_s=0.0, end_s=600.0))
    assert {(r.tenant, r.num_prompt_tokens, r.num_output_tokens) for r in requests} == {
        ("client 0", 10, 20),
        ("client 1", 10, 20),
    }


def test_client_mix_counts_the_tokens_of_images(tmp_path: Path) -> None:
    rows = [
        f"0,0,{name},1{f',{value}' * 8}\n"
        for name, value in (
            ("text_tokens", 5),
            ("image_tokens", 100),
            ("image_count", 2),
            ("output_tokens", 3),
        )
    ]
    (tmp_path / "mm_lengths.csv").write_text(LENGTHS.split("\n", 1)[0] + "\n" + "".join(rows))
    (tmp_path / "mm_arrivals.csv").write_text(ARRIVALS)
    mix = ClientMix(tmp_path / "mm_arrivals.csv")
    request = next(mix.requests(rng(), start_s=0.0, end_s=600.0))
    assert (request.num_prompt_tokens, request.num_output_tokens) == (205, 3)


def test_client_mix_refuses_other_files(tmp_path: Path) -> None:
    (tmp_path / "m_lengths.csv").write_text(LENGTHS)
    (tmp_path / "m_arrivals.csv").write_text("client,t_s,rate_rps,iat_dist,p1\n0,0,1.0,Cauchy,1\n")
    mix = ClientMix(tmp_path / "m_arrivals.csv")
    with pytest.raises(InvalidRequestError, match="iat_dist is 'Cauchy'"):
        next(mix.requests(rng(), start_s=0.0, end_s=600.0))
    with pytest.raises(InvalidRequestError, match="no client asks for anything"):
        mix.mean_rate(1e6, 2e6)


def test_merged_streams_of_tenants_stay_in_order_and_whole() -> None:
    streams = [
        conversations(
            poisson_times(1.0, rng(seed)), Conversations(), rng(seed), name=name, tenant=name
        )
        for seed, name in enumerate("ab")
    ]
    requests = list(islice(merged(*streams), 500))
    assert [r.arrival_s for r in requests] == sorted(r.arrival_s for r in requests)
    last: dict[str, int] = {}
    for request in requests:
        assert request.turn == last.get(request.session, -1) + 1
        last[request.session] = request.turn
