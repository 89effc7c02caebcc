"""The file behind the disk tier: KV blocks in slots of one size, found again after a restart.

    evenflow-kv.index     │ header │ entry 0 │ entry 1 │ entry 2 │ ─ ─      32 bytes each
                                      content  and CRC-32 of the bytes
                                          └────────┐
    evenflow-kv.blocks    │  slot 0  │  slot 1  │  slot 2  │ ─ ─            bytes_per_block each

Slot `i` begins at byte `i * bytes_per_block`. The file is sparse: it has its full size from the
start and takes room on the disk as slots are written.

    write(slot)     1. erase the entry     2. write the bytes             a transfer's thread
    record(slot)    3. write the entry, with the checksum of 2            the engine's thread
    read(slot)      read the bytes, compare their checksum                a transfer's thread

A process may die between any two of these, and no entry speaks of other bytes than it was written
for. A power cut may keep any of these writes and lose any other, because nothing waits for the
disk: KV can be computed again, and steps should not be held up for it. Bytes that are not those an
entry was written for then fail its checksum and are forgotten (all but one in four thousand million
of them).

Knows: bytes, their checksums and their contents.
Does not know: which blocks are worth keeping, or what a ticket is.
"""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from threading import Lock
from zlib import crc32

from evenflow.core.errors import IntegrityError, KVDiskError
from evenflow.execution.disk_index import DiskIndex, Entry, open_private, write_all
from evenflow.memory.prefix_cache import BlockHash

logger = logging.getLogger(__name__)

INDEX_NAME = "evenflow-kv.index"
BLOCKS_NAME = "evenflow-kv.blocks"


class DamagedBlockError(OSError):
    """A slot does not hold, or no longer holds, a block as it was written."""


class DiskBlocks:
    """Slots for blocks in a folder, for this process alone until they are closed.

    Any thread may call any method. Nobody may read or write a slot that is being written; that is
    the caller's to see to, as with any memory.

    Attributes:
        num_blocks: slots.
        bytes_per_block: bytes of a slot.
    """

    def __init__(
        self, index: DiskIndex, blocks: FileIO, bytes_per_block: int, entries: dict[int, Entry]
    ) -> None:
        self.bytes_per_block = bytes_per_block
        self.num_blocks = os.fstat(blocks.fileno()).st_size // bytes_per_block
        self._index = index
        self._blocks = blocks
        self._lock = Lock()
        # Of the slots that hold sound bytes, and of those whose content can be found.
        self._checksums = {slot: entry.checksum for slot, entry in entries.items()}
        self._contents = {slot: entry.content for slot, entry in entries.items()}

    @classmethod
    def open(
        cls, folder: Path, *, num_blocks: int, bytes_per_block: int, fingerprint: str
    ) -> DiskBlocks:
        """Open the slots in a folder, making what is not there.

        What the folder already holds can be found again, as far as it fits into `num_blocks`.
        Whether its bytes are sound shows when they are read.

        Args:
            folder: where the two files are; others in it are left alone.
            num_blocks: slots.
            bytes_per_block: bytes of a block over all layers.
            fingerprint: what else the bytes depend on, such as the model's digest, dtype, layout
                and block size; at most about 4000 bytes.

        Raises:
            KVDiskError: another process has the folder, it holds blocks of another kind, or the
                files cannot be made.
        """
        description = f"{bytes_per_block} bytes per block\n{fingerprint}"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with ExitStack() as opened:
                index = DiskIndex.open(folder / INDEX_NAME, description)
                opened.callback(index.close)
                blocks = opened.enter_context(open_private(folder / BLOCKS_NAME))
                num_bytes = os.fstat(blocks.fileno()).st_size
                if index.is_new and num_bytes:
                    raise _orphaned(folder)
                entries, num_lost = index.load(min(num_bytes // bytes_per_block, num_blocks))
                index.prepare(num_blocks)
                os.ftruncate(blocks.fileno(), num_blocks * bytes_per_block)
                opened.pop_all()
        except OSError as error:
            raise KVDiskError(
                f"no KV blocks can be kept in {folder}",
                why=str(error),
                fix="Choose another --kv-disk-path, or make room there",
            ) from error
        logger.log(
            logging.WARNING if num_lost else logging.INFO,
            "KV blocks on disk: folder=%s slots=%d found=%d lost=%d",
            folder,
            num_blocks,
            len(entries),
            num_lost,
        )
        return cls(index, blocks, bytes_per_block, entries)

    def contents(self) -> dict[BlockHash, int]:
        """Return the slot of every content that can be found, oldest first."""
        with self._lock:
            return {content: slot for slot, content in self._contents.items()}

    def write(self, slot: int, data: memoryview) -> None:
        """Put a block into a slot.

        What the slot held is lost, whether this succeeds or not.

        Args:
            slot: the slot.
            data: the block's bytes, contiguous.

        Raises:
            OSError: they could not all be written. The slot holds nothing.
        """
        data = self._bytes_of_block(slot, data)
        with self._lock:
            self._checksums.pop(slot, None)
            self._forget(slot)
        write_all(self._blocks, data, slot * self.bytes_per_block)
        checksum = crc32(data)
        with self._lock:
            self._checksums[slot] = checksum

    def read(self, slot: int, into: memoryview) -> None:
        """Copy the block in a slot.

        Args:
            slot: the slot.
            into: as many bytes as a block has, contiguous. What it holds after an error must not
                be used.

        Raises:
            DamagedBlockError: the slot holds no block, or not as it was written; it is forgotten.
            OSError: it cannot be read.
        """
        into = self._bytes_of_block(slot, into)
        with self._lock:
            expected = self._checksums.get(slot)
        if expected is None:
            raise DamagedBlockError(f"slot {slot} on disk holds no block")
        num_read = _read(self._blocks, into, slot * self.bytes_per_block)
        if num_read == len(into) and crc32(into) == expected:
            return
        with self._lock:
            self._checksums.pop(slot, None)
            self._forget(slot)
        why = "its checksum is wrong" if num_read == len(into) else f"it ends at byte {num_read}"
        raise DamagedBlockError(f"the block in slot {slot} on disk is damaged: {why}")

    def record(self, slot: int, content: BlockHash) -> bool:
        """Let what was last written into a slot be found, by later processes too.

        Returns:
            Whether it can be: False, changing nothing, if the slot holds no sound block.
        """
        with self._lock:
            checksum = self._checksums.get(slot)
            if checksum is None:
                return False
            self._contents.pop(slot, None)
            self._contents[slot] = content
            self._index.put(slot, Entry(content, checksum))
            return True

    def forget(self, slot: int) -> None:
        """Let a slot's content be found no more. Its bytes stay as they are until a write."""
        with self._lock:
            self._forget(slot)

    def close(self) -> None:
        """Let other processes have the folder. There is nothing left to be written."""
        self._blocks.close()
        self._index.close()

    def check_integrity(self) -> None:
        """Check that what can be found lies in slots, and that its bytes have a checksum.

        Raises:
            IntegrityError: some does not.
        """
        with self._lock:
            if not self._contents.keys() <= self._checksums.keys() <= set(range(self.num_blocks)):
                raise IntegrityError("content is recorded for slots on disk that hold no block")

    def _forget(self, slot: int) -> None:
        if self._contents.pop(slot, None) is not None:
            self._index.erase(slot)

    def _bytes_of_block(self, slot: int, view: memoryview) -> memoryview:
        if not 0 <= slot < self.num_blocks or view.nbytes != self.bytes_per_block:
            raise IntegrityError(
                f"{view.nbytes} bytes cannot be moved between memory and slot {slot} on disk",
                why=f"there are {self.num_blocks} slots of {self.bytes_per_block} bytes",
            )
        return view.cast("B")


def _read(file: FileIO, into: memoryview, offset: int) -> int:
    """Fill `into`, bytes, from an offset; returns how many bytes there were."""
    num_read = 0
    while num_read < len(into):
        count = os.preadv(file.fileno(), [into[num_read:]], offset + num_read)
        if count == 0:
            break
        num_read += count
    return num_read


def _orphaned(folder: Path) -> KVDiskError:
    return KVDiskError(
        f"{folder / BLOCKS_NAME} is there, but nothing says what it holds",
        why=f"{INDEX_NAME} beside it was missing or empty",
        fix=f"Remove {BLOCKS_NAME}, or choose another --kv-disk-path",
    )
