"""Whether a request may join the queue, and when to come back if it may not.

    refuse_early ──▶ (tokenise) ──▶ offer ──▶ queued ──▶ started ──▶ ended
         │                            │          └─────────▶ ended (never ran)
         └──▶ rejected                └──▶ rejected

A request waits from `queued` until it is scheduled for the first time (`started`) or ends. Two
things are bounded, each for a tenant and for everybody together or for the tenant alone: what
waits, and how many tokens a minute are used.

Knows: how many requests and tokens wait, how fast they leave, how many tokens tenants used.
Does not know: requests, memory, what happens after `started`.

Every call takes constant time.

Invariants:
    The counts of the whole are the sums of those of the tenants.
    A request that finds a queue empty is not refused for that queue's sake, however long it is.
"""

from __future__ import annotations

import math
from collections import deque

from evenflow.core.errors import IntegrityError, QueueFullError, RateLimitError, RejectedError
from evenflow.core.ids import TenantId
from evenflow.core.wording import counted
from evenflow.fairness.tenants import TenantDirectory, TenantLimits

RATE_WINDOW_S = 30.0
MIN_RETRY_AFTER_S = 1.0
MAX_RETRY_AFTER_S = 60.0
RETRY_AFTER_WITHOUT_DATA_S = 5.0

_MAX_NUM_DEPARTURES = 256
_MINUTE_S = 60.0


class AdmissionControl:
    """The queue as it looks from the door.

    Args:
        max_num_queued_reqs: most requests that wait.
        max_num_queued_tokens: most prompt tokens of these; None for any number.
        directory: limits of tenants; callers pass names through its `canonical` first.
    """

    def __init__(
        self,
        max_num_queued_reqs: int,
        max_num_queued_tokens: int | None,
        directory: TenantDirectory,
    ) -> None:
        self._directory = directory
        self._all = _Queue("", max_num_queued_reqs, max_num_queued_tokens)
        self._tenants: dict[TenantId, _TenantAccount] = {}
        self._live: dict[str, _LiveRequest] = {}

    @property
    def num_queued_reqs(self) -> int:
        """Requests that wait."""
        return self._all.num_requests

    @property
    def num_queued_tokens(self) -> int:
        """Prompt tokens of the requests that wait."""
        return self._all.num_tokens

    def refuse_early(self, tenant_id: TenantId, now_s: float) -> RejectedError | None:
        """Return why a request of any length would be refused, or None; changes nothing.

        Asked before tokenising, it spares a server under attack most of the work.
        """
        return self._refusal(self._account(tenant_id), 1, now_s)

    def offer(self, tenant_id: TenantId, num_tokens: int, now_s: float) -> RejectedError | None:
        """Return why a request is refused, or None; then `queued` is to follow at once.

        An accepted request is charged its prompt, against the tenant's tokens per minute; `ended`
        charges its output.

        Args:
            tenant_id: whose request it is.
            num_tokens: length of the prompt.
            now_s: the time.
        """
        account = self._account(tenant_id)
        refusal = self._refusal(account, num_tokens, now_s)
        if refusal is None and account.bucket is not None:
            account.bucket.charge(num_tokens, now_s)
        return refusal

    def queued(self, request_id: str, tenant_id: TenantId, num_tokens: int) -> None:
        """Note that an offered request waits now."""
        if request_id in self._live:
            raise IntegrityError(f"request {request_id} was queued twice")
        account = self._account(tenant_id)
        self._live[request_id] = _LiveRequest(account, num_tokens)
        self._all.join(num_tokens)
        account.queue.join(num_tokens)

    def started(self, request_id: str, now_s: float) -> None:
        """Note that a request was scheduled for the first time; does nothing if it was before."""
        live = self._live.get(request_id)
        if live is not None and live.is_waiting:
            live.is_waiting = False
            self._all.leave(live.num_tokens, now_s)
            live.account.queue.leave(live.num_tokens, now_s)

    def ended(self, request_id: str, num_output_tokens: int, now_s: float) -> None:
        """Note that a request ended, whether or not it ever started.

        Args:
            request_id: does nothing if it is unknown.
            num_output_tokens: of all its completions; charged to the tenant.
            now_s: the time.
        """
        self.started(request_id, now_s)
        live = self._live.pop(request_id, None)
        if live is not None and live.account.bucket is not None:
            live.account.bucket.charge(num_output_tokens, now_s)

    def check_integrity(self) -> None:
        """Recount everything.

        Raises:
            IntegrityError: a count is wrong.
        """
        waiting = [live for live in self._live.values() if live.is_waiting]
        self._all.check(waiting)
        for account in self._tenants.values():
            account.queue.check([live for live in waiting if live.account is account])

    def _account(self, tenant_id: TenantId) -> _TenantAccount:
        account = self._tenants.get(tenant_id)
        if account is None:
            account = _TenantAccount(tenant_id, self._directory.limits(tenant_id))
            self._tenants[tenant_id] = account
        return account

    def _refusal(
        self, account: _TenantAccount, num_tokens: int, now_s: float
    ) -> RejectedError | None:
        if account.bucket is not None:
            refusal = account.bucket.refusal(num_tokens, now_s)
            if refusal is not None:
                return refusal
        return account.queue.refusal(num_tokens, now_s) or self._all.refusal(num_tokens, now_s)


class _Queue:
    """How much waits, how much may, and how fast it leaves.

    Args:
        owner: whose queue it is, in words for messages; empty for everybody's.
        max_num_requests: most requests that may wait, None for any number.
        max_num_tokens: most prompt tokens that may wait, None for any number.
    """

    __slots__ = (
        "_departures",
        "max_num_requests",
        "max_num_tokens",
        "num_requests",
        "num_tokens",
        "owner",
    )

    def __init__(
        self, owner: str, max_num_requests: int | None, max_num_tokens: int | None
    ) -> None:
        self.owner = owner
        self.max_num_requests = max_num_requests
        self.max_num_tokens = max_num_tokens
        self.num_requests = 0
        self.num_tokens = 0
        self._departures: deque[float] = deque(maxlen=_MAX_NUM_DEPARTURES)

    def join(self, num_tokens: int) -> None:
        self.num_requests += 1
        self.num_tokens += num_tokens

    def leave(self, num_tokens: int, now_s: float) -> None:
        self.num_requests -= 1
        self.num_tokens -= num_tokens
        self._departures.append(now_s)

    def refusal(self, num_tokens: int, now_s: float) -> QueueFullError | None:
        if self.num_requests == 0:
            return None
        limit = self.max_num_requests
        if limit is not None and self.num_requests >= limit:
            return self._full(f"{counted(limit, 'request')} may wait, and no more", now_s)
        limit = self.max_num_tokens
        if limit is not None and self.num_tokens + num_tokens > limit:
            why = (
                f"{self.num_tokens} prompt tokens wait and {limit} may; "
                f"the request has at least {num_tokens}"
            )
            return self._full(why, now_s)
        return None

    def _full(self, why: str, now_s: float) -> QueueFullError:
        retry_after_s = self._drain_time_s(now_s)
        return QueueFullError(
            f"the queue{self.owner} is full",
            retry_after_s=retry_after_s,
            why=why,
            fix=f"Try again in {retry_after_s:.0f} s",
        )

    def _drain_time_s(self, now_s: float) -> float:
        """Return in how many seconds all that wait now will have left, at the rate of late.

        Telling everybody when the next place will be free would bring them all back for it.
        """
        departures = self._departures
        while departures and departures[0] < now_s - RATE_WINDOW_S:
            departures.popleft()
        if len(departures) < 2:
            return RETRY_AFTER_WITHOUT_DATA_S
        elapsed_s = max(now_s - departures[0], 1.0)
        drain_s = self.num_requests * elapsed_s / len(departures)
        return float(math.ceil(min(max(drain_s, MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S)))

    def check(self, waiting: list[_LiveRequest]) -> None:
        counted = (len(waiting), sum(live.num_tokens for live in waiting))
        if counted != (self.num_requests, self.num_tokens):
            raise IntegrityError(
                f"the queue{self.owner} is counted wrongly",
                why=f"{self.num_requests} requests with {self.num_tokens} tokens, not {counted}",
            )


class _TokenBucket:
    """Tokens a tenant may use: a minute's worth at most, refilled at an even rate.

    Output is charged when it is there, so the level may fall below zero; the tenant then waits
    until the debt is paid.
    """

    __slots__ = ("_level", "_refilled_s", "owner", "per_minute")

    def __init__(self, owner: str, per_minute: int) -> None:
        self.owner = owner
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._refilled_s = -math.inf

    def charge(self, num_tokens: int, now_s: float) -> None:
        self._level = self._level_at(now_s) - num_tokens
        self._refilled_s = now_s

    def refusal(self, num_tokens: int, now_s: float) -> RateLimitError | None:
        level = self._level_at(now_s)
        # A prompt longer than a minute's worth can be had out of a full bucket.
        missing = min(num_tokens, self.per_minute) - level
        if missing <= 0:
            return None
        retry_after_s = float(math.ceil(missing * _MINUTE_S / self.per_minute))
        return RateLimitError(
            f"{self.owner} has used its tokens of this minute",
            retry_after_s=retry_after_s,
            why=f"it may use {self.per_minute} a minute and has {math.floor(level)} left; the "
            f"request has at least {num_tokens}",
            fix=f"Try again in {retry_after_s:.0f} s",
        )

    def _level_at(self, now_s: float) -> float:
        refill = (now_s - self._refilled_s) * self.per_minute / _MINUTE_S
        return min(self._level + refill, float(self.per_minute))


class _TenantAccount:
    """What a tenant has waiting and may use."""

    __slots__ = ("bucket", "queue")

    def __init__(self, tenant_id: TenantId, limits: TenantLimits) -> None:
        owner = f"tenant {tenant_id}"
        self.queue = _Queue(f" of {owner}", limits.max_queued_requests, limits.max_queued_tokens)
        per_minute = limits.tokens_per_minute
        self.bucket = None if per_minute is None else _TokenBucket(owner, per_minute)


class _LiveRequest:
    """A request between `queued` and `ended`."""

    __slots__ = ("account", "is_waiting", "num_tokens")

    def __init__(self, account: _TenantAccount, num_tokens: int) -> None:
        self.account = account
        self.num_tokens = num_tokens
        self.is_waiting = True
