"""From an engine to its cost profile: measure, fit, and try both forms on steps they have not seen.

Every target is visited in each of a few rounds, in random order, and its time is the median of its
samples, so that a slow minute of the machine touches all targets a little and none of them a lot.
Targets whose median is well above their least sample were disturbed, and are visited again.
"""

from __future__ import annotations

import platform
import random
import statistics
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path

import psutil

from evenflow.core.clock import Clock, MonotonicClock
from evenflow.engine.build import Runtime, build_scheduler
from evenflow.engine.calibration.stage import Stage
from evenflow.engine.calibration.targets import Reach, Target, grid, held_out
from evenflow.engine.engine import Engine
from evenflow.execution.costs.closed_form import fit_closed_form
from evenflow.execution.costs.cost_model import CostModel
from evenflow.execution.costs.measured import MeasuredCosts, MeasuredStep
from evenflow.execution.costs.profile import CostProfile, Form, origin
from evenflow.execution.executor import Executor
from evenflow.memory.sizing import format_bytes

_NUM_ROUNDS = 3
_SETTLED_RATIO = 1.1
_NUM_HELD_OUT = 32
_NUM_HELD_OUT_QUICK = 12
_SEED = 20_26

Report = Callable[[int, int], None]
"""Called with how many visits are done, and of how many."""


def calibrate(
    runtime: Runtime,
    *,
    quick: bool = False,
    on_progress: Report | None = None,
    clock: Clock | None = None,
) -> CostProfile:
    """Measure an engine that has no requests, and return its cost profile.

    Args:
        runtime: the engine, warmed up.
        quick: measure fewer steps, and each one once.
        on_progress: told how far it is.
        clock: times the steps; the machine's monotonic clock by default.

    Raises:
        ConfigError: the engine is too small to be measured.
        GenerationError: the model cannot compute.
    """
    config = runtime.config
    clock = clock or MonotonicClock()

    def make_engine(executor: Executor) -> Engine:
        return Engine(
            build_scheduler(config, runtime.kv_plan.num_blocks),
            executor,
            clock,
            runtime.engine.limits,
            detokenizer=partial(runtime.tokenizer.stream, after_text=True),
        )

    reach = Reach(
        config.scheduler.max_num_seqs,
        config.scheduler.max_num_batched_tokens,
        runtime.kv_plan.max_model_len,
        runtime.kv_plan.num_blocks,
        runtime.kv_plan.block_size,
    )
    rng = random.Random(_SEED)
    targets = grid(reach, quick=quick)
    unseen = held_out(reach, _NUM_HELD_OUT_QUICK if quick else _NUM_HELD_OUT, rng)
    stage = Stage(make_engine, runtime.executor, clock, _SEED)
    stage.fill()
    steps = measure(stage, [*targets, *unseen], 1 if quick else _NUM_ROUNDS, rng, on_progress)
    return make_profile(
        steps[: len(targets)],
        steps[len(targets) :],
        model=Path(config.model.model).name,
        machine=describe_machine(),
    )


def measure(
    stage: Stage,
    targets: Sequence[Target],
    num_rounds: int,
    rng: random.Random,
    on_progress: Report | None = None,
) -> list[MeasuredStep]:
    """Return the median step of each target.

    Args:
        stage: where they are set up.
        targets: what to measure.
        num_rounds: how often each is visited; disturbed ones are up to twice as often.
        rng: orders the visits.
        on_progress: told how far it is.
    """
    samples: list[list[MeasuredStep]] = [[] for _ in targets]
    num_done, num_visits = 0, num_rounds * len(targets)
    for number in range(2 * num_rounds):
        again = [index for index, steps in enumerate(samples) if _is_disturbed(steps)]
        visits = list(range(len(targets))) if number < num_rounds else again
        num_visits = max(num_visits, num_done + len(visits))
        rng.shuffle(visits)
        for index in visits:
            samples[index] += stage.measure(targets[index])
            num_done += 1
            if on_progress is not None:
                on_progress(num_done, num_visits)
    return [_median(steps) for steps in samples]


def make_profile(
    steps: Sequence[MeasuredStep], unseen: Sequence[MeasuredStep], *, model: str, machine: str
) -> CostProfile:
    """Fit both forms to `steps` and choose the one that is nearer to `unseen`.

    Args:
        steps: chunks alone and decodes alone.
        unseen: steps of all kinds.
        model: the model's name.
        machine: what it ran on.
    """
    source = "evenflow calibrate"
    where = origin(model, machine, source)
    closed_form = fit_closed_form(steps, where)
    forms: dict[Form, CostModel] = {
        "closed_form": closed_form,
        "measured": MeasuredCosts(steps, where),
    }
    errors: dict[str, dict[str, float]] = {
        form: relative_errors(costs, unseen) for form, costs in forms.items()
    }
    return CostProfile(
        source=source,
        machine=machine,
        date=date.today().isoformat(),
        evenflow_version=version("evenflow"),
        model=model,
        best=min(forms, key=lambda form: errors[form]["mean"]),
        closed_form=closed_form,
        steps=tuple(steps),
        errors=errors,
    )


def relative_errors(costs: CostModel, steps: Sequence[MeasuredStep]) -> dict[str, float]:
    """Return how far costs are from measured steps, as shares of the measured times.

    Returns:
        `mean` and `worst` of the absolute errors, the signed mean as `bias`, and the mean of the
        absolute errors of `chunks`, `decodes` and `mixed` steps, as far as there are any.
    """
    by_kind: dict[str, list[float]] = {}
    errors = []
    for step in steps:
        error = costs.step_s(step.shape) / step.seconds - 1
        errors.append(error)
        by_kind.setdefault(_kind(step), []).append(abs(error))
    return {
        "mean": statistics.fmean(map(abs, errors)),
        "worst": max(map(abs, errors)),
        "bias": statistics.fmean(errors),
        **{kind: statistics.fmean(values) for kind, values in sorted(by_kind.items())},
    }


def describe_machine() -> str:
    """Return this machine in a few words."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        model = next(iter(names), model)
    memory = format_bytes(psutil.virtual_memory().total)
    return f"{psutil.cpu_count()} CPUs ({model}), {memory}"


def _kind(step: MeasuredStep) -> str:
    if step.shape.chunks:
        return "mixed" if step.shape.num_decodes else "chunks"
    return "decodes"


def _is_disturbed(steps: Sequence[MeasuredStep]) -> bool:
    if not steps:
        return False
    least = min(step.seconds for step in steps)
    return _median(steps).seconds > _SETTLED_RATIO * least


def _median(steps: Sequence[MeasuredStep]) -> MeasuredStep:
    """Return the shape of the middle sample, with the median of the times."""
    return MeasuredStep(
        steps[len(steps) // 2].shape, statistics.median(step.seconds for step in steps)
    )
