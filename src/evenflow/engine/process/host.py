"""The engine's side: carries out commands between steps and sends what the steps bring."""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor

import msgspec
import zmq

from evenflow.core.clock import Clock
from evenflow.core.errors import (
    DeadlineError,
    EvenflowError,
    GenerationError,
    InvalidRequestError,
    RequestAbortedError,
)
from evenflow.core.structured import TokenGrammar
from evenflow.engine.build import Runtime
from evenflow.engine.embedding import EmbeddingService
from evenflow.engine.process.admin import ADMIN_METHODS
from evenflow.engine.process.messages import (
    Abort,
    Accepted,
    AddRequest,
    AdminCall,
    AdminReply,
    Command,
    EncodeSentences,
    ErrorInfo,
    Output,
    Rejected,
    SetPriority,
    Shutdown,
    StepOutput,
)
from evenflow.engine.process.sentences import SentenceCalls
from evenflow.engine.process.snapshots import SnapshotTaker

logger = logging.getLogger(__name__)

_IDLE_S = 0.5
"""Longest sleep without work; bounds how late deadlines are noticed."""

_PENDING_S = 0.002
"""Longest sleep while a grammar is being compiled, or KV copied to a lower tier."""

_COMMANDS_S = 0.0005
_COMMANDS_RATIO = 0.002
"""Time for commands between two steps, at least, and as a share of the last step: a flood of
requests does not hold up those that run, and yet who aborts or asks in the middle of it is heard
soon, however long steps are."""


class EngineHost:
    """Runs an engine and answers commands.

    Args:
        runtime: the engine and what it was built from.
        socket: commands come in and outputs go out, one message a frame.
        clock: the engine's.
    """

    def __init__(self, runtime: Runtime, socket: zmq.Socket[bytes], clock: Clock) -> None:
        self.runtime = runtime
        self.engine = runtime.engine
        self._socket = socket
        self._clock = clock
        self._encode = msgspec.msgpack.Encoder().encode
        self._decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
        self._snapshots = SnapshotTaker(self.engine, clock)
        self._compiler = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        self._compiling: dict[str, tuple[AddRequest, Future[TokenGrammar | None]]] = {}
        self._sentences = (
            SentenceCalls(EmbeddingService(runtime.sentence)) if runtime.sentence else None
        )
        self._stopping = False
        self._is_moving = False
        self._last_step_s = 0.0

    def run(self) -> None:
        """Serve until told to stop."""
        while not self._stopping:
            self._take_commands()
            self._add_compiled()
            if self.engine.has_work:
                self._step()
            self._is_moving = not self.engine.has_work and self.engine.rest()
            if self._sentences is not None and self._sentences.has_work:
                for reply in self._sentences.step():
                    self._send(reply)
            if (snapshot := self._snapshots.take_if_due()) is not None:
                self._send(snapshot)
        self._compiler.shutdown(wait=False, cancel_futures=True)

    @property
    def has_work(self) -> bool:
        """Whether there is anything to do without a new command."""
        engine = self.engine
        if self._sentences is not None and self._sentences.has_work:
            return True
        return engine.has_work and not engine.is_paused

    def _take_commands(self) -> None:
        """Carry out the commands that are there; without work, wait for one."""
        is_pending = bool(self._compiling) or self._is_moving
        timeout_s = 0.0 if self.has_work else _PENDING_S if is_pending else _IDLE_S
        if timeout_s and not self._socket.poll(int(timeout_s * 1000)):
            return
        budget_s = max(_COMMANDS_S, _COMMANDS_RATIO * self._last_step_s)
        deadline_s = self._clock.now_s() + budget_s
        while self._clock.now_s() < deadline_s:
            try:
                frame = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._carry_out(self._decoder.decode(frame))

    def _carry_out(self, command: Command) -> None:
        match command:
            case AddRequest():
                self._add(command)
            case Abort(request_id, cause):
                self._abort(request_id, cause)
            case SetPriority(request_id, priority):
                self._set_priority(request_id, priority)
            case EncodeSentences():
                self._encode_sentences(command)
            case AdminCall():
                self._call(command)
            case Shutdown():
                self._stopping = True

    def _abort(self, request_id: str, cause: str) -> None:
        compiling = self._compiling.pop(request_id, None)
        if compiling is None:
            self.engine.abort(request_id, cause)
        else:
            command, future = compiling
            future.cancel()
            self._reject(command, RequestAbortedError("the request was ended", why=cause))

    def _set_priority(self, request_id: str, priority: int) -> None:
        compiling = self._compiling.get(request_id)
        if compiling is None:
            self.engine.set_priority(request_id, priority)
        else:
            command, future = compiling
            changed = msgspec.structs.replace(command, priority=priority)
            self._compiling[request_id] = (changed, future)

    def _add(self, command: AddRequest) -> None:
        if command.params.structured is not None:
            future = self._compiler.submit(self.runtime.compile_grammar, command.params)
            self._compiling[command.request_id] = (command, future)
        else:
            self._queue(command, None)

    def _add_compiled(self) -> None:
        """Queue the requests whose grammar is ready, and give up those whose time is up."""
        now_s = self._clock.now_s()
        for name, (command, future) in list(self._compiling.items()):
            is_late = command.deadline_s is not None and command.deadline_s <= now_s
            if not (is_late or future.done()):
                continue
            del self._compiling[name]
            if is_late:
                future.cancel()
                why = "its grammar was not ready by then"
                self._reject(command, DeadlineError("the request's time was up", why=why))
                continue
            match future.exception():
                case None:
                    self._queue(command, future.result())
                case EvenflowError() as error:
                    self._reject(command, error)
                case bug:
                    logger.error("a grammar could not be compiled", exc_info=bug)
                    self._reject(command, GenerationError("the grammar could not be compiled"))

    def _queue(self, command: AddRequest, grammar: TokenGrammar | None) -> None:
        try:
            self.engine.add_request(
                command.request_id,
                command.prompt_token_ids,
                command.params if command.pooling is None else command.pooling,
                grammar=grammar,
                priority=command.priority,
                tenant_id=command.tenant_id,
                cache_salt=command.cache_salt,
                slo=command.slo,
                deadline_s=command.deadline_s,
                session_id=command.session_id,
            )
        except EvenflowError as error:
            self._reject(command, error)
        else:
            self._send(Accepted(command.request_id))

    def _reject(self, command: AddRequest, error: EvenflowError) -> None:
        self._send(Rejected(command.request_id, error_info(error)))

    def _call(self, command: AdminCall) -> None:
        try:
            method = ADMIN_METHODS[command.method]
            result = method(self.engine, self._clock.now_s(), **command.arguments)
            reply = AdminReply(command.call_id, result)
        except EvenflowError as error:
            reply = AdminReply(command.call_id, error=error_info(error))
        except Exception as bug:  # no operator's call may end the requests that run
            logger.exception("admin call %s failed", command.method)
            failure = EvenflowError(f"{command.method} failed", why=f"{type(bug).__name__}: {bug}")
            reply = AdminReply(command.call_id, error=error_info(failure))
        self._send(reply)

    def _encode_sentences(self, command: EncodeSentences) -> None:
        try:
            if self._sentences is None:
                raise InvalidRequestError("this engine has no sentence model", param="model")
            self._sentences.add(command)
        except EvenflowError as error:
            self._send(AdminReply(command.call_id, error=error_info(error)))

    def _step(self) -> None:
        engine = self.engine
        started_s = self._clock.now_s()
        deltas = engine.step()
        ended_s = self._clock.now_s()
        if deltas or engine.started:
            self._send(StepOutput(ended_s, deltas, engine.started))
        self._last_step_s = ended_s - started_s
        self._snapshots.note_step(started_s, ended_s)

    def _send(self, output: Output) -> None:
        self._socket.send(self._encode(output), copy=False)


def error_info(error: EvenflowError) -> ErrorInfo:
    """Return an error in the form in which it can leave the process."""
    is_callers = isinstance(error, InvalidRequestError)
    param = error.param if isinstance(error, InvalidRequestError) else None
    return ErrorInfo(error.code, str(error), param, is_callers)
