"""Sentence embeddings inside the engine process, a bounded slice between two steps."""

from __future__ import annotations

from evenflow.engine.embedding import EmbeddingService
from evenflow.engine.process.messages import AdminReply, EncodeSentences


class SentenceCalls:
    """Collects the embeddings of each call until its answer is complete.

    Args:
        service: computes embeddings in slices.
    """

    def __init__(self, service: EmbeddingService) -> None:
        self._service = service
        self._results: dict[int, dict[int, bytes]] = {}
        self._sizes: dict[int, int] = {}

    @property
    def has_work(self) -> bool:
        """Whether a call is unanswered."""
        return bool(self._sizes)

    def add(self, call: EncodeSentences) -> None:
        """Queue the inputs of a call.

        Raises:
            InvalidRequestError: there are none, or one is too long.
        """
        self._service.submit(call.call_id, call.inputs, call.params)
        self._results[call.call_id] = {}
        self._sizes[call.call_id] = len(call.inputs)

    def step(self) -> list[AdminReply]:
        """Compute a slice, and return the answers that are now complete."""
        replies = []
        for call_id, index, embedding in self._service.step():
            results = self._results[call_id]
            results[index] = embedding
            if len(results) == self._sizes[call_id]:
                ordered = [results[position] for position in range(len(results))]
                replies.append(AdminReply(call_id, ordered))
                del self._results[call_id], self._sizes[call_id]
        return replies
