"""An engine process that does what its requests' ids say, for tests of the other side.

`3-...` gives three tokens, `hang-...` gives one and no end, `no-...` is rejected, `die-...` ends
the process, `nonsense-...` has it send what is no message. It imports no model and starts at once.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import msgspec
import zmq

from evenflow.engine.limits import ModelLimits
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
    Shutdown,
    StepOutput,
)

INFO = EngineInfo(ModelLimits(128, 1000), num_blocks=64, block_size=4, kv_description="none")
EXIT_CODE = 7


def serve(config: Any, address: str) -> None:
    """Play the engine; `config` is "ready", or how the start goes wrong."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    socket = zmq.Context.instance().socket(zmq.PAIR)
    socket.connect(address)
    Puppet(socket).run(config)
    socket.close(linger=1000)


class Puppet:
    """The process's life."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self._open: dict[str, int] = {}

    def run(self, config: str) -> None:
        """Start as `config` says, and carry out commands until told to stop."""
        match config:
            case "failing":
                self._say(Failed(ErrorInfo("unsupported_model", "no such model", None, False)))
                return
            case "dying":
                os._exit(EXIT_CODE)
            case "loading":
                self._say(LoadProgress("weights", 1, 4))
                signal.pause()
        self._say(LoadProgress("weights", 4, 4))
        self._say(INFO)
        decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
        while True:
            command = decoder.decode(self._socket.recv())
            if isinstance(command, Shutdown):
                return
            self._obey(command)

    def _obey(self, command: Command) -> None:
        match command:
            case AddRequest():
                self._add(command)
            case Abort(request_id):
                num_open = self._open.pop(request_id, 0)
                self._end(request_id, num_open, None, "abort")
            case AdminCall(call_id, "fail"):
                self._say(AdminReply(call_id, error=ErrorInfo("session_not_found", "no", "id")))
            case AdminCall(_, "silence"):
                pass
            case AdminCall(call_id, method, arguments):
                self._say(AdminReply(call_id, [method, arguments]))
            case EncodeSentences(call_id, inputs):
                self._say(AdminReply(call_id, [bytes(text) for text in inputs]))

    def _add(self, command: AddRequest) -> None:
        request_id, num_each = command.request_id, command.params.n
        match request_id.partition("-")[0]:
            case "no":
                info = ErrorInfo("context_length_exceeded", "too long", "prompt")
                self._say(Rejected(request_id, info))
            case "die":
                os._exit(EXIT_CODE)
            case "nonsense":
                self._say(Accepted(request_id))
                self._socket.send(b"nonsense")
            case "hang":
                self._say(Accepted(request_id))
                self._say(StepOutput(1.0, [Delta(request_id, 0, 1, "x")], [request_id]))
                self._open[request_id] = num_each
            case count:
                self._say(Accepted(request_id))
                for token in range(int(count) - 1):
                    deltas = [Delta(request_id, index, token, "x") for index in range(num_each)]
                    self._say(StepOutput(1.0, deltas))
                self._end(request_id, num_each, int(count) - 1, "stop")

    def _end(self, request_id: str, num_open: int, token: int | None, reason: str) -> None:
        for index in range(num_open):
            delta = Delta(request_id, index, token, "x" if token else "", finish_reason=reason)
            self._say(StepOutput(1.0, [delta]))

    def _say(self, output: Output) -> None:
        self._socket.send(msgspec.msgpack.encode(output))
