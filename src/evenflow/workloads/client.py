"""Sends a workload to a server and times the answers.

    session (or lone request):  wait for arrival -> [ queue for a slot -> send -> read ]  per turn

Knows: HTTP, event streams, sessions, the clock of this process.
Does not know: statistics, servers other than by OpenAI's API.

Every request is sent when it is due, whether or not earlier ones have been answered, unless
`max_concurrency` holds it back; the time it then waits in the client is recorded, not hidden.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import aiohttp

from evenflow.workloads.request import Message, WorkloadRequest
from evenflow.workloads.sse import CompletionStream, StreamError

_IDLE_CONNECTION_S = 2.0
"""Shorter than servers keep idle connections (uvicorn: 5 s), so that none is closed under us."""

_FILES_BESIDES_SOCKETS = 128
_MAX_ERROR_CHARS = 500


@dataclass(slots=True, frozen=True, kw_only=True)
class Target:
    """Where requests go and what they carry besides the prompt.

    Attributes:
        url: the endpoint in full.
        is_chat: it takes messages instead of a prompt.
        model: the model's name there.
        headers: sent with each request.
        tenant_keys: by tenant, the API key that stands for it. Tenants without one are named in
            the field `user`.
        body: further fields of each request.
        timeout_s: a request that takes longer has failed.
    """

    url: str
    is_chat: bool
    model: str
    headers: Mapping[str, str] = field(default_factory=dict)
    tenant_keys: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)
    timeout_s: float = 6 * 3600.0


class Failure(NamedTuple):
    """Why a request failed.

    Attributes:
        kind: connection, timeout, http_<status>, server_error, malformed_stream,
            incomplete_stream, or session (an earlier turn failed).
        message: in the words of the server or of the system.
    """

    kind: str
    message: str


@dataclass(slots=True)
class RequestRecord:
    """What happened to one request. Times are in seconds from the start of the load.

    Attributes:
        request: what was sent.
        due_s: when it should have been sent.
        start_s: when it was sent; later than `due_s` when `max_concurrency` held it back or this
            process was busy.
        end_s: when the last chunk of the answer, or the failure, was seen.
        chunk_times: when each chunk with output was read.
        num_prompt_tokens: by the server's count, else as the workload says.
        num_output_tokens: by the server's count, else one per chunk.
        is_counted: the server did count.
        text: the answer, if texts are kept.
        failure: None when the answer is complete.
    """

    request: WorkloadRequest
    due_s: float
    start_s: float = 0.0
    end_s: float = 0.0
    chunk_times: Sequence[float] = ()
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    is_counted: bool = False
    text: str = ""
    failure: Failure | None = None


class LoadClient:
    """Sends workloads to one target.

    Args:
        target: where to.
        max_concurrency: most requests under way at once; None for no limit.
        keep_text: remember the answers. Those of sessions are remembered in any case.
        on_done: called with the record of every request that ends.
    """

    def __init__(
        self,
        target: Target,
        *,
        max_concurrency: int | None = None,
        keep_text: bool = False,
        on_done: Callable[[RequestRecord], None] | None = None,
    ) -> None:
        self._target = target
        self._max_concurrency = max_concurrency
        self._keep_text = keep_text
        self._on_done = on_done
        self._slots: contextlib.AbstractAsyncContextManager[object] = contextlib.nullcontext()
        self._origin_s = 0.0

    async def run(self, requests: Sequence[WorkloadRequest]) -> list[RequestRecord]:
        """Send all requests when they are due; return their records in the order given."""
        raise_open_file_limit(len(requests))
        if self._max_concurrency is not None:
            self._slots = asyncio.Semaphore(self._max_concurrency)
        records = [RequestRecord(request, request.arrival_s) for request in requests]
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_CONNECTION_S)
        timeout = aiohttp.ClientTimeout(total=self._target.timeout_s)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
            self._origin_s = time.perf_counter()
            async with asyncio.TaskGroup() as tasks:
                for session in _sessions(records):
                    await self._sleep_until(session[0].due_s)
                    tasks.create_task(self._run_session(http, session))
        return records

    def _now_s(self) -> float:
        return time.perf_counter() - self._origin_s

    async def _sleep_until(self, due_s: float) -> None:
        if (delay_s := due_s - self._now_s()) > 0:
            await asyncio.sleep(delay_s)

    async def _run_session(
        self, http: aiohttp.ClientSession, session: Sequence[RequestRecord]
    ) -> None:
        """Send the turns of a session; once one fails, the rest fails with it."""
        conversation = _Conversation(self._target.is_chat)
        keep_text = self._keep_text or len(session) > 1
        is_broken = False
        for turn, record in enumerate(session):
            if is_broken:
                record.due_s = record.start_s = record.end_s = self._now_s()
                record.failure = Failure("session", "an earlier turn of the session failed")
            else:
                if turn > 0:
                    record.due_s = max(record.due_s, self._now_s() + record.request.think_time_s)
                    await self._sleep_until(record.due_s)
                prompt = conversation.prompt_of(record.request)
                async with self._slots:
                    await self._send(http, record, prompt, keep_text=keep_text)
                conversation.add_answer(record.text)
                is_broken = record.failure is not None
            if self._on_done is not None:
                self._on_done(record)

    async def _send(
        self,
        http: aiohttp.ClientSession,
        record: RequestRecord,
        prompt: Mapping[str, Any],
        *,
        keep_text: bool,
    ) -> None:
        """Send one request, read its answer, and fill in its record."""
        headers, data = self._message(record.request, prompt)
        stream = CompletionStream(keep_text)
        record.start_s = self._now_s()
        try:
            async with http.post(self._target.url, data=data, headers=headers) as response:
                if response.status != 200:
                    record.failure = await _http_failure(response)
                else:
                    async for piece in response.content.iter_any():
                        stream.feed(piece, self._now_s())
                    stream.close()
        except StreamError as error:
            record.failure = Failure(error.kind, str(error)[:_MAX_ERROR_CHARS])
        except TimeoutError:
            record.failure = Failure("timeout", f"no end after {self._target.timeout_s:g} s")
        except (aiohttp.ClientError, OSError) as error:
            kind = "connection" if stream.end_s is None else "incomplete_stream"
            message = f"{type(error).__name__}: {error}"
            record.failure = Failure(kind, message[:_MAX_ERROR_CHARS])
        self._fill(record, stream)

    def _message(
        self, request: WorkloadRequest, prompt: Mapping[str, Any]
    ) -> tuple[dict[str, str], bytes]:
        """Return the headers and the body of a request."""
        target = self._target
        headers = {**target.headers, "Content-Type": "application/json"}
        body: dict[str, Any] = {
            "model": target.model,
            "max_tokens": request.num_output_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            **prompt,
        }
        if request.tenant in target.tenant_keys:
            headers["Authorization"] = f"Bearer {target.tenant_keys[request.tenant]}"
        elif request.tenant:
            body["user"] = request.tenant
        return headers, json.dumps({**body, **target.body}).encode()

    def _fill(self, record: RequestRecord, stream: CompletionStream) -> None:
        usage = stream.usage or {}
        record.end_s = self._now_s() if stream.end_s is None or record.failure else stream.end_s
        record.chunk_times = stream.chunk_times
        record.text = stream.text
        record.num_prompt_tokens = usage.get("prompt_tokens") or record.request.num_prompt_tokens
        record.num_output_tokens = usage.get("completion_tokens") or len(stream.chunk_times)
        record.is_counted = "completion_tokens" in usage


class _Conversation:
    """What has been said in a session, in the shape the endpoint takes."""

    def __init__(self, is_chat: bool) -> None:
        self._is_chat = is_chat
        self._messages: list[Message] = []
        self._text = ""

    def prompt_of(self, request: WorkloadRequest) -> dict[str, Any]:
        """Return the field of the body that carries the prompt, and remember it."""
        if not request.continues:
            self._messages, self._text = [], ""
        if self._is_chat:
            message = {"role": "user", "content": request.prompt}
            self._messages += request.messages or (message,)
            return {"messages": list(self._messages)}
        if not isinstance(request.prompt, str):
            return {"prompt": list(request.prompt or ())}
        self._text += ("\n" if self._text else "") + request.prompt
        return {"prompt": self._text}

    def add_answer(self, text: str) -> None:
        """Remember the server's turn."""
        if self._is_chat:
            self._messages.append({"role": "assistant", "content": text})
        else:
            self._text += text


def _sessions(records: Iterable[RequestRecord]) -> list[list[RequestRecord]]:
    """Group records by session, in order of their first arrival."""
    groups: dict[object, list[RequestRecord]] = {}
    for index, record in enumerate(records):
        session = record.request.session
        groups.setdefault(index if session is None else session, []).append(record)
    return sorted(groups.values(), key=lambda group: group[0].due_s)


async def _http_failure(response: aiohttp.ClientResponse) -> Failure:
    """Read OpenAI's error body, or whatever there is."""
    text = (await response.content.read(64 * 1024)).decode(errors="replace")
    try:
        text = json.loads(text)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        text = text or str(response.reason)
    return Failure(f"http_{response.status}", str(text)[:_MAX_ERROR_CHARS])


def raise_open_file_limit(num_connections: int) -> None:
    """Let this process open so many connections at once, as far as the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = num_connections + _FILES_BESIDES_SOCKETS
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
