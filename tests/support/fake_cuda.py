"""Streams and events that behave as CUDA's may at worst: nothing happens before it has to.

Work that was put on a stream is done in its order, but otherwise as late and in as mixed an order
as events allow. Tensors lie in the host's memory.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch

from evenflow.execution.torch import cuda_transfers, kv_store
from evenflow.execution.torch.kv_store import KVStore
from evenflow.memory.extents import Extent


class FakeEvent:
    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu = gpu
        self.is_done = False

    def record(self, stream: FakeStream) -> None:
        stream.put(self._set)

    def query(self) -> bool:
        self.gpu.work()
        return self.is_done

    def synchronize(self) -> None:
        self.gpu.work_until(lambda: self.is_done)

    def elapsed_time(self, end: FakeEvent) -> float:
        assert self.is_done
        assert end.is_done
        return 2.0

    def _set(self) -> None:
        self.is_done = True


@dataclass(slots=True)
class Operation:
    """Something on a stream, and the event it waits for if it is a wait."""

    run: Callable[[], None]
    waits_for: FakeEvent | None = None


class FakeStream:
    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu = gpu
        self.operations: deque[Operation] = deque()
        gpu.streams.append(self)

    @property
    def is_ready(self) -> bool:
        """Whether its next operation may be done."""
        if not self.operations:
            return False
        event = self.operations[0].waits_for
        return event is None or event.is_done

    def put(self, run: Callable[[], None], waits_for: FakeEvent | None = None) -> None:
        with self.gpu.lock:
            self.operations.append(Operation(run, waits_for))

    def wait_event(self, event: FakeEvent) -> None:
        self.put(lambda: None, event)

    def record_event(self) -> FakeEvent:
        event = FakeEvent(self.gpu)
        event.record(self)
        return event

    def synchronize(self) -> None:
        self.gpu.work_until(lambda: not self.operations)


class FakeGpu:
    """Stands in for `torch.cuda` as far as `CudaTransfers` uses it."""

    def __init__(self, seed: int = 0) -> None:
        self.lock = threading.RLock()
        self.streams: list[FakeStream] = []
        self.compute = FakeStream(self)
        self.broken = False
        self._rng = random.Random(seed)
        self._current = threading.local()

    @property
    def current(self) -> FakeStream:
        return getattr(self._current, "stream", self.compute)

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        before, self._current.stream = self.current, stream
        yield
        self._current.stream = before

    def work(self) -> bool:
        """Do one operation that may be done, of a random stream, if there is any."""
        with self.lock:
            ready = [stream for stream in self.streams if stream.is_ready]
            if ready:
                self._rng.choice(ready).operations.popleft().run()
            return bool(ready)

    def work_until(self, is_done: Callable[[], bool]) -> None:
        with self.lock:
            while not is_done():
                assert self.work(), "the streams wait for each other"

    def enqueue_run(
        self, source: KVStore, source_run: Extent, destination: KVStore, destination_run: Extent
    ) -> None:
        if self.broken:
            raise RuntimeError("unspecified launch failure")
        for origin, target in zip(
            source.pieces(source_run), destination.pieces(destination_run), strict=True
        ):
            self.current.put(lambda origin=origin, target=target: target.copy_(origin))  # type: ignore[misc]

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Put it in the place of the real one."""
        patch.setattr(torch.cuda, "Stream", lambda device: FakeStream(self))
        patch.setattr(torch.cuda, "Event", lambda enable_timing: FakeEvent(self))
        patch.setattr(torch.cuda, "stream", self.stream)
        patch.setattr(torch.cuda, "current_stream", lambda device: self.compute)
        patch.setattr(cuda_transfers, "_enqueue_run", self.enqueue_run)
        patch.setattr(kv_store, "_pin", lambda store: None)
