"""`evenflow trace`: record workloads, look at them, change them, and make new ones like them."""

from __future__ import annotations

import click

from evenflow.cli.group import LazyGroup

VERBS = {
    "record": ("evenflow.cli.trace_record:record", "Record what a running server is asked."),
    "describe": ("evenflow.cli.trace_describe:describe", "Print what a trace is like."),
    "convert": ("evenflow.cli.trace_changes:convert", "Write a published trace in our schema."),
    "scale": ("evenflow.cli.trace_changes:scale", "Change rate, time range, lengths, sessions."),
    "fit": ("evenflow.cli.trace_models:fit", "Fit models to a trace, and draw a new one."),
    "generate": ("evenflow.cli.trace_models:generate", "Make a trace from nothing."),
}


@click.group(cls=LazyGroup, verbs=VERBS)
def trace() -> None:
    """Record workloads, look at them, change them, and make new ones like them.

    A TRACE is a file of JSON lines or CSV, also gzipped: our own, or one as published by Mooncake,
    Azure, BurstGPT, ShareGPT (lengths), LMCache (agents) or AgentCgroup (Claude Code).
    """
