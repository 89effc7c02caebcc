"""How far the simulator is from what was measured.

Against vLLM: three measured runs on RTX 4090 and RTX PRO 6000, with step times added up from vLLM's
layer times alone (`vllm_runs.py` says how each server was set up, and what is not simulated).
Against DistServe: the rate that its own simulator found for its placement (`distserve_point.py`).
Against this engine: three workloads served here and now, and simulated after a calibration
(`engine_runs.py`; nothing else should run meanwhile). A part whose data is not given is left out.

The last line on stdout is one JSON object:
    error: by run and metric, simulated / measured - 1. Metrics of vLLM's runs: ttft_mean_s,
        ttft_p95_s, tpot_p50_s, tpot_p95_s (time per output token after the first), makespan_s. Of
        DistServe: rate_per_gpu. Of this engine: ttft and tpot as mean and p99, makespan_s and
        peak_kv_blocks.
    worst: the largest of these in size.

Usage: python benchmarks/simulator_validation.py [--profiles DIR] [--turns sharegpt_turns.csv.gz]
           [--engine] [--model smollm2] [--rounds N] [--quick] [--plots DIR]
    --quick: one draw of DistServe's workload, one round of this engine with a short calibration
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from distserve_point import validate_distserve
from engine_runs import validate_engine
from vllm_runs import Comparison, validate_vllm


def show(comparisons: dict[str, Comparison]) -> None:
    """Print measured, simulated and error of every metric, on stderr."""
    for run, comparison in comparisons.items():
        print(run, file=sys.stderr)
        for metric, (measured, simulated, error) in comparison.items():
            print(
                f"  {metric:12} measured {measured:10.4f}  simulated {simulated:10.4f}"
                f"  error {error:+7.1%}",
                file=sys.stderr,
            )


def main() -> None:
    """Simulate, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--profiles", type=Path, help="folder of vLLM's layer times and runs")
    parser.add_argument("--turns", type=Path, help="lengths of ShareGPT turns, for DistServe")
    parser.add_argument("--engine", action="store_true", help="measure this machine's engine")
    parser.add_argument("--model", default="smollm2", help="what this machine's engine serves")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plots", type=Path, help="folder to draw vLLM's curves into")
    args = parser.parse_args()
    comparisons: dict[str, Comparison] = {}
    if args.profiles is not None:
        comparisons |= validate_vllm(args.profiles, args.plots)
    if args.turns is not None:
        comparisons["DistServe"] = validate_distserve(args.turns, 1 if args.quick else 8)
    if args.engine:
        num_rounds = 1 if args.quick else args.rounds
        comparisons |= validate_engine(args.model, num_rounds, quick=args.quick)
    if not comparisons:
        parser.error("nothing to compare with: give --profiles, --turns or --engine")
    show(comparisons)
    error = {
        run: {metric: round(value[2], 4) for metric, value in comparison.items()}
        for run, comparison in comparisons.items()
    }
    worst = max((value for of in error.values() for value in of.values()), key=abs)
    print(json.dumps({"error": error, "worst": worst}))


if __name__ == "__main__":
    main()
