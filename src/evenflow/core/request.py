"""A request: one generation, its tokens and how far its KV reaches.

    token_ids            |<------ prompt ------>|<--- output --->|
    num_computed_tokens  |------ has KV ----->|                       chases num_tokens

There are no phases. A step computes some of the tokens between `num_computed_tokens` and
`num_tokens`; when it reaches the end, one token is sampled and appended. Chunked prefill, decode,
prefix hits and recomputation after a preemption are all this one rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from evenflow.core.errors import IntegrityError
from evenflow.core.events import (
    MAX_NUM_PAUSABLE_EVENTS,
    NUM_DETAILED_EVENTS,
    EventKind,
    RequestEvent,
    WaitReason,
)
from evenflow.core.ids import DEFAULT_TENANT, RequestId, TenantId
from evenflow.core.pooling import PoolingParams
from evenflow.core.rng import derive_seed
from evenflow.core.sampling import SamplingParams
from evenflow.core.slo import Slo
from evenflow.core.status import TRANSITIONS, RequestStatus
from evenflow.core.structured import TokenGrammar


class RequestView(Protocol):
    """What a policy may see of a request. All of it is read-only."""

    @property
    def request_id(self) -> RequestId: ...
    @property
    def tenant_id(self) -> TenantId: ...
    @property
    def priority(self) -> int: ...
    @property
    def arrival_s(self) -> float: ...
    @property
    def sequence_number(self) -> int: ...
    @property
    def status(self) -> RequestStatus: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def num_prompt_tokens(self) -> int: ...
    @property
    def num_computed_tokens(self) -> int: ...
    @property
    def num_preemptions(self) -> int: ...
    @property
    def slo(self) -> Slo | None: ...
    @property
    def deadline_s(self) -> float | None: ...


class Request:
    """One generation.

    Attributes:
        request_id: unique among live requests.
        tenant_id: who is served.
        sampling: how tokens are chosen.
        pooling: for a request that wants an embedding and no tokens; it ends with its prompt.
        hidden_sum: (hidden_size,), the sum of the hidden states of the computed tokens of a request
            with `pooling`; without meaning while none is computed.
        grammar: what its text must keep to; it has accepted exactly the output tokens.
        seed: the 64-bit seed of its random stream.
        arrival_s: when it came, in the engine clock's seconds.
        sequence_number: order of arrival, the tie-break of every ranking.
        priority: lower is earlier, as in vLLM.
        slo: what its latencies are measured against.
        deadline_s: when it ends, done or not, in the engine clock's seconds; None for never.
        parent_id: for completions 2..n of one prompt, the request whose prompt KV they share.
        session_id: the tenant's session whose next turn this is.
        cache_salt: separates prefix caches; requests with different salts never share blocks.
        token_ids: prompt, then output.
        num_prompt_tokens: length of the prompt.
        num_computed_tokens: leading tokens whose KV is in memory.
        num_tokens_when_admitted: tokens it had when it last started or resumed.
        num_cached_tokens: prompt tokens found in the prefix cache when first scheduled.
        num_settled_tokens: leading prompt tokens that are on the tenant's account: charged when
            they were first computed, or free because their KV was there already.
        max_num_tokens: length at which the request ends for good.
        stop_token_ids: ids that end the request, the model's end tokens included.
        num_preemptions: times it lost its memory.
        resident_since_s: when it last began or went on to run, in the engine clock's seconds.
        left_s: when it came, or last lost its memory, in the engine clock's seconds.
        first_token_s: when it had its first token, in the engine clock's seconds; None before.
        events: its turning points, oldest first.
    """

    __slots__ = (
        "arrival_s",
        "cache_salt",
        "deadline_s",
        "events",
        "first_token_s",
        "grammar",
        "hidden_sum",
        "left_s",
        "max_num_tokens",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_preemptions",
        "num_prompt_tokens",
        "num_settled_tokens",
        "num_tokens_when_admitted",
        "parent_id",
        "pooling",
        "priority",
        "request_id",
        "resident_since_s",
        "sampling",
        "seed",
        "sequence_number",
        "session_id",
        "slo",
        "status",
        "stop_reason",
        "stop_token_ids",
        "tenant_id",
        "token_ids",
    )

    def __init__(
        self,
        request_id: RequestId,
        prompt_token_ids: Sequence[int],
        sampling: SamplingParams,
        *,
        max_num_tokens: int,
        arrival_s: float = 0.0,
        sequence_number: int = 0,
        priority: int = 0,
        tenant_id: TenantId = DEFAULT_TENANT,
        parent_id: RequestId | None = None,
        cache_salt: str = "",
        stop_token_ids: frozenset[int] = frozenset(),
        pooling: PoolingParams | None = None,
        grammar: TokenGrammar | None = None,
        slo: Slo | None = None,
        deadline_s: float | None = None,
        session_id: str | None = None,
    ) -> None:
        self.request_id = request_id
        self.tenant_id = tenant_id
        self.sampling = sampling
        self.pooling = pooling
        self.grammar = grammar
        self.hidden_sum: npt.NDArray[np.float64] | None = None
        seed = sampling.seed if sampling.seed is not None else derive_seed(request_id)
        self.seed = seed & 0xFFFF_FFFF_FFFF_FFFF
        self.arrival_s = arrival_s
        self.sequence_number = sequence_number
        self.priority = priority
        self.slo = slo
        self.deadline_s = deadline_s
        self.parent_id = parent_id
        self.session_id = session_id
        self.cache_salt = cache_salt
        self.token_ids = list(prompt_token_ids)
        self.num_prompt_tokens = len(prompt_token_ids)
        self.num_computed_tokens = 0
        self.num_tokens_when_admitted = 0
        self.num_cached_tokens: int | None = None
        self.num_settled_tokens = 0
        self.max_num_tokens = max_num_tokens
        self.stop_token_ids = stop_token_ids
        self.stop_reason: int | str | None = None
        self.num_preemptions = 0
        self.resident_since_s = 0.0
        self.left_s = arrival_s
        self.first_token_s: float | None = None
        self.status = RequestStatus.WAITING
        self.events: list[RequestEvent] = []

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens so far."""
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Output tokens so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def output_token_ids(self) -> list[int]:
        """A copy of the output tokens so far."""
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def mean_hidden(self) -> npt.NDArray[np.float64]:
        """The mean hidden state of a request with `pooling`, all of whose tokens are computed."""
        if self.hidden_sum is None or self.num_computed_tokens < self.num_tokens:
            raise IntegrityError(f"the hidden states of request {self.request_id} were not summed")
        return self.hidden_sum / self.num_tokens

    @property
    def is_finished(self) -> bool:
        """Whether the request has ended."""
        return self.status >= RequestStatus.FINISHED_STOPPED

    def move_to(self, status: RequestStatus) -> None:
        """Change the status.

        Raises:
            IntegrityError: the move is not in `TRANSITIONS`.
        """
        if status not in TRANSITIONS[self.status]:
            raise IntegrityError(
                f"request {self.request_id} cannot go from {self.status.name} to {status.name}"
            )
        self.status = status

    def record(self, kind: EventKind, at_s: float, cause: str, *, num_tokens: int = 0) -> None:
        """Remember a turning point."""
        self.events.append(RequestEvent(kind, at_s, cause, num_tokens=num_tokens))

    def record_wait(self, reason: WaitReason, at_s: float, cause: str) -> None:
        """Remember that from now on it waits for something else than before."""
        if len(self.events) < NUM_DETAILED_EVENTS or self.events[-1].kind is not EventKind.HELD:
            self.events.append(RequestEvent(EventKind.HELD, at_s, cause, reason))

    def record_chunk(self, num_tokens: int, at_s: float) -> None:
        """Remember that a step computed some of the missing tokens, but not all."""
        num_times = 1
        last = self.events[-1]
        if last.kind is EventKind.PREFILL_CHUNK and len(self.events) >= NUM_DETAILED_EVENTS:
            self.events.pop()
            num_tokens += last.num_tokens
            num_times += last.num_times
        self.events.append(
            RequestEvent(
                EventKind.PREFILL_CHUNK, at_s, "", num_tokens=num_tokens, num_times=num_times
            )
        )

    def record_preemption(self, reason: WaitReason, at_s: float, cause: str) -> None:
        """Remember that it lost its memory, what for, and how far its KV reached."""
        num_tokens, num_times = self.num_computed_tokens, 1
        if len(self.events) >= NUM_DETAILED_EVENTS:
            starts = [i for i, e in enumerate(self.events) if e.kind is EventKind.PREEMPTED]
            if starts:
                merged = self.events[starts[-1]]
                del self.events[starts[-1] :]
                at_s = merged.at_s
                num_tokens = max(num_tokens, merged.num_tokens)
                num_times += merged.num_times
        self.events.append(
            RequestEvent(
                EventKind.PREEMPTED,
                at_s,
                cause,
                reason,
                num_tokens,
                num_times,
            )
        )

    def record_pause(self, at_s: float) -> None:
        """Remember that whatever it does is interrupted."""
        if len(self.events) < MAX_NUM_PAUSABLE_EVENTS:
            self.events.append(
                RequestEvent(
                    EventKind.PAUSED,
                    at_s,
                    "paused by an operator",
                    WaitReason.PAUSE,
                    self.num_computed_tokens,
                )
            )

    def record_continuation(self, at_s: float) -> None:
        """Remember that it goes on with what a pause interrupted, if that was recorded."""
        if self.events[-1].kind is EventKind.PAUSED:
            before = self.events[-2]
            self.events.append(RequestEvent(EventKind.CONTINUED, at_s, before.cause, before.reason))
