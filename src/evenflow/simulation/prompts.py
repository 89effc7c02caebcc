"""Token ids for prompts that are only described.

All tokens of a text are alike, so that two prompts have the same tokens exactly as far as they name
the same texts, and cost next to nothing to write.
"""

from __future__ import annotations

from functools import lru_cache
from zlib import crc32

from evenflow.workloads.request import WorkloadRequest
from evenflow.workloads.traces.recent import Recent

MAX_TOKEN_ID = 0x7FFF_FFFF

_Runs = tuple[tuple[int, int], ...]  # (token id, how often)


@lru_cache(maxsize=65_536)
def answer_token(request_id: str) -> int:
    """Return the token id of which the answer to a request consists."""
    return _token_of(f"answer to {request_id}")


class Prompts:
    """Writes prompts, and remembers what was said in sessions.

    A great many sessions that wait for their next turn are remembered, those answered last.
    """

    def __init__(self) -> None:
        self._unanswered: dict[str, _Runs] = {}
        self._answered: Recent[str, _Runs] = Recent()

    def write(self, request: WorkloadRequest, request_id: str) -> list[int]:
        """Return the token ids of a request, those of the conversation it continues included.

        A request without segments has a text that is no other's.
        """
        texts = request.segments or ((request_id, request.num_prompt_tokens),)
        runs: _Runs = tuple((_token_of(text), num_tokens) for text, num_tokens in texts)
        if request.session is not None:
            if request.continues:
                runs = (self._answered.get(request.session) or ()) + runs
            self._unanswered[request.session] = runs
        token_ids: list[int] = []
        for token_id, count in runs:
            token_ids += [token_id] * count
        return token_ids

    def answer(self, session: str, token_id: int, num_tokens: int) -> None:
        """Add the answer to the prompt that was written last to what was said in a session."""
        self._answered.set(session, (*self._unanswered.pop(session), (token_id, num_tokens)))


@lru_cache(maxsize=65_536)
def _token_of(text: str) -> int:
    return crc32(text.encode()) & MAX_TOKEN_ID
