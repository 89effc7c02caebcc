"""The index of the disk tier: which slot holds which content, written down for the next process.

    ┌──────────── 4096 bytes ────────────┬── 32 ───┬── 32 ───┬─ ─ ─
    │ header: text, then zeros           │ entry 0 │ entry 1 │        one entry for each slot
    └────────────────────────────────────┴─────────┴─────────┴─ ─ ─

    header    The lines "evenflow KV index" and "version 1", then what the blocks depend on.
              Written once. A file whose header differs in a single byte is refused.

    entry     ┌─── 16 ───┬─── 8 ────┬────── 4 ──────┬────── 4 ──────┐
              │ content  │ sequence │ CRC-32 of the │ CRC-32 of the │    little endian;
              │          │ number   │ block's bytes │ 28 before it  │    all zeros: no entry
              └──────────┴──────────┴───────────────┴───────────────┘

An entry lies within one sector of any disk, so that it is written whole or not at all; where it is
torn all the same, its own checksum tells. The sequence number grows with every entry written.

Knows: the file's format and who may open it.
Does not know: the blocks.
"""

from __future__ import annotations

import fcntl
import logging
import os
import struct
from contextlib import ExitStack
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from zlib import crc32

from evenflow.core.errors import IntegrityError, KVDiskError
from evenflow.memory.prefix_cache import BlockHash

logger = logging.getLogger(__name__)

HEADER_BYTES = 4096
ENTRY_BYTES = 32

_MAGIC = "evenflow KV index\n"
_VERSION = 1
"""Raised whenever a file of the old format would be misread."""

_BODY = struct.Struct("<16sQI")
_CHECKSUM = struct.Struct("<I")
_NO_ENTRY = bytes(ENTRY_BYTES)


@dataclass(slots=True, frozen=True)
class Entry:
    """What a slot holds.

    Attributes:
        content: what can be found there.
        checksum: CRC-32 of its bytes.
    """

    content: BlockHash
    checksum: int


class DiskIndex:
    """An index file, held by this process alone until it is closed. Not thread-safe.

    Attributes:
        is_new: whether there was none before.
    """

    def __init__(self, path: Path, file: FileIO, header: bytes, *, is_new: bool) -> None:
        self.is_new = is_new
        self._path = path
        self._header = header
        self._file = file
        self._next_sequence = 0
        self._has_failed = False

    @classmethod
    def open(cls, path: Path, description: str) -> DiskIndex:
        """Open the file, making it if need be; it stays empty until it is prepared.

        Args:
            path: the file.
            description: all that the bytes of a block depend on.

        Raises:
            KVDiskError: another process has the file, or it is not of this description.
            OSError: it cannot be made, locked or read.
        """
        header = _header(description)
        with ExitStack() as opened:
            file = opened.enter_context(open_private(path))
            _lock(path, file)
            found = os.pread(file.fileno(), HEADER_BYTES, 0)
            # A crash can leave zeros before the header is safe, and nothing behind them.
            is_new = not found.strip(b"\0")
            if not is_new and found != header:
                raise _refusal(path, found, header)
            opened.pop_all()
        return cls(path, file, header, is_new=is_new)

    def load(self, num_slots: int) -> tuple[dict[int, Entry], int]:
        """Return the entries of the first slots, and erase all others.

        Args:
            num_slots: how many slots there are.

        Returns:
            The entries by slot, oldest first, and how many were erased: torn ones and those of
            slots that are no more.
        """
        fd = self._file.fileno()
        stored = os.pread(fd, os.fstat(fd).st_size, HEADER_BYTES)
        entries: list[tuple[int, int, Entry]] = []
        num_erased = 0
        for start in range(0, len(stored), ENTRY_BYTES):
            slot, packed = start // ENTRY_BYTES, stored[start : start + ENTRY_BYTES]
            if packed == _NO_ENTRY:
                continue
            unpacked = _unpack(packed)
            if unpacked is None or slot >= num_slots:
                self.erase(slot)
                num_erased += 1
            else:
                sequence, entry = unpacked
                entries.append((sequence, slot, entry))
        entries.sort(key=lambda item: item[0])
        if entries:
            self._next_sequence = entries[-1][0] + 1
        return {slot: entry for _, slot, entry in entries}, num_erased

    def prepare(self, num_slots: int) -> None:
        """Give the file its header, and room for the entries of so many slots.

        Raises:
            OSError: it cannot be written.
        """
        if self.is_new:
            write_all(self._file, memoryview(self._header), 0)
            os.fsync(self._file.fileno())
        os.ftruncate(self._file.fileno(), HEADER_BYTES + num_slots * ENTRY_BYTES)

    def put(self, slot: int, entry: Entry) -> None:
        """Write a slot's entry down."""
        body = _BODY.pack(entry.content, self._next_sequence, entry.checksum)
        self._next_sequence += 1
        self._write(slot, body + _CHECKSUM.pack(crc32(body)))

    def erase(self, slot: int) -> None:
        """Erase a slot's entry."""
        self._write(slot, _NO_ENTRY)

    def close(self) -> None:
        """Let other processes have the file."""
        self._file.close()

    def _write(self, slot: int, packed: bytes) -> None:
        """Write an entry, or log that it cannot be.

        Either way nothing wrong is believed: what is not written down is not found, and what is not
        erased has a checksum.
        """
        try:
            write_all(self._file, memoryview(packed), HEADER_BYTES + slot * ENTRY_BYTES)
        except OSError as error:
            if not self._has_failed:
                logger.warning(
                    "KV blocks on disk will not all be found after a restart: path=%s error=%s",
                    self._path,
                    error,
                )
            self._has_failed = True


def open_private(path: Path) -> FileIO:
    """Open a file to read and write, making it if need be, for its owner alone.

    A symbolic link is not followed: it may lead to what is not ours to write.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    return FileIO(descriptor, "r+")


def write_all(file: FileIO, data: memoryview, offset: int) -> None:
    """Write all of `data`, bytes, at an offset.

    Raises:
        OSError: some of it could not be written.
    """
    while data:
        num_written = os.pwrite(file.fileno(), data, offset)
        data, offset = data[num_written:], offset + num_written


def _lock(path: Path, file: FileIO) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise KVDiskError(
            f"another process keeps KV blocks in {path.parent}",
            why=f"it holds the lock on {path.name}",
            fix="Stop it, or give every server its own --kv-disk-path",
        ) from None


def _header(description: str) -> bytes:
    header = f"{_MAGIC}version {_VERSION}\n{description}\n".encode()
    if len(header) > HEADER_BYTES:
        raise IntegrityError(
            "what KV blocks depend on is described at too great a length",
            why=f"{len(header)} bytes, {HEADER_BYTES} is the limit",
        )
    return header.ljust(HEADER_BYTES, b"\0")


def _refusal(path: Path, found: bytes, header: bytes) -> KVDiskError:
    if not found.startswith(_MAGIC.encode()):
        return KVDiskError(
            f"{path} is not an index of KV blocks",
            why="it does not begin as one does",
            fix="Choose another --kv-disk-path",
        )
    return KVDiskError(
        f"{path.parent} holds KV blocks that do not fit",
        why=f"they are {_said(found)}, needed are {_said(header)}",
        fix="Give every model and setting its own --kv-disk-path, or remove evenflow-kv.* there",
    )


def _said(header: bytes) -> str:
    lines = header.rstrip(b"\0").decode(errors="replace").splitlines()
    return repr(", ".join(lines[1:]))


def _unpack(packed: bytes) -> tuple[int, Entry] | None:
    """Return an entry and its sequence number, or None if it is torn."""
    body = packed[: _BODY.size]
    if packed[_BODY.size :] != _CHECKSUM.pack(crc32(body)):
        return None
    content, sequence, checksum = _BODY.unpack(body)
    return sequence, Entry(BlockHash(content), checksum)
