"""An `EngineHost` over a scripted engine, driven step by step in one thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import wait
from types import SimpleNamespace
from typing import Any

import msgspec
import zmq

from evenflow.core.clock import VirtualClock
from evenflow.core.sampling import SamplingParams
from evenflow.core.structured import TokenGrammar
from evenflow.engine.process.host import EngineHost
from evenflow.engine.process.messages import AdminCall, Command, Output, Shutdown
from support.scripted_engine import RecordingExecutor, make_engine

STEP_S = 0.01
Act = Callable[[], Sequence[Command]]


class FreeGrammar:
    """A grammar that allows everything."""

    vocab_size = 1000
    is_complete = False

    def fill_mask(self, row: Any) -> None:
        row.fill(~0)

    def accept(self, token_id: int) -> bool:
        return token_id >= 0

    def fork(self) -> FreeGrammar:
        return self


class Wire:
    """The host's socket. Whenever the host has nothing to do, it gets the script's next commands.

    Args:
        clock: moved on by an idle wait, and by `recv_s` for each command.
        script: commands, group by group; then comes a `Shutdown`.
        recv_s: how long the host takes for a command.
    """

    def __init__(
        self, clock: VirtualClock, script: Iterator[Sequence[Command]], recv_s: float
    ) -> None:
        self.outputs: list[Output] = []
        self._clock = clock
        self._script = script
        self._recv_s = recv_s
        self._arrived: deque[bytes] = deque()
        self._decoder: msgspec.msgpack.Decoder[Output] = msgspec.msgpack.Decoder(Output)

    def deliver(self, commands: Sequence[Command]) -> None:
        """Have commands arrive now."""
        self._arrived.extend(map(msgspec.msgpack.encode, commands))

    def poll(self, timeout_ms: int) -> int:
        if not self._arrived:
            self.deliver(next(self._script, [Shutdown()]))
        if not self._arrived:
            self._clock.advance(timeout_ms / 1000)
        return len(self._arrived)

    def recv(self, flags: int) -> bytes:
        assert flags == zmq.NOBLOCK
        if not self._arrived:
            raise zmq.Again
        self._clock.advance(self._recv_s)
        return self._arrived.popleft()

    def send(self, frame: bytes, *, copy: bool) -> None:
        assert not copy
        self.outputs.append(self._decoder.decode(frame))


class TickingExecutor(RecordingExecutor):
    """Takes STEP_S for a step, and before each of them lets the test act."""

    def __init__(self, clock: VirtualClock, before_step: Callable[[int], None]) -> None:
        super().__init__()
        self._clock = clock
        self._before_step = before_step

    def execute(self, plan: Any) -> Any:
        self._before_step(len(self.steps))
        self._clock.advance(STEP_S)
        return super().execute(plan)


class Desk:
    """A host and everything around it.

    Args:
        compile_grammar: called on the host's thread for grammars.
        sentence: the sentence model, if there is one.
        recv_s: how long the host takes for a command.
        limits: of the engine, as for `make_engine`.

    Attributes:
        during: commands that arrive while a step is computed, by the step's number.
    """

    def __init__(
        self,
        *,
        compile_grammar: Callable[[SamplingParams], TokenGrammar] | None = None,
        sentence: Any = None,
        recv_s: float = 0.0,
        **limits: Any,
    ) -> None:
        self.clock = VirtualClock(100.0)
        self.during: dict[int, Sequence[Command]] = {}
        self.engine, _ = make_engine(clock=self.clock, **limits)
        self.executor = TickingExecutor(self.clock, self._before_step)
        self.engine._executor = self.executor
        self._recv_s = recv_s
        self._runtime: Any = SimpleNamespace(
            engine=self.engine,
            compile_grammar=compile_grammar or (lambda _: FreeGrammar()),
            sentence=sentence,
        )

    def run(self, *groups: Sequence[Command] | Act) -> list[Output]:
        """Let the host work until it has carried out all commands, and return what it said.

        A group is sent once the groups before it leave nothing to do; a function is called then.
        """
        script = (group() if callable(group) else group for group in groups)
        self.wire = Wire(self.clock, script, self._recv_s)
        self.host = EngineHost(self._runtime, self.wire, self.clock)  # type: ignore[arg-type]
        self.host.run()
        return self.wire.outputs

    def call(self, method: str, **arguments: Any) -> Any:
        """Return the reply to an admin call."""
        return self.run([AdminCall(7, method, arguments)])[0]

    def wait_for_grammars(self) -> Sequence[Command]:
        """As a group of a script: go on when all grammars are compiled."""
        _, unfinished = wait([job for _, job in self.host._compiling.values()], timeout=30)
        assert not unfinished
        return []

    def _before_step(self, number: int) -> None:
        self.wire.deliver(self.during.pop(number, ()))
