import math

import pytest

from evenflow.memory.eviction import LRU, Belady


def test_lru_victim_is_the_candidate_longest_out_of_use():
    lru = LRU[str]()
    for key in "abc":
        lru.add(key)
    lru.access("a")
    assert lru.victim() == "b"


def test_lru_victim_stays_a_candidate_until_discarded():
    lru = LRU[str]()
    lru.add("a")
    assert lru.victim() == "a"
    assert "a" in lru
    lru.discard("a")
    assert "a" not in lru
    assert len(lru) == 0


def test_lru_ignores_access_to_what_is_no_candidate():
    lru = LRU[str]()
    lru.access("a")
    assert "a" not in lru


def test_lru_counts_being_added_as_a_use():
    lru = LRU[str]()
    for key in "aba":
        lru.add(key)
    assert lru.victim() == "b"
    assert len(lru) == 2


def test_lru_predicts_the_victim_latest():
    lru = LRU[str]()
    for key in "abca":
        lru.add(key)
    assert max("abc", key=lru.predict) == lru.victim()


def test_belady_predicts_the_next_use_and_infinity_after_the_last():
    belady = Belady("abcab")
    assert [belady.predict(key) for key in "abcz"] == [0, 1, 2, math.inf]
    for key in "abc":
        belady.access(key)
    assert [belady.predict(key) for key in "abc"] == [3, 4, math.inf]


def test_belady_victim_is_the_candidate_used_again_the_latest():
    belady = Belady("abcab")
    for key in "ab":
        belady.access(key)
        belady.add(key)
    belady.access("c")
    assert belady.victim() == "b"


def test_belady_refuses_when_the_future_said_otherwise():
    belady = Belady("ab")
    with pytest.raises(ValueError, match="not the foretold one"):
        belady.access("b")


def test_belady_refuses_when_the_future_is_over():
    with pytest.raises(ValueError, match="not the foretold one"):
        Belady("").access("a")


@pytest.mark.parametrize("policy", [LRU[str](), Belady[str]([])])
def test_victim_raises_when_there_is_no_candidate(policy):
    policy.add("a")
    policy.discard("a")
    with pytest.raises(LookupError):
        policy.victim()
