"""What context switches cost: six engines that differ in nothing but how they switch.

Conversations of ShareGPT's lengths are served under the priority policy while priorities change
from outside (FastSwitch, arXiv 2411.18424): those that lose leave the device, those that win come
in. KV memory holds about a third of what waits and runs. The arms:

    per_block      swaps block by block and layer by layer while all wait, keeps no copies: vLLM
                   0.3.3; what all others are compared with
    recompute      gives KV up and computes it again: vLLM today
    groups         A: swaps runs of blocks
    groups_async   A + B: beside the steps where that is better
    fastswitch     A + B + C: keeps the copies on the host, and writes only what they lack
    evenflow       everything: blocks that are one range over all layers, writing back ahead of
                   need, swap or recompute by measured cost, heads that stay, shared prefixes

Cases are patterns of arrivals (poisson, bursty) and of priorities (random, markov). In each round
all arms serve the same requests, case by case, in turns; what is compared are figures of the same
round and case, and reported is the median. Rounds differ in what is drawn.

Times are measured in the engine: TTFT from the arrival of a turn to its first token, TBT between
successive tokens of a request, whatever happened to it in between.

The last line on stdout is one JSON object:
    ratio: by arm and metric (ttft_p99, tbt_p99, tbt_p999, throughput), how many times better than
        per_block: that arm's latency divided by this one's, this one's throughput by that one's.
    switch_share_p99: by arm, how much of the 99th percentile of TBT is there because steps were
        held up by switches: 1 - that of TBT without these times / that of TBT.
    jain: by policy, Jain's index of weighted service in the worst window of 10 s; see
        `fairness_arms.py`.
    figures: by case and arm, percentiles in seconds, output tokens per second, stalls in seconds by
        cause, bytes and calls by direction, the share of live tokens for which there is KV memory.
    ratio_by_case: as `ratio`.

On a GPU machine where evenflow is not installed: PYTHONPATH=src, --world gpu; needs pydantic.

Usage: python benchmarks/context_switch.py [--world real|gpu|paper-a10|paper-a100] [--quick]
           [--rounds N] [--arms LIST] [--cases LIST] [--turns sharegpt_turns.csv.gz] [--plots DIR]
    --turns: lengths of real conversations; without it, of distributions fitted to them
    --world: SmolLM2 on this machine's CPU; Llama-3-8B with random weights on its GPU; or Llama-3-8B
        on an A10 and Qwen-2.5-32B on an A100, simulated, with the paper's thousand conversations
    --quick: one case, fewer and shorter conversations; fairness is simulated
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

from context_switch_arms import ARMS, BASELINE
from context_switch_load import SHAPES, Load, draw_load
from context_switch_plots import draw
from context_switch_run import Record, serve
from context_switch_worlds import WORLDS, World
from fairness_arms import fairness_arms, real_world, simulated_world

Figures = Mapping[str, float]
METRICS = {"ttft_p99": "ttft_p99", "tbt_p99": "tbt_p99", "tbt_p999": "tbt_p99.9"}
PRIORITIES = ("random", "markov")


class Comparison:
    """All that was measured: figures of the arms by case, one after the other by round."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.figures: dict[str, dict[str, list[Figures]]] = {}
        self.records: dict[str, dict[str, Record]] = {}

    def run(self, load: Load, arms: Sequence[str]) -> None:
        """Let arms serve a load in turns."""
        case = self.figures.setdefault(load.name, {arm: [] for arm in arms})
        for arm in arms:
            record = serve(self._world.stage(ARMS[arm]), load)
            figures = record.figures(self._world.num_kv_tokens)
            case[arm].append(figures)
            self.records.setdefault(load.name, {})[arm] = record
            print(f"{load.name:16} {arm:13} {_line(figures)}", file=sys.stderr)

    def ratios(self, cases: Sequence[str]) -> dict[str, dict[str, float]]:
        """Return how many times better each arm is than the baseline, median."""
        pairs: dict[str, list[tuple[Figures, Figures]]] = {}
        for case in cases:
            baseline = self.figures[case][BASELINE]
            for arm, runs in self.figures[case].items():
                pairs.setdefault(arm, []).extend(zip(runs, baseline, strict=True))
        return {
            arm: {
                metric: round(statistics.median(b[key] / own[key] for own, b in of), 3)
                for metric, key in METRICS.items()
            }
            | {"throughput": _median_ratio(of)}
            for arm, of in pairs.items()
        }

    def medians(self, case: str) -> dict[str, dict[str, float]]:
        """Return the figures of each arm, median over rounds."""
        return {
            arm: {
                key: _rounded(statistics.median(run.get(key, 0.0) for run in runs))
                for key in runs[0]
            }
            for arm, runs in self.figures[case].items()
        }

    def switch_shares(self) -> dict[str, float]:
        """Return each arm's share of switches in the 99th percentile of TBT, median."""
        shares: dict[str, list[float]] = {}
        for case in self.figures.values():
            for arm, runs in case.items():
                shares.setdefault(arm, []).extend(run["switch_share_p99"] for run in runs)
        return {arm: round(statistics.median(values), 4) for arm, values in shares.items()}


def _median_ratio(pairs: Sequence[tuple[Figures, Figures]]) -> float:
    return round(statistics.median(own["throughput"] / b["throughput"] for own, b in pairs), 3)


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def _line(figures: Figures) -> str:
    bytes_moved = sum(value for name, value in figures.items() if name.startswith("bytes_"))
    return (
        f"ttft p50 {figures['ttft_p50']:6.2f} p99 {figures['ttft_p99']:7.2f} s, "
        f"tbt p50 {figures['tbt_p50'] * 1e3:5.1f} p99 {figures['tbt_p99'] * 1e3:6.1f} "
        f"p99.9 {figures['tbt_p99.9'] * 1e3:8.1f} ms, {figures['throughput']:6.1f} tokens/s, "
        f"switching {figures['switch_share_p99']:5.1%} of p99, "
        f"{figures['preemptions']:5.0f} preemptions, {bytes_moved / 1e9:6.1f} GB, "
        f"{figures['fitting_share']:.2f} of live KV fits"
    )


def cases_of(names: str | None, *, quick: bool) -> list[tuple[str, str]]:
    """Return (arrivals, priorities) of each case."""
    known = list(product(SHAPES, PRIORITIES))
    if names is None:
        return [("poisson", "markov")] if quick else known
    cases = [tuple(name.split("-")) for name in names.split(",")]
    return [case for case in known if case in cases]


def jain(world: str, num_rounds: int, *, quick: bool) -> dict[str, float]:
    """Return how evenly policies divide the engine."""
    is_real = world == "real" and not quick
    result = fairness_arms(
        real_world() if is_real else simulated_world(),
        duration_s=60.0,
        num_rounds=1 if quick else num_rounds,
    )
    values: dict[str, float] = result["jain"]
    return values


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--world", choices=WORLDS, default="real")
    parser.add_argument("--quick", action="store_true", help="a small run, under 50 s")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--arms", default=",".join(ARMS), help="comma-separated")
    parser.add_argument("--cases", help="comma-separated, such as poisson-random,bursty-markov")
    parser.add_argument("--turns", type=Path, help="lengths of ShareGPT turns")
    parser.add_argument("--plots", type=Path, help="folder to draw into")
    args = parser.parse_args()
    chosen = list(dict.fromkeys([BASELINE, *args.arms.split(",")]))
    if unknown := [arm for arm in chosen if arm not in ARMS]:
        parser.error(f"there is no arm {unknown[0]}; there are {', '.join(ARMS)}")
    world = WORLDS[args.world](args.quick)
    comparison = Comparison(world)
    cases = cases_of(args.cases, quick=args.quick)
    for number, (seed, case) in enumerate(product(range(args.rounds), cases)):
        first = number % len(chosen)
        load = draw_load(world.shape, args.turns, *case, seed)
        comparison.run(load, chosen[first:] + chosen[:first])
    if args.plots is not None:
        draw(comparison.records, args.plots / f"context-switching-{args.world}.png")
    result = {
        "world": args.world,
        "ratio": comparison.ratios(list(comparison.figures)),
        "switch_share_p99": comparison.switch_shares(),
        "jain": jain(args.world, args.rounds, quick=args.quick),
        "figures": {case: comparison.medians(case) for case in comparison.figures},
        "ratio_by_case": {case: comparison.ratios([case]) for case in comparison.figures},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
