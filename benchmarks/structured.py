"""What structured output costs: the requests that have it, and those beside them.

Half of the requests are free, the other half are their neighbours: in turn free too, or bound to a
JSON schema. All decode in every step, so the time between two steps is everybody's ITL.

The last line on stdout is one JSON object:
    itl_ms: by neighbours (free, bound), median milliseconds between the tokens of a free request.
    ratio: ITL beside bound neighbours divided by ITL beside free ones, median over rounds.
    mask_us: microseconds to fill one row of the mask, over the tokens of a JSON text: mean and p99.
    compile_ms: to compile a schema that was not seen before, median.
    vocabulary_ms: to read the vocabulary, once per process.

Usage: python benchmarks/structured.py [--quick] [--model smollm2] [--requests 8]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from typing import Any

import numpy as np

from evenflow import LLM, SamplingParams
from evenflow.core.structured import StructuredOutput

PROMPT = "Write down everything about ten people as JSON. Person"


def schema(number: int = 0) -> StructuredOutput:
    """Return a schema of a list that is longer than any output; each number gives another."""
    person: dict[str, Any] = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "age": {"type": "integer", "minimum": 0, "maximum": 120 + number},
            "tags": {"type": "array", "items": {"type": "string"}, "minItems": 2},
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": False,
    }
    return StructuredOutput(
        "json_schema", json.dumps({"type": "array", "items": person, "minItems": 1000})
    )


def step_gaps(llm: LLM, num_requests: int, num_steps: int, bound: StructuredOutput | None) -> float:
    """Return the median milliseconds per step with all requests decoding."""
    engine = llm.engine
    free = SamplingParams(temperature=1.0, seed=1, max_tokens=1000, ignore_eos=True)
    neighbour = free
    if bound is not None:
        neighbour = SamplingParams(temperature=1.0, seed=1, max_tokens=1000, structured=bound)
    names = [f"r{number}" for number in range(num_requests)]
    for number, name in enumerate(names):
        params = neighbour if number % 2 else free
        grammar = llm.runtime.compile_grammar(params)
        prompt = llm.tokenizer.encode(f"{PROMPT} {number}")
        engine.add_request(name, prompt, params, grammar=grammar)
    while not all(request.num_output_tokens for request in engine.scheduler.requests.values()):
        engine.step()
    gaps = []
    for _ in range(num_steps):
        started = time.perf_counter()
        engine.step()
        gaps.append(time.perf_counter() - started)
    for name in names:
        engine.abort(name)
    engine.step()
    return statistics.median(gaps) * 1e3


def mask_times(llm: LLM) -> list[float]:
    """Return the microseconds of every mask along a JSON text."""
    people = [{"name": f"Zoë {age}", "age": age, "tags": ["a b", "c\nd"]} for age in range(20)]
    grammar = llm.runtime.grammars.compile(schema()).fork()
    row = np.empty((grammar.vocab_size + 31) // 32, dtype=np.uint32)
    times = []
    for token_id in llm.tokenizer.encode(
        json.dumps(people, ensure_ascii=False), add_special_tokens=False
    ):
        started = time.perf_counter()
        grammar.fill_mask(row)
        times.append((time.perf_counter() - started) * 1e6)
        grammar.accept(token_id)
    return times


def compile_ms(llm: LLM, structured: StructuredOutput) -> float:
    started = time.perf_counter()
    llm.runtime.grammars.compile(structured)
    return (time.perf_counter() - started) * 1e3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, under 50 s")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--requests", type=int, default=8)
    args = parser.parse_args()
    num_rounds, num_steps = (8, 16) if args.quick else (15, 40)
    llm = LLM(args.model, max_model_len=2048, enable_prefix_caching=False)
    first_ms = compile_ms(llm, schema())
    compiling = [compile_ms(llm, schema(number)) for number in range(1, 20)]
    masks = mask_times(llm)
    gaps: dict[str, list[float]] = {"free": [], "bound": []}
    for _ in range(num_rounds):
        for kind, values in gaps.items():
            bound = schema() if kind == "bound" else None
            values.append(step_gaps(llm, args.requests, num_steps, bound))
            print(f"{kind} neighbours: {values[-1]:.2f} ms", file=sys.stderr)
    pairs = zip(gaps["bound"], gaps["free"], strict=True)
    report = {
        "itl_ms": {kind: round(statistics.median(values), 3) for kind, values in gaps.items()},
        "ratio": round(statistics.median(bound / free for bound, free in pairs), 4),
        "mask_us": {
            "mean": round(statistics.mean(masks), 1),
            "p99": round(float(np.percentile(masks, 99)), 1),
        },
        "compile_ms": round(statistics.median(compiling), 3),
        "vocabulary_ms": round(first_ms - statistics.median(compiling), 1),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
