"""The server's side: starts the engine process, sends commands, hands out what comes back."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import multiprocessing
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from evenflow.config import EvenflowConfig
from evenflow.core.errors import (
    DuplicateRequestError,
    EngineFailedError,
    EvenflowError,
    InvalidRequestError,
    RequestAbortedError,
)
from evenflow.core.pooling import PoolingParams
from evenflow.engine.outputs import Delta
from evenflow.engine.process.messages import (
    Abort,
    Accepted,
    AddRequest,
    AdminCall,
    AdminReply,
    Command,
    EncodeSentences,
    EngineInfo,
    ErrorInfo,
    Failed,
    LoadProgress,
    Output,
    Rejected,
    SetPriority,
    Shutdown,
    Snapshot,
    StepOutput,
)
from evenflow.engine.process.worker import serve_engine
from evenflow.models.progress import Progress

logger = logging.getLogger(__name__)

_LAST_WORDS_S = 0.2
"""Time to read what the engine process said before it ended."""

_DELTAS_AT_ONCE = 4
"""Streams that are woken before others of the event loop get a turn."""

_FAREWELL_S = 8.0
"""Longest wait for the engine process to end by itself; it may copy KV to disk before."""


class DeltaStream:
    """The deltas of some requests, in order, until all their completions have ended.

    Args:
        request_ids: the requests.
        num_completions: how many endings to wait for.

    Attributes:
        num_open: completions without an ending.
    """

    def __init__(self, request_ids: Sequence[str], num_completions: int) -> None:
        self.request_ids = request_ids
        self.num_open = num_completions
        self._num_unanswered = len(request_ids)
        self._arrived: list[Delta] = []
        self._error: EvenflowError | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_complete(self) -> bool:
        """Whether nothing more will arrive."""
        return self.num_open == 0 or self._error is not None

    def push(self, delta: Delta) -> None:
        """Take in a delta."""
        self._arrived.append(delta)
        self.num_open -= delta.finish_reason is not None
        self._wake()

    def accept(self) -> None:
        """Note that one of the requests was queued."""
        self._num_unanswered -= 1
        if self._num_unanswered == 0:
            self._wake()

    def fail(self, error: EvenflowError) -> None:
        """End the stream: the request was never queued, or the engine is gone."""
        self._error = error
        self._wake()

    async def accepted(self) -> None:
        """Wait until all requests are queued.

        Raises:
            EvenflowError: one was not, and why.
        """
        while self._num_unanswered and not self.is_complete:
            await self._sleep()
        if self._error is not None:
            raise self._error

    async def next_batch(self) -> list[Delta]:
        """Wait for deltas and return all that have arrived; empty when the stream is over.

        Raises:
            EvenflowError: nothing more can arrive, and why.
        """
        while not self._arrived and not self.is_complete:
            await self._sleep()
        if self._error is not None and not self._arrived:
            raise self._error
        arrived, self._arrived = self._arrived, []
        return arrived

    async def _sleep(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


@dataclass(slots=True)
class _Live:
    stream: DeltaStream
    open_indices: set[int]


def remote_error(info: ErrorInfo) -> EvenflowError:
    """Return an error of the engine process as it was raised there; the code is its own."""
    error = (
        InvalidRequestError(info.message, param=info.param)
        if info.is_request_error
        else EvenflowError(info.message)
    )
    error.code = info.code
    return error


class AsyncEngine:
    """An engine in a process of its own, for an event loop.

    Args:
        config: the settings.
        on_output: called with each step's deltas before the streams get them; for bookkeeping.
        on_snapshot: called with each snapshot.
        on_accepted: called with the id of a request that the engine queued.
        on_rejected: called with the id of a request that the engine did not queue.
        on_failure: called once if the engine process ends by itself.
    """

    def __init__(
        self,
        config: EvenflowConfig,
        *,
        on_output: Callable[[StepOutput], None],
        on_snapshot: Callable[[Snapshot], None],
        on_accepted: Callable[[str], None],
        on_rejected: Callable[[str], None],
        on_failure: Callable[[EvenflowError], None],
    ) -> None:
        self._config = config
        self._on_output = on_output
        self._on_snapshot = on_snapshot
        self._on_accepted = on_accepted
        self._on_rejected = on_rejected
        self._on_failure = on_failure
        self._encode = msgspec.msgpack.Encoder().encode
        self._decoder: msgspec.msgpack.Decoder[Output] = msgspec.msgpack.Decoder(Output)
        self._live: dict[str, _Live] = {}
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._call_ids = itertools.count()
        self._failure: EvenflowError | None = None
        self._closing = False
        self._cleanup = contextlib.AsyncExitStack()

    @property
    def failure(self) -> EvenflowError | None:
        """Why the engine is gone; None while it works."""
        return self._failure

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid or 0

    async def start(self, progress: Progress | None = None) -> EngineInfo:
        """Start the process and wait until the model is loaded.

        Raises:
            EvenflowError: the engine could not start, and why.
        """
        # The socket lives in a folder that nobody else may enter.
        folder = self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="evenflow-"))
        address = f"ipc://{Path(folder) / 'engine'}"
        context = zmq.asyncio.Context()
        self._cleanup.callback(context.term)
        self._socket = context.socket(zmq.PAIR)
        self._cleanup.callback(self._socket.close, linger=0)
        self._socket.set_hwm(0)
        self._socket.bind(address)
        spawn = multiprocessing.get_context("spawn")
        self._process = spawn.Process(
            target=serve_engine, args=(self._config, address), name="evenflow-engine"
        )
        self._process.start()
        self._ready: asyncio.Future[EngineInfo] = asyncio.get_running_loop().create_future()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._process.sentinel, self._on_exit)
        receiver = asyncio.create_task(self._receive(progress))
        receiver.add_done_callback(self._on_receiver_end)
        self._cleanup.callback(receiver.cancel)
        self._cleanup.push_async_callback(self._stop_process)
        return await self._ready

    def is_live(self, request_id: str) -> bool:
        """Return whether a request has deltas still to come."""
        return request_id in self._live

    def add(self, commands: Sequence[AddRequest]) -> DeltaStream:
        """Send requests to the engine, whose deltas come in one stream.

        Raises:
            EngineFailedError: the engine is gone.
            DuplicateRequestError: an id is in use.
        """
        self._check_alive()
        ids = [command.request_id for command in commands]
        for taken in self._live.keys() & ids:
            raise DuplicateRequestError(f"request id {taken!r} is in use", param="request_id")
        stream = DeltaStream(ids, sum(command.params.n for command in commands))
        for command in commands:
            self._live[command.request_id] = _Live(stream, set(range(command.params.n)))
            self._send(command)
        return stream

    def abort(self, request_id: str, cause: str) -> None:
        """End a request, if it still runs. Its last deltas come all the same."""
        if request_id in self._live and self._failure is None:
            self._send(Abort(request_id, cause))

    def set_priority(self, request_id: str, priority: int) -> None:
        """Change the priority of a request, if it still runs; lower is earlier."""
        if request_id in self._live and self._failure is None:
            self._send(SetPriority(request_id, priority))

    def abort_all(self, cause: str) -> None:
        """End all requests."""
        for request_id in list(self._live):
            self.abort(request_id, cause)

    async def call(self, method: str, **arguments: Any) -> Any:
        """Call an admin method of the host, between two steps.

        Raises:
            EvenflowError: what the method raised.
        """
        return await self._answer(lambda number: AdminCall(number, method, arguments))

    async def encode_sentences(
        self, inputs: Sequence[list[int]], params: PoolingParams
    ) -> list[bytes]:
        """Return the sentence model's embedding of each input, as little-endian fp32.

        Raises:
            EvenflowError: an input is too long, or there is no sentence model.
        """
        embeddings: list[bytes] = await self._answer(
            lambda number: EncodeSentences(number, list(inputs), params)
        )
        return embeddings

    async def close(self) -> None:
        """Stop the process; what still runs ends as aborted. Does nothing if it never started."""
        self._closing = True
        await self._cleanup.aclose()
        self._end_streams(RequestAbortedError("the request was ended", why="the server stopped"))

    async def _stop_process(self) -> None:
        """Ask the process to end, or end it: while it loads, it hears nothing."""
        self._loop.remove_reader(self._process.sentinel)
        if self._failure is None and self._ready.done() and not self._ready.cancelled():
            self._send(Shutdown())
            await asyncio.to_thread(self._process.join, _FAREWELL_S)
        self._process.kill()
        self._process.join()

    def _send(self, command: Command) -> None:
        # Without a high-water mark sending never waits, so there is nothing to await.
        self._socket.send(self._encode(command), zmq.NOBLOCK)

    async def _answer(self, command: Callable[[int], Command]) -> Any:
        self._check_alive()
        number = next(self._call_ids)
        self._calls[number] = asyncio.get_running_loop().create_future()
        try:
            self._send(command(number))
            return await self._calls[number]
        finally:
            del self._calls[number]

    def _check_alive(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closing:
            raise EngineFailedError("the engine was stopped")

    async def _receive(self, progress: Progress | None) -> None:
        while not self._ready.done():
            match self._decoder.decode(await self._socket.recv()):
                case LoadProgress(what, num_done, num_total) if progress is not None:
                    progress(what, num_done, num_total)
                case EngineInfo() as info:
                    self._ready.set_result(info)
                case Failed(error):
                    self._fail(EngineFailedError(error.message))
        while True:
            await self._take(self._decoder.decode(await self._socket.recv()))

    async def _take(self, output: Output) -> None:
        match output:
            case StepOutput():
                await self._dispatch(output)
            case Snapshot():
                self._on_snapshot(output)
            case Accepted(request_id):
                self._on_accepted(request_id)
                if (live := self._live.get(request_id)) is not None:
                    live.stream.accept()
            case Rejected(request_id, error):
                self._reject(request_id, error)
            case AdminReply(call_id, result, error):
                self._reply(call_id, result, error)
            case Failed(error):
                self._fail(EngineFailedError(error.message))

    async def _dispatch(self, output: StepOutput) -> None:
        self._on_output(output)
        for position, delta in enumerate(output.deltas, start=1):
            if position % _DELTAS_AT_ONCE == 0:
                await asyncio.sleep(0)
            live = self._live.get(delta.request_id)
            if live is None:
                continue
            live.stream.push(delta)
            if delta.finish_reason is not None:
                live.open_indices.discard(delta.index)
                if not live.open_indices:
                    del self._live[delta.request_id]

    def _reject(self, request_id: str, info: ErrorInfo) -> None:
        live = self._live.pop(request_id, None)
        self._on_rejected(request_id)
        if live is not None:
            live.stream.fail(remote_error(info))

    def _reply(self, call_id: int, result: object, info: ErrorInfo | None) -> None:
        call = self._calls.get(call_id)
        if call is None or call.done():
            return
        if info is None:
            call.set_result(result)
        else:
            call.set_exception(remote_error(info))

    def _on_receiver_end(self, receiver: asyncio.Task[None]) -> None:
        """Without a receiver every stream would hang, so the server must not go on."""
        if not receiver.cancelled() and (bug := receiver.exception()) is not None:
            logger.error("an output of the engine could not be taken in", exc_info=bug)
            self._fail(EngineFailedError("the engine's outputs could not be taken in"))

    def _on_exit(self) -> None:
        self._loop.remove_reader(self._process.sentinel)
        self._loop.call_later(_LAST_WORDS_S, self._note_exit)

    def _note_exit(self) -> None:
        """Notice that the process ended without having said why."""
        if self._closing or self._failure is not None:
            return
        code = self._process.exitcode
        self._fail(
            EngineFailedError(
                "the engine process ended by itself",
                why=f"exit code {code}" + (", perhaps out of memory" if code == -9 else ""),
                fix="Look at the log above and restart the server",
            )
        )

    def _fail(self, error: EvenflowError) -> None:
        self._failure = error
        if not self._ready.done():
            self._ready.set_exception(error)
            return
        logger.error("engine failed: %s", error)
        self._end_streams(error)
        self._on_failure(error)

    def _end_streams(self, error: EvenflowError) -> None:
        """Give every request, and every call, that still waits an ending."""
        open_requests, self._live = self._live, {}
        for live in open_requests.values():
            live.stream.fail(error)
        for call in self._calls.values():
            if not call.done():
                call.set_exception(error)
