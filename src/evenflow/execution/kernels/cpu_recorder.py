"""Records the kernels that a function runs on the CPU, and replays them in one go.

What they compute goes into memory that is kept for the recordings: a tensor's place serves others
once the last reference to it is gone, so that a replay stays within the caches as the first run
did. Whatever computes without being a kernel of ours would be missing from a replay, so nothing
else may.

Knows: kernels, argument words, tensors that come and go.
Does not know: what is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from evenflow.execution.kernels.jobs import REPLAY_LAYOUT, ReplayJob
from evenflow.execution.kernels.parallel import Arguments, Kernel, Recording, ThreadTeam
from evenflow.execution.torch.decode_recordings import NotRecordableError, Replay
from evenflow.execution.torch.huge_pages import Pool

_CACHE_LINE = 64
_CONSTANTS = frozenset({torch.ops.aten.zeros.default, torch.ops.aten.detach_.default})


class CpuRecorder:
    """Records kernels; only one of its recordings is replayed at a time.

    Args:
        team: the threads that run the kernels.
        replay: the kernel that runs them one after the other.
    """

    def __init__(self, team: ThreadTeam, replay: Kernel) -> None:
        self._team = team
        self._kernel = replay
        self._pool = Pool()

    def __call__(self, run: Callable[[], torch.Tensor]) -> tuple[Replay, torch.Tensor]:
        """Run a function and record the kernels that it runs (see `Recorder`)."""
        with self._team.record() as recording, _OnlyKernels(self._pool):
            out = run()
        return _Replay(self._team, self._kernel, recording), out


class _Replay:
    """Runs the kernels of a recording again."""

    def __init__(self, team: ThreadTeam, kernel: Kernel, recording: Recording) -> None:
        self._team = team
        self._num_threads = team.size()  # memory was taken for so many
        self._kernel = kernel
        self._kept = recording.kept
        self._words, places = _side_by_side([words for _, words in recording.calls])
        self._calls = np.array(
            [(address, place) for (address, _), place in zip(recording.calls, places, strict=True)]
        )
        job = ReplayJob(calls=self._calls.ctypes.data, num_calls=len(self._calls))
        self._arguments = Arguments(REPLAY_LAYOUT).pack(*job)

    def __call__(self) -> None:
        self._team.run(self._kernel, self._arguments, limit=self._num_threads)


class _OnlyKernels(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Takes new tensors from a pool, and refuses what computes."""

    def __init__(self, pool: Pool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._pool = pool

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: torch would import its whole compiler only to keep it out."""
        return False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten.empty.memory_format:
            return self._pool.take(args[0], kwargs.get("dtype") or torch.float32)
        result = func(*args, **kwargs)
        # What is called a view may be a copy: `reshape`.
        is_view = func.is_view and _storages(result) <= _storages(args)
        if not is_view and func not in _CONSTANTS:
            raise NotRecordableError(f"{func} computes, and is none of our kernels")
        return result


def _side_by_side(pieces: Sequence[bytes]) -> tuple[np.ndarray, list[int]]:
    """Return memory that holds all pieces, each in cache lines of its own, and their addresses."""
    sizes = [len(piece) + -len(piece) % _CACHE_LINE for piece in pieces]
    memory = np.zeros(sum(sizes) + _CACHE_LINE, np.uint8)
    place = -memory.ctypes.data % _CACHE_LINE
    addresses = []
    for piece, size in zip(pieces, sizes, strict=True):
        memory[place : place + len(piece)] = np.frombuffer(piece, np.uint8)
        addresses.append(memory.ctypes.data + place)
        place += size
    return memory, addresses


def _storages(tensors: Any) -> set[int]:
    """Return where the tensors among some values have their memory."""
    values = tensors if isinstance(tensors, (tuple, list)) else [tensors]
    return {
        value.untyped_storage().data_ptr() for value in values if isinstance(value, torch.Tensor)
    }
