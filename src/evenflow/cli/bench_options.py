"""The flags of `evenflow bench serve`, which are those of `vllm bench serve` and a few of ours."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click

from evenflow.bench.config import LATENCY_METRICS, Backend, DatasetName
from evenflow.workloads.arrivals import RampStrategy

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
Callback = Callable[[click.Context, click.Parameter, Any], Any]
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
NEW_FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)
SAMPLING = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "frequency_penalty": float,
    "presence_penalty": float,
    "repetition_penalty": float,
}


def _numbers(separator: str, default: float | None = None) -> Callback:
    """Read NAME:NUMBER pairs with `separator` between them; `default` stands for no number."""

    def read(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> Any:
        numbers: dict[str, float] = {}
        for pair in (part for value in values for part in value.split(separator) if part):
            name, colon, number = pair.strip().partition(":")
            try:
                numbers[name] = default if default is not None and not colon else float(number)
            except ValueError:
                raise click.BadParameter(f"{pair!r} is not NAME:NUMBER", ctx, param) from None
        return numbers

    return read


def _texts(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Read KEY=VALUE pairs."""
    for pair in values:
        if "=" not in pair:
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE", ctx, param)
    return {key.strip(): value for key, _, value in (pair.partition("=") for pair in values)}


def _json_object(ctx: click.Context, param: click.Parameter, value: str) -> dict[str, Any]:
    try:
        content = json.loads(value)
    except ValueError as error:
        raise click.BadParameter(f"it is not JSON: {error}", ctx, param) from None
    if not isinstance(content, dict):
        raise click.BadParameter("it is not a JSON object", ctx, param)
    return content


def _metrics(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    names = tuple(value.split(","))
    known = (*LATENCY_METRICS, "client_queue_time")
    for name in names:
        if name not in known:
            raise click.BadParameter(f"{name!r} is none of {', '.join(known)}", ctx, param)
    return names


def _percentiles(ctx: click.Context, param: click.Parameter, value: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is no list of numbers", ctx, param) from None


def _flag(
    name: str, kind: Any, default: Any, text: str, *, field: str | None = None, **settings: Any
) -> Decorator:
    """Make an option; `field` names its value where the unit is not part of the flag."""
    names = (name,) if field is None else (name, field)
    return click.option(*names, type=kind, default=default, help=text, **settings)


def _switch(name: str, text: str) -> Decorator:
    return click.option(name, is_flag=True, help=text)


def _one_of(values: object) -> click.Choice[str]:
    return click.Choice(get_args(values))


_TARGET = (
    _flag(
        "--backend", _one_of(Backend), "openai", "Completions (openai, vllm) or chat (openai-chat)."
    ),
    _flag("--base-url", str, None, "The server, instead of --host and --port.", metavar="URL"),
    _flag("--host", str, "127.0.0.1", "Where the server is."),
    _flag("--port", int, 8000, "Where the server listens."),
    _flag(
        "--endpoint",
        str,
        None,
        "Path of the API, if not the usual one of --backend.",
        metavar="PATH",
    ),
    _flag(
        "--model",
        str,
        None,
        "The model's name at the server; without it, the first the server lists.",
        metavar="NAME",
    ),
    _flag(
        "--tokenizer",
        str,
        None,
        "A model whose tokeniser measures prompts: name or path. Without it the server's /tokenize "
        "does; without that, words count as tokens.",
        metavar="MODEL",
    ),
    _flag(
        "--api-key", str, None, "Sent as bearer token.", envvar="OPENAI_API_KEY", show_envvar=True
    ),
    _flag(
        "--header",
        str,
        (),
        "Sent with every request; repeatable.",
        multiple=True,
        metavar="KEY=VALUE",
        callback=_texts,
    ),
    _flag(
        "--request-timeout",
        float,
        21600.0,
        "Seconds after which a request has failed.",
        field="request_timeout_s",
    ),
    _flag(
        "--ready-check-timeout-sec",
        float,
        0.0,
        "Seconds to wait for the server to come up; 0 does not check.",
        field="ready_check_timeout_s",
    ),
)
_DATASET = (
    _flag(
        "--dataset-name",
        _one_of(DatasetName),
        "random",
        "What is sent: random words; sharegpt (log-normal lengths like ShareGPT's, or its JSON "
        "file); burstgpt and trace (a trace with lengths and arrival times); prefix_repetition; "
        "custom (JSONL of prompts).",
    ),
    _flag("--dataset-path", FILE, None, "The file of sharegpt, burstgpt, trace and custom."),
    _flag("--num-prompts", int, 1000, "Requests to send; of a trace, at most."),
    _flag("--num-warmups", int, 0, "Further requests of the kind, sent before and not measured."),
    _flag("--seed", int, 0, "Of lengths, texts, arrivals and tenants."),
    _flag("--random-input-len", int, 1024, "random: tokens of a prompt."),
    _flag("--random-output-len", int, 128, "random: tokens of an answer."),
    _flag(
        "--random-range-ratio",
        float,
        0.0,
        "random: lengths are uniform within this share above and below.",
    ),
    _flag(
        "--random-prefix-len", int, 0, "random: tokens that all prompts begin with, in addition."
    ),
    _flag("--prefix-repetition-prefix-len", int, 256, "prefix_repetition: tokens of a prefix."),
    _flag("--prefix-repetition-suffix-len", int, 256, "prefix_repetition: tokens of a suffix."),
    _flag("--prefix-repetition-num-prefixes", int, 10, "prefix_repetition: different prefixes."),
    _flag("--prefix-repetition-output-len", int, 128, "prefix_repetition: tokens of an answer."),
    _flag(
        "--sharegpt-output-len",
        int,
        None,
        "sharegpt: tokens of every answer, instead of its own length.",
    ),
    _flag(
        "--custom-output-len",
        int,
        256,
        "custom: tokens of answers whose line has no output_tokens.",
    ),
)
_TRAFFIC = (
    _flag(
        "--request-rate",
        float,
        math.inf,
        "Requests per second; inf sends all at once. Traces are stretched to it.",
    ),
    _flag(
        "--burstiness",
        float,
        1.0,
        "Shape of the gamma distribution of gaps: 1 Poisson, below 1 bursts, above 1 regular.",
    ),
    _flag(
        "--ramp-up-strategy",
        _one_of(RampStrategy),
        None,
        "How the rate rises over the run, instead of --request-rate.",
    ),
    _flag("--ramp-up-start-rps", float, None, "Requests per second at the start of the ramp."),
    _flag("--ramp-up-end-rps", float, None, "Requests per second at its end."),
    _flag(
        "--self-timed/--no-self-timed",
        bool,
        None,
        "Use the arrival times of the trace, or draw them.  [default: use them]",
    ),
    _flag(
        "--max-concurrency",
        int,
        None,
        "Most requests under way at once; the others wait in the client.",
    ),
    _flag(
        "--num-turns",
        int,
        1,
        "Make so many consecutive requests a conversation, whose history is sent back.",
    ),
    _flag(
        "--turn-think-time",
        float,
        0.0,
        "Seconds between an answer and the next turn.",
        field="turn_think_time_s",
    ),
    _flag(
        "--tenants",
        str,
        (),
        "Shares of the requests by tenant, such as a:2,b:1. A tenant is sent as user.",
        multiple=True,
        metavar="NAME:SHARE,...",
        callback=_numbers(",", 1.0),
    ),
    _flag(
        "--tenant-keys",
        str,
        (),
        "A tenant's API key, sent instead of user; repeatable.",
        multiple=True,
        metavar="NAME=KEY",
        callback=_texts,
    ),
)
_BODY = (
    _switch("--ignore-eos", "Generate up to the full length."),
    *(
        _flag(f"--{name.replace('_', '-')}", kind, None, "Sent if given.")
        for name, kind in SAMPLING.items()
    ),
    _flag(
        "--extra-body",
        str,
        "{}",
        "Further fields of every request.",
        metavar="JSON",
        callback=_json_object,
    ),
)
_REPORT = (
    _flag(
        "--goodput",
        str,
        (),
        'Most milliseconds of a good request, such as "ttft:500 tpot:50"; knows ttft, tpot, e2el.',
        multiple=True,
        metavar="METRIC:MS ...",
        callback=_numbers(" "),
    ),
    _flag(
        "--percentile-metrics",
        str,
        ",".join(LATENCY_METRICS),
        "Latencies to show; the result file has all.",
        metavar="LIST",
        callback=_metrics,
    ),
    _flag(
        "--metric-percentiles",
        str,
        "50,90,99",
        "Percentiles of latencies.",
        metavar="LIST",
        callback=_percentiles,
    ),
    _flag(
        "--label",
        str,
        None,
        "Name of the run, in the result and its file name; without it, the backend.",
    ),
    _flag(
        "--metadata",
        str,
        (),
        "Added to the result; repeatable.",
        multiple=True,
        metavar="KEY=VALUE",
        callback=_texts,
    ),
    _switch("--save-result", "Write the result as JSON."),
    _switch("--save-detailed", "With times, lengths and texts of every request."),
    _flag("--result-dir", FOLDER, None, "Where results are written; without it, here."),
    _flag(
        "--result-filename",
        str,
        None,
        "Name of the result file; without it, label, rate, model and date.",
    ),
    _flag("--save-trace", NEW_FILE, None, "Write what was sent as a trace (.jsonl or .jsonl.gz)."),
    _switch("--plot", "Write latency distributions and throughput as PNG next to the result."),
    _switch("--plot-timeline", "Write a bar per request as PNG next to the result."),
    _switch("--no-progress", "Show no progress bar."),
)


def bench_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command all flags of a run."""
    for option in reversed((*_TARGET, *_DATASET, *_TRAFFIC, *_BODY, *_REPORT)):
        command = option(command)
    return command
