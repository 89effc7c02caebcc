"""Conversations of people and programs of agents: sessions whose turns follow on each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from evenflow.workloads.distributions import Distribution, Lengths, LogNormal, Mixture
from evenflow.workloads.generators.lengths import IndependentPairs, LengthPairs
from evenflow.workloads.generators.times import endless
from evenflow.workloads.request import Segment, WorkloadRequest

_Draw = Callable[[int, np.random.Generator], list[float]]

# ShareGPT conversations in Llama tokens: a user turn has a mean of 103 tokens and a median of 20,
# an assistant's 359 and 316, and a slice of a conversation 7.3 turns of both.
CHAT_LENGTHS = IndependentPairs(
    prompt=Lengths(LogNormal(median=20.0, sigma=1.8), high=4096),
    output=Lengths(LogNormal(median=316.0, sigma=0.8), high=2048),
)
CHAT_TURNS = Lengths(LogNormal(median=3.0, sigma=0.7), high=20)
THINK_S = LogNormal(median=20.0, sigma=1.0)

# Claude Code on SWE-rebench (arXiv 2602.09345, the data of its repository): half of the tool calls
# are shell commands with a median of 1.55 s and a mean of 5.3 s, the others take a median of
# 23 ms; a run makes a median of 38 model calls, each of which adds a median of 254 tokens.
TOOL_S = Mixture(((0.5, LogNormal(1.55, 1.56)), (0.5, LogNormal(0.023, 0.74))))
AGENT_STEPS = Lengths(LogNormal(median=38.0, sigma=0.78), high=200)
OBSERVATION_TOKENS = Lengths(LogNormal(median=254.0, sigma=1.4), high=32_768)
ACTION_TOKENS = Lengths(LogNormal(median=139.0, sigma=1.2), high=4096)
TASK_TOKENS = Lengths(LogNormal(median=400.0, sigma=0.8), high=8192)
AGENT_SYSTEM_TOKENS = 13_000


@dataclass(slots=True, frozen=True, kw_only=True)
class Conversations:
    """What people's conversations are like.

    Attributes:
        turns: how many questions each has.
        lengths: of questions and answers.
        think_s: pause between an answer and the next question.
        system_tokens: length of a text that all of them begin with.
    """

    turns: Lengths = CHAT_TURNS
    lengths: LengthPairs = CHAT_LENGTHS
    think_s: Distribution = THINK_S
    system_tokens: int = 0


@dataclass(slots=True, frozen=True, kw_only=True)
class Agents:
    """What agents' programs are like: a task, then steps of a tool call and an answer each.

    Attributes:
        steps: how many answers each program needs.
        task: length of what the agent is to do.
        observation: length of a tool's result.
        action: length of an answer.
        tool_s: how long a tool call takes.
        system_tokens: length of the instructions that all of them begin with.
    """

    steps: Lengths = AGENT_STEPS
    task: Lengths = TASK_TOKENS
    observation: Lengths = OBSERVATION_TOKENS
    action: Lengths = ACTION_TOKENS
    tool_s: Distribution = TOOL_S
    system_tokens: int = AGENT_SYSTEM_TOKENS


def conversations(
    times: Iterator[float],
    kind: Conversations,
    rng: np.random.Generator,
    *,
    name: str = "chat",
    tenant: str = "",
) -> Iterator[WorkloadRequest]:
    """Yield conversations; every question is sent with all that was said before.

    Args:
        times: when they begin.
        kind: what they are like.
        rng: draws the rest.
        name: of the stream, in the names of its sessions.
        tenant: for whom they are.
    """
    turns_rng, lengths_rng, think_rng = rng.spawn(3)
    turns = endless(kind.turns.draw, turns_rng)
    lengths = endless(kind.lengths.draw, lengths_rng)
    pauses = endless(_durations(kind.think_s), think_rng)
    for index, (arrival_s, num_turns) in enumerate(zip(times, turns, strict=False)):
        session = f"{name} {index}"
        for turn in range(num_turns):
            num_prompt, num_output = next(lengths)
            begun = _opening(name, session, kind.system_tokens, num_prompt) if turn == 0 else ()
            yield WorkloadRequest(
                num_prompt_tokens=num_prompt + (kind.system_tokens if turn == 0 else 0),
                num_output_tokens=num_output,
                arrival_s=arrival_s,
                tenant=tenant,
                session=session,
                turn=turn,
                continues=turn > 0,
                think_time_s=next(pauses) if turn else 0.0,
                segments=begun,
            )


def agents(
    times: Iterator[float],
    kind: Agents,
    rng: np.random.Generator,
    *,
    name: str = "agent",
    tenant: str = "",
) -> Iterator[WorkloadRequest]:
    """Yield the model calls of agents; each but the first follows on a tool call.

    Args:
        times: when the programs begin.
        kind: what they are like.
        rng: draws the rest.
        name: of the stream, in the names of its sessions.
        tenant: for whom they are.
    """
    draws = (kind.steps.draw, kind.task.draw, kind.observation.draw, kind.action.draw)
    steps, tasks, observations, actions = (
        endless(draw, stream) for draw, stream in zip(draws, rng.spawn(4), strict=True)
    )
    pauses = endless(_durations(kind.tool_s), rng.spawn(1)[0])
    for index, (arrival_s, num_steps) in enumerate(zip(times, steps, strict=False)):
        session = f"{name} {index}"
        num_task = next(tasks)
        yield WorkloadRequest(
            num_prompt_tokens=kind.system_tokens + num_task,
            num_output_tokens=next(actions),
            arrival_s=arrival_s,
            tenant=tenant,
            session=session,
            segments=_opening(name, session, kind.system_tokens, num_task),
        )
        for turn in range(1, num_steps):
            tool_s = next(pauses)
            yield WorkloadRequest(
                num_prompt_tokens=next(observations),
                num_output_tokens=next(actions),
                arrival_s=arrival_s,
                tenant=tenant,
                session=session,
                turn=turn,
                continues=True,
                think_time_s=tool_s,
                tool_time_s=tool_s,
            )


def _opening(
    name: str, session: str, num_system_tokens: int, num_own_tokens: int
) -> tuple[Segment, ...]:
    """Return the first prompt of a session: what all share, then its own."""
    if num_system_tokens == 0:
        return ()
    return (Segment(f"{name} system", num_system_tokens), Segment(session, num_own_tokens))


def _durations(distribution: Distribution) -> _Draw:
    """Return how to draw times as plain numbers, to the microsecond."""

    def draw(num: int, rng: np.random.Generator) -> list[float]:
        drawn: list[float] = distribution.draw(num, rng).round(6).tolist()
        return drawn

    return draw
