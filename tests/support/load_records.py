"""Records of requests as the load client would leave them."""

from __future__ import annotations

from evenflow.workloads.client import Failure, RequestRecord
from evenflow.workloads.request import WorkloadRequest


def record(
    start_s: float,
    *chunk_times: float,
    tokens: int | None = None,
    tenant: str = "",
    due_s: float | None = None,
    failure: Failure | None = None,
    num_prompt: int = 10,
) -> RequestRecord:
    """Return a request that was sent at `start_s` and got chunks at the times given."""
    num_output = len(chunk_times) if tokens is None else tokens
    return RequestRecord(
        WorkloadRequest(num_prompt_tokens=num_prompt, num_output_tokens=num_output, tenant=tenant),
        due_s=start_s if due_s is None else due_s,
        start_s=start_s,
        end_s=chunk_times[-1] if chunk_times else start_s,
        chunk_times=chunk_times,
        num_prompt_tokens=num_prompt,
        num_output_tokens=num_output,
        is_counted=tokens is not None,
        text="text",
        failure=failure,
    )
