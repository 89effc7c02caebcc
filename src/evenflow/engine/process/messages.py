"""What the two processes say to each other, as msgspec structs in MessagePack frames."""

from __future__ import annotations

from typing import Any

import msgspec

from evenflow.core.ids import DEFAULT_TENANT, RequestId, TenantId
from evenflow.core.pooling import PoolingParams
from evenflow.core.sampling import SamplingParams
from evenflow.core.slo import Slo
from evenflow.engine.limits import ModelLimits
from evenflow.engine.outputs import Delta
from evenflow.memory.kv_cache_stats import KVCacheStats


class AddRequest(msgspec.Struct, tag=True, frozen=True, omit_defaults=True, kw_only=True):
    """Queue a request; arguments as for `Engine.add_request`.

    Attributes:
        pooling: instead of `params`, for an embedding.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams = SamplingParams()
    pooling: PoolingParams | None = None
    priority: int = 0
    tenant_id: TenantId = DEFAULT_TENANT
    cache_salt: str = ""
    slo: Slo | None = None
    deadline_s: float | None = None
    session_id: str | None = None


class Abort(msgspec.Struct, tag=True, frozen=True):
    """End a request; its deltas with finish reason "abort" follow."""

    request_id: str
    cause: str


class SetPriority(msgspec.Struct, tag=True, frozen=True):
    """Change the priority of a request and all its completions; lower is earlier."""

    request_id: str
    priority: int


class EncodeSentences(msgspec.Struct, tag=True, frozen=True):
    """Embed token sequences with the sentence model; answered by an `AdminReply`."""

    call_id: int
    inputs: list[list[int]]
    params: PoolingParams


class AdminCall(msgspec.Struct, tag=True, frozen=True):
    """Call one of the host's admin methods between two steps."""

    call_id: int
    method: str
    arguments: dict[str, Any] = {}


class Shutdown(msgspec.Struct, tag=True, frozen=True):
    """Leave now. Who wants to hear how requests ended aborts them before."""


Command = AddRequest | Abort | SetPriority | EncodeSentences | AdminCall | Shutdown


class LoadProgress(msgspec.Struct, tag=True, frozen=True):
    """How far fetching or preparing the model is, in bytes."""

    what: str
    num_done: int
    num_total: int


class EngineInfo(msgspec.Struct, tag=True, frozen=True):
    """The engine is ready, and this is what it can do.

    Attributes:
        limits: what requests must keep to.
        num_blocks: KV blocks.
        block_size: tokens per block.
        kv_description: the KV memory in words.
    """

    limits: ModelLimits
    num_blocks: int
    block_size: int
    kv_description: str


class ErrorInfo(msgspec.Struct, frozen=True):
    """An `EvenflowError` on its way to another process."""

    code: str
    message: str
    param: str | None = None
    is_request_error: bool = True


class Failed(msgspec.Struct, tag=True, frozen=True):
    """The engine cannot start or cannot go on; the process ends after this."""

    error: ErrorInfo


class Accepted(msgspec.Struct, tag=True, frozen=True):
    """A request was queued."""

    request_id: str


class Rejected(msgspec.Struct, tag=True, frozen=True):
    """A request was not queued."""

    request_id: str
    error: ErrorInfo


class AdminReply(msgspec.Struct, tag=True, frozen=True):
    """The answer to an `AdminCall` or `EncodeSentences`."""

    call_id: int
    result: Any = None
    error: ErrorInfo | None = None


class StepSample(msgspec.Struct, frozen=True, array_like=True):
    """How long one step took in each verb, and how much it did.

    Attributes:
        schedule_s, execute_s, update_s, emit_s: as in `StepTimes`.
        num_tokens: tokens it computed.
        num_requests: requests it computed them for.
        handover_s: from the end of the step to the next one while work was waiting: sending
            deltas and taking commands.
    """

    schedule_s: float
    execute_s: float
    update_s: float
    emit_s: float
    num_tokens: int
    num_requests: int
    handover_s: float


class TenantState(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a tenant's requests are, and what service it got.

    Attributes:
        num_running: requests that hold memory.
        num_waiting_by_reason: waiting requests by what they wait for: "queue", "memory",
            "tenant_limit", "sibling".
        service_tokens: weighted tokens since the start (`fairness.ServiceLedger`).
    """

    num_running: int = 0
    num_waiting_by_reason: dict[str, int] = {}
    service_tokens: float = 0.0

    @property
    def num_waiting(self) -> int:
        """Waiting requests, for whatever reason."""
        return sum(self.num_waiting_by_reason.values())


class Preemptions(msgspec.Struct, frozen=True):
    """Preemptions since the start, of one kind."""

    mode: str
    reason: str
    tenant_id: TenantId
    count: int


class LinkUse(msgspec.Struct, frozen=True):
    """What was moved from one tier to another since the start.

    Attributes:
        direction: such as "device_to_host".
        num_bytes: bytes of KV.
        num_copies: runs of blocks.
        seconds: that these took by themselves.
        num_failures: transfers that failed.
    """

    direction: str
    num_bytes: int
    num_copies: int
    seconds: float
    num_failures: int


class TierUse(msgspec.Struct, frozen=True):
    """How full a tier below the device is.

    Attributes:
        tier: "host" or "disk".
        num_blocks: blocks it holds.
        num_kept: blocks whose content can be found.
    """

    tier: str
    num_blocks: int
    num_kept: int


class Switching(msgspec.Struct, frozen=True):
    """Requests on their way off the device and back.

    Attributes:
        num_swapped: completions that lost their place and wait to return.
        num_arriving: completions whose KV is being loaded.
        stall_s: seconds for which steps had to wait since the start, by cause.
        num_conflicts: transfers that a step waited for because it wrote into their blocks.
        tiers: those below the device.
        links: those between tiers, as far as anything was moved.
    """

    num_swapped: int = 0
    num_arriving: int = 0
    stall_s: dict[str, float] = {}
    num_conflicts: int = 0
    tiers: list[TierUse] = []
    links: list[LinkUse] = []


class Snapshot(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """How the engine stands: sent every quarter of a second while it works, else every second.

    Attributes:
        at_s: when, on the machine's monotonic clock, which all processes share.
        is_paused: no step is taken.
        tenants: those with requests now, or with service since the start.
        kv: where the blocks are.
        preemptions: cumulative.
        switching: what becomes of preempted requests.
        steps: the steps since the last snapshot.
        num_steps: steps since the start.
        step_s: seconds in each verb since the start, by name.
    """

    at_s: float
    is_paused: bool
    tenants: dict[TenantId, TenantState]
    kv: KVCacheStats
    preemptions: list[Preemptions]
    switching: Switching
    steps: list[StepSample]
    num_steps: int
    step_s: dict[str, float]

    @property
    def num_running(self) -> int:
        """Requests that hold memory."""
        return sum(tenant.num_running for tenant in self.tenants.values())

    @property
    def num_waiting(self) -> int:
        """Requests that wait, for whatever reason."""
        return sum(tenant.num_waiting for tenant in self.tenants.values())


class StepOutput(msgspec.Struct, tag=True, frozen=True):
    """What one step brought.

    Attributes:
        at_s: when the deltas were made.
        deltas: in the order in which the engine made them.
        started: completions that were scheduled for the first time.
    """

    at_s: float
    deltas: list[Delta]
    started: list[RequestId] = []


Output = (
    LoadProgress | EngineInfo | Failed | Accepted | Rejected | AdminReply | Snapshot | StepOutput
)
