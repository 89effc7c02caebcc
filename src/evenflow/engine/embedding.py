"""Embeds texts with a sentence model between the steps of an engine, a slice at a time.

Knows: jobs of texts, whose turn it is, how much fits between two steps.
Does not know: requests, KV memory; sentence models need none.

Invariants:
    A slice holds at most `token_budget` tokens, or one text if that alone has more.
    Jobs take turns text by text, so a long job does not hold up a short one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from evenflow.core.errors import InvalidRequestError
from evenflow.core.pooling import PoolingParams
from evenflow.models.sentence import SentenceEncoder

_TOKEN_BUDGET = 128


@dataclass(slots=True)
class _Job:
    """Texts that belong together; the first `num_taken` of them have had their turn."""

    job_id: int
    texts: Sequence[Sequence[int]]
    params: PoolingParams
    num_taken: int = 0


class EmbeddingService:
    """A queue of texts in front of a sentence encoder. Call it from the engine's thread.

    Args:
        encoder: the sentence model.
        token_budget: most tokens of a slice.
    """

    def __init__(self, encoder: SentenceEncoder, *, token_budget: int = _TOKEN_BUDGET) -> None:
        self._encoder = encoder
        self._token_budget = token_budget
        self._jobs: deque[_Job] = deque()

    @property
    def has_work(self) -> bool:
        """Whether a call of `step` has something to do."""
        return bool(self._jobs)

    def submit(
        self,
        job_id: int,
        texts: Sequence[Sequence[int]],
        params: PoolingParams | None = None,
    ) -> None:
        """Queue a job.

        Args:
            job_id: unique among unfinished jobs.
            texts: for each text its token ids.
            params: how vectors become embeddings; scaled to length 1 by default.

        Raises:
            InvalidRequestError: there are no texts, or a value is out of range.
            ContextLengthError: a text is too long, with the numbers.
        """
        params = params or PoolingParams()
        params.check_fits(self._encoder.num_dimensions)
        if not texts:
            raise InvalidRequestError(
                "there is nothing to embed", param="input", fix="Send at least one text"
            )
        for text in texts:
            self._encoder.check(text)
        self._jobs.append(_Job(job_id, texts, params))

    def cancel(self, job_id: int) -> None:
        """Forget a job; what has not been embedded of it will not be."""
        self._jobs = deque(job for job in self._jobs if job.job_id != job_id)

    def step(self) -> list[tuple[int, int, bytes]]:
        """Embed one slice.

        Returns:
            (job id, which of the job's texts, embedding as little-endian fp32) of each text.
        """
        taken = self._take()
        if not taken:
            return []
        vectors = self._encoder.encode([job.texts[index] for job, index in taken])
        return [
            (job.job_id, index, job.params.embedding(vector))
            for (job, index), vector in zip(taken, vectors, strict=True)
        ]

    def _take(self) -> list[tuple[_Job, int]]:
        """Take texts off the queue, one of each job in turn, while they fit into a slice."""
        taken: list[tuple[_Job, int]] = []
        num_tokens = 0
        while self._jobs:
            job = self._jobs[0]
            num_tokens += len(job.texts[job.num_taken])
            if taken and num_tokens > self._token_budget:
                break
            taken.append((job, job.num_taken))
            job.num_taken += 1
            self._jobs.popleft()
            if job.num_taken < len(job.texts):
                self._jobs.append(job)
        return taken
