"""Draws tokens on the device, from the same random numbers as the sampler on the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import triton

from evenflow.core import rng
from evenflow.core.request import Request
from evenflow.execution.kernels.triton.draw import draw_kernel

_BLOCK = 8192  # logits in registers at a time
_LIST = 16384  # candidates that can be listed
_NUM_WARPS = 16


@dataclass(slots=True, frozen=True)
class Draws:
    """What decides which token each row gets.

    Attributes:
        numbers: (5, n), float64: temperature (0 is greedy), top_p, min_p, the random number in
            [0, 1) and top_k (0 keeps all).
    """

    numbers: torch.Tensor

    @classmethod
    def of(cls, requests: Sequence[Request], num_ahead: int = 0) -> Draws:
        """Collect them on the host.

        Args:
            requests: whose rows these are.
            num_ahead: output tokens of each request that are drawn but not known to it yet.
        """
        params = [request.sampling for request in requests]
        numbers = np.empty((5, len(requests)))
        numbers[0] = [p.temperature for p in params]
        numbers[1] = [p.top_p for p in params]
        numbers[2] = [p.min_p for p in params]
        numbers[3] = rng.uniform(
            np.array([request.seed for request in requests], dtype=np.uint64),
            np.array([r.num_output_tokens + num_ahead for r in requests], dtype=np.uint64),
        )
        numbers[4] = [p.top_k for p in params]
        return cls(torch.from_numpy(numbers))


def draw(logits: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Draw the next token of each row; nothing waits for the device.

    The tokens are those of `sampler.sample` for the same logits, unless a random number falls
    within about 1e-6 of a boundary between two tokens: weights are fp32 here and fp64 there.

    Args:
        logits: (n, vocab_size), penalties and the like already applied; not changed.
        draws: on the same device.

    Returns:
        (n,), int64.
    """
    num_rows, vocab_size = logits.shape
    logits = logits.float()
    device = logits.device
    tokens = torch.empty(num_rows, dtype=torch.int64, device=device)
    listed = torch.empty((num_rows, _LIST), dtype=torch.float32, device=device)
    ids = torch.empty((num_rows, _LIST), dtype=torch.int32, device=device)
    draw_kernel[(num_rows,)](
        logits,
        logits.stride(0),
        draws.numbers,
        draws.numbers.stride(0),
        listed,
        ids,
        tokens,
        VOCAB_SIZE=vocab_size,
        LIST=_LIST,
        BLOCK=min(_BLOCK, triton.next_power_of_2(vocab_size)),
        num_warps=_NUM_WARPS,
    )
    return tokens
