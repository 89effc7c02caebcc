"""Chooses tokens from logits, for a whole batch at once.

Every row is treated by itself: no result depends on which rows stand beside it. For that reason
sums over the vocabulary go through softmax and cumulative sums, whose order is fixed per row,
and never through `torch.sum`, which splits a lone row over threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch

from evenflow.core import rng
from evenflow.core.request import Request
from evenflow.scheduling.plan import TokenLogprobs

_FIRST_CANDIDATES = 256
"""Tokens looked at first when top-p or min-p cut the tail; a flat row needs all of them."""


def sample(
    logits: torch.Tensor,
    requests: Sequence[Request],
    forbidden: Mapping[int, torch.Tensor] = MappingProxyType({}),
) -> list[int]:
    """Draw the next token of each request.

    The order of operations is transformers': penalties, logit bias, min_tokens, what grammars
    forbid, temperature, then top-k, top-p and min-p. The random number of output token i is a
    function of the request's seed and i.

    Args:
        logits: (num_requests, vocab_size), fp32; changed in place.
        requests: whose rows these are.
        forbidden: by row, the tokens that must not come, (vocab_size,), bool; never all of them.

    Returns:
        One token id per request.
    """
    _penalise(logits, requests)
    _add_bias(logits, requests)
    _forbid_early_stops(logits, requests)
    for row, tokens_of_row in forbidden.items():
        logits[row].masked_fill_(tokens_of_row, -torch.inf)
    tokens: torch.Tensor = logits.argmax(dim=-1)
    random_rows = [row for row, r in enumerate(requests) if not r.sampling.is_greedy]
    if random_rows:
        tokens[random_rows] = _draw(logits[random_rows], [requests[row] for row in random_rows])
    chosen: list[int] = tokens.tolist()
    return chosen


def _penalise(logits: torch.Tensor, requests: Sequence[Request]) -> None:
    """Apply repetition, presence and frequency penalties to all rows that have any."""
    rows = [row for row, request in enumerate(requests) if request.sampling.has_penalties]
    if not rows:
        return
    seen = [np.unique(requests[row].token_ids) for row in rows]
    where = _index(rows, seen)
    repetition = _spread([requests[row].sampling.repetition_penalty for row in rows], seen).float()
    values = logits[where]
    logits[where] = torch.where(values > 0, values / repetition, values * repetition)

    outputs = [np.unique(requests[row].output_token_ids, return_counts=True) for row in rows]
    written = [ids.astype(np.int64) for ids, _ in outputs]
    counts = torch.from_numpy(np.concatenate([count for _, count in outputs]))
    frequency = _spread([requests[row].sampling.frequency_penalty for row in rows], written)
    presence = _spread([requests[row].sampling.presence_penalty for row in rows], written)
    logits[_index(rows, written)] -= (frequency * counts + presence).to(logits.dtype)


def _add_bias(logits: torch.Tensor, requests: Sequence[Request]) -> None:
    biases = {row: r.sampling.logit_bias for row, r in enumerate(requests) if r.sampling.logit_bias}
    if biases:
        where = _index(list(biases), [np.array(list(bias)) for bias in biases.values()])
        values = [value for bias in biases.values() for value in bias.values()]
        logits[where] += torch.tensor(values, dtype=logits.dtype)


def _forbid_early_stops(logits: torch.Tensor, requests: Sequence[Request]) -> None:
    """Rule out what would end a request before its min_tokens."""
    early = {
        row: r.stop_token_ids
        for row, r in enumerate(requests)
        if r.stop_token_ids and r.num_output_tokens < r.sampling.min_tokens
    }
    if early:
        logits[_index(list(early), [np.array(list(ids)) for ids in early.values()])] = -torch.inf


def _index(rows: list[int], ids: list[npt.NDArray[np.int64]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (row, column) of every id of every row, to index the logits once for all."""
    owners = np.repeat(rows, [len(row_ids) for row_ids in ids])
    return torch.from_numpy(owners), torch.from_numpy(np.concatenate(ids))


def _spread(values: list[float], ids: list[npt.NDArray[np.int64]]) -> torch.Tensor:
    """Return each row's value once for each of its ids; float64."""
    return torch.from_numpy(np.repeat(np.array(values), [len(row_ids) for row_ids in ids]))


def _draw(logits: torch.Tensor, requests: Sequence[Request]) -> torch.Tensor:
    """Sample rows with a temperature. Returns (n,), int64."""
    params = [request.sampling for request in requests]
    temperature = torch.tensor([p.temperature for p in params], dtype=torch.float64)
    # Counted from the largest, logits can be divided by any temperature without overflow.
    scaled = logits.double()
    scaled -= scaled.amax(dim=-1, keepdim=True)
    scaled /= temperature.unsqueeze(1)
    probabilities = torch.softmax(scaled, dim=-1)
    uniform = torch.from_numpy(
        rng.uniform(
            np.array([request.seed for request in requests], dtype=np.uint64),
            np.array([request.num_output_tokens for request in requests], dtype=np.uint64),
        )
    )
    tokens = torch.empty(len(requests), dtype=torch.int64)
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
    vocab_size = probabilities.shape[1]
    top_k = torch.tensor([min(p.top_k or vocab_size, vocab_size) for p in params])
    top_p = torch.tensor([p.top_p for p in params], dtype=torch.float64)
    min_p = torch.tensor([p.min_p for p in params], dtype=torch.float64)
    tokens = torch.empty(len(requests), dtype=torch.int64)
    todo = torch.arange(len(requests))
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
    rank = torch.arange(values.shape[1])
    kept = torch.where(rank < top_k.unsqueeze(1), values, 0.0)
    cumulative = kept.cumsum(dim=-1)
    mass = torch.where(top_k < vocab_size, cumulative[:, -1], 1.0)
    before = cumulative - kept
    keep = (before < (top_p * mass).unsqueeze(1)) & (values >= min_p.unsqueeze(1) * values[:, :1])
    return torch.where(keep, kept, 0.0)


def token_logprobs(
    logits: torch.Tensor, token_ids: Sequence[int], num_top: Sequence[int]
) -> list[TokenLogprobs]:
    """Return the log-probabilities of given tokens and of the likeliest ones.

    Args:
        logits: (n, vocab_size), fp32, as the model gave them.
        token_ids: the token of each row.
        num_top: how many of the likeliest to report for each row.
    """
    logprobs = torch.log_softmax(logits, dim=-1)
    ids = torch.tensor(token_ids).unsqueeze(1)
    chosen = logprobs.gather(1, ids)
    ranks = ((logprobs > chosen).int().cumsum(dim=-1)[:, -1] + 1).tolist()
    width = min(max(num_top), logits.shape[1])
    values, top_ids = _candidates(logprobs, width) if width else (logprobs[:, :0], ids[:, :0])
    return [
        TokenLogprobs(
            token_id,
            logprob,
            rank,
            tuple(zip(row_ids[:count], row_values[:count], strict=True)),
        )
        for token_id, logprob, rank, row_ids, row_values, count in zip(
            token_ids,
            chosen.squeeze(1).tolist(),
            ranks,
            top_ids.tolist(),
            values.tolist(),
            num_top,
            strict=True,
        )
    ]
