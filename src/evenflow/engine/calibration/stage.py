"""Times whole steps of an engine at contexts that it never computed.

The steps that lead up to a measured one are not carried out. The KV they would have written is what
a first step left in every block, which takes as long to attend to as any other.

    fill the KV memory, once
    for each target:  add requests ─▶ steps that compute nothing ─▶ timed steps ─▶ abort requests
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from evenflow.core.clock import Clock
from evenflow.core.errors import GenerationError
from evenflow.core.ids import BlockId
from evenflow.core.sampling import SamplingParams
from evenflow.engine.calibration.targets import NUM_DECODE_STEPS, Target
from evenflow.engine.engine import Engine
from evenflow.execution.costs.measured import MeasuredStep
from evenflow.execution.costs.shape import StepShape, shape_of
from evenflow.execution.executor import Executor, ScriptedExecutor
from evenflow.scheduling.plan import StepPlan, StepResult

_UNBOUNDED = 2**40


class StagedExecutor:
    """Carries out a plan, or only says that it did.

    Args:
        executor: computes.

    Attributes:
        is_live: whether plans are carried out.
        shape: of the last plan.
        copies: what to copy in the next plan that is carried out, besides what it asks for.
    """

    def __init__(self, executor: Executor) -> None:
        self.is_live = True
        self.shape = StepShape()
        self.copies: list[tuple[BlockId, BlockId]] = []
        self._executor = executor
        self._script = ScriptedExecutor(lambda *_: 0)

    def execute(self, plan: StepPlan) -> StepResult:
        """Return tokens, computed or not."""
        self.shape = shape_of(plan)
        if not self.is_live:
            return self._script.execute(plan)
        if self.copies:
            plan = replace(plan, copies=[*plan.copies, *self.copies])
            self.copies = []
        result = self._executor.execute(plan)
        if result.failures:
            raise GenerationError("a step failed", why=next(iter(result.failures.values())))
        return result


class Stage:
    """An engine whose next step can be set up at will.

    Args:
        make_engine: builds the engine around an executor; nobody else uses it.
        executor: computes for it.
        clock: times the steps.
        seed: of the prompts.
    """

    def __init__(
        self,
        make_engine: Callable[[Executor], Engine],
        executor: Executor,
        clock: Clock,
        seed: int = 0,
    ) -> None:
        self._executor = StagedExecutor(executor)
        self._engine = make_engine(self._executor)
        self._now_s = clock.now_s
        self._rng = random.Random(seed)
        self._ids: list[str] = []
        self._num_added = 0

    def fill(self) -> None:
        """Write a computed block into every block, so that all KV memory is there and sound."""
        kv = self._engine.scheduler.kv
        self._add(min(kv.block_size, self._engine.limits.max_model_len - 2))
        self._step(_UNBOUNDED)
        request = self._engine.scheduler.running[0]
        first, *_ = kv.table(request.request_id).ids
        rest = (BlockId(block_id) for block_id in range(kv.num_blocks) if block_id != first)
        self._executor.copies = [(first, block_id) for block_id in rest]
        self._step(_UNBOUNDED)
        self._clear()

    def measure(self, target: Target) -> list[MeasuredStep]:
        """Return timed steps like `target`; how near they are to it, their shapes tell."""
        self._executor.is_live = False
        for _ in range(target.num_decodes):
            self._add(max(1, target.context - 2))
        if target.num_decodes:
            self._step(_UNBOUNDED)
        for index, (new, before) in enumerate(target.chunks):
            self._add(before + new)
            if before and not index:
                self._step(target.num_decodes + before)
        self._executor.is_live = True
        num_steps = 1 if target.chunks else NUM_DECODE_STEPS
        steps = [self._step(target.num_tokens) for _ in range(num_steps)]
        self._clear()
        return steps if target.chunks else steps[1:]

    def _add(self, num_prompt_tokens: int) -> None:
        """Queue a request that shares no prefix with another one and does not end by itself."""
        request_id = f"calibration-{self._num_added}"
        self._num_added += 1
        vocab_size = self._engine.limits.vocab_size
        prompt = self._rng.choices(range(vocab_size), k=num_prompt_tokens)
        params = SamplingParams(max_tokens=None, temperature=0.0, ignore_eos=True)
        self._engine.add_request(request_id, prompt, params)
        self._ids.append(request_id)

    def _step(self, token_budget: int) -> MeasuredStep:
        self._engine.scheduler.max_num_batched_tokens = token_budget
        started_s = self._now_s()
        self._engine.step()
        return MeasuredStep(self._executor.shape, self._now_s() - started_s)

    def _clear(self) -> None:
        for request_id in self._ids:
            self._engine.abort(request_id)
        self._ids.clear()
        while self._engine.has_work:
            self._engine.step()
