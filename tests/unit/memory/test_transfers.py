from evenflow.memory.extents import Extent
from evenflow.memory.transfers import Ticket, Tier, overlapping

OUT = Ticket(Tier.DEVICE, Tier.HOST, ((Extent(0, 4), Extent(100, 4)), (Extent(8, 2), Extent(0, 2))))
IN = Ticket(Tier.HOST, Tier.DEVICE, ((Extent(50, 3), Extent(20, 3)),))


def test_overlapping_finds_exactly_the_tickets_that_touch_a_range() -> None:
    assert overlapping([OUT, IN], Tier.DEVICE, [Extent(3, 1)]) == [OUT]
    assert overlapping([OUT, IN], Tier.DEVICE, [Extent(9, 12)]) == [OUT, IN]
    assert overlapping([OUT, IN], Tier.DEVICE, [Extent(4, 4), Extent(10, 10)]) == []


def test_overlapping_counts_the_blocks_of_each_tier_by_themselves() -> None:
    assert overlapping([OUT, IN], Tier.HOST, [Extent(0, 1)]) == [OUT]
    assert overlapping([OUT, IN], Tier.HOST, [Extent(52, 1)]) == [IN]
    assert overlapping([OUT, IN], Tier.DISK, [Extent(0, 1000)]) == []
