"""What open streams cost the engine: does reading, parsing and writing HTTP hold up a step?

Serves the model, opens --streams streams at once with the load tool, and reads from the server's
own metrics what happened between two steps of the engine: sending what the last one brought and
taking new requests. The same requests then run in one process without any server (`LLM`), in
turns, for the time of a whole step. Server, engine and the client that reads share the machine's
cores, which the engine alone has in the other case; that is the price of `step_ratio`. With
--own-core the engine computes with one thread on a core of its own, all others share the rest, and
nothing is compared.

The last line on stdout is one JSON object:
    streams: streams open at once.
    handover_p50_ms, handover_p99_ms: time between two steps while all streams are open; all rounds
        together.
    burst_p99_ms: the same with the steps in which the streams were opened, all at once.
    health_p50_ms, health_p99_ms: time of a GET /health while the streams are open.
    step_ratio: median time per output token with the server divided by that without, over rounds;
        null with --own-core.
    steps: steps with all streams open that were measured.

Usage: python benchmarks/streaming.py [--quick] [--own-core] [--streams 100] [--model smollm2]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path

import psutil

from evenflow import LLM, SamplingParams
from evenflow.bench.config import BenchConfig
from evenflow.bench.run import run_benchmark

PROMPT_TOKENS = 16
RUNNING = re.compile(r"^evenflow:num_requests_running (\S+)", re.MULTILINE)
BUCKET = re.compile(r'evenflow:step_handover_seconds_bucket\{le="([^"]+)"\} (\S+)')


class Server:
    """A server process on a free port."""

    def __init__(self, model: str, num_streams: int, *, own_core: bool) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        command = [str(Path(sys.executable).with_name("evenflow")), "serve", model]
        command += ["--port", self.url.rpartition(":")[2], "--kv-cache-memory", "2GiB"]
        command += ["--max-num-seqs", str(num_streams), "--max-num-batched-tokens", "256"]
        command += ["--num-threads", "1"] if own_core else []
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while not self.is_ready():
            if self.process.poll() is not None:
                raise SystemExit("the server does not start")
            time.sleep(0.05)

    def give_engine_a_core(self) -> None:
        """Keep the engine's process to the first core, and the server and this process off it."""
        server = psutil.Process(self.process.pid)
        engine = max(server.children(), key=lambda child: child.memory_info().rss)
        first, *others = sorted(os.sched_getaffinity(0))
        for pid, cores in ((engine.pid, [first]), (server.pid, others), (os.getpid(), others)):
            for thread in psutil.Process(pid).threads():
                os.sched_setaffinity(thread.id, cores)

    def is_ready(self) -> bool:
        """Return whether it takes requests."""
        try:
            return bool(self.get("/ready"))
        except OSError:
            return False

    def get(self, path: str) -> str:
        """Return a page."""
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return answer.read().decode()

    def handover_buckets(self) -> dict[float, float]:
        """Return the cumulative counts of the handover histogram by upper bound in seconds."""
        time.sleep(1.2)  # the last steps come with the next snapshot
        return {float(le): float(count) for le, count in BUCKET.findall(self.get("/metrics"))}

    def wait_until_running(self, num_requests: int) -> None:
        """Wait until so many requests run at once."""
        give_up_s = time.monotonic() + 60
        while float(RUNNING.findall(self.get("/metrics"))[0]) < num_requests:
            if time.monotonic() > give_up_s:
                raise SystemExit(f"never were {num_requests} streams open at once")
            time.sleep(0.1)


class HealthProbe:
    """Asks for /health all the time, from a thread of its own."""

    def __init__(self, server: Server) -> None:
        self.seconds: list[float] = []
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> HealthProbe:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(0.05):
            started = time.perf_counter()
            self._server.get("/health")
            self.seconds.append(time.perf_counter() - started)


class OpenStreams:
    """Notes how steps went from the moment on at which all streams are open."""

    def __init__(self, server: Server, num_streams: int) -> None:
        self._server = server
        self._num_streams = num_streams
        self._before: dict[float, float] = {}
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def buckets(self) -> dict[float, float]:
        """Return the counts since then."""
        self._thread.join()
        after = self._server.handover_buckets()
        return {le: count - self._before[le] for le, count in after.items()}

    def _run(self) -> None:
        self._server.wait_until_running(self._num_streams)
        self._before = self._server.handover_buckets()


def percentile(buckets: dict[float, float], share: float) -> float:
    """Return the upper bound of the bucket in which the percentile lies, in seconds."""
    bounds = sorted(buckets)
    wanted = share * buckets[bounds[-1]]
    return next(bound for bound in bounds if buckets[bound] >= wanted)


def streamed(server: Server, num_streams: int, num_tokens: int) -> float:
    """Return the median seconds per output token of `num_streams` streams."""
    config = BenchConfig(
        base_url=server.url,
        num_prompts=num_streams,
        random_input_len=PROMPT_TOKENS,
        random_output_len=num_tokens,
        ignore_eos=True,
        seed=num_tokens,
    )
    result = run_benchmark(config)
    if result.summary["failed"]:
        raise SystemExit(f"requests failed: {result.summary['errors_by_kind']}")
    return result.summary["median_tpot_ms"] / 1e3


def alone(llm: LLM, num_streams: int, num_tokens: int) -> float:
    """Return the same for an engine without a server."""
    prompts = [
        [100 + row * 7 + column for column in range(PROMPT_TOKENS)] for row in range(num_streams)
    ]
    params = SamplingParams(max_tokens=num_tokens, ignore_eos=True)
    outputs = llm.generate(prompts, params)
    return statistics.median(output.outputs[0].metrics.tpot_s for output in outputs)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short round, under 50 s")
    parser.add_argument(
        "--own-core", action="store_true", help="which the engine shares with nobody"
    )
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--model", default="smollm2")
    args = parser.parse_args()
    num_tokens, rounds = (24, 1) if args.quick else (64, 3)
    llm = None
    if not args.own_core:
        llm = LLM(
            args.model,
            kv_cache_memory="2GiB",
            max_num_seqs=args.streams,
            enable_prefix_caching=False,
        )
    server = Server(args.model, args.streams, own_core=args.own_core)
    if args.own_core:
        server.give_engine_a_core()
    try:
        streamed(server, args.streams, 4)
        if llm is not None:
            alone(llm, args.streams, 4)
        before = server.handover_buckets()
        ratios, health = [], []
        steady: Counter[float] = Counter()
        for _ in range(rounds):
            streams = OpenStreams(server, args.streams)
            with HealthProbe(server) as probe:
                with_server = streamed(server, args.streams, num_tokens)
            steady.update(streams.buckets())
            health += probe.seconds
            if llm is not None:
                ratios.append(with_server / alone(llm, args.streams, num_tokens))
        buckets = {le: count - before[le] for le, count in server.handover_buckets().items()}
    finally:
        server.process.terminate()
        server.process.wait()
    health.sort()
    print(
        json.dumps(
            {
                "streams": args.streams,
                "handover_p50_ms": 1e3 * percentile(steady, 0.5),
                "handover_p99_ms": 1e3 * percentile(steady, 0.99),
                "burst_p99_ms": 1e3 * percentile(buckets, 0.99),
                "health_p50_ms": round(1e3 * statistics.median(health), 2),
                "health_p99_ms": round(1e3 * health[int(0.99 * (len(health) - 1))], 2),
                "step_ratio": round(statistics.median(ratios), 3) if ratios else None,
                "steps": int(max(steady.values())),
            }
        )
    )


if __name__ == "__main__":
    main()
