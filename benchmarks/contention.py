"""What waiting threads cost: decoding on an idle machine and beside a busy process.

torch's OpenMP threads spin while they wait for one another; GOMP_SPINCOUNT says for how long. Each
measurement is a process of its own that decodes 8 requests for some seconds, with the default and
with GOMP_SPINCOUNT=1000 in turn. The busy process is an endless loop in Python.

The last line on stdout is one JSON object:
    tokens_per_s: by load (idle, busy) and setting (default, 1000), output tokens/s, median.
    ratio: by load, tokens/s with GOMP_SPINCOUNT=1000 divided by the default's, median over rounds.

Usage: python benchmarks/contention.py [--quick] [--model smollm2]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator

DECODE = """
import sys, time
from evenflow import LLM, SamplingParams

llm = LLM(sys.argv[1], enable_prefix_caching=False, max_model_len=2048)
prompts = [[1000 + 7 * row + column for column in range(32)] for row in range(8)]
params = SamplingParams(temperature=0.0, max_tokens=1024, ignore_eos=True)
stream = llm.stream(prompts, params)
for _ in range(len(prompts)):
    next(stream)
started, count = time.perf_counter(), 0
while time.perf_counter() - started < float(sys.argv[2]):
    next(stream)
    count += 1
print(count / (time.perf_counter() - started))
"""


def decode(model: str, seconds: float, spin_count: str | None) -> float:
    """Return output tokens per second of one process."""
    environ = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    if spin_count is not None:
        environ["GOMP_SPINCOUNT"] = spin_count
    command = [sys.executable, "-c", DECODE, model, str(seconds)]
    return float(subprocess.run(command, env=environ, check=True, capture_output=True).stdout)


@contextlib.contextmanager
def load(is_busy: bool) -> Iterator[None]:
    """Keep one core busy, if asked to."""
    if not is_busy:
        yield
        return
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round, under 50 s")
    parser.add_argument("--model", default="smollm2")
    args = parser.parse_args()
    seconds, num_rounds = (3.0, 1) if args.quick else (6.0, 3)
    speeds: dict[str, dict[str, float]] = {}
    ratios: dict[str, float] = {}
    for name in ("idle", "busy"):
        samples: dict[str, list[float]] = {"default": [], "1000": []}
        with load(name == "busy"):
            for _ in range(num_rounds):
                for setting, values in samples.items():
                    values.append(
                        decode(args.model, seconds, None if setting == "default" else setting)
                    )
                    print(f"{name}, {setting}: {values[-1]:.1f} tokens/s", file=sys.stderr)
        speeds[name] = {key: round(statistics.median(v), 2) for key, v in samples.items()}
        pairs = zip(samples["1000"], samples["default"], strict=True)
        ratios[name] = round(statistics.median(a / b for a, b in pairs), 3)
    print(json.dumps({"tokens_per_s": speeds, "ratio": ratios}))


if __name__ == "__main__":
    main()
