"""What `cpu_serving.py` prints: ratios, tables, the line of JSON.

Knows: turns, and the bounds of the machine.
Does not know: how they were measured.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from cpu_ceilings import Machine, Work
from cpu_loads import PREFILL, Load, Samples, median_speed
from quality import rounded

OURS = "evenflow"


def ceilings(
    machine: Machine, work: Work, loads: Sequence[Load], samples: Samples
) -> dict[str, object]:
    """Return the machine's rates and what they allow, by load."""
    by_load: dict[str, dict[str, float]] = defaultdict(dict)
    for load in loads:
        context = load.prompt + load.output - 1
        bound = work.bound(machine, load.num_requests, load.prompt, load.output)
        allowed = load.num_tokens / bound.least_s
        by_load["step_mb"][load.name] = work.step_bytes(load.num_requests, context) / 1e6
        by_load["memory_tokens_per_s"][load.name] = load.num_tokens / bound.memory_s
        by_load["products_tokens_per_s"][load.name] = load.num_tokens / bound.products_s
        by_load["tokens_per_s"][load.name] = allowed
        by_load["share"][load.name] = median_speed(samples[OURS, load.name]) / allowed
    return {**asdict(machine), **by_load}


def ratios(samples: Samples) -> dict[str, dict[str, float]]:
    """Return evenflow's speed by that of others in the same round, by engine and load; medians."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for (engine, load), turns in samples.items():
        if engine != OURS:
            pairs = zip(samples[OURS, load], turns, strict=True)
            found[engine][load] = statistics.median(
                ours.tokens_per_s / theirs.tokens_per_s for ours, theirs in pairs
            )
    return found


def speeds(samples: Samples, *, of_prompts: bool) -> dict[str, dict[str, float]]:
    """Return medians by engine and load: of prompt tokens for prefill alone, or of new tokens."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for (engine, load), turns in samples.items():
        if (load == PREFILL) == of_prompts:
            found[engine][load] = median_speed(turns)
    return found


def report(samples: Samples, ceiling: dict[str, object], others: dict[str, object]) -> None:
    """Print the tables on stderr and the line of JSON on stdout."""
    prefill = {engine: speed[PREFILL] for engine, speed in speeds(samples, of_prompts=True).items()}
    overheads = {
        load: statistics.median(turn.overhead_ratio for turn in turns)
        for (engine, load), turns in samples.items()
        if engine == OURS
    }
    print_tables(samples, ceiling)
    figures = {
        "ratio": ratios(samples),
        "tokens_per_s": speeds(samples, of_prompts=False),
        "prefill_tokens_per_s": prefill,
        "ceiling": ceiling,
        **others,
        "overhead_ratio": overheads,
    }
    print(json.dumps(rounded(figures)))


def print_tables(samples: Samples, ceiling: dict[str, object]) -> None:
    """Print speeds with ratios, then what the machine would allow."""
    console = Console(stderr=True, width=100)
    table = Table("load", "engine", "tokens/s", "evenflow ÷ it")
    ratio = ratios(samples)
    for (engine, load), turns in samples.items():
        share = f"{ratio[engine][load]:.2f}" if engine in ratio else ""
        table.add_row(load, engine, f"{median_speed(turns):.1f}", share)
    console.print(table)
    console.print(
        f"memory is read at {ceiling['read_gb_per_s']:.1f} GB/s; products reach "
        f"{ceiling['fp32_gflop_per_s']:.0f} GFLOP/s in fp32, "
        f"{ceiling['int8_gop_per_s']:.0f} GOP/s in int8"
    )
    table = Table(
        "load", "MB read by a step", "memory allows", "products allow", "both", "evenflow reaches"
    )
    for load, share in ceiling["share"].items():
        columns = ("step_mb", "memory_tokens_per_s", "products_tokens_per_s", "tokens_per_s")
        figures = [f"{ceiling[column][load]:.0f}" for column in columns]
        table.add_row(load, *figures, f"{share:.0%}")
    console.print(table)
