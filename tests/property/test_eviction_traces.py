"""Eviction policies on random traces, against exhaustive search and a naive list."""

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from evenflow.memory.eviction import LRU, Belady, EvictionPolicy

fixed = settings(max_examples=200, deadline=None, derandomize=True)


def count_misses(policy: EvictionPolicy[int], trace: Sequence[int], capacity: int) -> int:
    num_misses = 0
    for key in trace:
        policy.access(key)
        if key in policy:
            continue
        num_misses += 1
        if len(policy) == capacity:
            policy.discard(policy.victim())
        policy.add(key)
    return num_misses


def fewest_misses(trace: Sequence[int], capacity: int) -> int:
    """Try every victim at every miss."""
    misses_with: dict[frozenset[int], int] = {frozenset(): 0}
    for key in trace:
        after: dict[frozenset[int], int] = {}
        for cached, num_misses in misses_with.items():
            if key in cached:
                choices, num_misses_after = [cached], num_misses
            else:
                kept = [cached - {v} for v in cached] if len(cached) == capacity else [cached]
                choices, num_misses_after = [k | {key} for k in kept], num_misses + 1
            for choice in choices:
                after[choice] = min(num_misses_after, after.get(choice, num_misses_after))
        misses_with = after
    return min(misses_with.values())


@fixed
@given(st.lists(st.integers(0, 5), max_size=20), st.integers(1, 4))
def test_belady_misses_as_rarely_as_the_best_of_all_choices(trace, capacity):
    assert count_misses(Belady(trace), trace, capacity) == fewest_misses(trace, capacity)


@fixed
@given(st.lists(st.integers(0, 15), max_size=200), st.integers(1, 12))
def test_lru_never_misses_less_than_belady(trace, capacity):
    lru, belady = LRU[int](), Belady(trace)
    assert count_misses(lru, trace, capacity) >= count_misses(belady, trace, capacity)


@fixed
@given(st.lists(st.tuples(st.sampled_from(["access", "add", "discard"]), st.integers(0, 6))))
def test_lru_agrees_with_a_naive_list(actions):
    lru, oldest_first = LRU[int](), []
    for action, key in actions:
        known = key in oldest_first
        if known:
            oldest_first.remove(key)
        if action == "add" or (action == "access" and known):
            oldest_first.append(key)
        getattr(lru, action)(key)
        assert len(lru) == len(oldest_first)
        assert (key in lru) is (key in oldest_first)
        assert sorted(oldest_first, key=lru.predict) == oldest_first[::-1]
        if oldest_first:
            assert lru.victim() == oldest_first[0]
