"""Batches on disk.

in_progress ──▶ finalizing ──▶ completed
     │  │
     │  └──▶ cancelling ──▶ cancelled        what was answered by then is kept
     ├─────▶ expired                         likewise
     └─────▶ failed                          the input file cannot be used
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from secrets import token_hex
from typing import Any

import msgspec

from evenflow.core.ids import TenantId
from evenflow.server.batches.files import is_id, read_records, remove_unfinished, write_record
from evenflow.server.errors import NotFoundError

WINDOW_S = 24 * 3600
"""Seconds after which an unfinished batch expires; OpenAI's only `completion_window` is 24h."""


class BatchStatus(StrEnum):
    """Where a batch stands, in OpenAI's words."""

    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"

    @property
    def is_open(self) -> bool:
        """Whether there is still something to do."""
        return self in (self.IN_PROGRESS, self.FINALIZING, self.CANCELLING)


class Batch(msgspec.Struct, kw_only=True):
    """A batch.

    Attributes:
        id: "batch-" and 24 hex digits.
        tenant_id: whose it is.
        input_file_id: its requests.
        endpoint: the URL that every line must name.
        metadata: what the caller wants to find again.
        status: where it stands.
        created_at: Unix time in seconds.
        status_at: for each status it had, since when.
        num_lines, num_completed, num_failed: requests in all, answered, and failed.
        output_file_id: its answers, once it has ended with any.
        error_file_id: its failed requests, once it has ended with any.
        errors: why it failed as a whole.
    """

    id: str
    tenant_id: TenantId
    input_file_id: str
    endpoint: str
    metadata: dict[str, str]
    status: BatchStatus
    created_at: int
    status_at: dict[BatchStatus, int]
    num_lines: int = 0
    num_completed: int = 0
    num_failed: int = 0
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: list[dict[str, Any]] = []

    @property
    def expires_at(self) -> int:
        """Unix time at which it expires."""
        return self.created_at + WINDOW_S

    def as_body(self) -> dict[str, Any]:
        """Return OpenAI's object."""
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "errors": {"object": "list", "data": self.errors} if self.errors else None,
            "input_file_id": self.input_file_id,
            "completion_window": "24h",
            "status": self.status,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            **{f"{status}_at": self.status_at.get(status) for status in BatchStatus},
            "request_counts": {
                "total": self.num_lines,
                "completed": self.num_completed,
                "failed": self.num_failed,
            },
            "metadata": self.metadata,
        }


class BatchStore:
    """Keeps batches in a folder.

    Args:
        folder: made if it is not there; only its owner may look into it.
        unix_time: the wall clock, in whole seconds.
    """

    def __init__(self, folder: Path, unix_time: Callable[[], int]) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._unix_time = unix_time
        self._batches = {batch.id: batch for batch in read_records(folder, "batch-*.json", Batch)}
        self._remove_leftovers()

    def create(
        self, tenant_id: TenantId, input_file_id: str, endpoint: str, metadata: dict[str, str]
    ) -> Batch:
        """Queue a batch."""
        now = self._unix_time()
        batch = Batch(
            id=f"batch-{token_hex(12)}",
            tenant_id=tenant_id,
            input_file_id=input_file_id,
            endpoint=endpoint,
            metadata=metadata,
            status=BatchStatus.IN_PROGRESS,
            created_at=now,
            status_at={BatchStatus.IN_PROGRESS: now},
        )
        self._batches[batch.id] = batch
        self.save(batch)
        return batch

    def get(self, batch_id: str, tenant_id: TenantId) -> Batch:
        """Return a tenant's batch.

        Raises:
            NotFoundError: the tenant has no such batch.
        """
        batch = self._batches.get(batch_id) if is_id(batch_id) else None
        if batch is None or batch.tenant_id != tenant_id:
            raise NotFoundError(f"there is no batch {batch_id[:200]!r}", param="batch_id")
        return batch

    def of_tenant(self, tenant_id: TenantId) -> list[Batch]:
        """Return a tenant's batches, newest first."""
        mine = [batch for batch in self._batches.values() if batch.tenant_id == tenant_id]
        return sorted(mine, key=lambda batch: (-batch.created_at, batch.id))

    def open_batches(self) -> list[Batch]:
        """Return the batches with something left to do, oldest first."""
        unfinished = [batch for batch in self._batches.values() if batch.status.is_open]
        # Batches of the same second keep the order in which they came.
        return sorted(unfinished, key=lambda batch: batch.created_at)

    def move(self, batch: Batch, status: BatchStatus) -> None:
        """Change a batch's status, on disk too."""
        batch.status = status
        batch.status_at[status] = self._unix_time()
        self.save(batch)

    def save(self, batch: Batch) -> None:
        """Write a batch to disk."""
        write_record(self._folder / f"{batch.id}.json", batch)

    def answers_path(self, batch: Batch) -> Path:
        """Return where answers are collected until the batch has ended."""
        return self._folder / f"{batch.id}.answers"

    def _remove_leftovers(self) -> None:
        """Remove what a crash left: half a record, answers that were handed out already."""
        remove_unfinished(self._folder)
        needed = {self.answers_path(batch) for batch in self.open_batches()}
        for answers in self._folder.glob("*.answers"):
            if answers not in needed:
                answers.unlink()

    def is_expired(self, batch: Batch) -> bool:
        """Return whether a batch has run out of time."""
        return self._unix_time() >= batch.expires_at
