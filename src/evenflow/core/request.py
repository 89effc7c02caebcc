"""A request: one generation, its tokens and how far its KV reaches.

    token_ids            |<------ prompt ------>|<--- output --->|
    num_computed_tokens  |------ has KV ----->|                       chases num_tokens

There are no phases. A step computes some of the tokens between `num_computed_tokens` and
`num_tokens`; when it reaches the end, one token is sampled and appended. Chunked prefill, decode,
prefix hits and recomputation after a preemption are all this one rule.
"""

from __future__ import annotations

from typing import Protocol

from evenflow.core.errors import IntegrityError
from evenflow.core.events import EventKind, RequestEvent
from evenflow.core.ids import DEFAULT_TENANT, RequestId, TenantId
from evenflow.core.rng import derive_seed
from evenflow.core.sampling import SamplingParams
from evenflow.core.status import TRANSITIONS, RequestStatus


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


class Request:
    """One generation.

    Attributes:
        request_id: unique among live requests.
        tenant_id: who is served.
        sampling: how tokens are chosen.
        seed: the 64-bit seed of its random stream.
        arrival_s: when it came, in the engine clock's seconds.
        sequence_number: order of arrival, the tie-break of every ranking.
        priority: lower is earlier, as in vLLM.
        parent_id: for completions 2..n of one prompt, the request whose prompt KV they share.
        cache_salt: separates prefix caches; requests with different salts never share blocks.
        token_ids: prompt, then output.
        num_prompt_tokens: length of the prompt.
        num_computed_tokens: leading tokens whose KV is in memory.
        num_cached_tokens: prompt tokens found in the prefix cache when first scheduled.
        max_num_tokens: length at which the request ends for good.
        stop_token_ids: ids that end the request, the model's end tokens included.
        num_preemptions: times it lost its memory.
        events: its turning points, oldest first.
    """

    __slots__ = (
        "arrival_s",
        "cache_salt",
        "events",
        "max_num_tokens",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_preemptions",
        "num_prompt_tokens",
        "parent_id",
        "priority",
        "request_id",
        "sampling",
        "seed",
        "sequence_number",
        "status",
        "stop_reason",
        "stop_token_ids",
        "tenant_id",
        "token_ids",
    )

    def __init__(
        self,
        request_id: RequestId,
        prompt_token_ids: list[int],
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
    ) -> None:
        self.request_id = request_id
        self.tenant_id = tenant_id
        self.sampling = sampling
        seed = sampling.seed if sampling.seed is not None else derive_seed(request_id)
        self.seed = seed & 0xFFFF_FFFF_FFFF_FFFF
        self.arrival_s = arrival_s
        self.sequence_number = sequence_number
        self.priority = priority
        self.parent_id = parent_id
        self.cache_salt = cache_salt
        self.token_ids = list(prompt_token_ids)
        self.num_prompt_tokens = len(prompt_token_ids)
        self.num_computed_tokens = 0
        self.num_cached_tokens: int | None = None
        self.max_num_tokens = max_num_tokens
        self.stop_token_ids = stop_token_ids
        self.stop_reason: int | str | None = None
        self.num_preemptions = 0
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
    def is_finished(self) -> bool:
        """Whether the request has ended."""
        return self.status.is_finished

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

    def record(self, kind: EventKind, at_s: float, cause: str) -> None:
        """Remember a turning point."""
        self.events.append(RequestEvent(kind, at_s, cause))
