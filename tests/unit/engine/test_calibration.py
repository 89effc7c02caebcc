from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

import pytest

from evenflow.config import load_config
from evenflow.core.clock import VirtualClock
from evenflow.core.errors import ConfigError, GenerationError
from evenflow.engine.build import Runtime, build_runtime
from evenflow.engine.calibration.calibrate import (
    calibrate,
    make_profile,
    measure,
    relative_errors,
)
from evenflow.engine.calibration.stage import Stage
from evenflow.engine.calibration.targets import NUM_DECODE_STEPS, Reach, Target, grid, held_out
from evenflow.engine.engine import Engine
from evenflow.engine.limits import ModelLimits
from evenflow.execution.costs import (
    ClosedFormCosts,
    CostModel,
    DecodeCoefficients,
    MeasuredStep,
    PrefillCoefficients,
    StepShape,
    shape_of,
)
from evenflow.execution.costs.profile import read_profile
from evenflow.execution.executor import Executor, ScriptedExecutor
from evenflow.memory.kv_cache_manager import KVCacheManager
from evenflow.scheduling.plan import StepPlan, StepResult
from evenflow.scheduling.policy import load_policy
from evenflow.scheduling.scheduler import Scheduler
from support.served_model import write_model
from support.step_shapes import chunk, decodes, measured

REACH = Reach(
    max_num_seqs=16, max_num_batched_tokens=64, max_model_len=512, num_blocks=96, block_size=16
)
COSTS = ClosedFormCosts(
    PrefillCoefficients(0.01, 1e-4, 1e-7), (DecodeCoefficients(0.02, 1e-6, 1e-3),), "a test"
)
UNEVEN = [chunk(n, h) for n in (1, 8, 64) for h in (0, 300)]
UNEVEN += [decodes(b, c) for b in (1, 4, 16) for c in (16, 300)]


class TimedExecutor(ScriptedExecutor):
    """Takes as long as a cost model says, and remembers what it was asked."""

    def __init__(self, clock: VirtualClock, costs: CostModel) -> None:
        super().__init__(lambda *_: 1)
        self.plans: list[StepShape] = []
        self.copied: set[int] = set()
        self._clock = clock
        self._costs = costs

    def execute(self, plan: StepPlan) -> StepResult:
        self.plans.append(shape_of(plan))
        self.copied |= {destination for _, destination in plan.copies}
        self._clock.advance(self._costs.step_s(self.plans[-1]))
        return super().execute(plan)


def make_stage(executor: Executor, clock: VirtualClock) -> Stage:
    def make_engine(staged: Executor) -> Engine:
        kv = KVCacheManager(REACH.num_blocks, REACH.block_size)
        scheduler = Scheduler(
            load_policy("fcfs"),
            kv,
            max_num_seqs=REACH.max_num_seqs,
            max_num_batched_tokens=REACH.max_num_batched_tokens,
        )
        return Engine(scheduler, staged, clock, ModelLimits(REACH.max_model_len, 1000))

    return Stage(make_engine, executor, clock)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def executor(clock: VirtualClock) -> TimedExecutor:
    return TimedExecutor(clock, COSTS)


@pytest.fixture
def stage(executor: TimedExecutor, clock: VirtualClock) -> Stage:
    return make_stage(executor, clock)


def test_stage_fills_every_block(stage: Stage, executor: TimedExecutor) -> None:
    stage.fill()
    assert len(executor.copied) == REACH.num_blocks - 1


def test_stage_computes_nothing_but_the_measured_steps(
    stage: Stage, executor: TimedExecutor
) -> None:
    (step,) = stage.measure(Target(((16, 100),), 3, 50))
    assert executor.plans == [step.shape]


@pytest.mark.parametrize(
    "target",
    [
        Target(((16, 100),)),
        Target(((64, 0),)),
        Target(((1, 0),)),
        Target(((1, 440),)),
        Target(num_decodes=16, context=60),
        Target(num_decodes=1, context=2),
        Target(((20, 64),), 5, 30),
        Target(((7, 33), (9, 0)), 8, 40),
    ],
)
def test_stage_times_a_step_of_the_wanted_shape(stage: Stage, target: Target) -> None:
    steps = stage.measure(target)
    for step in steps:
        shape = step.shape
        assert shape.chunks == target.chunks
        assert shape.num_decodes == target.num_decodes
        mean = shape.num_decode_context_tokens / max(1, shape.num_decodes)
        assert mean == pytest.approx(target.context, abs=3)
        assert step.seconds == pytest.approx(COSTS.step_s(shape))
    assert len(steps) == (1 if target.chunks else NUM_DECODE_STEPS - 1)


def test_stage_leaves_the_engine_as_it_was(stage: Stage) -> None:
    for _ in range(3):
        (step,) = stage.measure(Target(((60, 380),)))
        assert step.shape == chunk(60, 380)


def test_stage_says_when_the_model_fails(clock: VirtualClock) -> None:
    class Broken(ScriptedExecutor):
        def execute(self, plan: StepPlan) -> StepResult:
            return StepResult([-1] * len(plan.requests), failures={0: "NaN"})

    with pytest.raises(GenerationError, match="NaN"):
        make_stage(Broken(lambda *_: 1), clock).measure(Target(((4, 0),)))


@pytest.mark.parametrize("quick", [True, False])
def test_grid_and_held_out_steps_are_within_reach(stage: Stage, quick: bool) -> None:
    targets = grid(REACH, quick=quick)
    targets += held_out(REACH, 200, random.Random(0))
    for target in targets:
        assert 0 < target.num_tokens <= REACH.max_num_batched_tokens
        assert stage.measure(target)[0].shape.chunks == target.chunks


def test_grid_reaches_the_largest_steps(stage: Stage) -> None:
    targets = grid(REACH, quick=True)
    assert max(new for t in targets for new, _ in t.chunks) == REACH.max_num_batched_tokens
    assert max(t.num_decodes for t in targets) == REACH.max_num_seqs
    assert max(t.context for t in targets) == REACH.longest(1)
    assert len(set(targets)) == len(targets) < len(grid(REACH, quick=False))


def test_grid_says_when_the_engine_is_too_small() -> None:
    with pytest.raises(ConfigError, match="too small"):
        grid(Reach(4, 16, 8, 2, 16), quick=True)


class DisturbedExecutor(TimedExecutor):
    """Takes so many times as long in each step."""

    def __init__(self, clock: VirtualClock, factors: Iterable[int]) -> None:
        super().__init__(clock, COSTS)
        self.factors = iter(factors)

    def execute(self, plan: StepPlan) -> StepResult:
        self._clock.advance((next(self.factors) - 1) * COSTS.step_s(shape_of(plan)))
        return super().execute(plan)


def test_measure_takes_the_median_of_all_rounds(clock: VirtualClock) -> None:
    executor = DisturbedExecutor(clock, [50, 50, 1, 1, 1, 1])  # two visits a round
    seen: list[tuple[int, int]] = []
    targets = [Target(((16, 0),)), Target(((8, 20),))]
    stage = make_stage(executor, clock)
    steps = measure(stage, targets, 3, random.Random(0), lambda *done: seen.append(done))
    assert [step.seconds for step in steps] == pytest.approx(
        [COSTS.step_s(chunk(16)), COSTS.step_s(chunk(8, 20))]
    )
    assert seen == [(n, 6) for n in range(1, 7)]


def test_measure_visits_disturbed_targets_again_until_they_settle(clock: VirtualClock) -> None:
    executor = DisturbedExecutor(clock, [1, 50, 50, 1, 1, 99])
    seen: list[tuple[int, int]] = []
    stage = make_stage(executor, clock)
    (step,) = measure(
        stage, [Target(((16, 0),))], 3, random.Random(0), lambda *done: seen.append(done)
    )
    assert step.seconds == pytest.approx(COSTS.step_s(chunk(16)))
    assert seen == [(1, 3), (2, 3), (3, 3), (4, 4), (5, 5)]


def test_measure_gives_up_on_targets_that_never_settle(clock: VirtualClock) -> None:
    executor = DisturbedExecutor(clock, range(1, 100))
    measure(make_stage(executor, clock), [Target(((16, 0),))], 3, random.Random(0))
    assert len(executor.plans) == 6


def test_make_profile_chooses_the_form_that_is_nearer_to_unseen_steps() -> None:
    class Stairs:
        description = "a test"

        def step_s(self, shape: StepShape) -> float:
            return 0.01 + 0.01 * (shape.num_tokens > 4)

    noise = random.Random(1)
    noisy = [
        MeasuredStep(step.shape, step.seconds * noise.uniform(0.8, 1.25))
        for step in measured(COSTS, *UNEVEN)
    ]
    unseen = [decodes(8, 100), chunk(32, 100)]
    straight = make_profile(noisy, measured(COSTS, *unseen), model="m", machine="a box")
    assert straight.best == "closed_form"
    stairs = make_profile(
        measured(Stairs(), *UNEVEN), measured(Stairs(), *unseen), model="m", machine="a box"
    )
    assert stairs.best == "measured"
    assert "m on a box" in stairs.costs().description


def test_relative_errors_tell_kinds_apart() -> None:
    mixed = StepShape(((8, 0),), 2, 20)
    steps = measured(COSTS, chunk(5), decodes(2, 9), mixed)
    errors = relative_errors(COSTS, steps)
    assert errors == pytest.approx(
        dict.fromkeys(("mean", "worst", "bias", "chunks", "decodes", "mixed"), 0.0)
    )
    slow = ClosedFormCosts(COSTS.prefill, COSTS.decodes, "a test", overhead_s=0.01)
    off = relative_errors(slow, steps)
    assert off["mean"] == pytest.approx((off["chunks"] + off["decodes"] + off["mixed"]) / 3)
    assert off["bias"] == pytest.approx(off["mean"])
    assert off["worst"] == pytest.approx(0.01 / min(step.seconds for step in steps))


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    folder = tmp_path_factory.mktemp("calibration")
    (folder / "tiny").mkdir()
    model = write_model(folder / "tiny")
    settings = {
        "model": str(model),
        "load_format": "dummy",
        "cache": folder / "cache",
        "num_blocks_override": 64,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 32,
        "max_model_len": 256,
    }
    return build_runtime(load_config(settings).config)


def test_calibrate_measures_a_real_engine_and_leaves_it_ready(runtime: Runtime) -> None:
    profile = calibrate(runtime, quick=True)
    assert profile.model == "tiny"
    assert "CPUs" in profile.machine
    assert all(step.seconds > 0 for step in profile.steps)
    assert {"mean", "worst", "chunks", "decodes", "mixed"} <= profile.errors["measured"].keys()
    assert profile.costs().step_s(decodes(4, 30)) > 0
    assert not runtime.engine.has_work


def test_calibrate_writes_a_profile_that_reads_back(runtime: Runtime, tmp_path: Path) -> None:
    profile = calibrate(runtime, quick=True)
    profile.write(tmp_path / "p.json")
    again = read_profile(tmp_path / "p.json")
    for shape in UNEVEN[:4]:
        assert again.costs().step_s(shape) == pytest.approx(profile.costs().step_s(shape), rel=1e-4)
