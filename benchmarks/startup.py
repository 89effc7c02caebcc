"""From process start to the first token of `evenflow chat -p`, with the model cached.

Starts the command as a user would, in a process of its own, and waits for the first byte of the
answer on its stdout. One run that is not counted fills the caches (model, loaded weights, kernels).

The last line on stdout is one JSON object:
    first_token_s: median seconds from process start to the first byte of the answer.
    runs_s: the same, run by run.
    peak_rss_bytes: largest resident memory of a run, mapped files included.
    import_torch_s: median seconds of `import torch` alone in a fresh process, for comparison.

Usage: python benchmarks/startup.py [--quick] [--model smollm2]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time


def first_token(model: str) -> tuple[float, int]:
    """Return (seconds to the first byte of the answer, peak resident bytes) of one run."""
    command = [sys.executable, "-c", "from evenflow.cli import main; main()", "chat", model]
    command += ["-p", "What is the capital of France?", "--temperature", "0", "--max-tokens", "8"]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        if not process.stdout.read(1):
            raise RuntimeError("the command printed nothing")
        elapsed = time.perf_counter() - started
        process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"the command ended with status {process.returncode}")
    return elapsed, usage.ru_maxrss * 1024


def import_torch() -> float:
    """Return the seconds a fresh process needs to import torch."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer runs, under 50 s")
    parser.add_argument("--model", default="smollm2")
    args = parser.parse_args()
    first_token(args.model)
    runs, peaks, imports = [], [], []
    for number in range(3 if args.quick else 7):
        seconds, peak = first_token(args.model)
        runs.append(seconds)
        peaks.append(peak)
        imports.append(import_torch())
        print(f"run {number + 1}: first token after {seconds:.2f} s", file=sys.stderr)
    report = {
        "first_token_s": round(statistics.median(runs), 3),
        "runs_s": [round(seconds, 3) for seconds in runs],
        "peak_rss_bytes": max(peaks),
        "import_torch_s": round(statistics.median(imports), 3),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
