"""The entry point of the engine process.

This module is imported by the process that starts the engine, so it imports nothing heavy itself.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading

import msgspec
import zmq

from evenflow.config import EvenflowConfig
from evenflow.core.errors import EvenflowError
from evenflow.engine.process.messages import EngineInfo, ErrorInfo, Failed, LoadProgress, Output

_PROGRESS_STEPS = 100


def serve_engine(config: EvenflowConfig, address: str) -> None:
    """Build the engine, say that it is ready, and serve until told to stop.

    Args:
        config: the settings.
        address: ZeroMQ address of the process that gives commands.
    """
    # Ctrl-C and termination reach the whole group of processes; the one that commands decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="parent-watch", daemon=True).start()
    context = zmq.Context()
    socket = context.socket(zmq.PAIR)
    socket.set_hwm(0)
    socket.connect(address)
    try:
        _serve(config, socket)
    except EvenflowError as error:
        _say(socket, Failed(ErrorInfo(error.code, str(error), None, is_request_error=False)))
    except Exception as error:
        _say(socket, Failed(ErrorInfo("internal_error", f"{type(error).__name__}: {error}")))
        raise
    finally:
        socket.close(linger=1000)
        context.term()


def _end_with_parent() -> None:
    """End this process as soon as the one that commands is gone, whatever it is doing."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _serve(config: EvenflowConfig, socket: zmq.Socket[bytes]) -> None:
    from evenflow.core.clock import MonotonicClock
    from evenflow.engine.build import build_runtime
    from evenflow.engine.logs import configure_logging
    from evenflow.engine.process.host import EngineHost

    configure_logging(config.logging)
    reported: dict[str, int] = {}

    def report(what: str, num_done: int, num_total: int) -> None:
        share = _PROGRESS_STEPS * num_done // max(1, num_total)
        if reported.get(what) != share:
            reported[what] = share
            _say(socket, LoadProgress(what, num_done, num_total))

    clock = MonotonicClock()
    runtime = build_runtime(config, clock=clock, progress=report)
    runtime.warm_up()
    host = EngineHost(runtime, socket, clock)
    # What is there now stays: the collector need not look at it again in the middle of a step.
    gc.collect()
    gc.freeze()
    plan = runtime.kv_plan
    _say(
        socket,
        EngineInfo(
            limits=runtime.engine.limits,
            num_blocks=plan.num_blocks,
            block_size=config.cache.block_size,
            kv_description=plan.description(),
        ),
    )
    try:
        host.run()
    finally:
        runtime.close()


def _say(socket: zmq.Socket[bytes], output: Output) -> None:
    socket.send(msgspec.msgpack.encode(output))
