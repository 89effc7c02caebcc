"""Replays the forward pass of steps in which every request computes one token.

Such a step is some hundred kernels of a few microseconds each, and launching them one by one takes
the host longer than the device takes to run them. Recorded once, they are launched as one. What is
recorded is fixed, addresses and number of requests included: so there is one recording for each of
a few sizes, and a batch is copied into the buffers it reads, and padded to the next size.

    batch of 5    a b c d e
    size 8        a b c d e · · ·      · has no KV slot, attends to nothing, and is cut off

Knows: sizes, padding, static buffers.
Does not know: what a forward pass does; it must not depend on anything the host would have to read.

Invariants:
    Rows of padding write no KV.
    What `replay` returns holds until the next call of it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch

from evenflow.execution.batch import ForwardBatch

_NO_SLOT = -1
_NUM_WARM_UPS = 2

Forward = Callable[[ForwardBatch], torch.Tensor]
Replay = Callable[[], None]


class Recorder(Protocol):
    """Records what a function enqueues."""

    def __call__(self, run: Callable[[], torch.Tensor]) -> tuple[Replay, torch.Tensor]:
        """Return what repeats the recorded work, and the tensor into which it computes."""
        ...


class CudaRecorder:
    """Records CUDA graphs, which share their memory: only one of them runs at a time.

    Args:
        device: where.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], torch.Tensor]) -> tuple[Replay, torch.Tensor]:
        """Record a CUDA graph of what `run` enqueues, having compiled its kernels before."""
        for _ in range(_NUM_WARM_UPS):
            run()
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            out = run()
        return graph.replay, out


class DecodeGraphs:
    """A recording for each of a few batch sizes.

    Args:
        forward: computes hidden states, (num_tokens, hidden_size), from a batch on the device.
        max_num_seqs: most requests in a step.
        max_num_blocks: most KV blocks of a request.
        device: where.
        record: records what is enqueued on it.
    """

    def __init__(
        self,
        forward: Forward,
        *,
        max_num_seqs: int,
        max_num_blocks: int,
        device: torch.device,
        record: Recorder,
    ) -> None:
        self._sizes = graph_sizes(max_num_seqs)
        size = self._sizes[-1]
        self._inputs = ForwardBatch(
            token_ids=torch.zeros(size, dtype=torch.int64, device=device),
            positions=torch.zeros(size, dtype=torch.int64, device=device),
            slot_mapping=torch.full((size,), _NO_SLOT, dtype=torch.int64, device=device),
            query_starts=torch.arange(size + 1, dtype=torch.int32, device=device),
            context_lens=torch.zeros(size, dtype=torch.int32, device=device),
            block_tables=torch.zeros((size, max_num_blocks), dtype=torch.int32, device=device),
        )
        self._graphs: dict[int, tuple[Replay, torch.Tensor]] = {}
        with torch.inference_mode():
            for size in reversed(self._sizes):  # the largest first: the others fit into its memory
                self._graphs[size] = record(partial(forward, self._inputs_of(size)))

    def covers(self, num_new_tokens: Sequence[int]) -> bool:
        """Return whether a step of so many tokens of each request can be replayed."""
        return len(num_new_tokens) <= self._sizes[-1] and max(num_new_tokens) == 1

    def replay(self, batch: ForwardBatch) -> torch.Tensor:
        """Compute the hidden states of a batch, (num_requests, hidden_size), on the device.

        Args:
            batch: of one token for each request, on the device.
        """
        count = batch.num_requests
        size = self._sizes[bisect_left(self._sizes, count)]
        inputs = self._inputs_of(size)
        inputs.token_ids[:count].copy_(batch.token_ids)
        inputs.positions[:count].copy_(batch.positions)
        inputs.slot_mapping[:count].copy_(batch.slot_mapping)
        inputs.slot_mapping[count:].fill_(_NO_SLOT)
        inputs.context_lens[:count].copy_(batch.context_lens)
        inputs.context_lens[count:].zero_()
        inputs.block_tables[:count, : batch.block_tables.shape[1]].copy_(batch.block_tables)
        replay, hidden = self._graphs[size]
        replay()
        return hidden[:count]

    def _inputs_of(self, size: int) -> ForwardBatch:
        """Return the buffers that the recording of a size reads."""
        inputs = self._inputs
        return ForwardBatch(
            inputs.token_ids[:size],
            inputs.positions[:size],
            inputs.slot_mapping[:size],
            inputs.query_starts[: size + 1],
            inputs.context_lens[:size],
            inputs.block_tables[:size],
        )


def graph_sizes(max_num_seqs: int) -> list[int]:
    """Return the batch sizes to record: powers of two up to the first that is enough."""
    return [1 << power for power in range((max_num_seqs - 1).bit_length() + 1)]
