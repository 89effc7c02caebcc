from __future__ import annotations

from collections.abc import Sequence

import pytest

from evenflow.core.ids import BlockId, TenantId
from evenflow.memory.lower_tier import LowerTier
from evenflow.memory.prefix_cache import BlockHash
from evenflow.memory.transfers import Tier
from evenflow.memory.worth import Worth

AWAITED = Worth(is_awaited=True, value=16)


def named(name: str) -> BlockHash:
    return BlockHash(name.encode())


def chain(name: str, length: int) -> list[BlockHash]:
    return [named(f"{name}{at}") for at in range(length)]


def write(
    tier: LowerTier, contents: Sequence[BlockHash], worth: Worth = AWAITED, tenant: str = "t"
) -> list[BlockId]:
    """Have copies written at once, and return where."""
    extents = tier.reserve(contents, TenantId(tenant))
    block_ids = [block_id for extent in extents for block_id in extent.block_ids]
    tier.appraise(contents, worth)
    tier.keep(block_ids)
    tier.check_integrity()
    return block_ids


def left(tier: LowerTier, *chains: Sequence[BlockHash]) -> list[int]:
    """Return how many copies of each chain there are."""
    return [sum(tier.find(content) is not None for content in contents) for contents in chains]


class DictJournal:
    """Remembers contents by slot; slots that are `damaged` are never sound."""

    def __init__(self, slots: dict[int, BlockHash] | None = None) -> None:
        self.slots = slots or {}
        self.damaged: set[int] = set()

    def contents(self) -> dict[BlockHash, int]:
        return {content: slot for slot, content in self.slots.items()}

    def record(self, slot: int, content: BlockHash) -> bool:
        if slot not in self.damaged:
            self.slots[slot] = content
        return slot not in self.damaged

    def forget(self, slot: int) -> None:
        self.slots.pop(slot, None)


# ---- Writing and reading -----------------------------------------------------------------------


def test_reserve_takes_one_run_and_lets_it_be_found_at_once() -> None:
    tier = LowerTier(Tier.HOST, 8)
    extents = tier.reserve(chain("a", 3))
    assert [extent.length for extent in extents] == [3]
    assert [tier.find(content) for content in chain("a", 3)] == list(extents[0].block_ids)
    tier.check_integrity()


def test_reserve_places_the_first_contents_when_the_rest_is_in_use() -> None:
    tier = LowerTier(Tier.HOST, 4)
    reading = write(tier, chain("a", 1))
    tier.hold(reading)
    tier.reserve(chain("b", 2))
    assert sum(extent.length for extent in tier.reserve(chain("c", 3))) == 1
    assert left(tier, chain("c", 3)) == [1]
    assert tier.reserve(chain("d", 1)) == []
    tier.check_integrity()


def test_abandon_lets_nobody_find_what_was_being_written() -> None:
    tier = LowerTier(Tier.HOST, 4)
    [extent] = tier.reserve(chain("a", 2))
    tier.abandon(extent.block_ids)
    tier.keep(extent.block_ids)
    assert left(tier, chain("a", 2)) == [0]
    assert tier.num_unheld == 4
    tier.check_integrity()


def test_clear_leaves_what_is_read() -> None:
    tier = LowerTier(Tier.HOST, 4)
    read, *_ = write(tier, chain("a", 3))
    tier.hold([read])
    tier.clear()
    assert left(tier, chain("a", 3)) == [1]
    tier.release([read])
    tier.check_integrity()


# ---- What makes room ---------------------------------------------------------------------------

FACES_OF_WORTH = {
    "within the quota": (Worth(is_within_quota=False), Worth()),
    "awaited": (Worth(value=900), Worth(is_awaited=True)),
    "urgent": (Worth(urgency=-3, value=900), Worth(urgency=-2)),
    "dear to compute": (Worth(value=8), Worth(value=16)),
}


@pytest.mark.parametrize("face", FACES_OF_WORTH)
def test_worth_orders_what_is_given_up_first(face: str) -> None:
    cheap, dear = FACES_OF_WORTH[face]
    assert cheap < dear


def test_reserve_gives_up_what_is_worth_least() -> None:
    tier = LowerTier(Tier.HOST, 6)
    write(tier, chain("dear", 2), Worth(is_awaited=True, urgency=2, value=1))
    write(tier, chain("cheap", 2), Worth(is_awaited=True, urgency=1, value=1))
    write(tier, chain("middle", 2), Worth(is_awaited=True, urgency=1, value=9))
    write(tier, chain("new", 2))
    assert left(tier, chain("dear", 2), chain("cheap", 2), chain("middle", 2)) == [2, 0, 2]


def test_reserve_gives_up_a_chain_from_its_end() -> None:
    tier = LowerTier(Tier.HOST, 4)
    contents = chain("a", 4)
    write(tier, contents)
    write(tier, chain("b", 2))
    assert [tier.find(content) is not None for content in contents] == [True, True, False, False]


def test_reserve_gives_up_the_oldest_among_equals() -> None:
    tier = LowerTier(Tier.HOST, 3)
    for name in "abc":
        write(tier, chain(name, 1))
    write(tier, chain("d", 1))
    assert left(tier, *(chain(name, 1) for name in "abc")) == [0, 1, 1]


def test_copies_keep_their_worth_when_they_were_read() -> None:
    tier = LowerTier(Tier.HOST, 2)
    dear = write(tier, chain("dear", 1), Worth(is_awaited=True))
    write(tier, chain("cheap", 1), Worth(value=900))
    tier.hold(dear)
    tier.release(dear)
    write(tier, chain("new", 1))
    assert left(tier, chain("dear", 1), chain("cheap", 1)) == [1, 0]


def test_appraise_changes_what_is_given_up() -> None:
    tier = LowerTier(Tier.HOST, 2)
    write(tier, chain("a", 1), Worth(value=1))
    write(tier, chain("b", 1), Worth(value=2))
    tier.appraise(chain("a", 1), Worth(value=3))
    write(tier, chain("c", 1))
    assert left(tier, chain("a", 1), chain("b", 1)) == [1, 0]


def test_copy_is_worth_what_the_best_of_those_who_want_it_says() -> None:
    tier = LowerTier(Tier.HOST, 2)
    for name in ("shared", "other"):
        write(tier, chain(name, 1), Worth(value=2))
    tier.appraise(chain("shared", 1), AWAITED, "a")
    tier.appraise(chain("shared", 1), Worth(value=1), "b")
    write(tier, chain("new", 1))
    assert left(tier, chain("shared", 1), chain("other", 1)) == [1, 0]


def test_copy_is_worth_less_when_who_wanted_it_most_does_so_no_more() -> None:
    tier = LowerTier(Tier.HOST, 2)
    for name in ("shared", "other"):
        write(tier, chain(name, 1), Worth(value=2))
    tier.appraise(chain("shared", 1), AWAITED, "a")
    tier.appraise(chain("shared", 1), Worth(value=1))
    tier.withdraw(chain("shared", 1), "a")
    write(tier, chain("new", 1))
    assert left(tier, chain("shared", 1), chain("other", 1)) == [0, 1]


def test_reserve_leaves_alone_what_is_worth_more_than_what_comes() -> None:
    tier = LowerTier(Tier.HOST, 6)
    write(tier, chain("cheap", 2), Worth(value=1))
    write(tier, chain("dear", 3), Worth(value=3))
    extents = tier.reserve(chain("new", 5), TenantId("t"), below=Worth(value=2.5))
    assert sum(extent.length for extent in extents) == 3
    assert left(tier, chain("cheap", 2), chain("dear", 3)) == [0, 3]


def test_reserve_takes_from_a_tenant_beyond_its_share_whatever_that_is_worth() -> None:
    tier = LowerTier(Tier.HOST, 4, tenant_share=0.5)
    write(tier, chain("greedy", 4), AWAITED, tenant="greedy")
    tier.reserve(chain("new", 2), TenantId("t"), below=Worth(value=-9))
    assert left(tier, chain("greedy", 4), chain("new", 2)) == [2, 2]


def test_best_contents_come_first() -> None:
    tier = LowerTier(Tier.HOST, 8)
    write(tier, chain("cheap", 2), Worth(value=-5))
    write(tier, chain("dear", 2), AWAITED)
    assert tier.best(3) == [*chain("dear", 2), *chain("cheap", 1)]


def test_a_block_does_not_inherit_the_worth_of_what_it_held_before() -> None:
    tier = LowerTier(Tier.HOST, 2)
    write(tier, chain("dear", 2), Worth(is_awaited=True, value=900))
    tier.clear()
    [first, _] = write(tier, chain("cheap", 2), Worth())
    tier.hold([first])
    tier.release([first])
    write(tier, chain("new", 1), AWAITED)
    write(tier, chain("newer", 1), AWAITED)
    assert left(tier, chain("cheap", 2), chain("new", 1)) == [0, 1]


def test_claims_end_with_the_copy_when_it_makes_room() -> None:
    tier = LowerTier(Tier.HOST, 1)
    write(tier, chain("dear", 1), AWAITED)
    [extent] = tier.reserve(chain("new", 1))
    tier.keep(extent.block_ids)
    assert tier.reserve(chain("newer", 1), below=Worth(value=0))


# ---- Quotas ------------------------------------------------------------------------------------


def test_copies_beyond_the_quota_of_their_tenant_make_room_first() -> None:
    tier = LowerTier(Tier.HOST, 6, tenant_share=0.5)
    write(tier, chain("modest", 1), Worth(), tenant="modest")
    write(tier, chain("greedy", 5), AWAITED, tenant="greedy")
    write(tier, chain("new", 3), AWAITED, tenant="other")
    assert left(tier, chain("modest", 1), chain("greedy", 5)) == [1, 2]


def test_quota_counts_no_copies_that_are_lost() -> None:
    tier = LowerTier(Tier.HOST, 4, tenant_share=0.5)
    lost = write(tier, chain("lost", 2), tenant="t")
    tier.hold(lost)
    tier.abandon(lost)
    tier.release(lost)
    write(tier, chain("t", 2), Worth(value=9), tenant="t")
    write(tier, chain("other", 2), Worth(value=1), tenant="other")
    write(tier, chain("new", 2), AWAITED, tenant="new")
    assert left(tier, chain("t", 2), chain("other", 2)) == [2, 0]


# ---- Across restarts ---------------------------------------------------------------------------


def test_journal_says_what_can_be_found_from_the_start() -> None:
    tier = LowerTier(Tier.DISK, 4, journal=DictJournal({2: named("a"), 0: named("b")}))
    assert (tier.find(named("a")), tier.find(named("b"))) == (2, 0)
    assert (tier.num_kept, tier.num_unheld) == (2, 4)
    tier.check_integrity()


def test_journal_records_what_is_kept_and_forgets_what_makes_room() -> None:
    journal = DictJournal()
    tier = LowerTier(Tier.DISK, 2, journal=journal)
    [at] = write(tier, chain("a", 1))
    write(tier, chain("b", 1), Worth())
    assert set(journal.slots.values()) == {*chain("a", 1), *chain("b", 1)}
    tier.reserve(chain("c", 1))
    assert journal.slots == {at: named("a0")}


def test_journal_forgets_what_is_abandoned_or_cleared() -> None:
    journal = DictJournal()
    tier = LowerTier(Tier.DISK, 4, journal=journal)
    read, *_ = write(tier, chain("a", 3))
    tier.hold([read])
    tier.abandon([read])
    assert set(journal.slots.values()) == set(chain("a", 3)[1:])
    tier.clear()
    assert journal.slots == {}


def test_keep_loses_what_the_journal_finds_unsound() -> None:
    journal = DictJournal()
    journal.damaged = {0, 1}
    tier = LowerTier(Tier.DISK, 2, journal=journal)
    write(tier, chain("a", 2))
    assert left(tier, chain("a", 2)) == [0]
    assert tier.num_unheld == 2


def test_chain_goes_on_right_behind_what_there_is_of_it() -> None:
    tier = LowerTier(Tier.HOST, 64)
    a, b = chain("a", 9), chain("b", 3)
    first = write(tier, a[:3])
    write(tier, b)
    extents = tier.reserve(a[3:], TenantId("t"), after=a[2])
    assert [(extent.start, extent.length) for extent in extents] == [(first[-1] + 1, 6)]


def test_chain_goes_on_elsewhere_when_there_is_no_room_behind_it() -> None:
    tier = LowerTier(Tier.HOST, 6)
    a = chain("a", 6)
    first = write(tier, a[:2])
    extents = tier.reserve(a[2:], TenantId("t"), after=a[1])
    assert sum(extent.length for extent in extents) == 4
    assert extents[0].start == first[-1] + 1
    tier.check_integrity()
