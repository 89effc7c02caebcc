"""The extent allocator against a bitmap that looks at every block."""

from itertools import groupby

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from evenflow.core.errors import IntegrityError
from evenflow.memory.allocator import ExtentAllocator
from evenflow.memory.extents import Extent


class ExtentAllocatorMachine(RuleBasedStateMachine):
    @initialize(num_blocks=st.integers(1, 40))
    def start(self, num_blocks: int) -> None:
        self.allocator = ExtentAllocator(num_blocks)
        self.is_free = [True] * num_blocks
        self.taken: list[Extent] = []

    def runs(self) -> list[Extent]:
        """The free runs by address, found by looking at every block."""
        found = []
        for free, group in groupby(range(len(self.is_free)), key=self.is_free.__getitem__):
            blocks = list(group)
            if free:
                found.append(Extent(blocks[0], len(blocks)))
        return found

    def mark(self, extent: Extent, *, free: bool) -> None:
        for block_id in extent.block_ids:
            assert self.is_free[block_id] is not free
            self.is_free[block_id] = free
        if not free:
            self.taken.append(extent)

    def best_fit(self, num_blocks: int) -> Extent | None:
        fitting = [run for run in self.runs() if run.length >= num_blocks]
        if not fitting:
            return None
        return Extent(min(fitting, key=lambda run: (run.length, run.start)).start, num_blocks)

    @rule(num_blocks=st.integers(1, 12))
    def allocate(self, num_blocks: int) -> None:
        expected = self.best_fit(num_blocks)
        extent = self.allocator.allocate(num_blocks)
        assert extent == expected
        if extent is not None:
            self.mark(extent, free=False)

    @rule(num_blocks=st.integers(0, 20))
    def allocate_scattered(self, num_blocks: int) -> None:
        enough = sum(self.is_free) >= num_blocks
        extents = self.allocator.allocate_scattered(num_blocks)
        assert (extents is not None) is enough
        for extent in extents or ():
            expected = self.best_fit(num_blocks)
            if expected is None:
                largest = max(run.length for run in self.runs())
                assert extent in self.runs()
                assert extent.length == largest
            else:
                assert extent == expected
            self.mark(extent, free=False)
            num_blocks -= extent.length

    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        if not self.taken:
            return
        extent = self.taken.pop(data.draw(st.integers(0, len(self.taken) - 1)))
        self.mark(extent, free=True)
        self.allocator.free(extent)

    @rule(data=st.data())
    def free_a_part(self, data: st.DataObject) -> None:
        long = [extent for extent in self.taken if extent.length > 1]
        if not long:
            return
        extent = data.draw(st.sampled_from(long))
        self.taken.remove(extent)
        kept, freed = extent.split(data.draw(st.integers(1, extent.length - 1)))
        self.taken.append(kept)
        self.mark(freed, free=True)
        self.allocator.free(freed)

    @rule(data=st.data())
    def claim(self, data: st.DataObject) -> None:
        block_id = data.draw(st.integers(0, len(self.is_free) - 1))
        if self.is_free[block_id]:
            with pytest.raises(IntegrityError):
                self.allocator.free(Extent(block_id, 1))
            self.allocator.claim(block_id)
            self.mark(Extent(block_id, 1), free=False)
        else:
            with pytest.raises(IntegrityError):
                self.allocator.claim(block_id)

    @invariant()
    def agrees_with_the_bitmap(self) -> None:
        if not hasattr(self, "allocator"):
            return
        self.allocator.check_integrity()
        assert self.allocator.free_extents() == self.runs()
        assert self.allocator.num_free == sum(self.is_free)
        assert self.allocator.largest_free == max((run.length for run in self.runs()), default=0)


TestExtentAllocatorMachine = ExtentAllocatorMachine.TestCase
TestExtentAllocatorMachine.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, derandomize=True
)
