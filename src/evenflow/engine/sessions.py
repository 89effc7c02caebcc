"""Conversations whose KV is kept between turns.

    open ──▶ (a request of the session ends) ──▶ kept ──time to live is over──▶ not kept
                         ▲                        │                                │
                         └────── the next turn ───┴────────────────────────────────┘ ... release

When a request of a session ends, the KV of its prompt and output is kept, and the time to live
begins anew. The next turn, which starts with these tokens, then has only what is new to compute,
however many other requests have come in between. Where it is kept depends on the memory there is:

    on the device   without tiers below it, or after `pin`: blocks are pinned, whatever happens
    on the host     otherwise: the scheduler has stored them there, and until the time to live is
                    over they outlast copies that nobody is known to come back for

Knows: sessions, whose they are, until when each keeps its KV.
Does not know: the time, which is passed in; requests that still run; how KV gets to the host.

Invariants:
    A session is found under its tenant and id; to other tenants it does not exist.
    A session without a pin costs no memory of the device.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from evenflow.core.errors import (
    DuplicateSessionError,
    InvalidRequestError,
    PinLimitError,
    SessionLimitError,
    SessionNotFoundError,
)
from evenflow.core.ids import TenantId
from evenflow.core.request import Request
from evenflow.memory.kv_cache_manager import KVCacheManager
from evenflow.memory.prefix_cache import BlockHash
from evenflow.memory.transfers import Tier

_Key: TypeAlias = tuple[TenantId, str]

_MAX_ID_CHARACTERS = 128


@dataclass(slots=True, eq=False)
class Session:
    """One conversation.

    Attributes:
        tenant_id: whose it is.
        session_id: unique among the tenant's sessions.
        ttl_s: seconds from the end of a turn for which its KV is kept.
        expires_s: until when it is kept, in the engine clock's seconds; None if nothing is.
        num_pinned_tokens: how much is pinned on the device.
        refusal: why the last turn could not be pinned, in words; an older pin stays.
        token_ids: prompt and output of the last turn.
        cache_salt: under which they are cached.
        contents: what the full blocks of their KV are called.
        priority: of the last turn.
    """

    tenant_id: TenantId
    session_id: str
    ttl_s: float
    expires_s: float | None = None
    num_pinned_tokens: int = 0
    refusal: str | None = None
    token_ids: array[int] = field(default_factory=lambda: array("i"), repr=False)
    cache_salt: str = field(default="", repr=False)
    contents: list[BlockHash] = field(default_factory=list, repr=False)
    priority: int = 0

    @property
    def key(self) -> _Key:
        """What it is found under; also names its pin."""
        return self.tenant_id, self.session_id


class SessionTable:
    """All sessions.

    Args:
        kv: where KV is kept.
        max_pinned_blocks: most blocks that all pins together may hold.
        max_sessions: most sessions to remember. A new one takes the place of the oldest that pins
            nothing.

    Attributes:
        next_expiry_s: nothing is to be let go earlier.
    """

    def __init__(
        self, kv: KVCacheManager, *, max_pinned_blocks: int, max_sessions: int = 1024
    ) -> None:
        self._kv = kv
        self._max_pinned_blocks = max_pinned_blocks
        self._max_sessions = max_sessions
        self._sessions: dict[_Key, Session] = {}
        self._num_opened = 0
        self.next_expiry_s = math.inf

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._sessions.values())

    def open(self, tenant_id: TenantId, ttl_s: float, session_id: str | None = None) -> Session:
        """Begin a session, which keeps nothing yet.

        Args:
            tenant_id: whose it is.
            ttl_s: how long its KV is kept after each turn.
            session_id: names it; made up if not given.

        Raises:
            InvalidRequestError: a value is out of range, with its name.
            DuplicateSessionError: the tenant has a session of this id.
            SessionLimitError: there are too many, and all of them pin something.
        """
        _check_ttl(ttl_s)
        if session_id is None:
            session_id = self._unused_id(tenant_id)
        elif not 1 <= len(session_id) <= _MAX_ID_CHARACTERS:
            raise InvalidRequestError(
                f"a session id has 1 to {_MAX_ID_CHARACTERS} characters",
                param="session_id",
                why=f"this one has {len(session_id)}",
            )
        session = Session(tenant_id, session_id, ttl_s)
        if session.key in self._sessions:
            raise DuplicateSessionError(
                f"session {session_id!r} is open",
                param="session_id",
                fix="Open it under another id, or release it first",
            )
        self._make_room()
        self._sessions[session.key] = session
        return session

    def has(self, tenant_id: TenantId, session_id: str) -> bool:
        """Return whether a tenant has a session of this id."""
        return (tenant_id, session_id) in self._sessions

    def get(self, tenant_id: TenantId, session_id: str) -> Session:
        """Return a tenant's session.

        Raises:
            SessionNotFoundError: the tenant has none of this id.
        """
        session = self._sessions.get((tenant_id, session_id))
        if session is None:
            raise SessionNotFoundError(
                f"there is no session {session_id!r}",
                param="session_id",
                why="it was not opened, was released, or was forgotten when too many were open",
                fix="Open a session first",
            )
        return session

    def describe(self, session: Session, now_s: float) -> dict[str, Any]:
        """Return a session as the admin API shows it; `kept` says what would be found now."""
        places = self._kv.locate(session.contents)
        return {
            "id": session.session_id,
            "tenant": session.tenant_id,
            "ttl_s": session.ttl_s,
            "expires_in_s": None if session.expires_s is None else session.expires_s - now_s,
            "num_tokens": len(session.token_ids),
            "num_pinned_tokens": session.num_pinned_tokens,
            "kept": {tier.value: places[tier] for tier in Tier if places[tier]},
            "refusal": session.refusal,
        }

    def pin(
        self, tenant_id: TenantId, session_id: str, now_s: float, ttl_s: float | None = None
    ) -> Session:
        """Keep on the device what is cached there of a session's last turn.

        From now on for its time to live; the next turn's end moves the pin.

        Args:
            tenant_id: whose session it is.
            session_id: names it.
            now_s: the time.
            ttl_s: the session's time to live from now on; None leaves it as it is.

        Raises:
            SessionNotFoundError: the tenant has none of this id.
            InvalidRequestError: `ttl_s` is out of range.
            PinLimitError: too many blocks would be pinned; nothing has changed.
        """
        session = self.get(tenant_id, session_id)
        if ttl_s is not None:
            _check_ttl(ttl_s)
        self._pin(session)
        if ttl_s is not None:
            session.ttl_s = ttl_s
        self._renew(session, now_s)
        return session

    def keep(self, session: Session, request: Request, now_s: float) -> None:
        """A request of the session has ended: keep what it computed instead of what was kept.

        A pin moves. If that is too much to be pinned the pin stays where it is, and the session
        says so.
        """
        if self._sessions.get(session.key) is not session:
            return
        session.token_ids = array("i", request.token_ids)
        session.cache_salt = request.cache_salt
        session.contents = self._kv.contents(request)
        session.priority = request.priority
        if self._kv.copies is None or session.num_pinned_tokens:
            try:
                self._pin(session)
            except PinLimitError as error:
                session.refusal = str(error)
        self._renew(session, now_s)

    def release(self, tenant_id: TenantId, session_id: str) -> None:
        """End a session and let go of what it keeps.

        Raises:
            SessionNotFoundError: the tenant has none of this id.
        """
        session = self.get(tenant_id, session_id)
        del self._sessions[session.key]
        self._let_go(session)

    def expire(self, now_s: float) -> None:
        """Let go of what is kept for no longer than until now."""
        if now_s < self.next_expiry_s:
            return
        self.next_expiry_s = math.inf
        for session in self:
            if session.expires_s is None:
                continue
            if session.expires_s <= now_s:
                self._let_go(session)
            else:
                self.next_expiry_s = min(self.next_expiry_s, session.expires_s)

    def _pin(self, session: Session) -> None:
        session.num_pinned_tokens = self._kv.pin(
            session.key,
            session.token_ids,
            session.cache_salt,
            max_pinned_blocks=self._max_pinned_blocks,
        )
        session.refusal = None

    def _let_go(self, session: Session) -> None:
        """What a session keeps is from now on like anything else that was computed once."""
        self._kv.unpin(session.key)
        if self._kv.copies is not None and session.expires_s is not None:
            last_use_s = session.expires_s - session.ttl_s
            self._kv.copies.devalue(session.key, session.contents, session.priority, last_use_s)
        session.expires_s = None
        session.num_pinned_tokens = 0

    def _renew(self, session: Session, now_s: float) -> None:
        has_copies = self._kv.copies is not None and bool(session.contents)
        keeps = has_copies or session.num_pinned_tokens > 0
        session.expires_s = now_s + session.ttl_s if keeps else None
        if session.expires_s is not None:
            self.next_expiry_s = min(self.next_expiry_s, session.expires_s)

    def _unused_id(self, tenant_id: TenantId) -> str:
        while True:
            self._num_opened += 1
            session_id = f"session-{self._num_opened}"
            if (tenant_id, session_id) not in self._sessions:
                return session_id

    def _make_room(self) -> None:
        if len(self._sessions) < self._max_sessions:
            return
        oldest = next((session for session in self if not session.num_pinned_tokens), None)
        if oldest is None:
            raise SessionLimitError(
                "no more sessions can be opened",
                why=f"{self._max_sessions} are open and all of them pin KV",
                fix="Release some, or give them a shorter ttl_s",
            )
        self.release(*oldest.key)


def _check_ttl(ttl_s: float) -> None:
    is_number = isinstance(ttl_s, int | float) and not isinstance(ttl_s, bool)
    if not is_number or not 0 < ttl_s < math.inf:
        raise InvalidRequestError(
            "ttl_s must be a number of seconds above 0", param="ttl_s", why=f"it is {ttl_s!r}"
        )
