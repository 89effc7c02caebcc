"""Requests that have nothing to do with each other."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from evenflow.workloads.generators.lengths import LengthPairs
from evenflow.workloads.generators.times import endless
from evenflow.workloads.request import WorkloadRequest


def lone_requests(
    times: Iterator[float], lengths: LengthPairs, rng: np.random.Generator, *, tenant: str = ""
) -> Iterator[WorkloadRequest]:
    """Yield requests of their own text.

    Args:
        times: when they arrive.
        lengths: of prompts and answers.
        rng: draws the lengths.
        tenant: for whom they are.
    """
    for arrival_s, (num_prompt, num_output) in zip(times, endless(lengths.draw, rng), strict=False):
        yield WorkloadRequest(
            num_prompt_tokens=num_prompt,
            num_output_tokens=num_output,
            arrival_s=arrival_s,
            tenant=tenant,
        )
