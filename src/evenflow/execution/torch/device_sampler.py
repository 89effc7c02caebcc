"""Draws tokens on the device by one Triton kernel, so that the host waits for none of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch

from evenflow.core.request import Request
from evenflow.execution.kernels.triton.sampling import Draws, draw
from evenflow.execution.torch.placement import to_device
from evenflow.execution.torch.sampler import adjust


def sample_on_device(
    logits: torch.Tensor,
    requests: Sequence[Request],
    forbidden: Mapping[int, torch.Tensor] = MappingProxyType({}),
    *,
    num_ahead: int = 0,
) -> torch.Tensor:
    """Draw the next token of each request without waiting for the device (see `Sample`)."""
    adjust(logits, requests, forbidden, num_ahead)
    draws = Draws.of(requests, num_ahead)
    return draw(logits, Draws(to_device(draws.numbers, logits.device)))
