"""A small engine without a model that writes given texts, and everything a batch run needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

from evenflow.core.clock import VirtualClock
from evenflow.engine.engine import Engine
from evenflow.engine.limits import ModelLimits
from evenflow.execution.executor import scripted_hidden_sum
from evenflow.memory.kv_cache_manager import KVCacheManager
from evenflow.scheduling.plan import NO_TOKEN, StepPlan, StepResult
from evenflow.scheduling.policy import load_policy
from evenflow.scheduling.scheduler import Scheduler
from evenflow.tokenization.tokenizer import SpecialTokens, Tokenizer
from support.small_tokenizers import byte_level_backend

EXECUTE_S = 0.5
END = "<|begin|>"

Reply = Callable[[str], str | Sequence[int]]


@cache
def tokenizer() -> Tokenizer:
    backend = byte_level_backend()
    return Tokenizer(backend, SpecialTokens(eos_id=backend.token_to_id(END)))


def spell(text: str) -> list[int]:
    """Return a text as the tokens of its characters, so that it comes a character a step."""
    return [token_id for char in text for token_id in tokenizer().encode(char)]


class TypingExecutor:
    """Types a reply for each request, then the end token; a step takes EXECUTE_S.

    Args:
        reply: called with the id of a completion; returns its text, or its tokens.
        clock: moved on by every step.
    """

    def __init__(self, reply: Reply, clock: VirtualClock) -> None:
        self._reply = reply
        self._clock = clock
        self.failing: set[str] = set()

    def execute(self, plan: StepPlan) -> StepResult:
        self._clock.advance(EXECUTE_S)
        result = StepResult([NO_TOKEN] * len(plan.requests))
        for index, (request, count) in enumerate(
            zip(plan.requests, plan.num_new_tokens, strict=True)
        ):
            if request.request_id in self.failing:
                result.failures[index] = "the test says so"
            elif request.pooling is not None:
                result.hidden_sums[index] = scripted_hidden_sum(request, count)
            elif request.num_computed_tokens + count == request.num_tokens:
                reply = self._reply(request.request_id)
                ids = [*(spell(reply) if isinstance(reply, str) else reply)]
                ids.append(tokenizer().eos_token_id)
                result.token_ids[index] = ids[min(request.num_output_tokens, len(ids) - 1)]
        return result


def make_text_engine(
    reply: Reply, *, num_blocks: int = 256, max_model_len: int = 512, salt_per_tenant: bool = False
) -> Engine:
    clock = VirtualClock(100.0)
    scheduler = Scheduler(
        load_policy("fcfs"),
        KVCacheManager(num_blocks, 4),
        max_num_seqs=8,
        max_num_batched_tokens=64,
    )
    own = tokenizer()
    return Engine(
        scheduler,
        TypingExecutor(reply, clock),
        clock,
        ModelLimits(max_model_len, own.vocab_size, frozenset({own.eos_token_id})),
        detokenizer=own.stream,
        salt_per_tenant=salt_per_tenant,
    )


def make_fake_llm(reply: Reply) -> Any:
    """Return as much of an `LLM` as a batch run uses."""
    config = SimpleNamespace(
        scheduler=SimpleNamespace(max_num_seqs=8), model=SimpleNamespace(model="fake")
    )
    return SimpleNamespace(
        engine=make_text_engine(reply),
        tokenizer=tokenizer(),
        runtime=SimpleNamespace(config=config, compile_grammar=lambda params: None),
    )
