"""Conversations whose priorities change while they are served, for `context_switch.py`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, repeat
from pathlib import Path

import numpy as np

from evenflow.workloads.distributions import LogNormal
from evenflow.workloads.generators import Conversations, burst_times, conversations
from evenflow.workloads.priorities import PriorityFeed, open_priorities
from evenflow.workloads.request import WorkloadRequest
from evenflow.workloads.traces import read_trace

SHAPES = {"poisson": 1.0, "bursty": 0.25}
"""By name of a pattern of arrivals, the shape of the gamma distribution of its gaps."""

THINK_S = LogNormal(median=1.0, sigma=1.0)

Talk = Sequence[WorkloadRequest]


@dataclass(frozen=True, kw_only=True)
class LoadShape:
    """What a world can bear.

    Attributes:
        num_conversations: how many there are.
        rate: of their beginnings, per second.
        frequency: updates of priorities per step.
        max_tokens: where a conversation is cut off.
        scale: real lengths and pauses are multiplied by this, for machines that are slow.
    """

    num_conversations: int
    rate: float
    frequency: float
    max_tokens: int
    scale: float = 1.0


@dataclass(frozen=True)
class Load:
    """What is served.

    Attributes:
        name: of the pattern.
        requests: turns of conversations, in order of arrival.
        priorities: how their priorities change, as `open_priorities` is told.
        seed: of all that is drawn.
    """

    name: str
    requests: Sequence[WorkloadRequest]
    priorities: str
    seed: int

    def feed(self) -> PriorityFeed:
        """Begin to play the priorities."""
        return open_priorities(self.priorities, self.seed)()


def draw_load(
    shape: LoadShape, turns: Path | None, arrivals: str, priorities: str, seed: int
) -> Load:
    """Draw conversations, and when they begin.

    Args:
        shape: how many, how long, how often.
        turns: lengths of real conversations (`sharegpt_turns.csv.gz`); without it, lengths from
            distributions fitted to them.
        arrivals: which of `SHAPES`.
        priorities: random or markov.
        seed: other patterns with the same seed are of the same conversations.
    """
    times_rng, talks_rng, think_rng = np.random.default_rng(seed).spawn(3)
    talks = _generated(talks_rng) if turns is None else _recorded(turns, talks_rng)
    starts_s = burst_times(shape.rate, SHAPES[arrivals], times_rng)
    requests: list[WorkloadRequest] = []
    for _, start_s, talk in zip(range(shape.num_conversations), starts_s, talks, strict=False):
        for turn in _cut(talk, shape):
            pause_s = shape.scale * float(THINK_S.draw(1, think_rng)[0])
            requests.append(replace(turn, arrival_s=start_s, think_time_s=pause_s))
    name = f"{arrivals}-{priorities}"
    return Load(name, requests, f"{priorities}:{shape.frequency}", seed)


def _recorded(turns: Path, rng: np.random.Generator) -> Iterator[Talk]:
    requests, _ = read_trace(turns)
    talks = _by_session(requests)
    return (talks[index] for index in rng.permutation(len(talks)))


def _generated(rng: np.random.Generator) -> Iterator[Talk]:
    stream = conversations(repeat(0.0), Conversations(), rng)
    return (list(talk) for _, talk in groupby(stream, lambda request: request.session))


def _by_session(requests: Iterable[WorkloadRequest]) -> list[Talk]:
    talks: dict[str | None, list[WorkloadRequest]] = {}
    for request in requests:
        talks.setdefault(request.session, []).append(request)
    return list(talks.values())


def _cut(talk: Talk, shape: LoadShape) -> Iterator[WorkloadRequest]:
    """Yield the scaled turns that fit."""
    num_tokens = 0
    for turn in talk:
        num_prompt = max(1, round(turn.num_prompt_tokens * shape.scale))
        num_output = max(2, round(turn.num_output_tokens * shape.scale))
        num_tokens += num_prompt + num_output
        if num_tokens > shape.max_tokens:
            return
        yield replace(turn, num_prompt_tokens=num_prompt, num_output_tokens=num_output)
