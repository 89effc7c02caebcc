from __future__ import annotations

from evenflow.core.events import WaitReason
from evenflow.core.ids import RequestId
from evenflow.scheduling.standstill import Standstill

A, B = RequestId("a"), RequestId("b")


def test_standstill_shares_out_only_the_time_a_request_was_there_for() -> None:
    standstill = Standstill()
    standstill.note(WaitReason.SEATS, 0.0)
    standstill.enter(A, 0.5)
    standstill.note(WaitReason.MEMORY, 1.0)
    standstill.enter(B, 2.0)
    standstill.note(WaitReason.SEATS, 2.5)
    assert standstill.shares(A, 3.5) == [(WaitReason.SEATS, 1.5), (WaitReason.MEMORY, 1.5)]
    assert standstill.shares(B, 3.5) == [(WaitReason.SEATS, 1.0), (WaitReason.MEMORY, 0.5)]


def test_standstill_counts_nothing_while_the_queue_moves() -> None:
    standstill = Standstill()
    standstill.enter(A, 0.0)
    assert standstill.shares(A, 5.0) == []
    standstill.note(WaitReason.TOKENS, 5.0)
    standstill.note(None, 6.0)
    assert standstill.shares(A, 9.0) == [(WaitReason.TOKENS, 1.0)]


def test_standstill_forgets_who_left() -> None:
    standstill = Standstill()
    standstill.enter(A, 0.0)
    standstill.enter(B, 0.0)
    standstill.leave(A)
    assert list(standstill.request_ids) == [B]
