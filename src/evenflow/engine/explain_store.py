"""Remembers how the last few thousand completions went, for whoever asks afterwards.

Knows: the turning points of completions that have ended, as their last deltas brought them.
Does not know: who may ask; completions that still live.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from evenflow.core.events import RequestEvent
from evenflow.engine.completions import completion_id
from evenflow.engine.explain import Explanation, explain
from evenflow.engine.outputs import Delta, RequestMetrics


@dataclass(slots=True, frozen=True)
class EndedCompletion:
    """How one completion went.

    Attributes:
        id: the completion's own.
        finish_reason: why it ended.
        metrics: when things happened to it.
        events: its turning points.
    """

    id: str
    finish_reason: str
    metrics: RequestMetrics
    events: tuple[RequestEvent, ...]


class ExplainStore:
    """Explanations by completion id; the first completion of a request carries the request's id.

    Args:
        max_requests: most completions to remember; the oldest is forgotten first.
    """

    def __init__(self, max_requests: int = 10_000) -> None:
        self._max_requests = max_requests
        self._ended: OrderedDict[str, EndedCompletion] = OrderedDict()

    def __len__(self) -> int:
        return len(self._ended)

    def add(self, delta: Delta) -> None:
        """Remember a completion by its last delta; other deltas are passed over."""
        if delta.finish_reason is None or delta.metrics is None:
            return
        own_id = completion_id(delta.request_id, delta.index)
        self._ended.pop(own_id, None)
        self._ended[own_id] = EndedCompletion(
            own_id, delta.finish_reason, delta.metrics, delta.events
        )
        if len(self._ended) > self._max_requests:
            self._ended.popitem(last=False)

    def get(self, request_id: str) -> Explanation | None:
        """Explain a completion that ended, or the first one of a request; None if unknown."""
        ended = self._ended.get(request_id)
        if ended is None:
            return None
        return explain(
            ended.events,
            request_id=request_id,
            tenant_id=ended.metrics.tenant_id,
            status=ended.finish_reason,
            arrival_s=ended.metrics.arrival_s,
        )

    def newest(self, limit: int) -> Iterator[EndedCompletion]:
        """Return the last `limit` completions that ended, the newest first."""
        return islice(reversed(self._ended.values()), limit)
