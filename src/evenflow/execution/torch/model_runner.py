"""Runs a model on step plans: lays out the batch, computes, samples.

    start    lay out ─▶ forward ─▶ sample ─▶ begin to read back          nothing waits for a device
    finish                                   wait ─▶ StepResult

A step that follows one which is not finished takes that one's tokens from the device, where they
are; the host learns of both when it finishes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from evenflow.core.ids import RequestId
from evenflow.core.request import Request
from evenflow.execution.attention import Attention
from evenflow.execution.batch import ForwardBatch
from evenflow.execution.model import CausalLM
from evenflow.execution.torch.decode_recordings import DecodeRecordings
from evenflow.execution.torch.grammar_masks import MaskFiller, StepMasks
from evenflow.execution.torch.kv_store import KVStore
from evenflow.execution.torch.placement import ReadBack, to_device
from evenflow.execution.torch.sampler import PendingLogprobs, Sample, sample, token_logprobs
from evenflow.scheduling.plan import NO_TOKEN, StepPlan, StepResult, TokenLogprobs

_SCORED_ROWS = 32
"""Prompt tokens scored at once; bounds the memory that logits over the vocabulary take."""

_DAMAGED = "the model computed NaN or infinity for its next token"


@dataclass(slots=True, frozen=True)
class _Sampled:
    """What was sampled in a step, on its way to the host.

    Attributes:
        indices: positions in `StepPlan.requests` of those who sampled.
        arrays: their tokens, int64, and whether their logits were unusable, bool; each (n,).
        masks: what grammars forbade.
        scored: positions of those who want log-probabilities.
        logprobs: of these; None if there are none.
    """

    indices: list[int]
    arrays: ReadBack
    masks: StepMasks
    scored: list[int]
    logprobs: PendingLogprobs | None


class ModelRunner:
    """The executor that computes for real, on the device that the KV store is on.

    Args:
        model: the network.
        attention: attention over `store`.
        store: the KV tensors.
        sample: draws tokens.
        recordings: replay steps in which everybody computes one token; None computes all alike.
    """

    def __init__(
        self,
        model: CausalLM,
        attention: Attention,
        store: KVStore,
        *,
        sample: Sample = sample,
        recordings: DecodeRecordings | None = None,
    ) -> None:
        self._model = model
        self._attention = attention
        self._store = store
        self._device = store.data.device
        self._sample = sample
        self._recordings = recordings
        self._masks = MaskFiller()
        # The tokens that were sampled last, (n,), on the device, and whose they are.
        self._tokens = torch.empty(0, dtype=torch.int64)
        self._token_rows: dict[RequestId, int] = {}

    def execute(self, plan: StepPlan) -> StepResult:
        """Compute the plan's tokens and sample where a request's tokens end."""
        return self.start(plan)()

    @torch.inference_mode()
    def start(self, plan: StepPlan) -> Callable[[], StepResult]:
        """Enqueue a step, and return the function that waits for what comes out of it.

        At most one step may be started while another one is not finished. Only what is wanted of
        prompts, their log-probabilities and hidden states, is waited for here.
        """
        if plan.copies:
            self._store.copy_blocks(plan.copies)
        sampling = [
            index
            for index, (request, start, count) in enumerate(
                zip(plan.requests, plan.starts, plan.num_new_tokens, strict=True)
            )
            if start + count >= request.num_tokens and request.pooling is None
        ]
        masks = self._masks.start(plan.requests, sampling)
        result = StepResult([NO_TOKEN] * len(plan.requests))
        if any(map(_wants_all_rows, plan.requests)):
            hidden = self._forward(plan, last_only=False)
            ends = np.cumsum(plan.num_new_tokens) - 1
            self._prompt_logprobs(plan, hidden, ends, result)
            _sum_hidden(plan, hidden, ends, result)
            rows = ends[sampling]
        else:
            hidden = self._forward(plan, last_only=True)
            rows = np.array(sampling, dtype=np.int64)
        if not sampling:
            return lambda: result
        wanted = hidden.index_select(0, to_device(torch.from_numpy(rows), self._device))
        logits = self._model.logits(wanted)
        return partial(_finish, plan, self._draw(plan, sampling, logits, masks), result)

    def _forward(self, plan: StepPlan, *, last_only: bool) -> torch.Tensor:
        """Compute the hidden states of a step's tokens, or of each request's last one."""
        batch = build_batch(plan, self._store.block_size)
        if self._device.type != "cpu":
            batch = batch.to(partial(to_device, device=self._device))
        if plan.follows:
            batch = replace(batch, token_ids=self._tokens_of(plan.requests))
        if self._recordings is not None and self._recordings.covers(plan.num_new_tokens):
            return self._recordings.replay(batch)
        last_only = last_only and batch.num_tokens > batch.num_requests
        return self._model.forward(batch, self._attention, last_only=last_only)

    def _tokens_of(self, requests: Sequence[Request]) -> torch.Tensor:
        """Return what requests sampled last, (num_requests,), without waiting for it."""
        rows = [self._token_rows[request.request_id] for request in requests]
        if rows == list(range(len(self._tokens))):
            return self._tokens
        return self._tokens.index_select(0, to_device(torch.tensor(rows), self._device))

    def _draw(
        self,
        plan: StepPlan,
        sampling: list[int],
        logits: torch.Tensor,
        masks: Future[StepMasks],
    ) -> _Sampled:
        """Sample from logits, (len(sampling), vocab_size), and begin to read the tokens back."""
        requests = [plan.requests[index] for index in sampling]
        # A row with one NaN has NaN as its maximum. Its token is drawn from nothing in particular,
        # and nobody hears of it; a device is not asked beforehand, since that means to wait.
        damaged = ~torch.isfinite(logits.amax(dim=-1))
        if logits.device.type != "cpu" or damaged.any():
            logits.masked_fill_(damaged.unsqueeze(1), 0.0)
        wants = [row for row, r in enumerate(requests) if r.sampling.logprobs is not None]
        wanted = to_device(torch.tensor(wants, dtype=torch.int64), self._device)
        unmodified = logits.index_select(0, wanted) if wants else logits
        filled = masks.result()
        num_ahead = int(plan.follows)
        tokens = self._sample(logits, requests, filled.forbidden(sampling), num_ahead=num_ahead)
        self._tokens = tokens
        self._token_rows = {request.request_id: row for row, request in enumerate(requests)}
        logprobs = None
        if wants:
            num_top = [requests[row].sampling.logprobs or 0 for row in wants]
            logprobs = token_logprobs(unmodified, tokens.index_select(0, wanted), num_top)
        arrays = ReadBack(tokens, damaged)
        return _Sampled(sampling, arrays, filled, [sampling[row] for row in wants], logprobs)

    def _prompt_logprobs(
        self, plan: StepPlan, hidden: torch.Tensor, ends: np.ndarray, result: StepResult
    ) -> None:
        """Score the prompt tokens that this step's rows predict, unless it was done before."""
        for index, (request, first, count) in enumerate(
            zip(plan.requests, plan.starts, plan.num_new_tokens, strict=True)
        ):
            num_top = request.sampling.prompt_logprobs
            predicted = request.token_ids[first + 1 : first + count + 1]
            if num_top is None or not predicted or request.num_output_tokens:
                continue
            start = int(ends[index]) - count + 1
            entries: list[TokenLogprobs] = []
            for done in range(0, len(predicted), _SCORED_ROWS):
                ids = torch.tensor(predicted[done : done + _SCORED_ROWS])
                rows = hidden[start + done : start + done + len(ids)].contiguous()
                logits = self._model.logits(rows)
                scores = token_logprobs(logits, to_device(ids, self._device), [num_top] * len(ids))
                entries += scores.wait()
            result.prompt_logprobs[index] = entries


def _wants_all_rows(request: Request) -> bool:
    """Return whether hidden states of other tokens than a request's last one are of use."""
    return request.pooling is not None or request.sampling.prompt_logprobs is not None


def _finish(plan: StepPlan, sampled: _Sampled, result: StepResult) -> StepResult:
    """Wait for the tokens of a step and put them, or why there are none, into its result."""
    tokens, damaged = (array.tolist() for array in sampled.arrays.wait())
    result.failures.update(sampled.masks.failures)
    for index, token_id, is_damaged in zip(sampled.indices, tokens, damaged, strict=True):
        if is_damaged:
            result.failures[index] = _DAMAGED
        if index not in result.failures:
            result.token_ids[index] = token_id
    _follow_grammars(plan.requests, sampled.masks, result)
    if sampled.logprobs is not None:
        for index, entry in zip(sampled.scored, sampled.logprobs.wait(), strict=True):
            if result.token_ids[index] != NO_TOKEN:
                result.logprobs[index] = entry
    return result


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
    """Lay out a plan's tokens, positions and blocks for a forward pass, on the host.

    Of a step that follows, whose tokens are not known here, all token ids are 0.
    """
    counts, starts = np.array(plan.num_new_tokens), np.array(plan.starts)
    query_starts = np.zeros(len(counts) + 1, dtype=np.int32)
    np.cumsum(counts, out=query_starts[1:])
    owner = np.repeat(np.arange(len(counts)), counts)
    positions = np.arange(query_starts[-1]) + (starts - query_starts[:-1])[owner]

    token_ids: list[int] = []
    for request, count in zip(plan.requests, plan.num_new_tokens, strict=True):
        first = request.num_computed_tokens
        token_ids += [0] if plan.follows else request.token_ids[first : first + count]

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
