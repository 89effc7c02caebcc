"""Runs a load against a server and returns what was measured."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from evenflow.bench.config import BenchConfig, rate_for_json
from evenflow.bench.metrics import client_queue_s, failures, summarize
from evenflow.bench.result import BenchResult
from evenflow.bench.tenants import by_tenant
from evenflow.bench.workload import make_workload
from evenflow.workloads.client import LoadClient, RequestRecord, Target
from evenflow.workloads.request import WorkloadRequest
from evenflow.workloads.server import Server, ServerError
from evenflow.workloads.text import TokenCounter, Vocabulary

if TYPE_CHECKING:
    from evenflow.tokenization import Tokenizer

logger = logging.getLogger(__name__)


def run_benchmark(
    config: BenchConfig,
    *,
    tokenizer: Tokenizer | None = None,
    on_start: Callable[[Sequence[WorkloadRequest]], None] | None = None,
    on_done: Callable[[RequestRecord], None] | None = None,
) -> BenchResult:
    """Send the load that `config` describes, and measure.

    Args:
        config: the run.
        tokenizer: measures prompts; without it the server's /tokenize does, and without that
            a word counts as one token.
        on_start: called with all requests just before the first is sent.
        on_done: called with the record of every request that ends, warm-ups excepted.

    Raises:
        ServerError: the server cannot be reached.
        InvalidRequestError: the data set cannot be read.
    """
    server = Server(config.root_url, config.headers)
    if config.ready_check_timeout_s:
        server.wait_until_ready(
            config.path,
            config.model,
            is_chat=config.is_chat,
            timeout_s=config.ready_check_timeout_s,
        )
    target = _target(config, config.model or server.model_id())
    requests, warmups = make_workload(config, *_measure(server, target.model, tokenizer))
    limit = config.max_concurrency
    asyncio.run(LoadClient(target, max_concurrency=limit).run(warmups))
    client = LoadClient(target, max_concurrency=limit, keep_text=config.keep_text, on_done=on_done)
    if on_start is not None:
        on_start(requests)
    date = datetime.now().astimezone()
    cpu_s = time.process_time()
    records = asyncio.run(client.run(requests))
    cpu_s = time.process_time() - cpu_s
    duration_s = max(record.end_s for record in records)
    summary = {
        **_header(config, target.model, len(records), date),
        **summarize(records, duration_s, config.metric_percentiles, config.goodput),
        **_health(config, records, cpu_s),
        "errors_by_kind": failures(records),
    }
    if any(request.tenant for request in requests):
        summary |= by_tenant(records, duration_s, config.metric_percentiles, config.goodput)
    return BenchResult(summary, records)


def _measure(
    server: Server, model: str, tokenizer: Tokenizer | None
) -> tuple[TokenCounter, Vocabulary]:
    """Find out how to count tokens, and which words to write prompts of."""

    def count_by_server(text: str) -> int:
        return server.count_tokens(model, text)

    def count_here(text: str) -> int:
        return len(tokenizer.encode(text)) if tokenizer else len(text.split())

    if tokenizer is not None:
        return count_here, Vocabulary.counted_by(count_here)
    try:
        return count_by_server, Vocabulary.counted_by(count_by_server)
    except ServerError as error:
        logger.warning(
            "lengths are in words, taken for one token each: no --tokenizer, and %s", error.what
        )
        return count_here, Vocabulary()


def _target(config: BenchConfig, model: str) -> Target:
    ignore_eos = {"ignore_eos": True} if config.ignore_eos else {}
    return Target(
        url=config.url,
        is_chat=config.is_chat,
        model=model,
        headers=config.headers,
        tenant_keys=config.tenant_keys,
        body={**config.sampling, **ignore_eos, **config.extra_body},
        timeout_s=config.request_timeout_s,
    )


def _header(config: BenchConfig, model: str, num: int, date: datetime) -> dict[str, Any]:
    """Return what the result says about the run itself."""
    header = {
        "date": date.strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": config.backend,
        "backend": config.backend,
        "label": config.label or config.backend,
        "model_id": model,
        "tokenizer_id": config.tokenizer,
        "num_prompts": num,
        "request_rate": rate_for_json(config.request_rate),
        "burstiness": rate_for_json(config.burstiness),
        "max_concurrency": config.max_concurrency,
    }
    if config.ramp_up_strategy is not None:
        header |= {
            "ramp_up_strategy": config.ramp_up_strategy,
            "ramp_up_start_rps": config.ramp_up_start_rps,
            "ramp_up_end_rps": config.ramp_up_end_rps,
        }
    return header | {"settings": config.workload_settings()}


def _health(config: BenchConfig, records: Sequence[RequestRecord], cpu_s: float) -> dict[str, Any]:
    """Return what tells whether the client itself was the bottleneck.

    `max_send_lag_ms` is how late the latest request was sent, None when `max_concurrency` may have
    held it back on purpose.
    """
    num_tokens = sum(record.num_output_tokens for record in records)
    lag_s = max((client_queue_s(record) for record in records), default=0.0)
    done = [record for record in records if record.failure is None]
    return {
        "token_counts": "usage" if all(record.is_counted for record in done) else "chunks",
        "client_cpu_s": cpu_s,
        "client_cpu_us_per_token": cpu_s / num_tokens * 1e6 if num_tokens else None,
        "max_send_lag_ms": None if config.max_concurrency else lag_s * 1e3,
    }
