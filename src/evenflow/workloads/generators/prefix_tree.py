"""Prompts that share prefixes the way applications do: a tree of instructions, tools, documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from evenflow.workloads.distributions import Zipf
from evenflow.workloads.generators.lengths import LengthPairs
from evenflow.workloads.generators.times import endless
from evenflow.workloads.request import Segment, WorkloadRequest


def prefix_tree_requests(
    times: Iterator[float],
    lengths: LengthPairs,
    rng: np.random.Generator,
    *,
    level_tokens: Sequence[int],
    branching: int,
    exponent: float = 1.0,
    name: str = "tree",
    tenant: str = "",
) -> Iterator[WorkloadRequest]:
    """Yield prompts that are a path from the root to a leaf, and a text of their own after it.

        level_tokens = (100, 50), branching = 2:       root 100 -+- 50 -> own text
                                                                  +- 50 -> own text

    Args:
        times: when they arrive.
        lengths: of the prompts' own texts and of the answers.
        rng: chooses paths and lengths.
        level_tokens: length of the text at a node, from the root down.
        branching: children of every node that is not a leaf.
        exponent: popularity of the nth child goes as n ** -exponent; 0 makes all alike.
        name: of the tree; two of different names share nothing.
        tenant: for whom they are.
    """
    paths_rng, lengths_rng = rng.spawn(2)
    depth = len(level_tokens)
    popularity = Zipf(exponent, branching)

    def draw_paths(num: int, rng: np.random.Generator) -> list[list[int]]:
        drawn: list[list[int]] = (
            popularity.draw(num * (depth - 1), rng).astype(int).reshape(num, depth - 1).tolist()
        )
        return drawn

    drawn = zip(
        times, endless(draw_paths, paths_rng), endless(lengths.draw, lengths_rng), strict=False
    )
    for index, (arrival_s, path, (num_own, num_output)) in enumerate(drawn):
        nodes = tuple(
            Segment(".".join([name, *map(str, path[:level])]), num_tokens)
            for level, num_tokens in enumerate(level_tokens)
        )
        yield WorkloadRequest(
            num_prompt_tokens=sum(level_tokens) + num_own,
            num_output_tokens=num_output,
            arrival_s=arrival_s,
            tenant=tenant,
            segments=(*nodes, Segment(f"{name} request {index}", num_own)),
        )
