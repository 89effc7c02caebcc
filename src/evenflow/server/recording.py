"""The server's traffic as a trace: one row per completion that ended, without its text.

Knows: the trace schema, and where rows go, which is a file or somebody who listens.
Does not know: texts, models, who may listen.

    Books ── opened, finished, closed ──▶ TrafficRecorder ── rows ──▶ RowFile or RowQueue

A row tells when a request came, for whom, how long prompt and answer were, and which prompts begin
alike. For that, blocks of the prompt are hashed under a key that is drawn for each recording and
kept nowhere: equal blocks are equal within one recording, and nothing can be looked up.

Invariants:
    Neither text nor token ids are in a row, unless the recording is made `with_prompts`.
    Times count from the beginning of the recording; what came before is not in it.
    Rows come in the order in which completions end. Those without an output token, embeddings
    among them, have none.
    Whatever happens to the file or the listener, requests do not notice.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from secrets import token_bytes
from typing import NamedTuple

import msgspec

from evenflow.core.errors import ConfigError
from evenflow.engine.outputs import Delta
from evenflow.engine.process.messages import AddRequest
from evenflow.workloads.request import WorkloadRequest
from evenflow.workloads.traces.blocks import MOONCAKE_BLOCK_TOKENS, segments_of
from evenflow.workloads.traces.recent import Recent
from evenflow.workloads.traces.schema import row_of

logger = logging.getLogger(__name__)

_KEY_BYTES = 32
_DIGEST_BYTES = 8
_UNUSED_DIGEST_BITS = 11
"""Ids have 53 bits, so that a JSON reader that knows only doubles still tells them apart."""

_MAX_UNREAD_ROWS = 1024
_OTHER_FORMATS = frozenset({".csv", ".gz"})

WriteRow = Callable[[bytes], bool]
"""Takes a row with its line break; returns whether further ones are wanted."""

_encode = msgspec.json.Encoder().encode


class _Session(NamedTuple):
    num_turns: int
    last_end_s: float


class TrafficRecorder:
    """One recording.

    Args:
        write: where rows go.
        started_s: when the recording begins, on the clock of the books.
        with_prompts: put the prompts' token ids into the rows.
    """

    def __init__(self, write: WriteRow, started_s: float, *, with_prompts: bool = False) -> None:
        self._write = write
        self._started_s = started_s
        self._with_prompts = with_prompts
        self._key = token_bytes(_KEY_BYTES)
        self._is_wanted = True
        self._open: dict[str, WorkloadRequest] = {}
        self._sessions: Recent[str, _Session] = Recent()

    def on_opened(self, command: AddRequest, now_s: float) -> None:
        """Note that a request goes to the engine."""
        if not self._is_wanted or command.pooling is not None:
            return
        token_ids = command.prompt_token_ids
        ids = list(self._block_ids(token_ids, command.cache_salt))
        session = self._session_name(command)
        before = self._sessions.get(session) if session else None
        self._open[command.request_id] = WorkloadRequest(
            num_prompt_tokens=len(token_ids),
            num_output_tokens=0,
            arrival_s=now_s - self._started_s,
            tenant=command.tenant_id,
            priority=command.priority,
            session=session,
            turn=before.num_turns if before else 0,
            think_time_s=max(0.0, round(now_s - before.last_end_s, 6)) if before else 0.0,
            segments=segments_of(ids, len(token_ids)),
            prompt=tuple(token_ids) if self._with_prompts else None,
        )

    def on_finished(self, delta: Delta, at_s: float) -> None:
        """Write the row of a completion that ended, if it had any output."""
        request = self._open.get(delta.request_id)
        num_output_tokens = delta.metrics.num_output_tokens if delta.metrics else 0
        if request is None or not num_output_tokens or not self._is_wanted:
            return
        if delta.index:
            # Turns follow each other; the completions of one request run side by side.
            request = replace(request, session=None, turn=0, think_time_s=0.0)
        elif request.session:
            self._sessions.set(request.session, _Session(request.turn + 1, at_s))
        row = row_of(replace(request, num_output_tokens=num_output_tokens))
        self._is_wanted = self._write(_encode(row) + b"\n")

    def on_closed(self, request_id: str) -> None:
        """Note that nothing more comes of a request."""
        self._open.pop(request_id, None)

    def _block_ids(self, token_ids: Sequence[int], cache_salt: str) -> Iterator[int]:
        """Yield one id per started block, each of the whole prompt up to the block's end.

        Prompts of different salts are meant to look unlike each other, here as in the cache.
        """
        digest = self._digest(cache_salt.encode())
        for start in range(0, len(token_ids), MOONCAKE_BLOCK_TOKENS):
            block = array("I", token_ids[start : start + MOONCAKE_BLOCK_TOKENS])
            digest = self._digest(digest + block.tobytes())
            yield int.from_bytes(digest) >> _UNUSED_DIGEST_BITS

    def _session_name(self, command: AddRequest) -> str | None:
        """Name a session by a hash: its id is the tenant's own, and may say anything."""
        if command.session_id is None:
            return None
        return self._digest(f"{command.tenant_id}\0{command.session_id}".encode()).hex()

    def _digest(self, content: bytes) -> bytes:
        return hashlib.blake2b(content, digest_size=_DIGEST_BYTES, key=self._key).digest()


class RowFile:
    """A new file of rows, readable by the server's user only.

    Its time begins at 0, so it is never appended to a recording that is there already: `t.jsonl`
    becomes `t-1.jsonl`. Without any row, no file is left behind.

    Args:
        path: where it is to be.

    Raises:
        ConfigError: it cannot be written there.
    """

    def __init__(self, path: Path) -> None:
        if _OTHER_FORMATS & set(path.suffixes):
            raise ConfigError(
                f"traffic cannot be recorded to {path}",
                why="rows are appended as plain JSON lines",
                fix="Use a name that ends in .jsonl; `evenflow trace convert` compresses it later",
            )
        try:
            self.path, self._descriptor = _created(path)
        except OSError as error:
            raise ConfigError(
                f"traffic cannot be recorded to {path}",
                why=str(error),
                fix="Give --record-trace a file in a folder that can be written to",
            ) from error
        self._num_bytes = 0
        self._is_open = True

    def write(self, row: bytes) -> bool:
        """Append a row. The first time that fails, this is logged, and the file is closed."""
        try:
            rest = memoryview(row)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError as error:
            logger.error("traffic is no longer recorded to %s: %s", self.path, error)
            with suppress(OSError):
                os.ftruncate(self._descriptor, self._num_bytes)  # no half row at the end
            self.close()
            return False
        self._num_bytes += len(row)
        return True

    def close(self) -> None:
        """Write no more."""
        if not self._is_open:
            return
        self._is_open = False
        os.close(self._descriptor)
        if not self._num_bytes:
            self.path.unlink(missing_ok=True)


class RowQueue:
    """Rows that one listener has not read yet, up to a bound.

    Args:
        max_rows: how many; a listener who leaves more unread gets those and no others.

    Attributes:
        is_overrun: rows came that did not fit.
    """

    def __init__(self, max_rows: int = _MAX_UNREAD_ROWS) -> None:
        self._max_rows = max_rows
        self._rows: list[bytes] = []
        self._news = asyncio.Event()
        self.is_overrun = False

    def write(self, row: bytes) -> bool:
        """Take in a row."""
        self.is_overrun = self.is_overrun or len(self._rows) >= self._max_rows
        if not self.is_overrun:
            self._rows.append(row)
        self._news.set()
        return not self.is_overrun

    async def wait(self, timeout_s: float) -> None:
        """Wait until there are rows, or for so long."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), timeout_s)

    def take(self) -> bytes:
        """Return the rows that are there."""
        rows, self._rows = self._rows, []
        self._news.clear()
        return b"".join(rows)


def _created(path: Path) -> tuple[Path, int]:
    """Create a file of this name, or of the first free one with a number."""
    free, number = path, 0
    while True:
        try:
            return free, os.open(free, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            number += 1
            free = path.with_stem(f"{path.stem}-{number}")
