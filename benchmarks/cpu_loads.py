"""The loads of `cpu_serving.py`, and engines taking turns at them.

Knows: what a load is, in which order it is run.
Does not know: what an engine is, what becomes of the figures.
"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cpu_peers import Driver, DriverError, Prompts

PREFILL = "prefill"
WARM_UP_TOKENS = 4


@dataclass(frozen=True)
class Load:
    """Requests that start together.

    Attributes:
        name: in tables and JSON.
        num_requests: at once.
        prompt: tokens of each prompt.
        output: tokens of each completion.
        repeats: runs in a turn, of other prompts each; short loads need more.
        every: it takes part in the first of every so many rounds; long loads need fewer.
    """

    name: str
    num_requests: int
    prompt: int
    output: int
    repeats: int = 1
    every: int = 1

    def prompts(self, seed: int) -> Prompts:
        """Return random tokens; ids are kept small so that every vocabulary has them."""
        rng = np.random.default_rng([seed, self.num_requests, self.prompt])
        return rng.integers(1000, 30000, size=(self.num_requests, self.prompt)).tolist()

    @property
    def num_tokens(self) -> int:
        """Tokens that a run is credited with: those of the prompts for prefill, else new ones."""
        return self.num_requests * (self.prompt if self.name == PREFILL else self.output)


LOADS = (
    Load("1", 1, 128, 128, repeats=2),
    Load("8", 8, 128, 128),
    Load("32", 32, 128, 128),
    Load("8x512", 8, 512, 64, every=3),
    Load("32x512", 32, 512, 64, every=3),
    Load(PREFILL, 1, 512, 1, repeats=3),
)
QUICK_LOADS = (Load("1", 1, 32, 24), Load("8", 8, 32, 24), Load(PREFILL, 1, 512, 1))


@dataclass(frozen=True)
class Turn:
    """One engine's turn at one load.

    Attributes:
        tokens_per_s: see `Load.num_tokens`.
        overhead_ratio: share of step time not spent computing, for evenflow.
    """

    tokens_per_s: float
    overhead_ratio: float


Samples = dict[tuple[str, str], list[Turn]]
"""Turns by engine and load, one for each round."""


def start(engines: Sequence[Driver], logs: Path) -> list[Driver]:
    """Start engines one after another and return them, less those that do not start."""
    started = []
    for engine in engines:
        try:
            engine.start(logs / f"{engine.name}-driver.log")
        except DriverError as error:
            print(f"left out: {error}", file=sys.stderr)
        else:
            started.append(engine)
            print(f"{engine.name} started in {engine.start_s:.1f} s", file=sys.stderr)
    return started


def measure(engines: Sequence[Driver], loads: Sequence[Load], rounds: int) -> Samples:
    """Run every load on every engine in turns, round after round."""
    samples: Samples = defaultdict(list)
    for number in range(1, rounds + 1):
        for load in (load for load in loads if (number - 1) % load.every == 0):
            for engine in engines:
                if number == 1:
                    engine.run(load.prompts(0), min(load.output, WARM_UP_TOKENS))
                samples[engine.name, load.name].append(take_turn(engine, load, number))
            line = ", ".join(
                f"{engine.name} {samples[engine.name, load.name][-1].tokens_per_s:.1f}"
                for engine in engines
            )
            print(f"round {number}, {load.name}: {line} tokens/s", file=sys.stderr)
    return samples


def take_turn(engine: Driver, load: Load, number: int) -> Turn:
    """Run a load on an engine."""
    runs = [
        engine.run(load.prompts(1000 * number + repeat), load.output)
        for repeat in range(load.repeats)
    ]
    seconds = sum(run.seconds for run in runs)
    overhead = statistics.mean(run.overhead_ratio or 0.0 for run in runs)
    return Turn(load.repeats * load.num_tokens / seconds, overhead)


def median_speed(turns: Sequence[Turn]) -> float:
    """Return the median of tokens per second."""
    return statistics.median(turn.tokens_per_s for turn in turns)
