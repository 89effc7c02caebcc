"""How much time the engine itself takes per step: scheduling, update and emit, no model.

A scripted executor answers at once, so what is left is evenflow's own bookkeeping, detokenising
with SmolLM2's tokeniser included. All requests decode, each in every step.

The last line on stdout is one JSON object:
    step_ms: by number of running requests, median of schedule + update + emit per step, in ms.
    schedule_ms, update_ms, emit_ms: the same, verb by verb.

Usage: python benchmarks/step_overhead.py [--quick] [--requests 1,32,256]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys

from evenflow.config import load_config
from evenflow.core.clock import MonotonicClock
from evenflow.core.sampling import SamplingParams
from evenflow.engine.engine import Engine
from evenflow.engine.limits import ModelLimits
from evenflow.execution.executor import ScriptedExecutor
from evenflow.memory.kv_cache_manager import KVCacheManager
from evenflow.models.sources import resolve
from evenflow.scheduling.policy import load_policy
from evenflow.scheduling.scheduler import Scheduler
from evenflow.tokenization import Tokenizer, load_tokenizer

PROMPT_TOKENS = 128


def measure(tokenizer: Tokenizer, num_requests: int, num_steps: int) -> dict[str, float]:
    """Return the median milliseconds per step of each verb with `num_requests` decoding."""
    kv = KVCacheManager(num_requests * 40, 16)
    scheduler = Scheduler(
        load_policy("fcfs"), kv, max_num_seqs=num_requests, max_num_batched_tokens=8192
    )
    executor = ScriptedExecutor(lambda _, length: 1000 + length % 5000)
    limits = ModelLimits(4096, tokenizer.vocab_size)
    engine = Engine(scheduler, executor, MonotonicClock(), limits, detokenizer=tokenizer.stream)
    for number in range(num_requests):
        prompt = [(number * 7919 + position) % 49152 for position in range(PROMPT_TOKENS)]
        engine.add_request(f"r{number}", prompt, SamplingParams(max_tokens=3000))
    while len(scheduler.running) < num_requests or any(
        request.num_tokens == PROMPT_TOKENS for request in scheduler.running
    ):
        engine.step()
    samples: dict[str, list[float]] = {"schedule": [], "update": [], "emit": []}
    for _ in range(num_steps):
        before = {verb: getattr(engine.times, f"{verb}_s") for verb in samples}
        engine.step()
        for verb, values in samples.items():
            values.append((getattr(engine.times, f"{verb}_s") - before[verb]) * 1e3)
    result = {verb: statistics.median(values) for verb, values in samples.items()}
    totals = [sum(step) for step in zip(*samples.values(), strict=True)]
    return {"step": statistics.median(totals), **result}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps, under 50 s")
    parser.add_argument("--requests", default="1,32,256")
    args = parser.parse_args()
    num_steps = 300 if args.quick else 2000
    tokenizer = load_tokenizer(resolve("smollm2", cache_dir=load_config().config.paths.cache).path)
    report: dict[str, dict[str, float]] = {}
    for text in args.requests.split(","):
        measured = measure(tokenizer, int(text), num_steps)
        print(f"{text:>5} running: {measured['step']:.3f} ms per step", file=sys.stderr)
        for verb, value in measured.items():
            report.setdefault(f"{verb}_ms", {})[text] = round(value, 4)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
