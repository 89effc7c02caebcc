"""From the settings of a run to its requests, with texts, arrivals and tenants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from evenflow.bench.config import BenchConfig
from evenflow.core.errors import ConfigError
from evenflow.workloads import arrivals, datasets
from evenflow.workloads.request import WorkloadRequest
from evenflow.workloads.text import TokenCounter, Vocabulary, with_text
from evenflow.workloads.traces import read_trace


def make_workload(
    config: BenchConfig, count_tokens: TokenCounter, vocabulary: Vocabulary
) -> tuple[list[WorkloadRequest], list[WorkloadRequest]]:
    """Return the requests of a run, and others of the same kind to warm the server up with.

    Raises:
        InvalidRequestError: the data set cannot be read.
        ConfigError: arrival times are wanted that the data set does not have, or its prompts are
            not what the endpoint takes.
    """
    load, warmups = draw_workload(config, count_tokens)
    _check_shape(config, (*load, *warmups))
    written = with_text((*load, *warmups), vocabulary, config.seed)
    return written[: len(load)], written[len(load) :]


def draw_workload(
    config: BenchConfig, count_tokens: TokenCounter
) -> tuple[list[WorkloadRequest], list[WorkloadRequest]]:
    """Return what `make_workload` does, before any text is written.

    Lengths, arrivals and tenants are drawn from separate streams of the seed: changing the rate
    changes no prompt.

    Raises:
        InvalidRequestError: the data set cannot be read.
        ConfigError: arrival times are wanted that the data set does not have.
    """
    lengths_rng, arrivals_rng, tenants_rng = np.random.default_rng(config.seed).spawn(3)
    num = config.num_prompts + config.num_warmups
    requests, is_timed = _dataset(config, num, count_tokens, lengths_rng)
    load, warmups = requests[: config.num_prompts], requests[config.num_prompts :]
    load = _with_arrivals(config, load, is_timed, arrivals_rng)
    if config.tenants:
        load = datasets.with_tenants(load, dict(config.tenants), tenants_rng)
    alone = [replace(request, arrival_s=0.0, session=None, continues=False) for request in warmups]
    return load, alone


def _dataset(
    config: BenchConfig, num: int, count_tokens: TokenCounter, rng: np.random.Generator
) -> tuple[list[WorkloadRequest], bool]:
    """Return the requests, and whether they have arrival times of their own."""
    if config.dataset_name in ("burstgpt", "trace"):
        return read_trace(_path(config), num)
    requests = _untimed(config, num, count_tokens, rng)
    return datasets.as_sessions(requests, config.num_turns, config.turn_think_time_s), False


def _check_shape(config: BenchConfig, requests: Sequence[WorkloadRequest]) -> None:
    """Refuse chats for a completions endpoint, and token ids for a chat endpoint."""
    if config.is_chat and any(isinstance(request.prompt, tuple) for request in requests):
        raise ConfigError(
            "the data set has prompts of token ids, which a chat cannot carry",
            fix="Use --backend openai",
        )
    if not config.is_chat and any(request.messages is not None for request in requests):
        raise ConfigError(
            "the data set has chats, which a completions endpoint does not take",
            fix="Use --backend openai-chat",
        )


def _untimed(
    config: BenchConfig, num: int, count_tokens: TokenCounter, rng: np.random.Generator
) -> list[WorkloadRequest]:
    match config.dataset_name:
        case "prefix_repetition":
            return datasets.prefix_repetition_requests(
                num,
                rng,
                prefix_len=config.prefix_repetition_prefix_len,
                suffix_len=config.prefix_repetition_suffix_len,
                num_prefixes=config.prefix_repetition_num_prefixes,
                output_len=config.prefix_repetition_output_len,
            )
        case "sharegpt" if config.dataset_path is not None:
            return datasets.sharegpt_requests(
                num,
                rng,
                path=config.dataset_path,
                count_tokens=count_tokens,
                num_turns=config.num_turns,
                output_len=config.sharegpt_output_len,
            )
        case "sharegpt":
            return datasets.lognormal_requests(num, rng, output_len=config.sharegpt_output_len)
        case "custom":
            return datasets.custom_requests(
                num,
                path=_path(config),
                count_tokens=count_tokens,
                output_len=config.custom_output_len,
            )
        case _:
            return datasets.random_requests(
                num,
                rng,
                input_len=config.random_input_len,
                output_len=config.random_output_len,
                range_ratio=config.random_range_ratio,
                prefix_len=config.random_prefix_len,
            )


def _path(config: BenchConfig) -> Path:
    if config.dataset_path is None:
        raise ConfigError(f"--dataset-name {config.dataset_name} needs --dataset-path")
    return config.dataset_path


def _with_arrivals(
    config: BenchConfig,
    requests: Sequence[WorkloadRequest],
    is_timed: bool,
    rng: np.random.Generator,
) -> list[WorkloadRequest]:
    """Give each request its time; the turns of a session after the first follow on their own."""
    if config.self_timed and not is_timed:
        raise ConfigError(
            "--self-timed needs arrival times",
            why=f"the data set {config.dataset_name} has none",
            fix="Use a trace, or give a --request-rate",
        )
    is_self_timed = is_timed if config.self_timed is None else config.self_timed
    if is_self_timed and config.ramp_up_strategy is None:
        recorded = np.array([request.arrival_s for request in requests])
        return _at(requests, arrivals.scaled_to_rate(recorded, config.request_rate))
    owners = [index if r.session is None else r.session for index, r in enumerate(requests)]
    places = {owner: place for place, owner in enumerate(dict.fromkeys(owners))}
    drawn = _drawn(config, len(places), rng)
    return _at(requests, drawn[np.array([places[owner] for owner in owners], dtype=np.intp)])


def _drawn(config: BenchConfig, num: int, rng: np.random.Generator) -> arrivals.Times:
    if config.ramp_up_strategy is None:
        return arrivals.gamma_arrivals(num, config.request_rate, config.burstiness, rng)
    return arrivals.ramp_arrivals(
        num,
        config.ramp_up_strategy,
        config.ramp_up_start_rps or math.nan,
        config.ramp_up_end_rps or math.nan,
        config.burstiness,
        rng,
    )


def _at(requests: Sequence[WorkloadRequest], times: arrivals.Times) -> list[WorkloadRequest]:
    pairs = zip(requests, times.tolist(), strict=True)
    return [replace(request, arrival_s=time_s) for request, time_s in pairs]
