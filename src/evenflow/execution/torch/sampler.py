"""Chooses tokens from logits, for a whole batch at once.

Every row is treated by itself: no result depends on which rows stand beside it. For that reason
sums over the vocabulary go through softmax and cumulative sums, whose order is fixed per row,
and never through `torch.sum`, which splits a lone row over threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from evenflow.core import rng
from evenflow.core.request import Request
from evenflow.execution.torch.placement import ReadBack, to_device
from evenflow.scheduling.plan import TokenLogprobs

_FIRST_CANDIDATES = 256
"""Tokens looked at first when top-p or min-p cut the tail; a flat row needs all of them."""


class Sample(Protocol):
    """Draws the next token of each request, on the device that the logits are on."""

    def __call__(
        self,
        logits: torch.Tensor,
        requests: Sequence[Request],
        forbidden: Mapping[int, torch.Tensor] = MappingProxyType({}),
        *,
        num_ahead: int = 0,
    ) -> torch.Tensor:
        """Draw.

        The order of operations is transformers': penalties, logit bias, min_tokens, what grammars
        forbid, temperature, then top-k, top-p and min-p. The random number of output token i is a
        function of the request's seed and i.

        Args:
            logits: (num_requests, vocab_size), changed in place.
            requests: whose rows these are.
            forbidden: by row, the tokens that must not come, (vocab_size,), bool, on the host;
                never all of them.
            num_ahead: tokens that each request has besides those known on the host.

        Returns:
            (num_requests,), int64.
        """
        ...


def sample(
    logits: torch.Tensor,
    requests: Sequence[Request],
    forbidden: Mapping[int, torch.Tensor] = MappingProxyType({}),
    *,
    num_ahead: int = 0,
) -> torch.Tensor:
    """Draw the next token of each request, in fp64 and waiting for the device (see `Sample`)."""
    adjust(logits, requests, forbidden, num_ahead)
    tokens = _argmax(logits)
    random_rows = [row for row, r in enumerate(requests) if not r.sampling.is_greedy]
    if random_rows:
        chosen = [requests[row] for row in random_rows]
        tokens[random_rows] = _draw(logits[random_rows], chosen, num_ahead)
    return tokens


def _argmax(logits: torch.Tensor) -> torch.Tensor:
    """Return each row's first largest entry, which numpy finds in a seventh of torch's time."""
    if logits.device.type == "cpu":
        return torch.from_numpy(logits.numpy().argmax(axis=-1))
    return logits.argmax(dim=-1)


def adjust(
    logits: torch.Tensor,
    requests: Sequence[Request],
    forbidden: Mapping[int, torch.Tensor],
    num_ahead: int,
) -> None:
    """Apply, in place, what comes before the temperature; the arguments are those of `Sample`."""
    _penalise(logits, requests)
    _add_bias(logits, requests)
    _forbid_early_stops(logits, requests, num_ahead)
    for row, tokens_of_row in forbidden.items():
        logits[row].masked_fill_(to_device(tokens_of_row, logits.device), -torch.inf)


def _penalise(logits: torch.Tensor, requests: Sequence[Request]) -> None:
    """Apply repetition, presence and frequency penalties to all rows that have any."""
    rows = [row for row, request in enumerate(requests) if request.sampling.has_penalties]
    if not rows:
        return
    device = logits.device
    seen = [np.unique(requests[row].token_ids) for row in rows]
    where = _index(rows, seen, device)
    repetition = _spread([requests[row].sampling.repetition_penalty for row in rows], seen)
    repetition = to_device(repetition.to(logits.dtype), device)
    values = logits[where]
    logits[where] = torch.where(values > 0, values / repetition, values * repetition)

    outputs = [np.unique(requests[row].output_token_ids, return_counts=True) for row in rows]
    written = [ids.astype(np.int64) for ids, _ in outputs]
    counts = torch.from_numpy(np.concatenate([count for _, count in outputs]))
    frequency = _spread([requests[row].sampling.frequency_penalty for row in rows], written)
    presence = _spread([requests[row].sampling.presence_penalty for row in rows], written)
    penalty = (frequency * counts + presence).to(logits.dtype)
    logits[_index(rows, written, device)] -= to_device(penalty, device)


def _add_bias(logits: torch.Tensor, requests: Sequence[Request]) -> None:
    biases = {row: r.sampling.logit_bias for row, r in enumerate(requests) if r.sampling.logit_bias}
    if biases:
        ids = [np.array(list(bias)) for bias in biases.values()]
        values = [value for bias in biases.values() for value in bias.values()]
        added = to_device(torch.tensor(values, dtype=logits.dtype), logits.device)
        logits[_index(list(biases), ids, logits.device)] += added


def _forbid_early_stops(logits: torch.Tensor, requests: Sequence[Request], num_ahead: int) -> None:
    """Rule out what would end a request before its min_tokens."""
    early = {
        row: r.stop_token_ids
        for row, r in enumerate(requests)
        if r.stop_token_ids and r.num_output_tokens + num_ahead < r.sampling.min_tokens
    }
    if early:
        ids = [np.array(list(ids)) for ids in early.values()]
        logits[_index(list(early), ids, logits.device)] = -torch.inf


def _index(
    rows: list[int], ids: list[npt.NDArray[np.int64]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (row, column) of every id of every row, to index the logits once for all."""
    owners = torch.from_numpy(np.repeat(rows, [len(row_ids) for row_ids in ids]))
    columns = torch.from_numpy(np.concatenate(ids))
    return to_device(owners, device), to_device(columns, device)


def _spread(values: list[float], ids: list[npt.NDArray[np.int64]]) -> torch.Tensor:
    """Return each row's value once for each of its ids; float64."""
    return torch.from_numpy(np.repeat(np.array(values), [len(row_ids) for row_ids in ids]))


def _draw(logits: torch.Tensor, requests: Sequence[Request], num_ahead: int) -> torch.Tensor:
    """Sample rows with a temperature. Returns (n,), int64."""
    device = logits.device
    params = [request.sampling for request in requests]
    temperature = torch.tensor([p.temperature for p in params], dtype=torch.float64, device=device)
    # Counted from the largest, logits can be divided by any temperature without overflow.
    scaled = logits.double()
    scaled -= scaled.amax(dim=-1, keepdim=True)
    scaled /= temperature.unsqueeze(1)
    probabilities = torch.softmax(scaled, dim=-1)
    uniform = torch.from_numpy(
        rng.uniform(
            np.array([request.seed for request in requests], dtype=np.uint64),
            np.array([r.num_output_tokens + num_ahead for r in requests], dtype=np.uint64),
        )
    ).to(device)
    tokens = torch.empty(len(requests), dtype=torch.int64, device=device)
    cut = [p.top_k > 0 or p.top_p < 1.0 or p.min_p > 0.0 for p in params]
    whole_rows = [row for row, is_cut in enumerate(cut) if not is_cut]
    if whole_rows:
        tokens[whole_rows] = _invert(probabilities[whole_rows], uniform[whole_rows])
    cut_rows = [row for row, is_cut in enumerate(cut) if is_cut]
    if cut_rows:
        tokens[cut_rows] = _draw_truncated(
            probabilities[cut_rows], uniform[cut_rows], [requests[row] for row in cut_rows]
        )
    return tokens


def _invert(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Invert the cumulative distribution: the first index whose running sum exceeds u * total.

    Args:
        weights: (n, k), float64, not negative; need not sum to one.
        uniform: (n,), float64 in [0, 1).

    Returns:
        (n,), int64 indices, always of a positive weight.
    """
    cumulative = weights.cumsum(dim=-1)
    total = cumulative[:, -1]
    # Kept below the total even when u * total rounds up to it, some running sum exceeds the
    # threshold; the first that does has just grown, so its weight is positive.
    threshold = torch.minimum(uniform * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulative, threshold.unsqueeze(1), right=True).squeeze(1)


def _draw_truncated(
    probabilities: torch.Tensor, uniform: torch.Tensor, requests: Sequence[Request]
) -> torch.Tensor:
    """Sample rows cut by top-k, top-p or min-p. Returns (n,), int64."""
    params = [request.sampling for request in requests]
    vocab_size, device = probabilities.shape[1], probabilities.device
    limits = [min(p.top_k or vocab_size, vocab_size) for p in params]
    top_k = torch.tensor(limits, device=device)
    top_p = torch.tensor([p.top_p for p in params], dtype=torch.float64, device=device)
    min_p = torch.tensor([p.min_p for p in params], dtype=torch.float64, device=device)
    tokens = torch.empty(len(requests), dtype=torch.int64, device=device)
    todo = torch.arange(len(requests), device=device)
    width = min(_FIRST_CANDIDATES, vocab_size)
    while len(todo):
        values, ids = _candidates(probabilities[todo], width)
        kept = _truncate(values, top_k[todo], top_p[todo], min_p[todo], vocab_size)
        # A row is settled when its cut fell inside the candidates, and not among equals of the last
        # one, of which there may be more outside.
        ends_among_last = ((kept > 0) & (values == values[:, -1:])).any(dim=-1)
        is_whole = (top_k[todo] <= width) | (top_k[todo] == vocab_size)
        settled = (is_whole & ~ends_among_last) | (width == vocab_size)
        rows = todo[settled]
        choice = _invert(kept[settled], uniform[rows])
        tokens[rows] = ids[settled].gather(1, choice.unsqueeze(1)).squeeze(1)
        todo = todo[~settled]
        width = vocab_size
    return tokens


def _candidates(probabilities: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the `width` likeliest tokens, best first, equal ones by ascending id.

    Which of several equals come in last when not all fit is torch's choice.
    """
    values, ids = probabilities.topk(width, dim=-1, sorted=False)
    ids, order = ids.sort(dim=-1)
    values = values.gather(1, order)
    values, order = values.sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(1, order)


def _truncate(
    values: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    vocab_size: int,
) -> torch.Tensor:
    """Zero what top-k, top-p (of the mass top-k left) or min-p (of the likeliest) cut off.

    Args:
        values: (n, width), float64, probabilities in descending order.
        top_k: (n,), int64; vocab_size means no limit.
        top_p: (n,), float64.
        min_p: (n,), float64.
        vocab_size: length of a whole row.
    """
    rank = torch.arange(values.shape[1], device=values.device)
    kept = torch.where(rank < top_k.unsqueeze(1), values, 0.0)
    cumulative = kept.cumsum(dim=-1)
    mass = torch.where(top_k < vocab_size, cumulative[:, -1], 1.0)
    before = cumulative - kept
    keep = (before < (top_p * mass).unsqueeze(1)) & (values >= min_p.unsqueeze(1) * values[:, :1])
    return torch.where(keep, kept, 0.0)


def token_logprobs(
    logits: torch.Tensor, token_ids: torch.Tensor, num_top: Sequence[int]
) -> PendingLogprobs:
    """Compute the log-probabilities of given tokens and of the likeliest ones.

    Args:
        logits: (n, vocab_size), as the model gave them.
        token_ids: (n,), int64, the token of each row.
        num_top: how many of the likeliest to report for each row.
    """
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    ids = token_ids.unsqueeze(1)
    chosen = logprobs.gather(1, ids)
    ranks = (logprobs > chosen).int().cumsum(dim=-1)[:, -1] + 1
    width = min(max(num_top), logits.shape[1])
    values, top_ids = _candidates(logprobs, width) if width else (logprobs[:, :0], ids[:, :0])
    return PendingLogprobs(
        ReadBack(token_ids, chosen.squeeze(1), ranks, values, top_ids), tuple(num_top)
    )


@dataclass(slots=True, frozen=True)
class PendingLogprobs:
    """Log-probabilities on their way to the host.

    Attributes:
        arrays: tokens, their log-probabilities and ranks, each (n,); log-probabilities and ids of
            the likeliest, each (n, width).
        num_top: how many of the likeliest to report for each row.
    """

    arrays: ReadBack
    num_top: tuple[int, ...]

    def wait(self) -> list[TokenLogprobs]:
        """Return them, once they are there."""
        columns = (array.tolist() for array in self.arrays.wait())
        return [
            TokenLogprobs(
                token_id,
                logprob,
                rank,
                tuple(zip(row_ids[:count], row_values[:count], strict=True)),
            )
            for token_id, logprob, rank, row_values, row_ids, count in zip(
                *columns, self.num_top, strict=True
            )
        ]
