"""Files on disk: for each its content, and a JSON record that says what it is."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from secrets import token_hex
from typing import IO, Any, TypeVar

import msgspec

from evenflow.core.errors import ConfigError
from evenflow.core.ids import TenantId
from evenflow.server.errors import NotFoundError

R = TypeVar("R")

_ID = re.compile(r"(file|batch)-[0-9a-f]{24}")


class StoredFile(msgspec.Struct, kw_only=True):
    """What a file is.

    Attributes:
        id: "file-" and 24 hex digits.
        tenant_id: whose it is.
        filename: as it was uploaded.
        purpose: "batch" for input, "batch_output" for answers.
        num_bytes: its size.
        created_at: Unix time in seconds.
    """

    id: str
    tenant_id: TenantId
    filename: str
    purpose: str
    num_bytes: int
    created_at: int

    def as_body(self) -> dict[str, Any]:
        """Return OpenAI's object."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.num_bytes,
            "created_at": self.created_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
        }


class FileStore:
    """Keeps files in a folder.

    Args:
        folder: made if it is not there; only its owner may look into it.
        unix_time: the wall clock, in whole seconds.
    """

    def __init__(self, folder: Path, unix_time: Callable[[], int]) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._unix_time = unix_time
        self._remove_leftovers()

    def temporary_path(self) -> Path:
        """Return a new path to write content to before it is added."""
        return self._folder / f"{token_hex(12)}.part"

    def add(
        self,
        content: Path,
        tenant_id: TenantId,
        filename: str,
        purpose: str,
        *,
        file_id: str | None = None,
    ) -> StoredFile:
        """Take over a file that was written to a temporary path.

        Args:
            content: the path.
            tenant_id: whose it is.
            filename: its name, for people.
            purpose: what it is for.
            file_id: its id, a new one if none is given. A file of that id is replaced.
        """
        file = StoredFile(
            id=file_id or f"file-{token_hex(12)}",
            tenant_id=tenant_id,
            filename=filename[:255],
            purpose=purpose,
            num_bytes=content.stat().st_size,
            created_at=self._unix_time(),
        )
        content.rename(self.content_path(file.id))
        write_record(self._record_path(file.id), file)
        return file

    def get(self, file_id: str, tenant_id: TenantId) -> StoredFile:
        """Return a tenant's file.

        Raises:
            NotFoundError: the tenant has no such file.
        """
        file = read_record(self._record_path(file_id), StoredFile) if is_id(file_id) else None
        if file is None or file.tenant_id != tenant_id:
            raise NotFoundError(f"there is no file {file_id[:200]!r}", param="file_id")
        return file

    def of_tenant(self, tenant_id: TenantId) -> list[StoredFile]:
        """Return a tenant's files, newest first."""
        records = (read_record(path, StoredFile) for path in self._folder.glob("file-*.json"))
        mine = [file for file in records if file is not None and file.tenant_id == tenant_id]
        return sorted(mine, key=lambda file: (-file.created_at, file.id))

    def delete(self, file_id: str, tenant_id: TenantId) -> None:
        """Remove a tenant's file.

        Raises:
            NotFoundError: the tenant has no such file.
        """
        self.get(file_id, tenant_id)
        self._record_path(file_id).unlink()
        self.content_path(file_id).unlink(missing_ok=True)

    def content_path(self, file_id: str) -> Path:
        """Return where a file's content is."""
        return self._folder / f"{file_id}.jsonl"

    def _remove_leftovers(self) -> None:
        """Remove what a crash left: content that was never finished, or never got a record."""
        remove_unfinished(self._folder)
        for content in self._folder.glob("file-*.jsonl"):
            if not self._record_path(content.stem).exists():
                content.unlink()

    def _record_path(self, file_id: str) -> Path:
        return self._folder / f"{file_id}.json"


def is_id(text: str) -> bool:
    """Return whether a text has the form of an id, which never leads out of a folder."""
    return _ID.fullmatch(text) is not None


def lock_folder(folder: Path) -> IO[bytes]:
    """Take a folder for this process alone, until it ends or the returned file is closed.

    Raises:
        ConfigError: another process has it, or it cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (folder / "lock").open("wb")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            f"another server keeps its files in {folder}", fix="Choose another --data-dir"
        ) from None
    except OSError as error:
        raise ConfigError(f"no files can be kept in {folder}", why=str(error)) from error
    return lock


def remove_unfinished(folder: Path) -> None:
    """Remove what was being written when a crash came."""
    for part in folder.glob("*.part"):
        part.unlink()


def write_record(path: Path, record: msgspec.Struct) -> None:
    """Write a record so that a crash leaves the old one or the new one, never half of it."""
    part = path.with_name(f"{path.name}.{token_hex(4)}.part")
    with part.open("wb") as sink:
        sink.write(msgspec.json.encode(record))
        sink.flush()
        os.fsync(sink.fileno())
    part.replace(path)


def read_record(path: Path, kind: type[R]) -> R | None:
    """Return a record, None if there is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None


def read_records(folder: Path, pattern: str, kind: type[R]) -> Iterator[R]:
    """Yield the records of a folder."""
    for path in sorted(folder.glob(pattern)):
        record = read_record(path, kind)
        if record is not None:
            yield record
