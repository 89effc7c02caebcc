"""Stored responses are bounded, and their tenants' own."""

from __future__ import annotations

import pytest

from evenflow.core.errors import IntegrityError
from evenflow.server.responses import ResponseStore, StoredResponse


def stored(name: str, size: int = 100) -> StoredResponse:
    return StoredResponse({"id": name}, [{"role": "user", "content": "a" * size}])


def test_store_keeps_tenants_apart() -> None:
    store = ResponseStore(10_000)
    store.put("a", stored("1"))
    assert store.get("a", "1") == stored("1")
    assert store.get("b", "1") is None
    assert not store.delete("b", "1")
    assert store.delete("a", "1")
    assert store.get("a", "1") is None
    assert store.num_bytes == 0


def test_store_evicts_the_oldest_of_the_tenant_that_holds_most() -> None:
    store = ResponseStore(1000)
    store.put("small", stored("0"))
    for number in range(20):
        store.put("big", stored(str(number)))
        store.check_integrity()
    assert store.get("small", "0") is not None
    assert store.get("big", "0") is None
    assert store.get("big", "19") is not None
    assert store.num_bytes <= 1000


def test_store_replaces_a_response_of_the_same_id() -> None:
    store = ResponseStore(1000)
    store.put("a", stored("1", 10))
    store.put("a", stored("1", 20))
    assert store.get("a", "1") == stored("1", 20)
    store.check_integrity()


def test_store_leaves_out_what_is_larger_than_itself() -> None:
    store = ResponseStore(1000)
    store.put("a", stored("1"))
    store.put("a", stored("2", 2000))
    assert store.get("a", "1") is not None
    assert store.get("a", "2") is None


def test_store_finds_its_own_books_wrong() -> None:
    store = ResponseStore(1000)
    store.put("a", stored("1"))
    store._num_bytes["a"] += 1
    with pytest.raises(IntegrityError):
        store.check_integrity()
