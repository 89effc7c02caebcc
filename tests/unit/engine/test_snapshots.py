"""The snapshots of an engine, as its host sends them."""

from __future__ import annotations

import pytest

from evenflow.core.clock import VirtualClock
from evenflow.core.ids import TenantId
from evenflow.core.sampling import SamplingParams
from evenflow.engine.process.messages import (
    AddRequest,
    AdminCall,
    Command,
    LinkUse,
    Output,
    Preemptions,
    Snapshot,
    Switching,
    TierUse,
)
from evenflow.engine.process.snapshots import SnapshotTaker
from evenflow.scheduling.switching import SwitchOptions
from support.engine_host import STEP_S, Desk
from support.scripted_engine import make_engine
from support.slow_tiers import BYTES_PER_BLOCK, HOST_BLOCK_S, slow_tiers


def add(request_id: str, tenant: str, *, num_tokens: int, n: int = 1) -> AddRequest:
    return AddRequest(
        request_id=request_id,
        prompt_token_ids=list(range(1, 9)),
        params=SamplingParams(max_tokens=num_tokens, n=n),
        tenant_id=TenantId(tenant),
    )


def snapshots(outputs: list[Output]) -> list[Snapshot]:
    return [output for output in outputs if isinstance(output, Snapshot)]


def test_snapshots_come_every_quarter_second_with_work_and_every_second_without() -> None:
    idle: list[list[Command]] = [[]] * 4
    taken = snapshots(Desk().run([add("a", "blue", num_tokens=60)], *idle))
    assert [round(snapshot.at_s - 100, 6) for snapshot in taken] == [0.25, 0.5, 1.1, 2.1]


def test_snapshots_tell_of_every_step_once() -> None:
    desk = Desk()
    taken = snapshots(desk.run([add("a", "blue", num_tokens=60)], [], []))
    samples = [sample for snapshot in taken for sample in snapshot.steps]
    assert [sample.num_tokens for sample in samples] == [8] + [1] * 59
    assert taken[-1].num_steps == len(samples) == 60
    assert taken[-1].step_s == pytest.approx(
        {"schedule": 0.0, "execute": 60 * STEP_S, "update": 0.0, "emit": 0.0}
    )
    assert sum(sample.execute_s for sample in samples) == pytest.approx(60 * STEP_S)


def test_snapshots_say_who_runs_and_what_the_others_wait_for() -> None:
    desk = Desk(max_num_seqs=2)
    first = [add("a", "blue", num_tokens=40), add("b", "green", num_tokens=40, n=2)]
    snapshot, *_ = snapshots(desk.run([*first, add("c", "red", num_tokens=1)]))
    assert {name: state.num_running for name, state in snapshot.tenants.items()} == {
        "blue": 1,
        "green": 1,
        "red": 0,
    }
    assert snapshot.tenants[TenantId("red")].num_waiting == 1
    assert (snapshot.num_running, snapshot.num_waiting) == (2, 2)
    assert snapshot.tenants[TenantId("blue")].service_tokens > 0
    assert snapshot.kv.num_used > 0


def test_snapshots_count_preemptions_from_the_start() -> None:
    desk = Desk(num_blocks=20)
    requests = [add(name, "blue", num_tokens=50) for name in "ab"]
    *_, last = snapshots(desk.run(requests, [], []))
    total = sum(desk.engine.scheduler.preemption_counts.values())
    assert total > 0
    assert last.preemptions == [Preemptions("recompute", "memory", TenantId("blue"), total)]


def test_snapshots_tell_who_is_off_the_device_and_what_was_moved() -> None:
    clock = VirtualClock()
    engine, _ = make_engine(
        clock=clock,
        policy="priority",
        max_num_seqs=1,
        residency=slow_tiers(clock, num_disk_blocks=64),
        switching=SwitchOptions(mode="swap", timing="between", write_back=False, max_share=1000),
    )
    engine.add_request("low", [*range(14)], SamplingParams(max_tokens=8), priority=5)
    engine.step()
    engine.add_request("high", [7, 8, 9], SamplingParams(max_tokens=4), priority=1)
    engine.step()
    engine.step()
    taker = SnapshotTaker(engine, clock)
    switching = taker.take().switching
    assert (switching.num_swapped, switching.num_arriving) == (1, 0)
    assert switching.stall_s == {"swap_in": 0, "swap_out": 4 * HOST_BLOCK_S, "conflict": 0}
    assert switching.tiers == [TierUse("host", 64, 4), TierUse("disk", 64, 4)]
    assert switching.links[0] == LinkUse(
        "device_to_host", 4 * BYTES_PER_BLOCK, 1, 4 * HOST_BLOCK_S, 0
    )
    assert switching.links[1].direction == "host_to_disk"


def test_snapshots_know_no_tiers_where_there_are_none() -> None:
    engine, _ = make_engine()
    switching = SnapshotTaker(engine, engine._clock).take().switching
    assert switching == Switching()


def test_handover_is_the_time_between_steps_while_work_waits() -> None:
    engine, _ = make_engine()
    clock = engine._clock
    taker = SnapshotTaker(engine, clock)
    for name, pause_s in (("a", 0.5), ("b", 0.25)):
        engine.add_request(name, [1, 2, 3], SamplingParams(max_tokens=2))
        while engine.has_work:
            started_s = clock.now_s()
            engine.step()
            taker.note_step(started_s, clock.now_s())
            clock.advance(pause_s)  # type: ignore[attr-defined]  # a VirtualClock
    # What passes between the last step of `a` and the first one of `b` is idleness.
    assert [sample.handover_s for sample in taker.take().steps] == [0, 0.5, 0, 0.25]


def test_handover_does_not_count_the_time_of_a_pause() -> None:
    desk = Desk()
    desk.during[1] = [AdminCall(1, "pause")]

    def resume_later() -> list[Command]:
        desk.clock.advance(0.3)
        return [AdminCall(2, "resume")]

    outputs = desk.run([add("a", "blue", num_tokens=4)], resume_later, [])
    samples = [sample for snapshot in snapshots(outputs) for sample in snapshot.steps]
    assert [sample.handover_s for sample in samples] == [0, 0, 0, 0]
