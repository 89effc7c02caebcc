from __future__ import annotations

import pytest

from evenflow.workloads.request import Segment
from evenflow.workloads.traces.blocks import block_ids, exact_ids, segments_of


@pytest.mark.parametrize(
    ("ids", "num_tokens", "block_tokens"), [([4], 3, 512), ([4, 9, 2], 1100, 512), ([1, 2], 70, 64)]
)
def test_exact_ids_are_those_the_segments_were_made_of(
    ids: list[int], num_tokens: int, block_tokens: int
) -> None:
    assert exact_ids(segments_of(ids, num_tokens, block_tokens)) == (ids, block_tokens)


@pytest.mark.parametrize(
    "segments",
    [
        (),
        (Segment("prefix", 512),),
        (Segment("block 07", 12),),
        (Segment("block 1", 513),),
        (Segment("block 1", 512), Segment("own", 3)),
        (Segment("block 1", 64), Segment("block 2", 65)),
        (Segment("block 1", 64), Segment("block 2", 60), Segment("block 3", 64)),
    ],
)
def test_exact_ids_are_none_when_they_would_lose_something(segments: tuple[Segment, ...]) -> None:
    assert exact_ids(segments) is None


def test_block_ids_are_equal_as_far_as_the_text_is() -> None:
    first = block_ids((Segment("system", 70), Segment("a", 58)), 32)
    second = block_ids((Segment("system", 70), Segment("b", 58)), 32)
    assert [one == other for one, other in zip(first, second, strict=True)] == [
        *(True, True),
        *(False, False),
    ]


def test_block_ids_see_no_difference_between_a_text_and_its_beginning() -> None:
    assert block_ids((Segment("run", 100),), 32)[:3] == block_ids((Segment("run", 500),), 32)[:3]


def test_block_ids_differ_when_an_earlier_block_does() -> None:
    first = block_ids((Segment("a", 32), Segment("same", 32)), 32)
    second = block_ids((Segment("b", 32), Segment("same", 32)), 32)
    assert first[1] != second[1]


def test_block_ids_are_one_per_started_block_and_fit_into_a_double() -> None:
    ids = block_ids((Segment("a", 65),), 32)
    assert len(ids) == 3
    assert all(int(float(block)) == block for block in ids)
