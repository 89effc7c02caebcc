"""The flags that describe a load, which a benchmark sends and a simulation plays through."""

from __future__ import annotations

import math

from evenflow.cli.flags import flag, numbers, one_of
from evenflow.workloads.arrivals import RampStrategy

LENGTHS = (
    flag("--seed", int, 0, "Of lengths, texts, arrivals and tenants."),
    flag("--random-input-len", int, 1024, "random: tokens of a prompt."),
    flag("--random-output-len", int, 128, "random: tokens of an answer."),
    flag(
        "--random-range-ratio",
        float,
        0.0,
        "random: lengths are uniform within this share above and below.",
    ),
    flag("--random-prefix-len", int, 0, "random: tokens that all prompts begin with, in addition."),
    flag("--prefix-repetition-prefix-len", int, 256, "prefix_repetition: tokens of a prefix."),
    flag("--prefix-repetition-suffix-len", int, 256, "prefix_repetition: tokens of a suffix."),
    flag("--prefix-repetition-num-prefixes", int, 10, "prefix_repetition: different prefixes."),
    flag("--prefix-repetition-output-len", int, 128, "prefix_repetition: tokens of an answer."),
    flag(
        "--sharegpt-output-len",
        int,
        None,
        "sharegpt: tokens of every answer, instead of its own length.",
    ),
)
"""What the generated data sets draw."""

TRAFFIC = (
    flag(
        "--request-rate",
        float,
        math.inf,
        "Requests per second; inf sends all at once. Traces are stretched to it.",
    ),
    flag(
        "--burstiness",
        float,
        1.0,
        "Shape of the gamma distribution of gaps: 1 Poisson, below 1 bursts, above 1 regular.",
    ),
    flag(
        "--ramp-up-strategy",
        one_of(RampStrategy),
        None,
        "How the rate rises over the run, instead of --request-rate.",
    ),
    flag("--ramp-up-start-rps", float, None, "Requests per second at the start of the ramp."),
    flag("--ramp-up-end-rps", float, None, "Requests per second at its end."),
    flag(
        "--self-timed/--no-self-timed",
        bool,
        None,
        "Use the arrival times of the trace, or draw them.  [default: use them]",
    ),
    flag(
        "--num-turns",
        int,
        1,
        "Make so many consecutive requests a conversation, whose history is sent back.",
    ),
    flag(
        "--turn-think-time",
        float,
        0.0,
        "Seconds between an answer and the next turn.",
        field="turn_think_time_s",
    ),
    flag(
        "--tenants",
        str,
        (),
        "Shares of the requests by tenant, such as a:2,b:1.",
        multiple=True,
        metavar="NAME:SHARE,...",
        callback=numbers(",", 1.0),
    ),
)
"""When requests come and whose they are."""
