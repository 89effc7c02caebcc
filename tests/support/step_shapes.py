"""Plans and measured steps without an engine."""

from __future__ import annotations

from evenflow.core.ids import RequestId
from evenflow.core.request import Request
from evenflow.core.sampling import SamplingParams
from evenflow.execution.costs import CostModel, MeasuredStep, StepShape
from evenflow.scheduling.plan import StepPlan


def plan_of(*work: tuple[int, int, int]) -> StepPlan:
    """Return a plan in which requests of (prompt, computed tokens) compute some new ones."""
    requests = []
    for index, (num_prompt, num_computed, _) in enumerate(work):
        prompt = list(range(num_prompt))
        request = Request(RequestId(str(index)), prompt, SamplingParams(), max_num_tokens=10_000)
        request.num_computed_tokens = num_computed
        requests.append(request)
    return StepPlan(requests, [new for *_, new in work], [])


def decodes(batch: int, context: int) -> StepShape:
    return StepShape((), batch, batch * context)


def chunk(new: int, before: int = 0) -> StepShape:
    return StepShape(((new, before),))


def measured(costs: CostModel, *shapes: StepShape) -> list[MeasuredStep]:
    return [MeasuredStep(shape, costs.step_s(shape)) for shape in shapes]
