"""Blocks on disk against a record of everything that was ever written.

The content of a block says which bytes it has, as in a KV cache, so whatever is read without an
error has to be the bytes of the content it was found under. Between two lives of the process
nothing happens, or the files are cut, corrupted, or lose any of the writes of the life before.
"""

import shutil
from pathlib import Path
from random import Random
from tempfile import mkdtemp

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from evenflow.core.errors import KVDiskError
from evenflow.execution.disk_blocks import BLOCKS_NAME, INDEX_NAME, DamagedBlockError, DiskBlocks
from evenflow.execution.disk_index import HEADER_BYTES
from evenflow.memory.prefix_cache import BlockHash

FILES = [INDEX_NAME, BLOCKS_NAME]
SECTOR = 32  # an entry is as long, so that none is ever written by half, as on a real disk


MAX_BLOCKS = 8
SLOT = st.integers(0, MAX_BLOCKS - 1)
SLOTS = st.lists(SLOT, min_size=1, max_size=2 * MAX_BLOCKS)


def named(name: int) -> BlockHash:
    return BlockHash(name.to_bytes(16, "little"))


def corrupted(content: bytes, first: int, rng: Random) -> bytes:
    """Return the content with a few bits flipped from byte `first` on."""
    damaged = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        damaged[rng.randrange(first, len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


class DiskBlocksMachine(RuleBasedStateMachine):
    @initialize(
        num_blocks=st.integers(1, MAX_BLOCKS), bytes_per_block=st.sampled_from([1, 32, 100, 128])
    )
    def start(self, num_blocks: int, bytes_per_block: int) -> None:
        self.folder = Path(mkdtemp())
        self.num_blocks = num_blocks
        self.bytes_per_block = bytes_per_block
        self.num_names = 0
        self.written: dict[int, int] = {}
        self.recorded: dict[int, int] = {}
        self.open()
        self.store(list(range(num_blocks)))

    def open(self) -> None:
        self.disk = DiskBlocks.open(
            self.folder,
            num_blocks=self.num_blocks,
            bytes_per_block=self.bytes_per_block,
            fingerprint="a model",
        )
        self.before = {name: (self.folder / name).read_bytes() for name in FILES}

    def payload(self, name: int) -> bytes:
        return Random(name).randbytes(self.bytes_per_block)

    def bytes_in(self, slot: int) -> bytes:
        into = bytearray(self.bytes_per_block)
        self.disk.read(slot, memoryview(into))
        return bytes(into)

    def reopen_damaged(self) -> None:
        """Open what damage has left, and check that none of it is believed."""
        try:
            self.open()
        except KVDiskError:
            for name in FILES:
                (self.folder / name).unlink()
            self.open()
            assert self.disk.contents() == {}
        self.recorded.clear()
        for content, slot in self.disk.contents().items():
            name = int.from_bytes(content, "little")
            assert name < self.num_names
            try:
                assert self.bytes_in(slot) == self.payload(name)
            except DamagedBlockError:
                assert content not in self.disk.contents()
            else:
                self.recorded[slot] = name
        self.written = dict(self.recorded)

    def write_to(self, slot: int) -> None:
        self.disk.write(slot, memoryview(self.payload(self.num_names)))
        self.written[slot] = self.num_names
        self.recorded.pop(slot, None)
        self.num_names += 1

    def record_in(self, slot: int) -> None:
        assert self.disk.record(slot, named(self.written[slot]))
        self.recorded.pop(slot, None)
        self.recorded[slot] = self.written[slot]

    # ---- One life ------------------------------------------------------------------------------

    @rule(slots=SLOTS)
    def store(self, slots: list[int]) -> None:
        for slot in slots:
            self.write_to(slot % self.num_blocks)
            self.record_in(slot % self.num_blocks)

    @rule(slot=SLOT)
    def write(self, slot: int) -> None:
        self.write_to(slot % self.num_blocks)

    @rule(slot=SLOT)
    def record(self, slot: int) -> None:
        if slot in self.written:
            self.record_in(slot)
        else:
            assert slot >= self.num_blocks or not self.disk.record(slot, named(0))

    @rule(slots=SLOTS)
    def forget(self, slots: list[int]) -> None:
        for slot in slots:
            self.disk.forget(slot % self.num_blocks)
            self.recorded.pop(slot % self.num_blocks, None)

    @rule()
    def read_all(self) -> None:
        for slot, name in self.written.items():
            assert self.bytes_in(slot) == self.payload(name)

    # ---- Between two lives ---------------------------------------------------------------------

    @rule(num_blocks=st.none() | st.integers(1, MAX_BLOCKS))
    def restart(self, num_blocks: int | None) -> None:
        """End and begin again; a killed process leaves the same, as close writes nothing."""
        self.disk.close()
        self.num_blocks = num_blocks or self.num_blocks
        self.recorded = {s: name for s, name in self.recorded.items() if s < self.num_blocks}
        self.written = dict(self.recorded)
        self.open()

    @rule(seed=st.integers(0, 2**32), kind=st.sampled_from(["cut", "corrupt", "power"]))
    def damage(self, seed: int, kind: str) -> None:
        self.disk.close()
        rng = Random(seed)
        if kind == "power":
            for file in FILES:
                self.cut_power(file, rng)
        else:
            path = self.folder / rng.choice(FILES)
            content = path.read_bytes()
            # The header is a large target; damage to it refuses all there is.
            first = 0 if path.name == BLOCKS_NAME or rng.random() < 0.1 else HEADER_BYTES
            if kind == "cut":
                content = content[: rng.randint(first, len(content))]
            else:
                content = corrupted(content, first, rng)
            path.write_bytes(content)
        self.reopen_damaged()

    def cut_power(self, file: str, rng: Random) -> None:
        """Keep some sectors as they were when the process began."""
        before, now = self.before[file], (self.folder / file).read_bytes()
        assert len(now) == len(before)
        sectors = range(0, len(now), SECTOR)
        share = rng.random()
        kept = [(before if rng.random() < share else now)[i : i + SECTOR] for i in sectors]
        (self.folder / file).write_bytes(b"".join(kept))

    # ---- Always --------------------------------------------------------------------------------

    @invariant()
    def finds_what_is_recorded(self) -> None:
        if hasattr(self, "disk"):
            self.disk.check_integrity()
            recorded = [(named(name), slot) for slot, name in self.recorded.items()]
            assert list(self.disk.contents().items()) == recorded

    def teardown(self) -> None:
        if hasattr(self, "disk"):
            self.disk.close()
            shutil.rmtree(self.folder)


TestDiskBlocksMachine = DiskBlocksMachine.TestCase
TestDiskBlocksMachine.settings = settings(
    max_examples=200, stateful_step_count=30, deadline=None, derandomize=True
)
