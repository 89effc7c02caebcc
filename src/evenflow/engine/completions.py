"""Which completions the engine has, from the moment they are queued until their end is reported.

    add ──▶ live ──forget──▶ (its last token says that it has ended)
             └─────retire──▶ ended ──take_ended──▶ (reported without a token)

Knows: completions, by their own ids and by the request they belong to; when the next one is late.
Does not know: the scheduler, tokens, the time, which is passed in.

Invariants:
    Nobody else may carry the id of a completion that is live or whose end is not reported yet.
    Nothing is left of a completion that was forgotten or taken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from evenflow.core.errors import DuplicateRequestError
from evenflow.core.ids import RequestId
from evenflow.engine.progress import CompletionProgress


class CompletionTable:
    """All completions that are live or whose end is still to be reported.

    Attributes:
        next_deadline_s: none is earlier; infinite if there are none. Its request may have ended
            already.
    """

    def __init__(self) -> None:
        self._live: dict[RequestId, CompletionProgress] = {}
        self._of_request: dict[str, list[CompletionProgress]] = {}
        self._ended: dict[RequestId, CompletionProgress] = {}
        self.next_deadline_s = math.inf

    def __len__(self) -> int:
        return len(self._live) + len(self._ended)

    @property
    def live(self) -> Mapping[RequestId, CompletionProgress]:
        """The live ones by their own ids, in the order in which they came."""
        return self._live

    @property
    def has_ended(self) -> bool:
        """Whether `take_ended` would return something."""
        return bool(self._ended)

    def of_request(self, request_id: str) -> tuple[CompletionProgress, ...]:
        """Return a request's live completions."""
        return tuple(self._of_request.get(request_id, ()))

    def unused_ids(self, request_id: str, num_completions: int) -> list[RequestId]:
        """Return the ids of a new request's completions.

        Raises:
            DuplicateRequestError: one of them is in use, or the request has live completions.
        """
        ids = [RequestId(completion_id(request_id, index)) for index in range(num_completions)]
        taken = [own_id for own_id in ids if own_id in self._live or own_id in self._ended]
        if taken or request_id in self._of_request:
            raise DuplicateRequestError(
                f"request id {(taken or ids)[0]!r} is in use",
                param="request_id",
                fix="Send every request under an id of its own",
            )
        return ids

    def add(self, progress: CompletionProgress) -> None:
        """Take in a completion, which is live from now on."""
        request = progress.request
        self._live[request.request_id] = progress
        self._of_request.setdefault(progress.user_id, []).append(progress)
        if request.deadline_s is not None:
            self.next_deadline_s = min(self.next_deadline_s, request.deadline_s)

    def forget(self, progress: CompletionProgress) -> None:
        """A live completion has ended, and whoever asked for it knows or is told at once."""
        del self._live[progress.request.request_id]
        siblings = self._of_request[progress.user_id]
        siblings.remove(progress)
        if not siblings:
            del self._of_request[progress.user_id]

    def retire(self, progress: CompletionProgress) -> None:
        """A live completion has ended without a token: keep it until its end is reported."""
        self.forget(progress)
        self._ended[progress.request.request_id] = progress

    def take_ended(self) -> list[CompletionProgress]:
        """Return those that were retired, in that order, and forget them."""
        ended = list(self._ended.values())
        self._ended.clear()
        return ended

    def overdue(self, now_s: float) -> list[tuple[CompletionProgress, float]]:
        """Return the live ones whose deadline has passed, and the deadline.

        The caller ends and retires them.
        """
        if now_s < self.next_deadline_s:
            return []
        late = []
        self.next_deadline_s = math.inf
        for progress in self._live.values():
            deadline_s = progress.request.deadline_s
            if deadline_s is None:
                continue
            if deadline_s <= now_s:
                late.append((progress, deadline_s))
            else:
                self.next_deadline_s = min(self.next_deadline_s, deadline_s)
        return late


def completion_id(request_id: str, index: int) -> str:
    """Name completion `index` of a request; the first one carries the request's own id."""
    return f"{request_id}#{index}" if index else request_id
