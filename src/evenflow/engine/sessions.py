"""Conversations whose KV is kept between turns.

    open ──▶ (a request of the session ends) ──▶ pinned ──time to live is over──▶ not pinned
                         ▲                         │                                 │
                         └────── the next turn ────┴─────────────────────────────────┘ ... release

When a request of a session ends, the session's pin moves to the request's prompt and output, and
its time to live begins anew. The next turn, which starts with these tokens, then has only what is
new to compute, however many other requests have come in between.

Knows: sessions, whose they are, until when each keeps its KV.
Does not know: the time, which is passed in; requests that still run.

Invariants:
    A session is found under its tenant and id; to other tenants it does not exist.
    A session without a pin costs no KV memory.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence
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
from evenflow.memory.kv_cache_manager import KVCacheManager

_Key: TypeAlias = tuple[TenantId, str]

_MAX_ID_CHARACTERS = 128


@dataclass(slots=True, eq=False)
class Session:
    """One conversation.

    Attributes:
        tenant_id: whose it is.
        session_id: unique among the tenant's sessions.
        ttl_s: seconds from the end of a turn for which its KV is kept.
        expires_s: when the pin is let go, in the engine clock's seconds; None without a pin.
        num_pinned_tokens: how much was pinned last.
        refusal: why the last turn could not be pinned, in words; an older pin stays.
        token_ids: prompt and output of the last turn.
        cache_salt: under which they are cached.
    """

    tenant_id: TenantId
    session_id: str
    ttl_s: float
    expires_s: float | None = None
    num_pinned_tokens: int = 0
    refusal: str | None = None
    token_ids: array[int] = field(default_factory=lambda: array("i"), repr=False)
    cache_salt: str = field(default="", repr=False)

    @property
    def key(self) -> _Key:
        """What it is found under; also names its pin."""
        return self.tenant_id, self.session_id

    def to_json(self, now_s: float) -> dict[str, Any]:
        """Return it as the admin API shows it."""
        return {
            "id": self.session_id,
            "tenant": self.tenant_id,
            "ttl_s": self.ttl_s,
            "expires_in_s": None if self.expires_s is None else self.expires_s - now_s,
            "num_tokens": len(self.token_ids),
            "num_pinned_tokens": self.num_pinned_tokens,
            "refusal": self.refusal,
        }


class SessionTable:
    """All sessions.

    Args:
        kv: where the pins are.
        max_pinned_blocks: most blocks that all pins together may hold.
        max_sessions: most sessions to remember. A new one takes the place of the oldest that pins
            nothing.

    Attributes:
        next_expiry_s: no pin is to be let go earlier.
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
        """Begin a session, which pins nothing yet.

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

    def pin(
        self, tenant_id: TenantId, session_id: str, now_s: float, ttl_s: float | None = None
    ) -> Session:
        """Keep what is cached of a session's last turn, from now on for its time to live.

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
        self._pin(session, session.token_ids, session.cache_salt)
        if ttl_s is not None:
            session.ttl_s = ttl_s
        self._renew(session, now_s)
        return session

    def keep(
        self, session: Session, token_ids: Sequence[int], cache_salt: str, now_s: float
    ) -> None:
        """A request of the session ended with these tokens: move the pin there.

        If they are too many to be pinned the session keeps what it has, and says so.
        """
        if self._sessions.get(session.key) is not session:
            return
        session.token_ids = array("i", token_ids)
        session.cache_salt = cache_salt
        try:
            self._pin(session, token_ids, cache_salt)
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
        self._kv.unpin(session.key)

    def expire(self, now_s: float) -> None:
        """Let go of the pins whose time is over."""
        if now_s < self.next_expiry_s:
            return
        self.next_expiry_s = math.inf
        for session in self:
            if session.expires_s is None:
                continue
            if session.expires_s <= now_s:
                self._kv.unpin(session.key)
                session.expires_s = None
                session.num_pinned_tokens = 0
            else:
                self.next_expiry_s = min(self.next_expiry_s, session.expires_s)

    def _pin(self, session: Session, token_ids: Sequence[int], cache_salt: str) -> None:
        session.num_pinned_tokens = self._kv.pin(
            session.key, token_ids, cache_salt, max_pinned_blocks=self._max_pinned_blocks
        )
        session.refusal = None

    def _renew(self, session: Session, now_s: float) -> None:
        session.expires_s = now_s + session.ttl_s if session.num_pinned_tokens else None
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
        oldest = next((session for session in self if session.expires_s is None), None)
        if oldest is None:
            raise SessionLimitError(
                "no more sessions can be opened",
                why=f"{self._max_sessions} are open and all of them keep KV",
                fix="Release some, or give them a shorter ttl_s",
            )
        del self._sessions[oldest.key]


def _check_ttl(ttl_s: float) -> None:
    is_number = isinstance(ttl_s, int | float) and not isinstance(ttl_s, bool)
    if not is_number or not 0 < ttl_s < math.inf:
        raise InvalidRequestError(
            "ttl_s must be a number of seconds above 0", param="ttl_s", why=f"it is {ttl_s!r}"
        )
