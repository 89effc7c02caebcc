"""What a run's records say, under the keys of `vllm bench serve`.

Definitions, per completed request, with times read in the client:

    TTFT   first chunk with output - sending of the request
    ITL    gap between consecutive chunks with output; one request has many. A server that puts
           several tokens into a chunk has fewer and longer gaps
    E2EL   last chunk - sending of the request
    TPOT   (E2EL - TTFT) / (number of output tokens - 1); none for a single token

"Sending" comes after waiting for a slot under --max-concurrency; that wait is reported on its own
as client_queue_time. Output tokens are those of the server's `usage`, else one per chunk.

    request_throughput    completed requests / duration, and so on for tokens
    request_goodput       completed requests that meet all objectives / duration. A request of one
                          token meets every TPOT
    max_output_tokens_per_s   most tokens in a window [k, k + 1) seconds from the first sending,
                          a request's tokens spread evenly over its chunks

Failed requests count in `failed` and nowhere else. A figure that nothing was measured for is None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from evenflow.bench.config import GOODPUT_METRICS

if TYPE_CHECKING:
    from evenflow.workloads.client import RequestRecord


def ttft_s(record: RequestRecord) -> float:
    """Return the time to first token; of an answer without a chunk, the time to its end."""
    first_s = record.chunk_times[0] if record.chunk_times else record.end_s
    return first_s - record.start_s


def e2el_s(record: RequestRecord) -> float:
    """Return the end-to-end latency."""
    return record.end_s - record.start_s


def tpot_s(record: RequestRecord) -> float | None:
    """Return the time per output token after the first, None without a second one."""
    if record.num_output_tokens < 2:
        return None
    return (e2el_s(record) - ttft_s(record)) / (record.num_output_tokens - 1)


def itls_s(record: RequestRecord) -> list[float]:
    """Return the gaps between chunks."""
    gaps: list[float] = np.diff(np.asarray(record.chunk_times)).tolist()
    return gaps


def client_queue_s(record: RequestRecord) -> float:
    """Return how long the request waited in the client after it was due."""
    return record.start_s - record.due_s


def is_good(record: RequestRecord, goodput: Mapping[str, float]) -> bool:
    """Return whether a completed request meets all objectives, given in milliseconds."""
    values = {"ttft": ttft_s(record), "tpot": tpot_s(record) or 0.0, "e2el": e2el_s(record)}
    return all(values[name] * 1e3 <= goodput[name] for name in GOODPUT_METRICS if name in goodput)


def summarize(
    records: Sequence[RequestRecord],
    duration_s: float,
    percentiles: Sequence[float],
    goodput: Mapping[str, float],
) -> dict[str, Any]:
    """Return the counts, rates and latencies of a run."""
    done = [record for record in records if record.failure is None]
    num_input = sum(record.num_prompt_tokens for record in done)
    num_output = sum(record.num_output_tokens for record in done)
    num_good = sum(is_good(record, goodput) for record in done)
    latencies = {
        "ttft": [ttft_s(record) for record in done],
        "tpot": [value for record in done if (value := tpot_s(record)) is not None],
        "itl": [gap for record in done for gap in itls_s(record)],
        "e2el": [e2el_s(record) for record in done],
        "client_queue_time": [client_queue_s(record) for record in done],
    }
    summary: dict[str, Any] = {
        "duration": duration_s,
        "completed": len(done),
        "failed": len(records) - len(done),
        "total_input_tokens": num_input,
        "total_output_tokens": num_output,
        "request_throughput": len(done) / duration_s,
        "request_goodput": num_good / duration_s if goodput else None,
        "output_throughput": num_output / duration_s,
        "total_token_throughput": (num_input + num_output) / duration_s,
        "max_output_tokens_per_s": float(tokens_per_second(done).max(initial=0.0)),
        "max_concurrent_requests": max((n for _, n in concurrency(done)), default=0),
    }
    for name, seconds in latencies.items():
        summary |= _statistics(name, seconds, percentiles)
    return summary


def failures(records: Sequence[RequestRecord]) -> dict[str, dict[str, Any]]:
    """Return by kind of failure how often it happened and the first message."""
    kinds: dict[str, dict[str, Any]] = {}
    for record in sorted(records, key=lambda record: record.end_s):
        if record.failure is not None:
            kind, message = record.failure
            kinds.setdefault(kind, {"count": 0, "first_message": message})["count"] += 1
    return kinds


def tokens_per_second(records: Sequence[RequestRecord]) -> npt.NDArray[np.float64]:
    """Return the output tokens of each second of a run, from the first sending on.

    Args:
        records: of completed requests.

    Returns:
        (seconds,).
    """
    chunked = [record for record in records if record.chunk_times]
    if not chunked:
        return np.zeros(0)
    begin_s = min(record.start_s for record in records)
    times = np.concatenate([np.asarray(record.chunk_times) for record in chunked]) - begin_s
    weights = np.concatenate(
        [
            np.full(len(record.chunk_times), record.num_output_tokens / len(record.chunk_times))
            for record in chunked
        ]
    )
    return np.bincount(times.astype(np.int64), weights).astype(np.float64)


def concurrency(records: Sequence[RequestRecord]) -> list[tuple[float, int]]:
    """Return (time, requests under way from then on) at each sending and each end.

    A request that ends at the instant another is sent does not overlap with it.
    """
    changes = [(record.start_s, 1) for record in records]
    changes += [(record.end_s, -1) for record in records]
    steps, running = [], 0
    for time_s, change in sorted(changes):
        running += change
        steps.append((time_s, running))
    return steps


def _statistics(name: str, seconds: list[float], percentiles: Sequence[float]) -> dict[str, Any]:
    """Return mean, median, standard deviation and percentiles in milliseconds."""
    values = np.asarray(seconds) * 1e3
    percents = {f"p{percentile:g}": percentile for percentile in percentiles}
    if not seconds:
        return {f"{figure}_{name}_ms": None for figure in ("mean", "median", "std", *percents)}
    return {
        f"mean_{name}_ms": float(values.mean()),
        f"median_{name}_ms": float(np.median(values)),
        f"std_{name}_ms": float(values.std()),
        **{f"{p}_{name}_ms": float(np.percentile(values, at)) for p, at in percents.items()},
    }
