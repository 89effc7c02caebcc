"""The result of a run as a value, and as a JSON file with the keys of `vllm bench serve`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenflow.bench.metrics import client_queue_s, e2el_s, itls_s, ttft_s
from evenflow.core.errors import InvalidRequestError

if TYPE_CHECKING:
    from evenflow.workloads.client import RequestRecord


@dataclass(slots=True, frozen=True)
class BenchResult:
    """What a run measured.

    Attributes:
        summary: settings and figures, ready for JSON; `metrics.py` defines them.
        records: what happened to each request, in the order of the workload.
        metadata: the user's own keys and values.
    """

    summary: Mapping[str, Any]
    records: Sequence[RequestRecord]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def to_json(self, *, detailed: bool = False) -> dict[str, Any]:
        """Return the content of the result file.

        Args:
            detailed: add lists with one entry per request, times in seconds. Failed requests have
                the length 0, and the time to first token 0.
        """
        content = {**self.metadata, **self.summary}
        if not detailed:
            return content
        ended = [(record, record.failure is None) for record in self.records]
        return content | {
            "input_lens": [record.num_prompt_tokens for record, _ in ended],
            "output_lens": [record.num_output_tokens if ok else 0 for record, ok in ended],
            "ttfts": [ttft_s(record) if ok else 0.0 for record, ok in ended],
            "itls": [itls_s(record) for record, _ in ended],
            "latencies": [e2el_s(record) for record, _ in ended],
            "start_times": [record.start_s for record, _ in ended],
            "queue_times": [client_queue_s(record) for record, _ in ended],
            "generated_texts": [record.text for record, _ in ended],
            "errors": [record.failure.message if record.failure else "" for record, _ in ended],
            "tenant_ids": [record.request.tenant for record, _ in ended],
        }

    def default_filename(self) -> str:
        """Return a name that tells runs apart: label, rate, concurrency, model, time."""
        summary = self.summary
        rate = f"{summary['request_rate']}qps"
        if "ramp_up_strategy" in summary:
            start, end = summary["ramp_up_start_rps"], summary["ramp_up_end_rps"]
            rate = f"ramp-up-{summary['ramp_up_strategy']}-{start}qps-{end}qps"
        parts = [summary["label"], rate]
        if summary["max_concurrency"] is not None:
            parts.append(f"concurrency{summary['max_concurrency']}")
        parts += [Path(summary["model_id"]).name, summary["date"]]
        return "-".join(parts) + ".json"

    def save(self, path: Path, *, detailed: bool = False) -> None:
        """Write the result file, and its folder if need be."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_json(detailed=detailed)) + "\n", encoding="utf-8")


def read_result(path: Path) -> dict[str, Any]:
    """Read a result file, ours or one of `vllm bench serve`.

    Raises:
        InvalidRequestError: it is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidRequestError(f"{path} cannot be read", why=str(error)) from error
    if not isinstance(content, dict) or "request_throughput" not in content:
        raise InvalidRequestError(
            f"{path} is no result of a benchmark", why="it has no request_throughput"
        )
    return content
