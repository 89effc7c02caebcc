from __future__ import annotations

from collections.abc import Sequence

import pytest

from evenflow.core.errors import IntegrityError
from evenflow.core.ids import BlockId, RequestId, TenantId
from evenflow.memory.extents import Extent
from evenflow.memory.lower_tier import LowerTier
from evenflow.memory.prefix_cache import BlockHash
from evenflow.memory.residency import Arrival, Residency, Stored
from evenflow.memory.transfers import Ticket, Tier
from evenflow.memory.worth import Worth
from support.hand_transfers import HandTransfers

AWAITED = Worth(is_awaited=True, value=4)


class World:
    """A residency whose transfers end when the test says so."""

    def __init__(self, num_host_blocks: int = 16, num_disk_blocks: int = 0, **options: bool):
        self.transfers = HandTransfers()
        self.host = LowerTier(Tier.HOST, num_host_blocks)
        self.disk = LowerTier(Tier.DISK, num_disk_blocks) if num_disk_blocks else None
        self.residency = Residency(self.transfers, self.host, self.disk, **options)

    def store(self, contents: Sequence[BlockHash], block_ids: Sequence[int]) -> Stored:
        ids = [BlockId(block_id) for block_id in block_ids]
        stored = self.residency.store(contents, ids, TenantId("t"))
        self.host.appraise(contents, AWAITED)
        return stored

    def load(self, name: str, contents: Sequence[BlockHash], block_ids: Sequence[int]) -> Arrival:
        """Load as much as there is."""
        places = self.residency.find(contents)
        ids = [BlockId(block_id) for block_id in block_ids[: len(places)]]
        return self.residency.load(places, ids, RequestId(name))

    def end(self, *tickets: Ticket, failure: str | None = None) -> dict[RequestId, Arrival]:
        """End some tickets, or all in flight; return what has arrived."""
        self.transfers.end(tickets or None, failure)
        _, arrived = self.residency.poll()
        self.residency.check_integrity()
        return arrived

    def has(self, contents: Sequence[BlockHash]) -> int:
        """Return how many leading contents can be loaded."""
        return len(self.residency.find(contents))

    def spilled(self) -> World:
        """Have everything on disk as well."""
        self.end()
        self.residency.spill()
        self.end()
        return self


def chain(name: str, length: int) -> list[BlockHash]:
    return [BlockHash(f"{name}{at}".encode()) for at in range(length)]


A, B = chain("a", 6), chain("b", 6)

# ---- Storing -----------------------------------------------------------------------------------


def test_store_copies_only_what_is_not_there() -> None:
    world = World()
    assert world.store(A[:2], [3, 4]) == Stored(0, 2, 0, world.transfers.tickets[0])
    stored = world.store(A[:5], [3, 4, 5, 6, 9])
    assert (stored.num_clean, stored.num_written, stored.num_left_out) == (2, 3, 0)
    assert [source for source, _ in world.transfers.tickets[1].copies] == [
        Extent(5, 2),
        Extent(9, 1),
    ]
    assert world.store(A[:5], [3, 4, 5, 6, 9]) == Stored(5, 0, 0, None)
    world.residency.check_integrity()


def test_store_leaves_out_the_end_when_the_host_is_full() -> None:
    world = World(num_host_blocks=4)
    stored = world.store(A, range(6))
    assert (stored.num_written, stored.num_left_out) == (4, 2)
    assert world.has(A) == 4


def test_store_does_not_give_up_the_beginning_of_a_chain_for_its_end() -> None:
    world = World(num_host_blocks=4)
    world.store(A[:3], range(3))
    world.end()
    stored = world.store(A, range(6))
    assert (stored.num_clean, stored.num_written, stored.num_left_out) == (3, 1, 2)
    assert world.has(A) == 4


def test_store_moves_runs_of_blocks_as_one_copy() -> None:
    world = World()
    world.store(A, [10, 11, 12, 20, 21, 22])
    assert [source for source, _ in world.transfers.tickets[0].copies] == [
        Extent(10, 3),
        Extent(20, 3),
    ]
    link = Tier.DEVICE, Tier.HOST
    stats = world.residency.stats
    assert (stats.num_blocks[link], stats.num_copies[link]) == (6, 2)


def test_blocks_are_moved_one_by_one_when_groups_are_off() -> None:
    world = World(by_group=False)
    world.store(A, [10, 11, 12, 20, 21, 22])
    lengths = [source.length for source, _ in world.transfers.tickets[0].copies]
    assert lengths == [1] * 6


def test_failed_store_is_not_found() -> None:
    world = World()
    world.store(A, range(6))
    world.end(failure="the link broke")
    assert world.has(A) == 0
    assert world.host.num_unheld == 16


# ---- Loading -----------------------------------------------------------------------------------


def test_find_ends_at_the_first_gap() -> None:
    world = World()
    world.store([A[0], A[1], A[3]], [0, 1, 3])
    assert world.has(A) == 2


def test_load_says_when_it_has_arrived() -> None:
    world = World()
    world.store(A, range(6))
    world.end()
    arrival = world.load("r", A, range(20, 26))
    assert (arrival.num_blocks, arrival.num_pending) == (6, 1)
    assert world.residency.poll() == ([], {})
    assert world.end() == {"r": arrival}
    assert world.residency.arrivals == {}
    assert world.has(A) == 6


def test_load_begins_after_the_store_of_what_it_reads() -> None:
    world = World()
    first = world.store(A[:3], range(3)).ticket
    world.store(B, range(6, 12))
    second = world.store(A, range(6)).ticket
    [load] = world.load("r", A, range(20, 26)).tickets
    assert world.transfers.after[load] == [first, second]


def test_load_begins_after_the_spill_of_what_it_reads() -> None:
    """A disk block can be found while it is written; the host's copy may be gone by then."""
    world = World(num_disk_blocks=8, keep_copies=False)
    world.store(A, range(6))
    world.end()
    world.residency.spill()
    spill = world.transfers.tickets[-1]
    world.end(*world.load("first", A, range(20, 26)).tickets)
    assert world.host.num_kept == 0
    [load] = world.load("second", A, range(30, 36)).tickets
    assert (load.source, world.transfers.after[load]) == (Tier.DISK, [spill])


def test_failed_store_spoils_the_loads_that_read_it_and_no_others() -> None:
    world = World()
    sound = world.store(B, range(6, 12)).ticket
    failing = world.store(A, range(6)).ticket
    spoilt = world.load("a", A, range(20, 26))
    world.load("b", B, range(30, 36))
    assert failing is not None
    assert sound is not None
    world.end(failing, failure="the link broke")
    arrived = world.end()
    assert arrived[RequestId("a")].failure == "the link broke" == spoilt.failure
    assert arrived[RequestId("b")].failure is None


def test_failed_spill_spoils_the_loads_that_read_it() -> None:
    world = World(num_disk_blocks=8, keep_copies=False)
    world.store(A, range(6))
    world.end()
    world.residency.spill()
    spill = world.transfers.tickets[-1]
    world.end(*world.load("first", A, range(20, 26)).tickets)
    world.load("second", A, range(30, 36))
    world.end(spill, failure="the disk is full")
    assert world.end()[RequestId("second")].failure == "the disk is full"


def test_failed_load_arrives_as_failed_and_its_copies_are_dropped() -> None:
    world = World()
    world.store(A, range(6))
    world.end()
    world.load("r", A[:4], range(20, 24))
    arrived = world.end(failure="a checksum is wrong")
    assert arrived[RequestId("r")].failure == "a checksum is wrong"
    assert world.has(A) == 0
    assert world.has(A[4:]) == 2


def test_load_comes_from_both_tiers_at_once() -> None:
    world = World(num_host_blocks=4, num_disk_blocks=8)
    world.store(A[:4], range(4))
    world.spilled()
    world.host.clear()
    world.store(A[:1], [0])
    world.end()
    arrival = world.load("r", A[:4], range(20, 24))
    assert [(ticket.source, ticket.num_blocks) for ticket in arrival.tickets] == [
        (Tier.HOST, 1),
        (Tier.DISK, 3),
    ]
    assert world.end(arrival.tickets[0]) == {}
    assert world.end(arrival.tickets[1]) == {"r": arrival}


def test_copies_are_given_up_when_they_return_if_they_are_not_to_be_kept() -> None:
    world = World(keep_copies=False)
    world.store(A, range(6))
    world.end()
    world.load("r", A, range(20, 26))
    assert world.has(A) == 6
    world.end()
    assert (world.has(A), world.host.num_unheld) == (0, 16)


def test_forget_lets_nobody_wait_and_the_transfer_run_out() -> None:
    world = World()
    world.store(A, range(6))
    world.end()
    world.load("r", A, range(20, 26))
    world.residency.forget(RequestId("r"))
    assert world.residency.is_busy
    assert world.end() == {}
    assert not world.residency.is_busy
    assert world.host.num_unheld == 16


def test_nothing_arrives_twice_under_one_name() -> None:
    world = World()
    world.store(A, range(6))
    world.load("r", A, range(20, 26))
    with pytest.raises(IntegrityError, match="r is on its way already"):
        world.load("r", A, range(30, 36))


# ---- Conflicts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extent", "names"),
    [
        (Extent(0, 1), ["out a"]),
        (Extent(5, 2), ["out a", "out b"]),
        (Extent(12, 8), []),
        (Extent(20, 6), ["in c"]),
        (Extent(11, 10), ["out b", "in c"]),
        (Extent(26, 100), []),
    ],
)
def test_conflicts_are_exactly_the_tickets_that_read_or_write_the_blocks(
    extent: Extent, names: list[str]
) -> None:
    world = World()
    world.store(B, range(50, 56))
    world.end()
    tickets = {
        "out a": world.store(A, range(6)).ticket,
        "out b": world.store(chain("c", 6), range(6, 12)).ticket,
        "in c": world.load("r", B, range(20, 26)).tickets[0],
    }
    assert world.residency.conflicts([extent]) == [tickets[name] for name in names]


def test_conflicts_end_with_their_tickets() -> None:
    world = World()
    world.store(A, range(6))
    world.end()
    assert world.residency.conflicts([Extent(0, 100)]) == []


def test_load_begins_after_what_still_reads_or_writes_the_blocks_it_goes_to() -> None:
    world = World()
    world.store(A, range(50, 56))
    world.end()
    out = world.store(B, range(6)).ticket
    world.store(chain("c", 2), [30, 31])
    [first] = world.load("r", A[:3], range(10, 13)).tickets
    world.residency.forget(RequestId("r"))
    [second] = world.load("s", A, [4, 5, 11, 12, 40, 41]).tickets
    assert world.transfers.after[first] == []
    assert world.transfers.after[second] == [out, first]


# ---- Disk --------------------------------------------------------------------------------------


def test_spill_copies_to_disk_what_is_not_there_when_the_disk_is_idle() -> None:
    world = World(num_disk_blocks=8)
    world.store(A[:3], range(3))
    world.residency.spill()
    assert len(world.transfers.tickets) == 1  # what is still being written is no copy yet
    world.end()
    world.residency.spill()
    world.store(B[:2], [8, 9])
    world.end(world.transfers.tickets[-1])
    world.residency.spill()
    links = [(ticket.source, ticket.num_blocks) for ticket in world.transfers.tickets]
    assert links == [(Tier.DEVICE, 3), (Tier.HOST, 3), (Tier.DEVICE, 2)]
    world.end()
    world.residency.spill()
    assert world.transfers.tickets[-1].num_blocks == 2
    world.end()
    world.host.clear()
    assert (world.has(A), world.has(B)) == (3, 2)


def test_spill_takes_what_the_disk_has_room_for() -> None:
    world = World(num_disk_blocks=2)
    world.store(A, range(6))
    world.spilled()
    world.host.clear()
    assert world.has(A) == 2


def test_failed_spill_leaves_the_copy_on_the_host() -> None:
    world = World(num_disk_blocks=8)
    world.store(A, range(6))
    world.end()
    world.residency.spill()
    world.end(failure="the disk is full")
    assert world.has(A) == 6
    world.host.clear()
    assert world.has(A) == 0


def test_host_block_is_not_given_away_while_it_is_spilled() -> None:
    world = World(num_host_blocks=6, num_disk_blocks=8)
    world.store(A[:4], range(4))
    world.end()
    world.residency.spill()
    assert world.store(B, range(10, 16)).num_written == 2
    assert world.has(A) == 4
    world.end()


# ---- The end -----------------------------------------------------------------------------------


def test_close_copies_to_disk_what_the_host_has() -> None:
    world = World(num_host_blocks=128, num_disk_blocks=128)
    contents = chain("c", 100)
    world.store(contents, range(100))
    world.residency.close()
    world.host.clear()
    assert world.has(contents) == 100


def test_close_writes_what_is_worth_most_first_and_for_so_long_only() -> None:
    world = World(num_host_blocks=128, num_disk_blocks=128)
    cheap, dear = chain("cheap", 40), chain("dear", 40)
    world.store(cheap, range(40))
    world.store(dear, range(40, 80))
    world.host.appraise(cheap, Worth(value=-9))
    world.end()
    world.transfers.seconds_per_block = 0.1
    world.residency.close()
    world.host.clear()
    assert (world.has(dear), world.has(cheap)) == (40, 24)  # 32 blocks in 3.2 s, and 32 more


def test_close_gives_up_nothing_on_disk_that_is_worth_more() -> None:
    world = World(num_host_blocks=16, num_disk_blocks=8)
    cheap = chain("cheap", 2)
    world.store(A, range(6))
    world.store(cheap, [6, 7])
    world.spilled()
    world.host.appraise(cheap, Worth(value=-9))
    world.store(B[:2], [8, 9])
    world.residency.close()
    world.host.clear()
    assert (world.has(A), world.has(B), world.has(cheap)) == (6, 2, 0)


def test_close_goes_on_although_the_disk_is_full() -> None:
    world = World(num_disk_blocks=8)
    world.store(A, range(6))
    world.transfers.fails.add((Tier.HOST, Tier.DISK))
    world.residency.close()
    world.residency.check_integrity()
    assert world.has(A) == 6


# ---- Dropping ----------------------------------------------------------------------------------


def test_distrusted_content_is_found_nowhere_although_it_is_being_written() -> None:
    world = World(num_disk_blocks=8)
    world.store(A[:3], range(3))
    world.spilled()
    world.store(A, range(6))
    world.residency.distrust(A)
    world.end()
    assert [world.has([content]) for content in A] == [0] * 6
    assert (world.host.num_unheld, world.host.num_kept) == (16, 0)


def test_clear_forgets_all_copies() -> None:
    world = World(num_disk_blocks=8)
    world.store(A, range(6))
    world.spilled()
    world.residency.clear()
    assert world.has(A) == 0
    world.residency.check_integrity()
