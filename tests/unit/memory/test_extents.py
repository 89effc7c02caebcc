import pytest

from evenflow.memory.extents import Extent, coalesce, intersect


def test_extent_contains_its_first_and_last_block_only_within_its_bounds():
    extent = Extent(3, 4)
    assert extent.stop == 7
    assert [block_id for block_id in range(10) if extent.contains(block_id)] == [3, 4, 5, 6]
    assert list(extent.block_ids) == [3, 4, 5, 6]


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (Extent(0, 3), False),
        (Extent(0, 4), True),
        (Extent(4, 1), True),
        (Extent(6, 9), True),
        (Extent(7, 1), False),
    ],
)
def test_extent_overlaps_when_a_block_is_in_both(other, expected):
    assert Extent(3, 4).overlaps(other) is expected
    assert other.overlaps(Extent(3, 4)) is expected


def test_extent_split_keeps_every_block_in_order():
    assert Extent(3, 4).split(1) == (Extent(3, 1), Extent(4, 3))


@pytest.mark.parametrize(
    ("block_ids", "expected"),
    [
        ([], []),
        ([0], [Extent(0, 1)]),
        ([4, 5, 6], [Extent(4, 3)]),
        ([4, 5, 9, 10, 0], [Extent(4, 2), Extent(9, 2), Extent(0, 1)]),
        ([3, 2, 1], [Extent(3, 1), Extent(2, 1), Extent(1, 1)]),
    ],
)
def test_coalesce_joins_ascending_neighbours_in_the_given_order(block_ids, expected):
    assert coalesce(block_ids) == expected


def test_intersect_breaks_where_either_side_breaks():
    sources = [Extent(10, 6), Extent(40, 2)]
    destinations = [Extent(0, 3), Extent(7, 5)]
    assert intersect(sources, destinations) == [
        (Extent(10, 3), Extent(0, 3)),
        (Extent(13, 3), Extent(7, 3)),
        (Extent(40, 2), Extent(10, 2)),
    ]


def test_intersect_is_one_copy_when_both_sides_are_one_run():
    assert intersect([Extent(5, 60)], [Extent(100, 60)]) == [(Extent(5, 60), Extent(100, 60))]


def test_intersect_of_nothing_is_nothing():
    assert intersect([], []) == []


def test_intersect_refuses_when_the_sides_differ_in_length():
    with pytest.raises(ValueError, match="cannot map 2 blocks onto 3"):
        intersect([Extent(0, 2)], [Extent(5, 3)])
