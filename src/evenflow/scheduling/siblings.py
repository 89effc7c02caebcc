"""Completions 2..n of a prompt, which share what the first one computes.

    hold ──▶ held ──release──▶ queued ──▶ started, or ended
                                 share ──▶ holds the prompt's blocks ──take_back──▶ holds nothing

Knows: who waits for whom, and who holds a shared prompt without running.
Does not know: queues, memory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from evenflow.core.ids import RequestId
from evenflow.core.request import Request


class Siblings:
    """Those that do not run yet."""

    def __init__(self) -> None:
        self._held: dict[RequestId, list[Request]] = {}
        self._sharing: dict[RequestId, Request] = {}

    @property
    def held(self) -> Iterator[Request]:
        """Those that wait for another completion to compute their prompt."""
        return (request for requests in self._held.values() for request in requests)

    @property
    def sharing_ids(self) -> Collection[RequestId]:
        """Those that are queued and hold a prompt that somebody else computed."""
        return self._sharing.keys()

    def hold(self, request: Request, parent_id: RequestId) -> None:
        """A request waits until `parent_id` has computed their prompt."""
        self._held.setdefault(parent_id, []).append(request)

    def release(self, parent_id: RequestId) -> list[Request]:
        """Return those that waited for a request; they do no longer."""
        return self._held.pop(parent_id, [])

    def share(self, request: Request) -> None:
        """A queued request holds a prompt that it shares."""
        self._sharing[request.request_id] = request

    def take_back(self) -> Request | None:
        """Return one that holds a prompt without running, if there is one; it is to give it up."""
        return self._sharing.popitem()[1] if self._sharing else None

    def forget(self, request: Request) -> None:
        """A request has started or ended."""
        self._sharing.pop(request.request_id, None)
        held = self._held.get(request.parent_id) if request.parent_id else None
        if held and request in held:
            held.remove(request)
