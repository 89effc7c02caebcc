"""Responses that are kept for later requests, in memory."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from evenflow.core.errors import IntegrityError


@dataclass(slots=True, frozen=True)
class StoredResponse:
    """A response with the conversation that it ends.

    Attributes:
        response: the response object.
        conversation: chat messages, the response's own last.
    """

    response: dict[str, Any]
    conversation: list[dict[str, Any]]


class ResponseStore:
    """A bounded store. When it is full, the tenant that holds most loses its oldest response.

    Args:
        max_bytes: most bytes of all responses with their conversations, as JSON.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._by_tenant: defaultdict[str, dict[str, tuple[StoredResponse, int]]] = defaultdict(dict)
        self._num_bytes: defaultdict[str, int] = defaultdict(int)

    @property
    def num_bytes(self) -> int:
        """Bytes in use."""
        return sum(self._num_bytes.values())

    def put(self, tenant: str, stored: StoredResponse) -> None:
        """Keep a response, unless it alone is larger than the store."""
        size = len(json.dumps(stored.response)) + len(json.dumps(stored.conversation))
        if size > self._max_bytes:
            return
        self.delete(tenant, stored.response["id"])
        while self.num_bytes + size > self._max_bytes:
            self._evict()
        self._by_tenant[tenant][stored.response["id"]] = stored, size
        self._num_bytes[tenant] += size

    def get(self, tenant: str, response_id: str) -> StoredResponse | None:
        """Return a tenant's response, None if it is not there."""
        stored, _ = self._by_tenant.get(tenant, {}).get(response_id, (None, 0))
        return stored

    def delete(self, tenant: str, response_id: str) -> bool:
        """Forget a tenant's response; False if it is not there."""
        held = self._by_tenant.get(tenant, {})
        if response_id not in held:
            return False
        _, size = held.pop(response_id)
        self._num_bytes[tenant] -= size
        if not held:
            del self._by_tenant[tenant], self._num_bytes[tenant]
        return True

    def check_integrity(self) -> None:
        """Raise `IntegrityError` if the books do not add up."""
        sizes = {
            tenant: sum(size for _, size in held.values())
            for tenant, held in self._by_tenant.items()
        }
        if sizes != dict(self._num_bytes) or self.num_bytes > self._max_bytes:
            raise IntegrityError("the store of responses miscounts its bytes", why=f"{sizes}")

    def _evict(self) -> None:
        tenant = max(self._num_bytes, key=self._num_bytes.__getitem__)
        self.delete(tenant, next(iter(self._by_tenant[tenant])))
