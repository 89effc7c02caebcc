"""Completions 2..n of a prompt, which wait until the first one has computed it.

Knows: who waits for whom.
Does not know: queues, memory.
"""

from __future__ import annotations

from collections.abc import Iterator

from evenflow.core.ids import RequestId
from evenflow.core.request import Request


class Siblings:
    """Those that are not queued yet."""

    def __init__(self) -> None:
        self._held: dict[RequestId, list[Request]] = {}

    @property
    def held(self) -> Iterator[Request]:
        """Those that wait for another completion to compute their prompt."""
        return (request for requests in self._held.values() for request in requests)

    def hold(self, request: Request, parent_id: RequestId) -> None:
        """A request waits until `parent_id` has computed their prompt."""
        self._held.setdefault(parent_id, []).append(request)

    def release(self, parent_id: RequestId) -> list[Request]:
        """Return those that waited for a request; they do no longer."""
        return self._held.pop(parent_id, [])

    def forget(self, request: Request) -> None:
        """A request has ended."""
        held = self._held.get(request.parent_id) if request.parent_id else None
        if held and request in held:
            held.remove(request)
