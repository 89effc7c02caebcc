"""Flags that say how tokens are chosen, shared by the verbs that generate."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable
from typing import Any

import click

from evenflow.core.sampling import SamplingParams

_FLAGS: dict[str, dict[str, Any]] = {
    "max_tokens": {"type": int, "help": "Most tokens to generate."},
    "min_tokens": {"type": int, "help": "No stop before this many tokens."},
    "temperature": {"type": float, "help": "0 takes the likeliest token always."},
    "top_k": {"type": int, "help": "Choose among the k likeliest tokens; 0 for all."},
    "top_p": {"type": float, "help": "Choose among the likeliest tokens of this mass."},
    "min_p": {"type": float, "help": "Drop tokens this much less likely than the best."},
    "repetition_penalty": {"type": float, "help": "Above 1, seen tokens come less often."},
    "presence_penalty": {"type": float, "help": "Subtracted for tokens in the output."},
    "frequency_penalty": {"type": float, "help": "Subtracted per use in the output."},
    "seed": {"type": int, "help": "Makes sampled tokens reproducible; drawn anew if not given."},
    "stop": {"multiple": True, "help": "Text that ends the output; may be repeated."},
    "ignore_eos": {"is_flag": True, "default": None, "help": "Go on past the model's end tokens."},
}


def sampling_options(**defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the sampling flags and hand it `params: SamplingParams`.

    Args:
        defaults: values of this verb where the user gives none.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(*args: Any, **values: Any) -> None:
            given = {name: values.pop(name) for name in _FLAGS}
            chosen = {name: value for name, value in given.items() if value not in (None, ())}
            fresh = {"seed": secrets.randbits(63)}
            command(*args, params=SamplingParams(**(fresh | defaults | chosen)), **values)

        decorated: Callable[..., None] = run
        for name, settings in reversed(_FLAGS.items()):
            decorated = click.option(f"--{name.replace('_', '-')}", **settings)(decorated)
        return decorated

    return decorate
