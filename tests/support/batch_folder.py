"""A folder of files and batches, and a worker that answers them without a model."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from evenflow.core.errors import EvenflowError
from evenflow.core.ids import TenantId
from evenflow.engine.openai import CHAT
from evenflow.server.batches import Batch, BatchStore, BatchWorker, FileStore
from evenflow.server.errors import status_code

BLUE, GREEN = TenantId("blue"), TenantId("green")
DEADLINE_S = 20.0

Reply = Callable[[dict[str, Any]], "dict[str, Any] | Exception"]


def line(name: str, **fields: object) -> str:
    """Return a line of an input file."""
    entry = {"custom_id": name, "method": "POST", "url": CHAT, "body": {"say": name}}
    return json.dumps(entry | fields)


def echo(body: dict[str, Any]) -> dict[str, Any]:
    """Answer a request by repeating it."""
    return {"said": body["say"]}


class BatchFolder:
    """What a server keeps on disk, opened as a server does.

    Args:
        folder: where it is.
        reply: called with a body, returns the answer or the error to raise.
        num_at_once: lines that are answered at the same time.

    Attributes:
        now: Unix time.
        asked: tenant and text of each request that was answered or refused.
    """

    def __init__(self, folder: Path, reply: Reply = echo, *, num_at_once: int = 2) -> None:
        self.now = 1000
        self.files = FileStore(folder / "files", lambda: self.now)
        self.batches = BatchStore(folder / "batches", lambda: self.now)
        self.asked: list[tuple[TenantId, str]] = []
        self.before_answer: Callable[[dict[str, Any]], Any] = lambda _: asyncio.sleep(0)
        self.worker = BatchWorker(
            self.files,
            self.batches,
            self._answer,
            status_code,
            num_at_once=num_at_once,
            max_line_chars=2000,
        )
        self._folder = folder
        self._reply = reply

    def upload(self, content: str | bytes, tenant_id: TenantId = BLUE) -> str:
        """Keep a file and return its id."""
        path = self.files.temporary_path()
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return self.files.add(path, tenant_id, "in.jsonl", "batch").id

    def create(self, lines: Iterable[str], tenant_id: TenantId = BLUE) -> Batch:
        """Queue a batch."""
        file_id = self.upload("".join(f"{each}\n" for each in lines), tenant_id)
        return self.batches.create(tenant_id, file_id, CHAT, {})

    async def work(self, until: Callable[[], bool] | None = None) -> None:
        """Run the worker until something holds; by default, until all is done and tidied up.

        What it began in threads is over then, as when its process ends.
        """
        threads = ThreadPoolExecutor()
        asyncio.get_running_loop().set_default_executor(threads)
        is_done = until or (lambda: not self.batches.open_batches() and not self.leftovers())
        running = asyncio.create_task(self.worker.run())
        try:
            async with asyncio.timeout(DEADLINE_S):
                while not is_done():
                    assert not running.done(), running.exception()
                    await asyncio.sleep(0.0005)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            threads.shutdown()

    def answers(self, batch: Batch, tenant_id: TenantId = BLUE) -> dict[str, Any]:
        """Return what was said to each custom id, or the code of the error; each stands once."""
        found = {}
        for file_id, has_error in ((batch.output_file_id, False), (batch.error_file_id, True)):
            if file_id is None:
                continue
            file = self.files.get(file_id, tenant_id)
            content = self.files.content_path(file_id).read_bytes()
            assert len(content) == file.num_bytes
            for text in content.decode().splitlines():
                entry = json.loads(text)
                assert entry["custom_id"] not in found
                assert (entry["error"] is not None) == has_error
                body = entry["response"]["body"]
                found[entry["custom_id"]] = body["error"]["code"] if has_error else body["said"]
        assert len(found) == batch.num_completed + batch.num_failed
        return found

    def leftovers(self) -> Counter[str]:
        """Return what lies around besides records and contents, by its kind."""
        names = [path.name for path in self._folder.rglob("*") if path.is_file()]
        contents = {name.removesuffix(".jsonl") for name in names if name.endswith(".jsonl")}
        records = {name.removesuffix(".json") for name in names if name.endswith(".json")}
        known = contents | records
        assert contents == {name for name in records if name.startswith("file-")}
        return Counter(Path(name).suffix for name in names if name.rpartition(".")[0] not in known)

    async def _answer(self, tenant_id: TenantId, url: str, body: object) -> dict[str, Any]:
        assert url == CHAT
        assert isinstance(body, dict)
        await self.before_answer(body)
        self.asked.append((tenant_id, body["say"]))
        reply = self._reply(body)
        if isinstance(reply, Exception):
            raise reply
        return reply


def refuse(*names: str, error: EvenflowError | Exception) -> Reply:
    """Return a reply that raises for some texts and repeats all others."""
    return lambda body: error if body["say"] in names else echo(body)
