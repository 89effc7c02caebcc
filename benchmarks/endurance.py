"""A server under load for a long time: does it leak, forget, mix up or slow down?

Starts `evenflow serve` on a two-layer model of random weights (or a real one, --model) and has
--clients clients send --requests short requests to it, one after the other each: streams, whole
answers, streams that the client drops half way, and bodies that are wrong. All answers are greedy
and compared with what the same prompt gave alone, text and log-probabilities, token by token.
Another process asks /health every 50 ms. Then --streams streams are opened at once, and compared
likewise.

The last line on stdout is one JSON object:
    model, seconds, num_requests, requests_per_s: what was done.
    by_kind: requests by kind: stream, whole, dropped, wrong.
    failures: by kind of failure, how many: other answers than alone, a wrong status, no end.
    health_ms: p50, p99 and max of /health throughout, and how often it failed.
    rss_mb: of the server and of its engine process: first (after a tenth of the requests), last,
        and per_1000_requests, the slope of a straight line through the second half.
    leaked_blocks: KV blocks that are neither free nor evictable at the end.
    is_sound: whether check_integrity found queues and memory to add up at the end.
    streams: count, seconds, most_running (seen at once in the engine) and failures of the streams.

Usage: python benchmarks/endurance.py [--quick] [--model smollm2] [--requests N] [--streams N]
    --quick: as many requests as fit into 40 s, and 200 streams
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import random
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import tokenizers

NUM_PROMPTS = 16
OUTPUT_TOKENS = 8
STREAM_TOKENS = 24
KINDS = {"stream": 0.70, "whole": 0.15, "dropped": 0.10, "wrong": 0.05}
ADMIN = {"Authorization": "Bearer endurance"}
SAMPLE_S = 0.5
HEALTH_S = 0.05
QUICK_S = 40.0
START_LIMIT_S = 300.0

Tokens = list[tuple[str, float]]
"""Of each output token its text and its log-probability."""


@dataclass(slots=True)
class Tally:
    """What happened so far.

    Attributes:
        by_kind: requests by kind.
        failures: by kind of failure.
        rss: (requests done, bytes of the server, bytes of the engine process), one per sample.
    """

    by_kind: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    rss: list[tuple[int, int, int]] = field(default_factory=list)


def body(prompt: list[int], num_tokens: int, **fields: Any) -> dict[str, Any]:
    greedy = {"temperature": 0, "ignore_eos": True, "logprobs": 0}
    return {"prompt": prompt, "max_tokens": num_tokens, **greedy, **fields}


def tokens_of(chunk: dict[str, Any]) -> Tokens:
    [choice] = chunk["choices"]
    logprobs = choice["logprobs"] or {"tokens": [], "token_logprobs": []}
    return list(zip(logprobs["tokens"], logprobs["token_logprobs"], strict=True))


class Client:
    """One client with a connection of its own.

    Args:
        port: the server's.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._writer: asyncio.StreamWriter | None = None

    async def send(self, content: dict[str, Any]) -> int:
        """Send a completion request and return the status of its answer."""
        if self._writer is None or self._writer.is_closing():
            self._reader, self._writer = await asyncio.open_connection(
                "127.0.0.1", self._port, limit=1 << 20
            )
        raw = json.dumps(content).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(raw)}"
        self._writer.write(f"{head}\r\n\r\n".encode() + raw)
        status = int((await self._reader.readline()).split()[1])
        self._headers = {}
        while line := (await self._reader.readline()).strip().lower():
            name, _, value = line.partition(b":")
            self._headers[name] = value.strip()
        return status

    async def whole(self) -> dict[str, Any]:
        """Read an answer with a length."""
        raw = await self._reader.readexactly(int(self._headers[b"content-length"]))
        return dict(json.loads(raw))

    async def stream(self, max_chunks: int | None = None) -> Tokens:
        """Read a stream to its end, or some chunks of it."""
        tokens: Tokens = []
        num_chunks = 0
        while not (line := await self._reader.readline()).startswith(b"data: [DONE]"):
            if line.startswith(b"data: "):
                tokens += tokens_of(json.loads(line[6:]))
                num_chunks += 1
            if num_chunks == max_chunks:
                return tokens
            if not line:
                raise ConnectionError("the stream has no end")
        while await self._reader.readline() != b"0\r\n":
            pass
        await self._reader.readline()
        return tokens

    async def answer(self, content: dict[str, Any]) -> Tokens:
        """Send a request for a stream and return its tokens."""
        status = await self.send({**content, "stream": True})
        if status != 200:
            raise ConnectionError(f"status {status}")
        return await self.stream()

    def hang_up(self) -> None:
        """Close the connection, whatever is on its way."""
        if self._writer is not None:
            self._writer.close()


class Load:
    """The clients, what they ask and what they must get.

    Args:
        port: the server's.
        vocab_size: prompts are made of tokens below this.
    """

    def __init__(self, port: int, vocab_size: int) -> None:
        self.tally = Tally()
        self._port = port
        self._choices = random.Random(1)
        draw = random.Random(2)
        self._prompts = [
            [draw.randrange(3, vocab_size) for _ in range(draw.randrange(4, 40))]
            for _ in range(NUM_PROMPTS)
        ]
        self._alone: list[Tokens] = []

    async def learn(self) -> None:
        """Ask for each prompt alone."""
        client = Client(self._port)
        for prompt in self._prompts:
            self._alone.append(await client.answer(body(prompt, STREAM_TOKENS)))
        client.hang_up()

    async def run(self, num_requests: int, num_clients: int, limit_s: float) -> None:
        """Send requests until there were enough, or the time is over."""
        end_s = time.monotonic() + limit_s
        left = iter(range(num_requests))

        async def work() -> None:
            client = Client(self._port)
            for _ in left:
                if time.monotonic() > end_s:
                    break
                kind = self._choices.choices(list(KINDS), list(KINDS.values()))[0]
                try:
                    await self._one(client, kind)
                except (OSError, ValueError, IndexError, asyncio.IncompleteReadError) as error:
                    self.tally.failures[f"{kind}: {type(error).__name__}"] += 1
                    client.hang_up()
                self.tally.by_kind[kind] += 1
            client.hang_up()

        await asyncio.gather(*(work() for _ in range(num_clients)))

    async def _one(self, client: Client, kind: str) -> None:
        index = self._choices.randrange(NUM_PROMPTS)
        prompt, expected = self._prompts[index], self._alone[index][:OUTPUT_TOKENS]
        match kind:
            case "stream":
                is_right = await client.answer(body(prompt, OUTPUT_TOKENS)) == expected
            case "whole":
                status = await client.send(body(prompt, OUTPUT_TOKENS))
                answer = await client.whole()
                is_right = status == 200 and tokens_of(answer) == expected
            case "dropped":
                await client.send(body(prompt, 4 * OUTPUT_TOKENS, stream=True))
                tokens = await client.stream(max_chunks=2)
                is_right = tokens == expected[: len(tokens)]
                client.hang_up()
            case _:
                status = await client.send(body(prompt, OUTPUT_TOKENS, temperature=-1))
                is_right = status == 400 and "error" in await client.whole()
        if not is_right:
            self.tally.failures[f"{kind}: another answer"] += 1

    async def open_streams(self, count: int, server: Server) -> dict[str, Any]:
        """Open streams all at once and compare each with what its prompt gave alone."""
        started_s = time.monotonic()
        failures: Counter[str] = Counter()
        most_running = 0

        async def one(number: int) -> None:
            index = number % NUM_PROMPTS
            client = Client(self._port)
            try:
                tokens = await client.answer(body(self._prompts[index], STREAM_TOKENS))
                failures["another answer"] += tokens != self._alone[index]
            except (OSError, ValueError, IndexError) as error:
                failures[str(error)] += 1
            client.hang_up()

        async def watch() -> None:
            nonlocal most_running
            while True:
                state = await asyncio.to_thread(server.get, "/ui/state")
                most_running = max(most_running, state["requests"]["running"])
                await asyncio.sleep(SAMPLE_S)

        watching = asyncio.create_task(watch())
        await asyncio.gather(*(one(number) for number in range(count)))
        watching.cancel()
        return {
            "count": count,
            "seconds": round(time.monotonic() - started_s, 1),
            "most_running": most_running,
            "failures": dict(+failures),
        }


class Server:
    """The server under load.

    Args:
        command: what to run.
        port: where it will listen.
    """

    def __init__(self, command: list[str], port: int) -> None:
        self.port = port
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        limit_s = time.monotonic() + START_LIMIT_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > limit_s:
                raise SystemExit("the server did not start")
            time.sleep(0.2)
        main = psutil.Process(self._process.pid)
        [engine] = [p for p in main.children() if "spawn_main" in " ".join(p.cmdline())]
        self.processes = main, engine

    def get(self, path: str, method: str = "GET") -> Any:
        """Ask for a page of JSON, as an operator."""
        url = f"http://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(url, headers=ADMIN, method=method)
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)

    def stop(self) -> None:
        """End it as a user does."""
        self._process.terminate()
        self._process.wait(timeout=60)

    def _is_ready(self) -> bool:
        try:
            return bool(self.get("/ready"))
        except OSError:
            return False


def write_tiny_model(folder: Path) -> Path:
    """Write a configuration and a tokeniser of bytes; the weights are made up by the server."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: index for index, piece in enumerate(["<end>", *alphabet])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.save(str(folder / "tokenizer.json"))
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64}
    config |= {"intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config |= {"num_key_value_heads": 2, "vocab_size": len(vocabulary), "eos_token_id": 0}
    config |= {"max_position_embeddings": 512, "rms_norm_eps": 1e-5, "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@contextlib.contextmanager
def served(model: str | None, num_clients: int, num_streams: int) -> Iterator[Server]:
    """Serve the tiny model, or the named one, until the block is left."""
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        tiny = [str(write_tiny_model(Path(folder))), "--load-format", "dummy", "--num-threads", "1"]
        most = max(num_clients, num_streams)
        command = [sys.executable, "-c", "from evenflow.cli import main; main()", "serve"]
        command += [model] if model else tiny
        command += ["--port", str(port), "--data-dir", f"{folder}/data", "--max-model-len", "256"]
        command += ["--max-num-seqs", str(most), "--max-num-batched-tokens", str(most + 128)]
        command += ["--max-num-queued-reqs", str(2 * most)]
        command += ["--kv-cache-memory", "4GiB" if model else "128MiB"]
        os.environ["EVENFLOW_ADMIN_API_KEY"] = "endurance"
        server = Server(command, port)
        try:
            yield server
        finally:
            server.stop()


def ask_health(port: int, results: Any, is_over: Any) -> None:
    """Measure /health until told to stop; send (seconds, how often it failed)."""
    seconds, num_failed = [], 0
    while not is_over.wait(HEALTH_S):
        started_s = time.monotonic()
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=30).read()
        except OSError:
            num_failed += 1
        seconds.append(time.monotonic() - started_s)
    results.put((seconds, num_failed))


async def sample_memory(server: Server, tally: Tally) -> None:
    """Note resident memory until cancelled."""
    while True:
        main, engine = (process.memory_info().rss for process in server.processes)
        tally.rss.append((tally.by_kind.total(), main, engine))
        await asyncio.sleep(SAMPLE_S)


async def endure(server: Server, args: argparse.Namespace) -> dict[str, Any]:
    """Run all of it and return the report."""
    vocab_size = 257 if args.model is None else 40_000
    load = Load(server.port, vocab_size)
    await load.learn()
    sampling = asyncio.create_task(sample_memory(server, load.tally))
    started_s = time.monotonic()
    await load.run(args.requests, args.clients, QUICK_S if args.quick else float("inf"))
    seconds = time.monotonic() - started_s
    sampling.cancel()
    streams = await load.open_streams(args.streams, server) if args.streams else None
    tally = load.tally
    return {
        "model": args.model or "two layers of random weights",
        "seconds": round(seconds, 1),
        "num_requests": tally.by_kind.total(),
        "requests_per_s": round(tally.by_kind.total() / seconds, 1),
        "by_kind": dict(tally.by_kind),
        "failures": dict(tally.failures),
        "rss_mb": {
            name: describe_memory([(sample[0], sample[column]) for sample in tally.rss])
            for name, column in (("server", 1), ("engine", 2))
        },
        "streams": streams,
        **aftermath(server),
    }


def describe_memory(samples: list[tuple[int, int]]) -> dict[str, float]:
    """Return first, last and slope in MB of (requests done, bytes)."""
    num_done = samples[-1][0]
    first = next(size for done, size in samples if done >= num_done / 10)
    late = [(done, size) for done, size in samples if done >= num_done / 2]
    slope = statistics.linear_regression(*zip(*late, strict=True)).slope if late[1:] else 0.0
    figures = {"first": first, "last": samples[-1][1], "per_1000_requests": 1000 * slope}
    return {name: round(size / 1e6, 3) for name, size in figures.items()}


def aftermath(server: Server) -> dict[str, Any]:
    """Return what is left in the engine once nothing runs."""
    while server.get("/admin/requests")["requests"]:
        time.sleep(0.1)
    time.sleep(1.5)  # the next snapshot
    kv = server.get("/ui/state")["kv"]
    return {
        "leaked_blocks": kv["num_blocks"] - kv["free"] - kv["evictable"],
        "is_sound": server.get("/admin/check_integrity", "POST")["sound"],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="as many requests as fit into 40 s")
    parser.add_argument("--model", help="serve this one instead of random weights")
    parser.add_argument("--requests", type=int, default=30_000)
    parser.add_argument("--clients", type=int, default=256)
    parser.add_argument("--streams", type=int, help="1000 by default, 200 with --quick")
    args = parser.parse_args()
    if args.streams is None:
        args.streams = 200 if args.quick else 1000
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    spawn = multiprocessing.get_context("spawn")
    results, is_over = spawn.Queue(), spawn.Event()
    with served(args.model, args.clients, args.streams) as server:
        prober = spawn.Process(target=ask_health, args=(server.port, results, is_over))
        prober.start()
        try:
            report = asyncio.run(endure(server, args))
        finally:
            is_over.set()
            seconds, num_failed = results.get(timeout=60)
            prober.join()
    cuts = statistics.quantiles(seconds, n=100)
    health = {"p50": cuts[49], "p99": cuts[98], "max": max(seconds)}
    report["health_ms"] = {name: round(1000 * value, 1) for name, value in health.items()}
    report["health_ms"]["failed"] = num_failed
    print(json.dumps(report))


if __name__ == "__main__":
    main()
