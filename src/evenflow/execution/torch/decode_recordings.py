"""Replays the forward pass of steps in which every request computes one token.

Such a step is some hundred kernels of a few microseconds each, and launching them one by one takes
the host longer than they take to run. Recorded once, they are launched as one. What is recorded is
fixed, addresses and number of requests included: so there is a recording for each of some sizes,
and a batch is copied into the buffers it reads, and padded to the next size.

    batch of 5    a b c d e
    size 8        a b c d e · · ·      · has no KV slot, attends to nothing, and is cut off

Knows: sizes, padding, static buffers.
Does not know: what a forward pass does; it must not depend on anything the host would have to read.

Invariants:
    Rows of padding write no KV.
    What `replay` returns holds until the next call of it.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch

from evenflow.execution.batch import ForwardBatch

logger = logging.getLogger(__name__)

_NO_SLOT = -1

Forward = Callable[[ForwardBatch], torch.Tensor]
Replay = Callable[[], None]


class NotRecordableError(Exception):
    """Something computes that a recording would leave out; the message says what."""


class Recorder(Protocol):
    """Records what a function computes with."""

    def __call__(self, run: Callable[[], torch.Tensor]) -> tuple[Replay, torch.Tensor]:
        """Return what repeats the recorded work, and the tensor into which it computes.

        Raises:
            NotRecordableError: not all of it can be repeated.
        """
        ...


class DecodeRecordings:
    """A recording for each of some batch sizes, made when it is first needed.

    Args:
        forward: computes hidden states, (num_tokens, hidden_size), from a batch on the device.
        sizes: the numbers of requests to record, ascending.
        max_num_blocks: most KV blocks of a request.
        device: where.
        record: records what is computed there.
    """

    def __init__(
        self,
        forward: Forward,
        *,
        sizes: Sequence[int],
        max_num_blocks: int,
        device: torch.device,
        record: Recorder,
    ) -> None:
        self._forward = forward
        self._sizes = sizes
        self._record = record
        size = sizes[-1]
        self._inputs = ForwardBatch(
            token_ids=torch.zeros(size, dtype=torch.int64, device=device),
            positions=torch.zeros(size, dtype=torch.int64, device=device),
            slot_mapping=torch.full((size,), _NO_SLOT, dtype=torch.int64, device=device),
            query_starts=torch.arange(size + 1, dtype=torch.int32, device=device),
            context_lens=torch.zeros(size, dtype=torch.int32, device=device),
            block_tables=torch.zeros((size, max_num_blocks), dtype=torch.int32, device=device),
        )
        self._recordings: dict[int, tuple[Replay, torch.Tensor]] = {}
        self._is_recordable = True

    @torch.inference_mode()
    def record_all(self) -> None:
        """Make all recordings now, the largest first: the others fit into its memory."""
        for size in reversed(self._sizes):
            self._recording_of(size)

    def covers(self, num_new_tokens: Sequence[int]) -> bool:
        """Return whether a step of so many tokens of each request can be replayed."""
        return (
            self._is_recordable
            and len(num_new_tokens) <= self._sizes[-1]
            and max(num_new_tokens) == 1
        )

    def replay(self, batch: ForwardBatch) -> torch.Tensor:
        """Compute the hidden states of a batch, (num_requests, hidden_size), on the device.

        Args:
            batch: of one token for each request, on the device.
        """
        count = batch.num_requests
        size = self._sizes[bisect_left(self._sizes, count)]
        inputs = self._inputs.first(size)
        inputs.token_ids[:count].copy_(batch.token_ids)
        inputs.positions[:count].copy_(batch.positions)
        inputs.slot_mapping[:count].copy_(batch.slot_mapping)
        inputs.slot_mapping[count:].fill_(_NO_SLOT)
        inputs.context_lens[:count].copy_(batch.context_lens)
        inputs.context_lens[count:].zero_()
        inputs.block_tables[:count, : batch.block_tables.shape[1]].copy_(batch.block_tables)
        try:
            replay, hidden = self._recording_of(size)
        except NotRecordableError as error:
            logger.info("decode steps are not recorded: %s", error)
            self._is_recordable = False
            return self._forward(batch)
        replay()
        return hidden[:count]

    def _recording_of(self, size: int) -> tuple[Replay, torch.Tensor]:
        if size not in self._recordings:
            inputs = self._inputs.first(size)
            self._recordings[size] = self._record(partial(self._forward, inputs))
        return self._recordings[size]


def powers_of_two(max_num_seqs: int) -> list[int]:
    """Return batch sizes to record where a recording is dear: up to the first that is enough."""
    return [1 << power for power in range((max_num_seqs - 1).bit_length() + 1)]
