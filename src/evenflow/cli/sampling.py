"""Flags that say how tokens are chosen, shared by the verbs that generate."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable
from typing import Any

import click

from evenflow.core.sampling import SamplingParams

_FLAGS = (
    click.option("--max-tokens", type=int, help="Most tokens to generate."),
    click.option("--min-tokens", type=int, help="No stop before this many tokens."),
    click.option("--temperature", type=float, help="0 takes the likeliest token always."),
    click.option("--top-k", type=int, help="Choose among the k likeliest tokens; 0 for all."),
    click.option("--top-p", type=float, help="Choose among the likeliest tokens of this mass."),
    click.option("--min-p", type=float, help="Drop tokens this much less likely than the best."),
    click.option("--repetition-penalty", type=float, help="Above 1, seen tokens come less often."),
    click.option("--presence-penalty", type=float, help="Subtracted for tokens in the output."),
    click.option("--frequency-penalty", type=float, help="Subtracted per use in the output."),
    click.option(
        "--seed", type=int, help="Makes sampled tokens reproducible; drawn anew if not given."
    ),
    click.option("--stop", multiple=True, help="Text that ends the output; may be repeated."),
    click.option(
        "--ignore-eos/--no-ignore-eos", default=None, help="Go on past the model's end tokens."
    ),
)


def sampling_options(**defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the sampling flags and hand it `params: SamplingParams`.

    Args:
        defaults: values of this verb where the user gives none.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(*args: Any, **values: Any) -> None:
            given = {name: values.pop(name) for name in _NAMES}
            chosen = {name: value for name, value in given.items() if value not in (None, ())}
            fresh = {"seed": secrets.randbits(63)}
            command(*args, params=SamplingParams(**(fresh | defaults | chosen)), **values)

        decorated: Callable[..., None] = run
        for flag in reversed(_FLAGS):
            decorated = flag(decorated)
        return decorated

    return decorate


_NAMES = (
    "max_tokens",
    "min_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
    "ignore_eos",
)
