"""Serving speed on the CPU, end to end, against other engines on the same model and prompts.

Every engine completes the same prompts of random tokens greedily to the same length, with N
requests at once. evenflow is measured as a user runs it: scheduling, sampling and detokenising
included. Engines take turns within a round, rounds are repeated, and medians are compared, so that
a machine whose speed drifts slows all of them alike.

The last line on stdout is one JSON object:
    ratio: by peer and number of requests, evenflow's output tokens/s divided by the peer's
        (median over rounds of the ratio within the round).
    tokens_per_s: by engine and number of requests, output tokens per second, median.
    overhead_ratio: by number of requests, the share of evenflow's step time spent in scheduling,
        update and emit.

Peers: transformers (`pip install evenflow[hf]`), `generate` in fp32 on the same weights.

Usage: python benchmarks/cpu_serving.py [--quick] [--peers transformers] [--requests 1,8,32]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch

from evenflow import LLM, SamplingParams
from evenflow.config import load_config
from evenflow.models.sources import resolve

Prompts = list[list[int]]


class Engine(Protocol):
    """Something that completes prompts."""

    def run(self, prompts: Prompts, num_output: int) -> list[list[int]]:
        """Complete every prompt greedily by exactly `num_output` tokens."""
        ...


class Evenflow:
    """This project."""

    def __init__(self, model: str) -> None:
        self.llm = LLM(model, enable_prefix_caching=False, max_model_len=2048)

    def run(self, prompts: Prompts, num_output: int) -> list[list[int]]:
        """Complete through the public API."""
        params = SamplingParams(temperature=0.0, max_tokens=num_output, ignore_eos=True)
        return [output.outputs[0].token_ids for output in self.llm.generate(prompts, params)]


class Transformers:
    """Hugging Face transformers' `generate`."""

    def __init__(self, model: str) -> None:
        from transformers import AutoModelForCausalLM

        paths = load_config().config.paths
        files = resolve(model, cache_dir=paths.cache)
        is_file = files.path.is_file()
        self.model = AutoModelForCausalLM.from_pretrained(
            files.path.parent if is_file else files.path,
            dtype=torch.float32,
            **({"gguf_file": files.path.name} if is_file else {}),
        ).eval()

    @torch.inference_mode()
    def run(self, prompts: Prompts, num_output: int) -> list[list[int]]:
        """Complete all prompts as one batch of equal lengths."""
        ids = torch.tensor(prompts)
        output = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=num_output,
            max_new_tokens=num_output,
            pad_token_id=0,
        )
        return output[:, ids.shape[1] :].tolist()


PEERS: dict[str, Callable[[str], Engine]] = {"transformers": Transformers}


def make_prompts(num_requests: int, length: int, seed: int) -> Prompts:
    """Return random token ids; ids are kept small so that every vocabulary has them."""
    rng = np.random.default_rng(seed)
    return rng.integers(1000, 30000, size=(num_requests, length)).tolist()


def timed(engine: Engine, prompts: Prompts, num_output: int) -> float:
    """Return output tokens per second."""
    started = time.perf_counter()
    outputs = engine.run(prompts, num_output)
    elapsed = time.perf_counter() - started
    wrong = [len(tokens) for tokens in outputs if len(tokens) != num_output]
    if wrong:
        raise RuntimeError(f"an engine returned {wrong} tokens instead of {num_output}")
    return len(prompts) * num_output / elapsed


def overhead(engine: Evenflow, prompts: Prompts, num_output: int) -> tuple[float, float]:
    """Return (tokens per second, share of step time outside execute) of one run."""
    times = engine.llm.engine.times
    own_before = times.schedule_s + times.update_s + times.emit_s
    execute_before = times.execute_s
    speed = timed(engine, prompts, num_output)
    own = times.schedule_s + times.update_s + times.emit_s - own_before
    return speed, own / (own + times.execute_s - execute_before)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--peers", default="transformers", help="comma-separated; empty for none")
    parser.add_argument("--requests", help="numbers of requests at once, comma-separated")
    parser.add_argument("--prompt-tokens", type=int)
    parser.add_argument("--output-tokens", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--quick", action="store_true", help="a small run, under 50 s")
    args = parser.parse_args()
    requests = [
        int(text) for text in (args.requests or ("1,8" if args.quick else "1,8,32")).split(",")
    ]
    prompt_tokens = args.prompt_tokens or (32 if args.quick else 128)
    output_tokens = args.output_tokens or (24 if args.quick else 128)
    rounds = args.rounds or (2 if args.quick else 3)

    ours = Evenflow(args.model)
    peers = {name: PEERS[name](args.model) for name in args.peers.split(",") if name}
    speeds: dict[str, dict[str, float]] = {}
    ratios: dict[str, dict[str, float]] = {name: {} for name in peers}
    overheads: dict[str, float] = {}
    for count in requests:
        key = str(count)
        for engine in (ours, *peers.values()):
            engine.run(make_prompts(count, prompt_tokens, seed=0), 4)
        samples: dict[str, list[float]] = {name: [] for name in ("evenflow", *peers)}
        shares = []
        for number in range(1, rounds + 1):
            prompts = make_prompts(count, prompt_tokens, seed=number)
            speed, share = overhead(ours, prompts, output_tokens)
            samples["evenflow"].append(speed)
            shares.append(share)
            for name, engine in peers.items():
                samples[name].append(timed(engine, prompts, output_tokens))
            line = ", ".join(f"{name} {values[-1]:.1f}" for name, values in samples.items())
            print(f"{count} requests, round {number}: {line} tokens/s", file=sys.stderr)
        for name, values in samples.items():
            speeds.setdefault(name, {})[key] = round(statistics.median(values), 2)
        for name in peers:
            pairs = zip(samples["evenflow"], samples[name], strict=True)
            ratios[name][key] = round(statistics.median(a / b for a, b in pairs), 3)
        overheads[key] = round(statistics.median(shares), 5)
    print(json.dumps({"ratio": ratios, "tokens_per_s": speeds, "overhead_ratio": overheads}))


if __name__ == "__main__":
    main()
