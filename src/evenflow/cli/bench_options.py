"""The flags of `evenflow bench serve`, which are those of `vllm bench serve` and a few of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from evenflow.bench.config import LATENCY_METRICS, Backend, DatasetName
from evenflow.cli.flags import (
    FILE,
    FOLDER,
    NEW_FILE,
    PERCENTILES,
    flag,
    json_object,
    numbers,
    one_of,
    switch,
    texts,
)
from evenflow.cli.workload_options import LENGTHS, TRAFFIC

SAMPLING = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "frequency_penalty": float,
    "presence_penalty": float,
    "repetition_penalty": float,
}


def _metrics(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    names = tuple(value.split(","))
    known = (*LATENCY_METRICS, "client_queue_time")
    for name in names:
        if name not in known:
            raise click.BadParameter(f"{name!r} is none of {', '.join(known)}", ctx, param)
    return names


_TARGET = (
    flag(
        "--backend", one_of(Backend), "openai", "Completions (openai, vllm) or chat (openai-chat)."
    ),
    flag("--base-url", str, None, "The server, instead of --host and --port.", metavar="URL"),
    flag("--host", str, "127.0.0.1", "Where the server is."),
    flag("--port", int, 8000, "Where the server listens."),
    flag(
        "--endpoint",
        str,
        None,
        "Path of the API, if not the usual one of --backend.",
        metavar="PATH",
    ),
    flag(
        "--model",
        str,
        None,
        "The model's name at the server; without it, the first the server lists.",
        metavar="NAME",
    ),
    flag(
        "--tokenizer",
        str,
        None,
        "A model whose tokeniser measures prompts: name or path. Without it the server's /tokenize "
        "does; without that, words count as tokens.",
        metavar="MODEL",
    ),
    flag(
        "--api-key", str, None, "Sent as bearer token.", envvar="OPENAI_API_KEY", show_envvar=True
    ),
    flag(
        "--header",
        str,
        (),
        "Sent with every request; repeatable.",
        multiple=True,
        metavar="KEY=VALUE",
        callback=texts,
    ),
    flag(
        "--request-timeout",
        float,
        21600.0,
        "Seconds after which a request has failed.",
        field="request_timeout_s",
    ),
    flag(
        "--ready-check-timeout-sec",
        float,
        0.0,
        "Seconds to wait for the server to come up; 0 does not check.",
        field="ready_check_timeout_s",
    ),
)
_DATASET = (
    flag(
        "--dataset-name",
        one_of(DatasetName),
        "random",
        "What is sent: random words; sharegpt (log-normal lengths like ShareGPT's, or its JSON "
        "file); burstgpt and trace (a trace with lengths and arrival times); prefix_repetition; "
        "custom (JSONL of prompts).",
    ),
    flag("--dataset-path", FILE, None, "The file of sharegpt, burstgpt, trace and custom."),
    flag("--num-prompts", int, 1000, "Requests to send; of a trace, at most."),
    flag("--num-warmups", int, 0, "Further requests of the kind, sent before and not measured."),
    *LENGTHS,
    flag(
        "--custom-output-len",
        int,
        256,
        "custom: tokens of answers whose line has no output_tokens.",
    ),
)
_CLIENT = (
    flag(
        "--max-concurrency",
        int,
        None,
        "Most requests under way at once; the others wait in the client.",
    ),
    flag(
        "--tenant-keys",
        str,
        (),
        "A tenant's API key; those without one are named in the field user. Repeatable.",
        multiple=True,
        metavar="NAME=KEY",
        callback=texts,
    ),
)
_BODY = (
    switch("--ignore-eos", "Generate up to the full length."),
    *(
        flag(f"--{name.replace('_', '-')}", kind, None, "Sent if given.")
        for name, kind in SAMPLING.items()
    ),
    flag(
        "--extra-body",
        str,
        "{}",
        "Further fields of every request.",
        metavar="JSON",
        callback=json_object,
    ),
)
_REPORT = (
    flag(
        "--goodput",
        str,
        (),
        'Most milliseconds of a good request, such as "ttft:500 tpot:50"; knows ttft, tpot, e2el.',
        multiple=True,
        metavar="METRIC:MS ...",
        callback=numbers(" "),
    ),
    flag(
        "--percentile-metrics",
        str,
        ",".join(LATENCY_METRICS),
        "Latencies to show; the result file has all.",
        metavar="LIST",
        callback=_metrics,
    ),
    PERCENTILES,
    flag(
        "--label",
        str,
        None,
        "Name of the run, in the result and its file name; without it, the backend.",
    ),
    flag(
        "--metadata",
        str,
        (),
        "Added to the result; repeatable.",
        multiple=True,
        metavar="KEY=VALUE",
        callback=texts,
    ),
    switch("--save-result", "Write the result as JSON."),
    switch("--save-detailed", "With times, lengths and texts of every request."),
    flag("--result-dir", FOLDER, None, "Where results are written; without it, here."),
    flag(
        "--result-filename",
        str,
        None,
        "Name of the result file; without it, label, rate, model and date.",
    ),
    flag("--save-trace", NEW_FILE, None, "Write what was sent as a trace (.jsonl or .jsonl.gz)."),
    switch("--plot", "Write latency distributions and throughput as PNG next to the result."),
    switch("--plot-timeline", "Write a bar per request as PNG next to the result."),
    switch("--no-progress", "Show no progress bar."),
)


def bench_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command all flags of a run."""
    for option in reversed((*_TARGET, *_DATASET, *TRAFFIC, *_CLIENT, *_BODY, *_REPORT)):
        command = option(command)
    return command
