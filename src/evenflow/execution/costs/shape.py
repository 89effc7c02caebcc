"""What a step computes, reduced to the numbers that its duration depends on."""

from __future__ import annotations

from typing import NamedTuple

from evenflow.scheduling.plan import StepPlan


class StepShape(NamedTuple):
    """What a step computes, as a cost model sees it.

    Attributes:
        chunks: (new tokens, tokens before them) of each request that computes several tokens, or
            the last one of its prompt.
        num_decodes: requests that compute one token after their prompt.
        num_decode_context_tokens: KV entries that those read, their own new ones included, summed.
    """

    chunks: tuple[tuple[int, int], ...] = ()
    num_decodes: int = 0
    num_decode_context_tokens: int = 0

    @property
    def num_chunk_tokens(self) -> int:
        """Tokens that the chunks compute."""
        return sum(new for new, _ in self.chunks)

    @property
    def num_tokens(self) -> int:
        """Tokens that the step computes."""
        return self.num_chunk_tokens + self.num_decodes

    @property
    def num_requests(self) -> int:
        """Requests that the step computes tokens for."""
        return len(self.chunks) + self.num_decodes

    @property
    def num_context_tokens(self) -> int:
        """KV entries of all its requests once it is done."""
        return sum(new + before for new, before in self.chunks) + self.num_decode_context_tokens


def shape_of(plan: StepPlan) -> StepShape:
    """Return the shape of a plan that has not been carried out yet."""
    chunks = []
    num_decodes = len(plan.coasting)
    num_before = plan.num_coasting_tokens
    for request, count in zip(plan.requests, plan.num_new_tokens, strict=True):
        before = request.num_computed_tokens
        if count == 1 and before >= request.num_prompt_tokens:
            num_decodes += 1
            num_before += before
        else:
            chunks.append((count, before))
    return StepShape(tuple(chunks), num_decodes, num_before + num_decodes)
