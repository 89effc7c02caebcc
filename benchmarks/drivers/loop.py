"""What every driver does: it answers lines of JSON, one run of its engine for each.

    -> {"prompts": [[token ids], ...], "num_output": n}
    <- {"seconds": time of the run, "outputs": [[token ids], ...], and what else the driver says}

A driver runs in the environment of its engine, so this module needs the standard library alone.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable

Run = Callable[[list[list[int]], int], list[list[int]]]
"""Completes every prompt greedily by exactly so many tokens, all at once."""


def serve(run: Run, answers: int, extra: Callable[[], dict[str, float]] = dict) -> None:
    """Answer until there are no more lines.

    Args:
        run: the engine.
        answers: from `take_stdout`.
        extra: what to say besides, asked after each run.
    """
    for line in sys.stdin:
        asked = json.loads(line)
        started = time.perf_counter()
        outputs = run(asked["prompts"], asked["num_output"])
        seconds = time.perf_counter() - started
        answer = {"seconds": seconds, "outputs": outputs, **extra()}
        os.write(answers, json.dumps(answer).encode() + b"\n")


def take_stdout() -> int:
    """Keep stdout for answers: what an engine prints goes to stderr from now on."""
    answers = os.dup(1)
    os.dup2(2, 1)
    return answers
