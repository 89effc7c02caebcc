"""Runs a model on step plans: lays out the batch, computes, samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from evenflow.core.request import Request
from evenflow.execution.attention import Attention
from evenflow.execution.batch import ForwardBatch
from evenflow.execution.model import CausalLM
from evenflow.execution.torch.grammar_masks import MaskFiller, StepMasks
from evenflow.execution.torch.kv_store import KVStore
from evenflow.execution.torch.sampler import sample, token_logprobs
from evenflow.scheduling.plan import NO_TOKEN, StepPlan, StepResult, TokenLogprobs

_SCORED_ROWS = 32
"""Prompt tokens scored at once; bounds the memory that logits over the vocabulary take."""


class ModelRunner:
    """The executor that computes for real.

    Args:
        model: the network.
        attention: attention over `store`.
        store: the KV tensors.
    """

    def __init__(self, model: CausalLM, attention: Attention, store: KVStore) -> None:
        self._model = model
        self._attention = attention
        self._store = store
        self._masks = MaskFiller()

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        """Compute the plan's tokens and sample where a request's tokens end."""
        if plan.copies:
            self._store.copy_blocks(plan.copies)
        sampling = [
            index
            for index, (request, count) in enumerate(
                zip(plan.requests, plan.num_new_tokens, strict=True)
            )
            if request.num_computed_tokens + count == request.num_tokens and request.pooling is None
        ]
        masks = self._masks.start(plan.requests, sampling)
        batch = build_batch(plan, self._store.block_size)
        hidden = self._model.forward(batch, self._attention)
        ends = np.cumsum(plan.num_new_tokens) - 1
        result = StepResult([NO_TOKEN] * len(plan.requests))
        self._prompt_logprobs(plan, hidden, ends, result)
        _sum_hidden(plan, hidden, ends, result)
        if sampling:
            logits = self._model.logits(hidden[torch.from_numpy(ends[sampling])])
            self._sample(plan.requests, sampling, logits, masks.result(), result)
        return result

    def _sample(
        self,
        requests: Sequence[Request],
        sampling: list[int],
        logits: torch.Tensor,
        masks: StepMasks,
        result: StepResult,
    ) -> None:
        # A row with one NaN has NaN as its maximum.
        damaged = (~torch.isfinite(logits.amax(dim=-1))).tolist()
        if any(damaged) or masks.failures:
            result.failures.update(masks.failures)
            for index, is_damaged in zip(sampling, damaged, strict=True):
                if is_damaged:
                    result.failures[index] = "the model computed NaN or infinity for its next token"
            sound = [row for row, index in enumerate(sampling) if index not in result.failures]
            sampling = [sampling[row] for row in sound]
            logits = logits[sound]
        chosen = [requests[index] for index in sampling]
        wants = [row for row, r in enumerate(chosen) if r.sampling.logprobs is not None]
        unmodified = logits[wants] if wants else logits
        tokens = sample(logits, chosen, masks.forbidden(sampling))
        for index, token_id in zip(sampling, tokens, strict=True):
            result.token_ids[index] = token_id
        _follow_grammars(requests, masks, result)
        if wants:
            entries = token_logprobs(
                unmodified,
                [tokens[row] for row in wants],
                [chosen[row].sampling.logprobs or 0 for row in wants],
            )
            for row, entry in zip(wants, entries, strict=True):
                result.logprobs[sampling[row]] = entry

    def _prompt_logprobs(
        self, plan: StepPlan, hidden: torch.Tensor, ends: np.ndarray, result: StepResult
    ) -> None:
        """Score the prompt tokens that this step's rows predict, unless it was done before."""
        for index, (request, count) in enumerate(
            zip(plan.requests, plan.num_new_tokens, strict=True)
        ):
            num_top = request.sampling.prompt_logprobs
            first = request.num_computed_tokens
            predicted = request.token_ids[first + 1 : first + count + 1]
            if num_top is None or not predicted or request.num_output_tokens:
                continue
            start = int(ends[index]) - count + 1
            entries: list[TokenLogprobs] = []
            for done in range(0, len(predicted), _SCORED_ROWS):
                ids = predicted[done : done + _SCORED_ROWS]
                rows = hidden[start + done : start + done + len(ids)].contiguous()
                entries += token_logprobs(self._model.logits(rows), ids, [num_top] * len(ids))
            result.prompt_logprobs[index] = entries


def _follow_grammars(requests: Sequence[Request], masks: StepMasks, result: StepResult) -> None:
    """Let the grammars of a step accept what was sampled under them."""
    for index in masks.rows:
        grammar = requests[index].grammar
        token_id = result.token_ids[index]
        if grammar is None or token_id == NO_TOKEN:
            continue
        if not grammar.accept(token_id):
            result.token_ids[index] = NO_TOKEN
            result.failures[index] = f"its grammar cannot go on after token {token_id}"
        elif grammar.is_complete:
            result.completed.append(index)


def _sum_hidden(plan: StepPlan, hidden: torch.Tensor, ends: np.ndarray, result: StepResult) -> None:
    """Add this step's rows to the sums of the requests that want an embedding."""
    for index, (request, count) in enumerate(zip(plan.requests, plan.num_new_tokens, strict=True)):
        if request.pooling is None:
            continue
        stop = int(ends[index]) + 1
        rows = hidden[stop - count : stop].double().numpy(force=True)
        if request.hidden_sum is not None and request.num_computed_tokens:
            rows = np.concatenate([request.hidden_sum[np.newaxis], rows])
        total = np.add.reduce(rows, axis=0)  # row after row, for rows that are contiguous
        if np.isfinite(total).all():
            result.hidden_sums[index] = total
        else:
            result.failures[index] = "the model computed NaN or infinity for its prompt"


def build_batch(plan: StepPlan, block_size: int) -> ForwardBatch:
    """Lay out a plan's tokens, positions and blocks for a forward pass."""
    counts = np.array(plan.num_new_tokens)
    starts = np.array([request.num_computed_tokens for request in plan.requests])
    query_starts = np.zeros(len(counts) + 1, dtype=np.int32)
    np.cumsum(counts, out=query_starts[1:])
    owner = np.repeat(np.arange(len(counts)), counts)
    positions = np.arange(query_starts[-1]) + (starts - query_starts[:-1])[owner]

    token_ids: list[int] = []
    for request, count in zip(plan.requests, plan.num_new_tokens, strict=True):
        first = request.num_computed_tokens
        token_ids += request.token_ids[first : first + count]

    context_lens = starts + counts
    num_blocks = -(-context_lens // block_size)
    block_tables = np.zeros((len(counts), int(num_blocks.max())), dtype=np.int32)
    for row, (table, length) in enumerate(zip(plan.tables, num_blocks.tolist(), strict=True)):
        block_tables[row, :length] = table.ids[:length]
    slots = block_tables[owner, positions // block_size].astype(np.int64) * block_size
    slots += positions % block_size
    return ForwardBatch(
        token_ids=torch.tensor(token_ids, dtype=torch.int64),
        positions=torch.from_numpy(positions.astype(np.int64)),
        slot_mapping=torch.from_numpy(slots),
        query_starts=torch.from_numpy(query_starts),
        context_lens=torch.from_numpy(context_lens.astype(np.int32)),
        block_tables=torch.from_numpy(block_tables),
    )
