"""A ragged batch as a forward pass sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(slots=True, frozen=True)
class ForwardBatch:
    """The tokens of one step, request after request, and where their KV lies.

    Attributes:
        token_ids: (num_tokens,), int64.
        positions: (num_tokens,), int64, position of each token in its request.
        slot_mapping: (num_tokens,), int64, `block_id * block_size + offset` for each token's KV.
        query_starts: (num_requests + 1,), int32, request i owns tokens
            `query_starts[i]:query_starts[i + 1]`.
        context_lens: (num_requests,), int32, tokens of request i with KV once this step is done.
            Its last query token sits at position `context_lens[i] - 1`.
        block_tables: (num_requests, max_num_blocks), int32, block ids; rows are padded with 0.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slot_mapping: torch.Tensor
    query_starts: torch.Tensor
    context_lens: torch.Tensor
    block_tables: torch.Tensor

    @property
    def num_tokens(self) -> int:
        """Tokens in the step."""
        return self.token_ids.shape[0]

    @property
    def num_requests(self) -> int:
        """Requests in the step."""
        return self.context_lens.shape[0]

    @property
    def last_rows(self) -> torch.Tensor:
        """The row of each request's last token, (num_requests,), int64."""
        return self.query_starts[1:].long() - 1

    def last_tokens(self) -> ForwardBatch:
        """Return a batch of each request's last token alone."""
        rows = self.last_rows
        return ForwardBatch(
            self.token_ids[rows],
            self.positions[rows],
            self.slot_mapping[rows],
            torch.arange(len(rows) + 1, dtype=torch.int32, device=rows.device),
            self.context_lens,
            self.block_tables,
        )

    def first(self, count: int) -> ForwardBatch:
        """Return the first requests of a batch in which each has one token; a view."""
        return ForwardBatch(
            self.token_ids[:count],
            self.positions[:count],
            self.slot_mapping[:count],
            self.query_starts[: count + 1],
            self.context_lens[:count],
            self.block_tables[:count],
        )

    def to(self, place: Callable[[torch.Tensor], torch.Tensor]) -> ForwardBatch:
        """Return the same batch with every tensor where `place` puts it."""
        return ForwardBatch(
            place(self.token_ids),
            place(self.positions),
            place(self.slot_mapping),
            place(self.query_starts),
            place(self.context_lens),
            place(self.block_tables),
        )
