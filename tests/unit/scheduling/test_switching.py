"""Requests that leave the device and come back, with a script for a model."""

from __future__ import annotations

from itertools import repeat
from typing import Any

import pytest

from evenflow.core.clock import MonotonicClock, VirtualClock
from evenflow.core.events import EventKind
from evenflow.core.request import Request
from evenflow.core.sampling import SamplingParams
from evenflow.core.status import RequestStatus
from evenflow.execution.torch.kv_store import KVStore
from evenflow.execution.torch.transfers import CpuTransfers
from evenflow.memory.extents import Extent
from evenflow.memory.lower_tier import LowerTier
from evenflow.memory.residency import Residency
from evenflow.memory.transfers import Outcome, Ticket, Tier, TransferEngine
from evenflow.scheduling.plan import StepPlan, StepResult
from evenflow.scheduling.swapping import Swapper
from evenflow.scheduling.switching import SwapTiming, SwitchOptions
from support.faulty_transfers import Fault, FaultyTransfers
from support.hand_transfers import SECONDS_PER_BLOCK, HandTransfers
from support.preempting import preempt
from support.scripted_engine import RecordingExecutor, make_engine, scripted_token

STEP_S = TOKEN_S = 0.01
OUT = (Tier.DEVICE, Tier.HOST)
IN = (Tier.HOST, Tier.DEVICE)


class TimedExecutor(RecordingExecutor):
    """Takes 10 ms for a step, and as long for each token of a prompt in it."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._clock = clock

    def execute(self, plan: StepPlan) -> StepResult:
        self._clock.advance(STEP_S + TOKEN_S * (plan.num_tokens - len(plan.requests)))
        return super().execute(plan)


class World:
    """An engine over a device of blocks of 4 tokens, and a host below it."""

    def __init__(
        self,
        *,
        transfers: TransferEngine | None = None,
        num_host_blocks: int = 64,
        has_disk: bool = False,
        options: SwitchOptions | None = None,
        **settings: Any,
    ) -> None:
        self.clock = VirtualClock()
        self.hand = HandTransfers()
        host = LowerTier(Tier.HOST, num_host_blocks)
        disk = LowerTier(Tier.DISK, 64) if has_disk else None
        self.residency = Residency(transfers or self.hand, host, disk)
        settings = {"policy": "priority", "enable_prefix_caching": False, **settings}
        self.engine, _ = make_engine(
            residency=self.residency,
            switching=options or SwitchOptions(mode="swap", timing="beside", write_back=False),
            clock=self.clock,
            **settings,
        )
        self.executor = self.engine._executor = TimedExecutor(self.clock)
        self.scheduler = self.engine.scheduler
        assert isinstance(self.scheduler.switcher, Swapper)
        self.switcher: Swapper = self.scheduler.switcher
        self.received: dict[str, list[int]] = {}
        self.ended: dict[str, str] = {}
        self.requests: dict[str, Request] = {}

    def add(self, name: str, num_tokens: int = 10, *, max_tokens: int = 30, **fields: Any) -> None:
        first = 100 * len(self.requests)
        prompt = [(first + at) % 1000 for at in range(num_tokens)]
        self.engine.add_request(name, prompt, SamplingParams(max_tokens=max_tokens), **fields)
        self.requests[name] = next(r for r in self.engine.live_requests if r.request_id == name)

    def step(self, number: int = 1) -> None:
        for _ in range(number):
            for delta in self.engine.step():
                if delta.token_id is not None:
                    self.received.setdefault(delta.request_id, []).append(delta.token_id)
                if delta.finish_reason is not None:
                    self.ended[delta.request_id] = delta.finish_reason
            self.scheduler.check_integrity()

    def run(self) -> None:
        """Go on until all has ended, while transfers end by themselves."""
        for _ in range(500):
            if not self.engine.has_work:
                return
            self.hand.end()
            self.step()
        raise AssertionError("the engine does not come to an end")

    def preempt(self, name: str) -> None:
        preempt(self.scheduler, self.requests[name], self.clock.now_s())

    def events(self, name: str, kind: EventKind) -> list[str]:
        return [event.cause for event in self.requests[name].events if event.kind is kind]

    def last_step(self) -> dict[str, int]:
        return self.executor.steps[-1]

    def block_ids(self, name: str) -> list[int]:
        return self.scheduler.kv.table(self.requests[name].request_id).ids.tolist()

    def learn(self, *, block_s: float = 0.001, slowdown: float = 0.0) -> None:
        """Let the switcher know what things cost."""
        costs, extent = self.switcher.costs, Extent(0, 1)
        for link in (OUT, IN):
            costs.note_transfer(Outcome(Ticket(*link, ((extent, extent),)), block_s))
        costs.note_step(1, 1, STEP_S, 0.0)
        costs.note_step(1, 101, STEP_S + 100 * TOKEN_S, 0.0)
        costs.slowdown.add(slowdown)

    def check_tokens(self) -> None:
        """Check that all who ran to their end received all their tokens, and these once."""
        for name, reason in self.ended.items():
            request = self.requests[name]
            stop = request.num_tokens
            tokens = [scripted_token(name, at) for at in range(request.num_prompt_tokens, stop)]
            if reason == "length":
                assert self.received[name] == tokens


# ---- Leaving -----------------------------------------------------------------------------------


def test_leave_writes_what_has_no_copy_and_says_so() -> None:
    world = World()
    world.add("a")
    world.step()
    world.preempt("a")
    [ticket] = world.hand.tickets
    assert (ticket.source, ticket.num_blocks) == (Tier.DEVICE, 3)
    [cause] = world.events("a", EventKind.PREEMPTED)
    assert cause.startswith("swap: ")
    assert cause.endswith("0 of them clean, 3 written")


def test_leave_writes_nothing_when_all_is_to_be_recomputed() -> None:
    world = World(options=SwitchOptions(mode="recompute", write_back=False))
    world.add("a")
    world.step()
    world.preempt("a")
    world.run()
    assert world.hand.tickets == []
    assert world.events("a", EventKind.PREEMPTED)[0].startswith("recompute: ")
    world.check_tokens()


@pytest.mark.parametrize(("block_s", "mode"), [(0.001, "swap"), (0.1, "recompute")])
def test_leave_takes_the_way_that_costs_less(block_s: float, mode: str) -> None:
    """Out and back again are 3 blocks each way, or 10 tokens to compute, which take 0.1 s."""
    world = World(options=SwitchOptions(write_back=False))
    world.add("a")
    world.step()
    world.learn(block_s=block_s)
    world.preempt("a")
    assert world.events("a", EventKind.PREEMPTED)[0].startswith(mode)


def test_write_back_makes_blocks_clean_before_they_have_to_leave() -> None:
    world = World(options=SwitchOptions(mode="swap", timing="beside"), num_blocks=16)
    world.add("a", 30)
    for _ in range(4):
        world.step()
        world.hand.end()
    world.preempt("a")
    assert [ticket.num_blocks for ticket in world.hand.tickets] == [7, 1, 1]
    assert world.events("a", EventKind.PREEMPTED)[0].endswith("8 of them clean, 1 written")


@pytest.mark.parametrize(
    ("num_blocks", "has_disk", "num_written"), [(16, False, 7), (18, False, 0), (18, True, 7)]
)
def test_write_back_rests_while_the_device_is_mostly_empty_and_nothing_is_to_outlive_it(
    num_blocks: int, has_disk: bool, num_written: int
) -> None:
    """The request holds 8 blocks, and further ones in reserve."""
    options = SwitchOptions(mode="swap", timing="beside")
    world = World(options=options, has_disk=has_disk, num_blocks=num_blocks)
    world.add("a", 30)
    world.step(2)
    assert sum(ticket.num_blocks for ticket in world.hand.tickets) == num_written


def test_write_back_rests_while_it_would_slow_the_steps() -> None:
    world = World(options=SwitchOptions(mode="swap", timing="beside"), num_blocks=16)
    world.learn(slowdown=0.6)
    world.add("a", 30)
    world.step(3)
    assert world.hand.tickets == []


@pytest.mark.parametrize(("keep_head", "num_loaded"), [(True, 1), (False, 3)])
def test_head_stays_on_the_device_until_the_room_is_needed(
    keep_head: bool, num_loaded: int
) -> None:
    options = SwitchOptions(mode="swap", timing="beside", write_back=False, keep_head=keep_head)
    world = World(options=options, enable_prefix_caching=True)
    world.add("a")
    world.step()
    world.preempt("a")
    world.hand.end()
    world.step()
    assert world.hand.tickets[-1].num_blocks == num_loaded


def test_part_of_a_request_is_recomputed_when_the_host_has_no_room_for_it() -> None:
    world = World(num_host_blocks=3)
    world.add("a", 20)
    world.step()
    world.preempt("a")
    [cause] = world.events("a", EventKind.PREEMPTED)
    assert cause.endswith("3 written, 2 lost because the host has no room")
    world.run()
    assert world.events("a", EventKind.RESUMED) == ["12 of 21 tokens already have KV"]
    assert world.executor.steps[1] == {"a": 9}
    world.check_tokens()


# ---- Coming back -------------------------------------------------------------------------------


def test_request_goes_on_where_it_was_when_its_kv_has_arrived() -> None:
    world = World()
    world.add("a")
    world.add("b")
    world.step(3)
    world.preempt("b")
    world.step(2)
    assert world.requests["b"].status is RequestStatus.SWAPPING_IN
    assert world.last_step() == {"a": 1}
    world.hand.end()
    world.step()
    assert world.last_step() == {"a": 1, "b": 1}
    assert world.events("b", EventKind.SWAPPING_IN) == ["3 blocks loaded from host"]
    world.run()
    world.check_tokens()


def test_everybody_waits_for_an_arrival_when_nobody_runs() -> None:
    world = World()
    world.add("a")
    world.step()
    world.preempt("a")
    world.step()
    assert [ticket.source for ticket in world.hand.waited] == [Tier.HOST]
    assert world.last_step() == {"a": 1}
    assert world.switcher.stall_s["swap_in"] == 3 * SECONDS_PER_BLOCK


@pytest.mark.parametrize(("timing", "num_waited"), [("beside", 0), ("between", 2)])
def test_timing_says_whether_steps_wait_for_copies(timing: SwapTiming, num_waited: int) -> None:
    world = World(options=SwitchOptions(mode="swap", timing=timing, write_back=False))
    world.add("a")
    world.add("b")
    world.step()
    world.preempt("b")
    world.step()
    assert len(world.hand.waited) == num_waited
    assert len(world.last_step()) == (2 if num_waited else 1)
    causes = [cause for cause, seconds in world.switcher.stall_s.items() if seconds]
    assert causes == (["swap_in", "swap_out"] if num_waited else [])


@pytest.mark.parametrize(("slowdown", "is_beside"), [(0.0, True), (3.0, False)])
def test_timing_is_chosen_by_how_much_copies_slow_the_steps(
    slowdown: float, is_beside: bool
) -> None:
    world = World(options=SwitchOptions(mode="swap", write_back=False))
    world.learn(block_s=0.01, slowdown=slowdown)
    for name in "abc":
        world.add(name)
    world.step()
    world.preempt("c")
    world.step()
    assert bool(world.hand.waited) is not is_beside
    assert ("c" in world.last_step()) is not is_beside


def test_copies_are_left_alone_when_computing_again_is_sooner() -> None:
    world = World(options=SwitchOptions(write_back=False))
    world.add("a")
    world.step()
    world.preempt("a")
    assert world.hand.tickets[0].num_blocks == 3
    world.learn(block_s=1.0)
    world.run()
    assert world.executor.steps[1] == {"a": 11}
    assert [ticket.source for ticket in world.hand.tickets] == [Tier.DEVICE]


def test_failed_load_is_recomputed_and_told_while_others_do_not_notice() -> None:
    world = World()
    world.add("a")
    world.add("b")
    world.step(2)
    world.preempt("b")
    world.hand.end()
    world.step()
    world.hand.end(failure="a checksum is wrong")
    world.step()
    assert world.last_step() == {"a": 1, "b": 12}
    explanation = world.engine.explain("b")
    assert explanation is not None
    assert any("a checksum is wrong" in interval.cause for interval in explanation.intervals)
    world.run()
    assert [event.kind for event in world.requests["a"].events] == [
        EventKind.QUEUED,
        EventKind.SCHEDULED,
        EventKind.FIRST_TOKEN,
        EventKind.FINISHED,
    ]
    world.check_tokens()


def test_failed_store_is_recomputed_and_told() -> None:
    world = World()
    world.add("a")
    world.add("b")
    world.step()
    world.preempt("b")
    world.hand.end(failure="the host said no")
    world.step()
    assert world.last_step() == {"a": 1, "b": 11}
    [cause] = world.events("b", EventKind.RESUMED)
    assert cause.endswith("keeping more failed: the host said no")
    world.run()
    world.check_tokens()


# ---- While it arrives --------------------------------------------------------------------------


def arriving(**settings: Any) -> World:
    """Return a world in which `a` runs and the KV of `b` is on its way."""
    world = World(**settings)
    world.add("a")
    world.add("b")
    world.step()
    world.preempt("b")
    world.hand.end()
    world.step()
    assert world.requests["b"].status is RequestStatus.SWAPPING_IN
    return world


def test_arriving_request_can_be_aborted() -> None:
    world = arriving(num_blocks=8, max_model_len=20)
    assert world.engine.abort("b")
    assert list(world.hand.in_flight)
    world.add("c", 14, max_tokens=2)
    world.run()
    assert world.ended == {"a": "length", "b": "abort", "c": "length"}
    assert world.scheduler.kv.stats().num_free == 8
    assert world.residency.host.num_unheld == 64
    world.check_tokens()


def test_arriving_request_can_expire() -> None:
    world = World()
    world.add("a")
    world.add("b", deadline_s=5.0)
    world.step()
    world.preempt("b")
    world.step()
    world.clock.advance_to(5.0)
    world.step()
    assert world.ended == {"b": "timeout"}
    assert not world.scheduler.arriving
    world.run()
    world.check_tokens()


def test_arriving_request_holds_a_seat() -> None:
    world = arriving(max_num_seqs=2)
    world.add("c")
    world.step()
    assert world.last_step() == {"a": 1}
    assert world.requests["c"].events[-1].cause == "no free seat among 2"
    world.engine.abort("b")
    world.step()
    assert world.last_step() == {"a": 1, "c": 10}


def test_arriving_request_takes_no_tokens_of_a_step_that_does_not_wait_for_it() -> None:
    world = World(max_num_batched_tokens=32)
    world.add("a", 30)
    world.add("b", 30)
    world.step(3)
    world.preempt("b")
    world.step()
    world.add("c", 30)
    world.step()
    assert world.last_step() == {"a": 1, "c": 30}


def test_pause_leaves_an_arriving_request_where_it_is() -> None:
    world = arriving()
    num_steps = len(world.executor.steps)
    world.engine.pause()
    world.hand.end()
    world.step(2)
    assert world.requests["b"].status is RequestStatus.SWAPPING_IN
    assert len(world.executor.steps) == num_steps
    world.engine.resume()
    world.step()
    assert world.last_step() == {"a": 1, "b": 1}
    world.run()
    world.check_tokens()


# ---- Displacement ------------------------------------------------------------------------------


def test_urgent_request_takes_the_place_of_a_running_one_which_then_goes_on() -> None:
    world = World(max_num_seqs=1)
    world.add("casual", priority=5)
    world.step(4)
    world.add("urgent", priority=0, max_tokens=3)
    world.step()
    assert world.last_step() == {"urgent": 10}
    assert "urgent comes first" in world.events("casual", EventKind.PREEMPTED)[0]
    assert world.scheduler.preemption_counts == {("swap", "rank", "default"): 1}
    world.run()
    assert (
        world.executor.steps[4:9]
        == [{"urgent": 10}, {"urgent": 1}, {"urgent": 1}] + [{"casual": 1}] * 2
    )
    world.check_tokens()


def test_displaced_request_keeps_its_place_among_equals() -> None:
    world = World(max_num_seqs=1)
    world.add("first", priority=5, max_tokens=5)
    world.step()
    world.add("second", priority=5, max_tokens=2)
    world.add("urgent", priority=0, max_tokens=2)
    world.run()
    order = list(dict.fromkeys(name for step in world.executor.steps[1:] for name in step))
    assert order == ["urgent", "first", "second"]


def test_equals_are_not_displaced() -> None:
    world = World(max_num_seqs=1)
    world.add("a", priority=1)
    world.step()
    world.add("b", priority=1)
    world.run()
    assert world.scheduler.num_preemptions == 0


def test_nobody_is_displaced_in_vain() -> None:
    """The candidate needs more than the less urgent one would give back."""
    world = World(num_blocks=20, max_model_len=60)
    world.add("urgent", 40, priority=0)
    world.add("casual", 8, priority=5)
    world.step(3)
    world.add("large", 50, priority=3)
    world.step(3)
    assert world.scheduler.num_preemptions == 0


def test_least_urgent_are_displaced_as_far_as_memory_is_needed() -> None:
    world = World(num_blocks=24, max_model_len=60)
    for name, priority in (("urgent", 0), ("middle", 4), ("casual", 5), ("idle", 6)):
        world.add(name, 14, priority=priority)
    world.step(3)
    world.add("large", 36, priority=2)
    world.step()
    assert [r.request_id for r in world.scheduler.running] == ["urgent", "large", "middle"]


def test_request_stays_so_long_that_switching_it_is_worth_it() -> None:
    """Out and back are 3 blocks each way, 0.06 s: at a share of a tenth it stays 0.6 s."""
    world = World(max_num_seqs=1)
    world.add("casual", priority=5)
    world.learn(block_s=0.01)
    world.step()
    resident_s = world.requests["casual"].resident_since_s
    world.add("urgent", priority=0)
    world.clock.advance_to(resident_s + 0.58)
    world.step()
    assert "casual" in world.last_step()
    world.clock.advance_to(resident_s + 0.61)
    world.step()
    assert "urgent" in world.last_step()


def test_displacement_waits_until_the_last_one_is_made_up_for() -> None:
    """A switch takes 6 s, which at a share of a tenth are made up for in 60 s."""
    world = World(max_num_seqs=2, max_num_batched_tokens=64)
    world.learn(block_s=1.0)
    for name, priority in (("a", 5), ("b", 4)):
        world.add(name, priority=priority)
    world.step()
    world.clock.advance_to(100.0)
    for name in "yz":
        world.add(name, priority=0)
    world.step()
    assert world.last_step() == {"y": 10, "b": 1}
    world.clock.advance_to(159.9)
    world.step()
    assert world.last_step() == {"y": 1, "b": 1}
    world.clock.advance_to(160.1)
    world.step()
    assert world.last_step() == {"y": 1, "z": 10}


# ---- Conflicts ---------------------------------------------------------------------------------


def held_world() -> tuple[World, FaultyTransfers]:
    """A world over real stores, in which every transfer is held back until somebody needs it."""
    device, host = (KVStore(num_blocks, 1, 1, 8, 4) for num_blocks in (9, 64))
    below = CpuTransfers(device, host, clock=MonotonicClock())
    transfers = FaultyTransfers(below, repeat(Fault.HELD))
    settings = {"num_blocks": 9, "max_model_len": 36, "max_num_batched_tokens": 12}
    return World(transfers=transfers, **settings), transfers


def test_step_waits_for_exactly_the_store_that_still_reads_what_it_writes() -> None:
    world, transfers = held_world()
    for name in "ab":
        world.add(name, 6, priority=1)
    world.step(3)
    blocks = {name: set(world.block_ids(name)[:2]) for name in "ab"}
    for name in "ab":
        world.preempt(name)
    stores = dict(zip("ab", transfers.in_flight, strict=True))
    world.add("c", 12)  # takes all tokens of the step
    world.step()
    taken = {name for name in "ab" if blocks[name] & set(world.block_ids("c")[:3])}
    assert len(taken) == 1, "the blocks of one of them are given away at once"
    assert transfers.fenced == [stores[name] for name in taken]
    assert transfers.held == [stores[name] for name in "ab" if name not in taken]
    assert world.switcher.num_conflicts == 1
    transfers.release()
    world.engine.abort("c")
    world.run()
    world.check_tokens()
    transfers.close()


def test_step_waits_for_exactly_the_load_that_still_writes_what_it_writes() -> None:
    world, transfers = held_world()
    for name in "abz":
        world.add(name, 4, priority=1)
    world.step(3)
    for name in "ab":
        world.preempt(name)
    transfers.release()
    transfers.wait(list(transfers.in_flight))
    world.step()
    loads = dict(zip("ab", transfers.in_flight, strict=True))
    blocks = {name: set(world.block_ids(name)[:2]) for name in "ab"}
    transfers.fenced.clear()
    for name in "ab":
        assert world.engine.abort(name)
    world.engine.abort("z")
    world.add("c", 12)
    world.step()
    mine = set(world.block_ids("c")[:3])
    assert transfers.fenced == [loads[name] for name in "ab" if blocks[name] & mine]
    assert len(transfers.fenced) == 1
    transfers.release()
    transfers.close()


def test_changed_priority_decides_whose_copies_make_room() -> None:
    world = World(num_host_blocks=6)
    for priority, name in enumerate("abc"):
        world.add(name, 12, priority=priority)
    world.step()
    for name in "ab":
        world.preempt(name)
    world.hand.end()
    world.switcher.landed()
    world.engine.set_priority("a", 9)
    world.engine.set_priority("b", -9)
    world.preempt("c")
    a, b = (world.scheduler.kv.num_loadable_tokens(world.requests[name]) for name in "ab")
    assert a < b == 12
