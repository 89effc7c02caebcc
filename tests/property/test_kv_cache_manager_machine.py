"""The KV cache manager against a storage in which every slot says what was written to it.

The machine plays scheduler and executor. The KV of a token is a function of the token and of
everything before it, so a slot's content is the salt and all tokens up to and including its own: a
block that is shared, copied, evicted, stolen or found wrongly has the wrong content somewhere.
"""

from itertools import groupby

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from evenflow.core.errors import PinLimitError
from evenflow.core.ids import BlockId, RequestId
from evenflow.core.request import Request
from evenflow.core.sampling import SamplingParams
from evenflow.memory.block_map import BlockState
from evenflow.memory.kv_cache_manager import KVCacheManager

Content = tuple[str, tuple[int, ...]]

TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=14)


class KVCacheManagerMachine(RuleBasedStateMachine):
    @initialize(
        num_blocks=st.integers(4, 20),
        block_size=st.integers(1, 4),
        enable_prefix_caching=st.sampled_from([True, True, True, False]),
        initial_group_blocks=st.integers(1, 8),
        max_pinned_blocks=st.integers(0, 4),
    )
    def start(
        self,
        num_blocks: int,
        block_size: int,
        enable_prefix_caching: bool,
        initial_group_blocks: int,
        max_pinned_blocks: int,
    ) -> None:
        self.block_size = block_size
        self.kv = KVCacheManager(
            num_blocks,
            block_size,
            enable_prefix_caching=enable_prefix_caching,
            initial_group_blocks=initial_group_blocks,
        )
        self.storage: dict[int, Content] = {}
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.num_arrivals = 0
        # Tokens for which each holder has asked room, at most.
        self.asked: dict[RequestId, int] = {}
        # The contents of the blocks that each pin keeps, first to last.
        self.pins: dict[str, list[Content]] = {}
        self.max_pinned_blocks = max_pinned_blocks

    # ---- The oracle ----------------------------------------------------------------------------

    def content(self, request: Request, position: int) -> Content:
        return request.cache_salt, tuple(request.token_ids[: position + 1])

    def slot(self, request: Request, position: int) -> int:
        block_id = int(self.kv.table(request.request_id).ids[position // self.block_size])
        return block_id * self.block_size + position % self.block_size

    def num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def holders(self) -> list[Request]:
        return [r for r in self.waiting + self.running if self.kv.holds(r.request_id)]

    def used_blocks(self) -> set[int]:
        return {
            block_id
            for request in self.holders()
            for block_id in self.kv.table(request.request_id)
            .ids[: self.num_blocks_for(self.asked[request.request_id])]
            .tolist()
        }

    def pinned_blocks(self) -> set[BlockId]:
        findable = self.findable()
        return {findable[content] for contents in self.pins.values() for content in contents}

    def kept_blocks(self) -> set[int]:
        """The blocks that nobody can obtain."""
        return self.used_blocks() | self.pinned_blocks()

    def findable(self) -> dict[Content, BlockId]:
        """The contents of all cached blocks, read from storage."""
        cached = self.kv._pool._cache._hash_of
        return {self.storage[(b + 1) * self.block_size - 1]: b for b in cached}

    def expected_hits(self, request: Request) -> list[BlockId]:
        findable = self.findable()
        tokens = request.token_ids[:-1]
        return [findable[content] for content in self.cached(tokens, request.cache_salt)]

    def cached(self, tokens: list[int], salt: str) -> list[Content]:
        """The contents of the leading full blocks of these tokens, up to the first gap."""
        findable, contents = self.findable(), []
        if not self.kv.enable_prefix_caching:
            return contents
        for stop in range(self.block_size, len(tokens) + 1, self.block_size):
            content = salt, tuple(tokens[:stop])
            if content not in findable:
                break
            contents.append(content)
        return contents

    def snapshot(self) -> object:
        tables = {r.request_id: self.kv.table(r.request_id).ids.tolist() for r in self.holders()}
        pins = {name: list(blocks) for name, blocks in self.kv._pins._blocks.items()}
        return tables, pins, self.kv.stats(), self.kv._pool._allocator.free_extents()

    def can_get(self, num_new_blocks: int) -> bool:
        return len(self.kept_blocks()) + num_new_blocks <= self.kv.num_blocks

    # ---- The scheduler -------------------------------------------------------------------------

    def new_request(self, tokens: list[int], salt: str, num_more_tokens: int) -> Request:
        self.num_arrivals += 1
        return Request(
            RequestId(f"r{self.num_arrivals}"),
            tokens,
            SamplingParams(),
            max_num_tokens=len(tokens) + num_more_tokens,
            cache_salt=salt,
        )

    def drop(self, request: Request) -> None:
        self.kv.free(request.request_id)
        self.asked.pop(request.request_id, None)
        (self.running if request in self.running else self.waiting).remove(request)

    def preempt(self, request: Request) -> None:
        self.drop(request)
        request.num_computed_tokens = 0
        request.num_preemptions += 1
        self.waiting.append(request)

    def try_ensure(self, request: Request, num_tokens: int) -> bool:
        table = self.kv.table(request.request_id)
        before, used_before = self.snapshot(), table.num_used_blocks
        missing = self.num_blocks_for(num_tokens) - used_before
        possible = missing <= 0 or self.can_get(missing)
        needed, available = self.kv.blocks_needed(request, num_tokens), self.kv.num_available_blocks
        assert possible is (needed <= available)
        assert self.kv.ensure(request.request_id, num_tokens) is possible
        if possible:
            self.asked[request.request_id] = max(self.asked[request.request_id], num_tokens)
        if not possible or missing <= 0:
            assert self.snapshot() == before
        return possible

    def try_prepare_write(
        self, request: Request, num_tokens: int
    ) -> list[tuple[BlockId, BlockId]] | None:
        before = self.snapshot()
        request_id, first = request.request_id, request.num_computed_tokens
        copies = self.kv.prepare_write(request_id, first, num_tokens)
        if copies is None:
            assert self.snapshot() == before
            # What is shared is no more than the blocks about to be written.
            assert not self.can_get(self.num_blocks_for(first % self.block_size + num_tokens))
        return copies

    @rule(
        tokens=TOKENS,
        salt=st.sampled_from(["", "", "", "other"]),
        num_more_tokens=st.integers(1, 8),
        at_once=st.booleans(),
    )
    def arrive(self, tokens: list[int], salt: str, num_more_tokens: int, at_once: bool) -> None:
        request = self.new_request(tokens, salt, num_more_tokens)
        if self.num_blocks_for(request.max_num_tokens) <= self.kv.num_blocks:
            self.waiting.append(request)
            if at_once:
                self.admit(request)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def admit_one(self, data: st.DataObject) -> None:
        self.admit(data.draw(st.sampled_from(self.waiting)))

    def admit(self, request: Request) -> None:
        request_id, num_blocks = request.request_id, self.num_blocks_for(request.num_tokens)
        before, kept = self.snapshot(), self.kept_blocks()
        if self.kv.holds(request_id):
            num_held = self.kv.table(request_id).num_used_blocks
            num_cached = min(request.num_computed_tokens, request.num_tokens - 1)
        else:
            hits = self.expected_hits(request)
            num_held = len(kept.intersection(hits))
            num_cached = len(hits) * self.block_size
            assert self.kv.match_prefix(request) == num_cached
        possible = self.can_get(max(0, num_blocks - num_held))
        needed = self.kv.blocks_needed(request, request.num_tokens)
        assert possible is (needed <= self.kv.num_available_blocks)
        result = self.kv.admit(request, len(self.running))
        assert result == (num_cached if possible else None)
        if result is None:
            assert self.snapshot() == before
            return
        self.waiting.remove(request)
        self.running.append(request)
        self.asked[request_id] = max(request.num_tokens, self.asked.get(request_id, 0))
        request.num_computed_tokens = result

    @precondition(lambda self: self.running)
    @rule(data=st.data(), chunk=st.integers(1, 20), keep_copies_of_preempted=st.booleans())
    def step(self, data: st.DataObject, chunk: int, keep_copies_of_preempted: bool) -> None:
        """Make room, copy, write, commit: every running request gets a chunk of its tokens."""
        plan: dict[RequestId, list[tuple[BlockId, BlockId]]] = {}
        for request in tuple(self.running):
            while request in self.running:
                copies = self.try_to_plan(request, self.chunk_of(request, chunk))
                if copies is not None:
                    plan[request.request_id] = copies
                    break
                self.preempt(data.draw(st.sampled_from(self.running)))
        survivors = {request.request_id for request in self.running}
        for request_id, copies in plan.items():
            if request_id in survivors or keep_copies_of_preempted:
                for source, destination in copies:
                    self.copy(source, destination)
        for request in tuple(self.running):
            self.compute(request, self.chunk_of(request, chunk))
            if request.num_computed_tokens == request.max_num_tokens:
                self.drop(request)
            elif request.num_computed_tokens == request.num_tokens:
                request.token_ids.append(data.draw(st.integers(0, 1)))

    def chunk_of(self, request: Request, chunk: int) -> int:
        return min(chunk, request.num_tokens - request.num_computed_tokens)

    def try_to_plan(self, request: Request, count: int) -> list[tuple[BlockId, BlockId]] | None:
        if self.try_ensure(request, request.num_computed_tokens + count):
            return self.try_prepare_write(request, count)
        return None

    def copy(self, source: BlockId, destination: BlockId) -> None:
        for offset in range(self.block_size):
            content = self.storage.get(source * self.block_size + offset)
            if content is None:
                self.storage.pop(destination * self.block_size + offset, None)
            else:
                self.storage[destination * self.block_size + offset] = content

    def compute(self, request: Request, count: int) -> None:
        first = request.num_computed_tokens
        others = [r for r in self.holders() if r is not request]
        held_by_others = {b for r in others for b in self.kv.table(r.request_id).ids.tolist()}
        for position in range(first, first + count):
            slot = self.slot(request, position)
            assert slot // self.block_size not in held_by_others
            assert not self.kv._pool.is_cached(BlockId(slot // self.block_size))
            self.storage[slot] = self.content(request, position)
        request.num_computed_tokens = first + count
        self.kv.commit(request, first + count)

    @precondition(lambda self: self.computed())
    @rule(
        data=st.data(),
        own_tokens=st.lists(st.integers(0, 1), max_size=6),
        num_more_tokens=st.integers(1, 8),
        at_once=st.booleans(),
    )
    def fork(
        self, data: st.DataObject, own_tokens: list[int], num_more_tokens: int, at_once: bool
    ) -> None:
        parent = data.draw(st.sampled_from(self.computed()))
        shared = parent.num_computed_tokens - data.draw(st.integers(0, 2))
        if shared < 1:
            return
        tokens = parent.token_ids[:shared] + own_tokens
        child = self.new_request(tokens, parent.cache_salt, num_more_tokens)
        if self.num_blocks_for(child.max_num_tokens) > self.kv.num_blocks:
            return
        self.kv.fork(parent.request_id, child.request_id, shared)
        self.asked[child.request_id] = shared
        child.num_computed_tokens = shared
        self.waiting.append(child)
        if at_once:
            self.admit(child)

    def computed(self) -> list[Request]:
        return [request for request in self.running if request.num_computed_tokens]

    @precondition(lambda self: self.running)
    @rule(data=st.data(), ahead=st.integers(1, 10))
    def ensure_ahead(self, data: st.DataObject, ahead: int) -> None:
        request = data.draw(st.sampled_from(self.running))
        self.try_ensure(request, request.num_tokens + ahead)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def preempt_one(self, data: st.DataObject) -> None:
        self.preempt(data.draw(st.sampled_from(self.running)))

    @precondition(lambda self: self.running or self.waiting)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        self.drop(data.draw(st.sampled_from(self.running + self.waiting)))

    @precondition(lambda self: self.kv.stats().num_evictable)
    @rule()
    def reset_prefix_cache(self) -> None:
        self.kv.reset_prefix_cache()
        assert self.kv.stats().num_evictable == 0

    @precondition(lambda self: self.running or self.waiting)
    @rule(data=st.data(), name=st.sampled_from("ab"), num_more_tokens=st.integers(0, 2))
    def pin(self, data: st.DataObject, name: str, num_more_tokens: int) -> None:
        request = data.draw(st.sampled_from(self.running + self.waiting))
        tokens, salt = request.token_ids + [0] * num_more_tokens, request.cache_salt
        contents = self.cached(tokens, salt)
        after = self.pins | {name: contents}
        before = self.snapshot()
        if len({content for kept in after.values() for content in kept}) > self.max_pinned_blocks:
            with pytest.raises(PinLimitError):
                self.kv.pin(name, tokens, salt, max_pinned_blocks=self.max_pinned_blocks)
            assert self.snapshot() == before
            return
        num_tokens = self.kv.pin(name, tokens, salt, max_pinned_blocks=self.max_pinned_blocks)
        assert num_tokens == len(contents) * self.block_size
        self.pins = after

    @precondition(lambda self: self.pins)
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.pins)))
        del self.pins[name]
        self.kv.unpin(name)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        """What a failed request holds is found no more, and so are pins from there on."""
        request = data.draw(st.sampled_from(self.running))
        findable = self.findable()
        distrusted = set(self.kv.table(request.request_id).ids.tolist())
        for name, contents in self.pins.items():
            sound = [content for content in contents if findable[content] not in distrusted]
            num_sound = next(
                (i for i, (a, b) in enumerate(zip(contents, sound, strict=False)) if a != b),
                len(sound),
            )
            self.pins[name] = contents[:num_sound]
        self.kv.disown(request.request_id)
        self.drop(request)

    # ---- What must always hold -----------------------------------------------------------------

    @invariant()
    def every_request_reads_its_own_tokens(self) -> None:
        if not hasattr(self, "kv"):
            return
        self.kv.check_integrity()
        for block_id in range(self.kv.num_blocks):
            if not self.kv._pool.ref_count(block_id) and not self.kv._pool.is_cached(block_id):
                for offset in range(self.block_size):  # empty blocks are poisoned
                    self.storage.pop(block_id * self.block_size + offset, None)
        for request in self.holders():
            for position in range(request.num_computed_tokens):
                stored = self.storage[self.slot(request, position)]
                assert stored == self.content(request, position)

    @invariant()
    def no_block_is_lost_or_wasted(self) -> None:
        if not hasattr(self, "kv"):
            return
        stats = self.kv.stats()
        parts = stats.num_free, stats.num_used, stats.num_reserved, stats.num_evictable
        assert sum(parts) + stats.num_pinned == stats.num_blocks
        assert stats.num_used == len(self.used_blocks())
        assert stats.num_pinned == len(self.pinned_blocks() - self.used_blocks())
        assert self.kv.num_available_blocks == stats.num_blocks - len(self.kept_blocks())
        for request in self.holders():
            table = self.kv.table(request.request_id)
            assert table.num_used_blocks == self.num_blocks_for(self.asked[request.request_id])

    @invariant()
    def cached_blocks_hold_what_their_hash_says(self) -> None:
        if hasattr(self, "kv"):
            for request in self.waiting:
                if not self.kv.holds(request.request_id):
                    expected = self.expected_hits(request)
                    assert self.kv.match_prefix(request) == len(expected) * self.block_size

    @invariant()
    def what_is_pinned_is_found(self) -> None:
        if hasattr(self, "kv"):
            for salt, tokens in [pin[-1] for pin in self.pins.values() if pin]:
                num_blocks = len(tokens) // self.block_size
                assert len(self.cached(list(tokens), salt)) == num_blocks

    @invariant()
    def block_map_says_where_every_block_is(self) -> None:
        if not hasattr(self, "kv"):
            return
        runs = self.kv.block_map()
        assert runs == self.slow_block_map()
        count = dict.fromkeys(BlockState, 0)
        for _, length, state, _ in runs:
            count[BlockState(state)] += length
        stats = self.kv.stats()
        assert count == {
            BlockState.FREE: stats.num_free,
            BlockState.USED: stats.num_used,
            BlockState.RESERVED: stats.num_reserved,
            BlockState.EVICTABLE: stats.num_evictable,
            BlockState.PINNED: stats.num_pinned,
        }

    def slow_block_map(self) -> list[tuple[int, int, int, str | None]]:
        holders = [(name, table.extents, table) for name, table in self.kv._tables.items()]
        pinned = self.pinned_blocks()

        def whereabouts(block_id: int) -> tuple[int, str | None, int]:
            for name, extents, table in holders:
                ids = table.ids.tolist()
                if block_id in ids:
                    group = next(i for i, e in enumerate(extents) if e.contains(block_id))
                    is_used = ids.index(block_id) < table.num_used_blocks
                    return BlockState.USED if is_used else BlockState.RESERVED, name, group
            if block_id in pinned:
                return BlockState.PINNED, None, 0
            is_cached = self.kv._pool.is_cached(BlockId(block_id))
            return BlockState.EVICTABLE if is_cached else BlockState.FREE, None, 0

        runs = []
        for (state, name, _), blocks in groupby(range(self.kv.num_blocks), key=whereabouts):
            ids = list(blocks)
            runs.append((ids[0], len(ids), int(state), name))
        return runs


TestKVCacheManagerMachine = KVCacheManagerMachine.TestCase
TestKVCacheManagerMachine.settings = settings(
    max_examples=300, stateful_step_count=50, deadline=None, derandomize=True
)
