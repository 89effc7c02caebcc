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
Runs of the load client and of the simulator become `Completed`, and one function makes the figures
of both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from evenflow.bench.config import GOODPUT_METRICS

if TYPE_CHECKING:
    from evenflow.workloads.client import RequestRecord

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(slots=True, frozen=True, kw_only=True)
class Completed:
    """The completed requests of a run as columns of one entry per request; times in seconds.

    Attributes:
        start_s: when it was sent.
        first_s: when its first chunk with output came; its end if there was none.
        end_s: when its last chunk came.
        queue_s: how long it waited in the client.
        num_prompt_tokens: length of its prompt.
        num_output_tokens: length of its answer.
        gap_s: gaps between chunks, of all requests together.
        gap_counts: how often each of those gaps was seen.
    """

    start_s: Floats
    first_s: Floats
    end_s: Floats
    queue_s: Floats
    num_prompt_tokens: Ints
    num_output_tokens: Ints
    gap_s: Floats
    gap_counts: Ints

    @property
    def ttft_s(self) -> Floats:
        """Time to first token."""
        return self.first_s - self.start_s

    @property
    def e2el_s(self) -> Floats:
        """End-to-end latency."""
        return self.end_s - self.start_s

    @property
    def tpot_s(self) -> Floats:
        """Time per output token after the first, NaN without a second one."""
        num_further = np.where(self.num_output_tokens > 1, self.num_output_tokens - 1, np.nan)
        return np.asarray((self.end_s - self.first_s) / num_further)

    def meets(self, metric: str, limit_ms: float) -> npt.NDArray[np.bool_]:
        """Return which requests take no longer than an objective allows."""
        seconds = {"ttft": self.ttft_s, "tpot": self.tpot_s, "e2el": self.e2el_s}[metric]
        return np.nan_to_num(seconds) * 1e3 <= limit_ms

    def meets_all(self, goodput: Mapping[str, float]) -> npt.NDArray[np.bool_]:
        """Return which requests meet every objective, given in milliseconds."""
        met = np.ones(len(self.end_s), dtype=np.bool_)
        for metric in GOODPUT_METRICS:
            if metric in goodput:
                met &= self.meets(metric, goodput[metric])
        return met


def ttft_s(record: RequestRecord) -> float:
    """Return the time to first token; of an answer without a chunk, the time to its end."""
    return _first_s(record) - record.start_s


def e2el_s(record: RequestRecord) -> float:
    """Return the end-to-end latency."""
    return record.end_s - record.start_s


def itls_s(record: RequestRecord) -> list[float]:
    """Return the gaps between chunks."""
    gaps: list[float] = np.diff(np.asarray(record.chunk_times)).tolist()
    return gaps


def client_queue_s(record: RequestRecord) -> float:
    """Return how long the request waited in the client after it was due."""
    return record.start_s - record.due_s


def summarize(
    records: Sequence[RequestRecord],
    duration_s: float,
    percentiles: Sequence[float],
    goodput: Mapping[str, float],
) -> dict[str, Any]:
    """Return the counts, rates and latencies of a run."""
    done = [record for record in records if record.failure is None]
    gaps = [gap for record in done for gap in itls_s(record)]
    return figures(
        Completed(
            start_s=np.array([record.start_s for record in done]),
            first_s=np.array([_first_s(record) for record in done]),
            end_s=np.array([record.end_s for record in done]),
            queue_s=np.array([client_queue_s(record) for record in done]),
            num_prompt_tokens=np.array([r.num_prompt_tokens for r in done], dtype=np.int64),
            num_output_tokens=np.array([r.num_output_tokens for r in done], dtype=np.int64),
            gap_s=np.array(gaps),
            gap_counts=np.ones(len(gaps), dtype=np.int64),
        ),
        num_failed=len(records) - len(done),
        duration_s=duration_s,
        tokens_by_second=tokens_per_second(done),
        percentiles=percentiles,
        goodput=goodput,
    )


def figures(
    done: Completed,
    *,
    num_failed: int,
    duration_s: float,
    tokens_by_second: Floats,
    percentiles: Sequence[float],
    goodput: Mapping[str, float],
) -> dict[str, Any]:
    """Return the counts, rates and latencies that columns tell.

    Args:
        done: the completed requests.
        num_failed: how many others there were.
        duration_s: of the run.
        tokens_by_second: (seconds,), output tokens of each second from the first sending on.
        percentiles: of latencies.
        goodput: by metric, the most milliseconds of a good request.
    """
    num_done = len(done.end_s)
    num_input = int(done.num_prompt_tokens.sum())
    num_output = int(done.num_output_tokens.sum())
    num_good = np.count_nonzero(done.meets_all(goodput))
    summary: dict[str, Any] = {
        "duration": duration_s,
        "completed": num_done,
        "failed": num_failed,
        "total_input_tokens": num_input,
        "total_output_tokens": num_output,
        "request_throughput": num_done / duration_s,
        "request_goodput": num_good / duration_s if goodput else None,
        "output_throughput": num_output / duration_s,
        "total_token_throughput": (num_input + num_output) / duration_s,
        "max_output_tokens_per_s": float(tokens_by_second.max(initial=0.0)),
        "max_concurrent_requests": int(concurrency(done.start_s, done.end_s)[1].max(initial=0)),
    }
    tpot_s = done.tpot_s
    for name, seconds in (
        ("ttft", done.ttft_s),
        ("tpot", tpot_s[~np.isnan(tpot_s)]),
        ("itl", done.gap_s),
        ("e2el", done.e2el_s),
        ("client_queue_time", done.queue_s),
    ):
        counts = done.gap_counts if name == "itl" else np.ones(len(seconds), dtype=np.int64)
        summary |= _statistics(name, seconds, counts, percentiles)
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


def concurrency(start_s: Floats, end_s: Floats) -> tuple[Floats, Ints]:
    """Return the times of all sendings and ends, and how many requests are under way from each on.

    A request that ends at the instant another is sent does not overlap with it.
    """
    times = np.concatenate([end_s, start_s])
    changes = np.repeat([-1, 1], [len(end_s), len(start_s)])
    order = np.argsort(times, kind="stable")
    return times[order], np.cumsum(changes[order])


def _first_s(record: RequestRecord) -> float:
    return record.chunk_times[0] if record.chunk_times else record.end_s


def _statistics(
    name: str, seconds: Floats, counts: Ints, percentiles: Sequence[float]
) -> dict[str, Any]:
    """Return mean, median, standard deviation and percentiles in milliseconds."""
    names = [f"p{percentile:g}" for percentile in percentiles]
    if not len(seconds):
        return {f"{figure}_{name}_ms": None for figure in ("mean", "median", "std", *names)}
    values = seconds * 1e3
    mean = np.average(values, weights=counts)
    std = np.sqrt(np.average((values - mean) ** 2, weights=counts))
    median, *at = _percentiles(values, counts, (50.0, *percentiles))
    return {
        f"mean_{name}_ms": float(mean),
        f"median_{name}_ms": median,
        f"std_{name}_ms": float(std),
        **{f"{p}_{name}_ms": value for p, value in zip(names, at, strict=True)},
    }


def _percentiles(values: Floats, counts: Ints, percentiles: Sequence[float]) -> list[float]:
    """Return what `np.percentile` says of `values`, each of them repeated `counts` times."""
    order = np.argsort(values)
    values, ends = values[order], np.cumsum(counts[order])
    places = np.asarray(percentiles) / 100 * (ends[-1] - 1)
    below = np.floor(places)
    low, high = (
        values[np.searchsorted(ends, place, side="right")] for place in (below, np.ceil(places))
    )
    interpolated: list[float] = (low + (high - low) * (places - below)).tolist()
    return interpolated
