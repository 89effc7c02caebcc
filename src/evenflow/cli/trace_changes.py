"""`evenflow trace convert` and `evenflow trace scale`: from one trace to another."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import click

from evenflow.cli.flags import NEW_FILE, flag, one_of
from evenflow.cli.trace_files import opened, report, rng_of, seed, skip_bad, trace_argument, wrote
from evenflow.core.errors import InvalidRequestError
from evenflow.workloads import transforms
from evenflow.workloads.generators import burst_times
from evenflow.workloads.request import WorkloadRequest
from evenflow.workloads.traces import Layout, write_trace

_POSITIVE = click.FloatRange(min=0, min_open=True)
_COUNT = click.IntRange(min=1)


@click.command(context_settings={"show_default": True})
@trace_argument
@click.argument("output", type=NEW_FILE)
@flag("--to", one_of(Layout), "evenflow", "mooncake keeps its four columns only.", field="layout")
@flag("--limit", _COUNT, None, "Stop after so many requests.")
@skip_bad
def convert(path: Path, output: Path, layout: Layout, limit: int | None, skip_bad: bool) -> None:
    """Write TRACE to OUTPUT (.jsonl or .jsonl.gz) in order of arrival.

    For Mooncake's tools, requests that continue a conversation get their whole prompts.
    """
    rows = opened(path, skip_bad)
    requests: Iterable[WorkloadRequest] = transforms.in_order(islice(rows, limit))
    if layout == "mooncake":
        requests = transforms.with_whole_prompts(requests)
    wrote(output, write_trace(output, requests, layout))
    report(rows)


@click.command(context_settings={"show_default": True})
@trace_argument
@click.argument("output", type=NEW_FILE)
@flag("--rate", _POSITIVE, None, "Mean requests per second, by stretching time.")
@flag("--rate-factor", _POSITIVE, None, "Multiply the rate, by stretching time.")
@flag("--start-rate", _POSITIVE, None, "Draw new starts: sessions and lone requests per second.")
@flag("--burstiness", _POSITIVE, 1.0, "Of new starts: 1 Poisson, below 1 bursts.")
@flag("--from", float, 0.0, "Seconds after the first request to begin at.", field="from_s")
@flag("--until", float, math.inf, "Seconds after the first request to end at.", field="until_s")
@flag("--every", _COUNT, 1, "Keep one session (or lone request) of so many.")
@flag("--prompt-factor", _POSITIVE, 1.0, "Multiply the lengths of prompts.")
@flag("--output-factor", _POSITIVE, 1.0, "Multiply the lengths of answers.")
@flag("--max-prompt-tokens", _COUNT, None, "Cut prompts to this.")
@flag("--max-output-tokens", _COUNT, None, "Cut answers to this.")
@seed
@skip_bad
def scale(path: Path, output: Path, skip_bad: bool, **flags: Any) -> None:
    """Write TRACE to OUTPUT with another rate, other lengths, or a part of it.

    Sessions are never taken apart: they are kept or left out by their first request. What is kept
    begins at 0. Pauses within sessions stay as they are.
    """
    ways = [name for name in ("rate", "rate_factor", "start_rate") if flags[name] is not None]
    if len(ways) > 1:
        raise click.UsageError("use one of --rate, --rate-factor and --start-rate")
    rows = opened(path, skip_bad)
    if not rows.is_timed and flags["rate"] is not None:
        raise InvalidRequestError(
            f"{path} has no arrival times to stretch",
            param="rate",
            fix="Use --start-rate, which draws new ones",
        )
    requests = _selected(rows, flags)
    if flags["rate"] is not None:
        factor = flags["rate"] / _mean_rate(_selected(opened(path, True), flags))
        requests = transforms.faster(requests, factor)
    elif flags["rate_factor"] is not None:
        requests = transforms.faster(requests, flags["rate_factor"])
    elif flags["start_rate"] is not None:
        times = burst_times(flags["start_rate"], flags["burstiness"], rng_of(flags["seed"]))
        requests = transforms.with_starts(requests, times)
    wrote(output, write_trace(output, requests))
    report(rows)


def _selected(rows: Iterable[WorkloadRequest], flags: dict[str, Any]) -> Iterator[WorkloadRequest]:
    """Return what is kept, with its new lengths, from time 0."""
    requests = transforms.starting_at_zero(transforms.in_order(rows))
    requests = transforms.between(requests, flags["from_s"], flags["until_s"])
    requests = transforms.every_nth(requests, flags["every"])
    requests = transforms.with_lengths(
        requests,
        prompt_factor=flags["prompt_factor"],
        output_factor=flags["output_factor"],
        max_prompt_tokens=flags["max_prompt_tokens"],
        max_output_tokens=flags["max_output_tokens"],
    )
    return transforms.starting_at_zero(requests)


def _mean_rate(requests: Iterable[WorkloadRequest]) -> float:
    num_requests, last_s = 0, 0.0
    for request in requests:
        num_requests, last_s = num_requests + 1, request.arrival_s
    if last_s == 0:
        raise InvalidRequestError("all requests arrive at once", param="rate", why="0 s to stretch")
    return num_requests / last_s
