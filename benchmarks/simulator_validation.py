"""How far the simulator is from what was measured.

Against vLLM: three measured runs on RTX 4090 and RTX PRO 6000, with step times added up from vLLM's
layer times alone (`vllm_runs.py` says how each server was set up, and what is not simulated).

The last line on stdout is one JSON object:
    error: by run and metric, simulated / measured - 1. Metrics: ttft_mean_s, ttft_p95_s,
        tpot_p50_s, tpot_p95_s (time per output token after the first) and makespan_s.
    worst: the largest of these in size.

Usage: python benchmarks/simulator_validation.py --profiles DIR [--quick] [--plots DIR]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

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
    parser.add_argument("--quick", action="store_true", help="no less work: it takes seconds")
    parser.add_argument("--profiles", type=Path, required=True, help="folder of measured tables")
    parser.add_argument("--plots", type=Path, help="folder to draw the curves into")
    args = parser.parse_args()
    comparisons = validate_vllm(args.profiles, args.plots)
    show(comparisons)
    error = {
        run: {metric: round(value[2], 4) for metric, value in comparison.items()}
        for run, comparison in comparisons.items()
    }
    worst = max((value for of in error.values() for value in of.values()), key=abs)
    print(json.dumps({"error": error, "worst": worst}))


if __name__ == "__main__":
    main()
