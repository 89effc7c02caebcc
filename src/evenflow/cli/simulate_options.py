"""The flags of `evenflow simulate` and `evenflow capacity`, and what they describe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from evenflow.bench.config import GOODPUT_METRICS, BenchConfig
from evenflow.bench.simulated.load import Load, open_load
from evenflow.bench.simulated.run import Measures
from evenflow.bench.simulated.variant import (
    DEFAULT_DEVICE,
    DEFAULT_MODEL,
    Variant,
    sweep_name,
    variants_of,
)
from evenflow.cli.flags import PERCENTILES, flag, numbers
from evenflow.cli.workload_options import LENGTHS, TRAFFIC
from evenflow.core.errors import ConfigError

GENERATORS = ("random", "sharegpt", "prefix_repetition")

_DEFAULT_NUM_GENERATED = 1000
_SWEPT: Mapping[str, type] = {
    "request_rate": float,
    "policy": str,
    "model": str,
    "device": str,
    "costs": str,
    "tp": int,
    "pp": int,
    "kv_memory": str,
    "kv_host_memory": str,
    "preemption_mode": str,
    "swap_timing": str,
    "block_size": int,
    "max_num_seqs": int,
    "max_num_batched_tokens": int,
}


def _sweep(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """Read NAME=VALUE,VALUE,... with the values in their types."""
    names = {sweep_name(field): field for field in _SWEPT}
    swept: dict[str, Any] = {}
    for part in (part for value in values for part in value.split()):
        name, _, listed = part.partition("=")
        if name not in names or not listed:
            known = ", ".join(names)
            raise click.BadParameter(f"{part!r} is not NAME=VALUE,... of {known}", ctx, param)
        kind = _SWEPT[names[name]]
        try:
            swept[names[name]] = tuple(dict.fromkeys(kind(value) for value in listed.split(",")))
        except ValueError as error:
            raise click.BadParameter(f"{part!r}: {error}", ctx, param) from None
    return swept


def _slo(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> Any:
    slo = numbers(",")(ctx, param, values)
    for name in slo:
        if name not in GOODPUT_METRICS:
            raise click.BadParameter(
                f"{name!r} is none of {', '.join(GOODPUT_METRICS)}", ctx, param
            )
    return slo


def _names(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
    if not names:
        raise click.BadParameter("it names nothing", ctx, param)
    return names


_SERVER = (
    flag(
        "--model",
        str,
        None,
        f"Name or TOML file of the model's shape.  [default: {DEFAULT_MODEL}, or a profile's]",
        metavar="MODEL",
    ),
    flag(
        "--device",
        str,
        None,
        f"Name or TOML file of the device.  [default: {DEFAULT_DEVICE}, or a profile's machine]",
        metavar="DEVICE",
    ),
    flag(
        "--costs",
        str,
        "roofline",
        "Where step times come from: roofline (of model and device), profile:NAME (one that comes "
        "with evenflow, or a file of `evenflow calibrate`), tables:FOLDER (measured operators).",
        metavar="KIND",
    ),
    flag(
        "--policy",
        str,
        "fcfs",
        "Scheduling policies to compare, such as fcfs,priority.",
        metavar="LIST",
        callback=_names,
    ),
    flag("--tp", int, 1, "Devices that share each layer (tensor parallel)."),
    flag("--pp", int, 1, "Stages that the layers are divided into (pipeline parallel)."),
    flag(
        "--kv-memory",
        str,
        None,
        "KV memory of each device, such as 40GiB; without it, what the weights leave.",
        metavar="BYTES",
    ),
    flag(
        "--gpu-memory-utilization",
        float,
        0.9,
        "Share of a device's memory to use, without --kv-memory.",
        field="memory_utilization",
    ),
    flag(
        "--kv-host-memory",
        str,
        None,
        "Memory of the host for copies of each device's KV, such as 60GiB; without it, what leaves "
        "a device is computed again.",
        metavar="BYTES",
    ),
    flag(
        "--preemption-mode",
        click.Choice(["auto", "swap", "recompute"]),
        "auto",
        "What becomes of the KV of a request that loses its place.",
    ),
    flag(
        "--swap-timing",
        click.Choice(["auto", "beside", "between"]),
        "auto",
        "When KV is copied: beside the steps or between them.",
    ),
    flag("--num-blocks-override", int, None, "KV blocks, whatever the memory.", field="num_blocks"),
    flag("--block-size", int, 16, "Tokens in a KV block."),
    flag("--max-num-seqs", int, 256, "Most running requests."),
    flag("--max-num-batched-tokens", int, 2048, "Most tokens of a step."),
    flag(
        "--max-model-len",
        int,
        None,
        "Most tokens of prompt and answer; without it, what the model was made for.",
    ),
    flag(
        "--enable-prefix-caching/--no-enable-prefix-caching",
        bool,
        True,
        "Find the KV of equal prefixes again.",
    ),
)
_LOAD = (
    click.option(
        "--limit",
        "--num-prompts",
        "num_prompts",
        type=int,
        help="Requests to simulate: of a trace, at most (without it, all); of a generator, exactly "
        f"(without it, {_DEFAULT_NUM_GENERATED}).",
    ),
    *TRAFFIC,
    *LENGTHS,
)
_MEASURES = (
    flag(
        "--slo",
        str,
        (),
        "Most milliseconds of a good request, such as ttft:500,tpot:50; knows ttft, tpot, e2el.",
        multiple=True,
        metavar="METRIC:MS,...",
        callback=_slo,
    ),
    PERCENTILES,
    flag(
        "--price-per-hour",
        click.FloatRange(min=0),
        None,
        "Of one device; without it, what the device's file says, in US dollars.",
    ),
)
SWEEP = flag(
    "--sweep",
    str,
    (),
    "Values to try in all combinations, such as rate=1,2,4; repeatable. Knows "
    f"{', '.join(map(sweep_name, _SWEPT))}.",
    multiple=True,
    metavar="NAME=VALUE,...",
    callback=_sweep,
)


def simulation_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the trace and the flags that describe servers, load and measures."""
    for option in reversed((*_SERVER, *_LOAD, *_MEASURES)):
        command = option(command)
    return click.argument("trace")(command)


def load_of(trace: str, flags: Mapping[str, Any]) -> Load:
    """Return the load that a command names: a trace's file or a generator.

    Raises:
        ConfigError: it is neither, or its flags contradict each other.
        InvalidRequestError: the file cannot be read.
    """
    is_generator = trace in GENERATORS
    if not is_generator and not Path(trace).is_file():
        raise ConfigError(
            f"there is no trace {trace!r}",
            why=f"it is neither a file nor one of the generators {', '.join(GENERATORS)}",
            fix="Name a trace (.jsonl or .csv, also .gz), or a generator",
        )
    names = {field.name for field in fields(BenchConfig)}
    values = {name: value for name, value in flags.items() if name in names}
    del values["model"], values["metric_percentiles"]
    if values["num_prompts"] is None:
        values["num_prompts"] = _DEFAULT_NUM_GENERATED if is_generator else sys.maxsize
    source = {"dataset_name": trace} if is_generator else _file(trace)
    return open_load(BenchConfig(**values, **source), Path(trace).name)


def variants(flags: Mapping[str, Any]) -> dict[str, Variant]:
    """Return the servers to compare, by label.

    Raises:
        ConfigError: one of them cannot be.
    """
    sweep = {"policy": flags["policy"], **flags.get("sweep", {})}
    names = {field.name for field in fields(Variant)} - sweep.keys()
    return variants_of(Variant(**{name: flags[name] for name in names}), sweep)


def measures_of(flags: Mapping[str, Any]) -> Measures:
    """Return how runs are judged.

    Raises:
        ConfigError: a percentile is out of range.
    """
    percentiles = flags["metric_percentiles"]
    if any(not 0 <= percentile <= 100 for percentile in percentiles):
        raise ConfigError("--metric-percentiles must be between 0 and 100")
    return Measures(
        slo=flags["slo"],
        percentiles=percentiles,
        price_per_hour=flags["price_per_hour"],
    )


def _file(trace: str) -> dict[str, Any]:
    return {"dataset_name": "trace", "dataset_path": Path(trace)}
