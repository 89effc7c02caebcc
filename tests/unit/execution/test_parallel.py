from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from evenflow.execution.kernels.parallel import (
    FIRST_ARGUMENT,
    NEXT_TASK,
    NEXT_THREAD,
    Arguments,
    ThreadTeam,
    _openmp_parallel,
)
from evenflow.execution.kernels.portable.kernel import NumbaKernel
from evenflow.execution.kernels.portable.simd import read_word, take_ticket, write_word

NUM_TASKS = 1000


def _count(words: int) -> None:
    counts = read_word(words, FIRST_ARGUMENT)
    num_tasks = read_word(words, FIRST_ARGUMENT + 1)
    thread = take_ticket(words, NEXT_THREAD)
    write_word(counts, num_tasks + thread, 1)
    while True:
        task = take_ticket(words, NEXT_TASK)
        if task >= num_tasks:
            break
        write_word(counts, task, read_word(counts, task) + 1)


count_kernel = NumbaKernel(_count)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def run(team: ThreadTeam, *, serial: bool = False) -> tuple[np.ndarray, int]:
    """Return how often each task ran and how many threads took part."""
    counts = np.zeros(NUM_TASKS + 8, np.int64)
    team.run(count_kernel, Arguments("qq").pack(counts.ctypes.data, NUM_TASKS), serial=serial)
    return counts[:NUM_TASKS], int(counts[NUM_TASKS:].sum())


def test_team_runs_every_task_once_on_all_threads(two_threads: None) -> None:
    counts, num_threads = run(ThreadTeam())
    assert (counts == 1).all()
    assert num_threads == 2


def test_team_runs_every_task_once_when_torch_has_no_openmp(two_threads: None) -> None:
    team = ThreadTeam()
    team._parallel = None
    counts, num_threads = run(team)
    assert (counts == 1).all()
    assert num_threads == 2


def test_team_uses_the_calling_thread_only_when_serial(two_threads: None) -> None:
    counts, num_threads = run(ThreadTeam(), serial=True)
    assert (counts == 1).all()
    assert num_threads == 1


def test_arguments_can_be_run_again() -> None:
    team, words = ThreadTeam(), Arguments("qq")
    counts = np.zeros(NUM_TASKS + 8, np.int64)
    for _ in range(3):
        team.run(count_kernel, words.pack(counts.ctypes.data, NUM_TASKS))
    assert (counts[:NUM_TASKS] == 3).all()


def test_team_uses_no_more_threads_than_the_limit(two_threads: None) -> None:
    words, counts = Arguments("qq"), np.zeros(NUM_TASKS + 8, np.int64)
    ThreadTeam().run(count_kernel, words.pack(counts.ctypes.data, NUM_TASKS), limit=1)
    assert counts[NUM_TASKS:].sum() == 1


def test_team_records_what_runs_and_what_it_points_into(two_threads: None) -> None:
    team, words = ThreadTeam(), Arguments("qq")
    counts = np.zeros(NUM_TASKS + 8, np.int64)
    with team.record() as recording:
        assert team.size(serial=True) == 2
        team.keep(counts)
        team.run(count_kernel, words.pack(counts.ctypes.data, NUM_TASKS))
    team.run(count_kernel, words)
    team.keep(words)
    assert (counts[:NUM_TASKS] == 2).all()
    assert recording.calls == [
        (count_kernel.address, np.array([0, 0, counts.ctypes.data, NUM_TASKS]).tobytes())
    ]
    assert recording.kept == [counts]
    assert team.size(serial=True) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="torch's OpenMP is looked up on Linux only")
def test_openmp_is_torchs_own() -> None:
    assert _openmp_parallel() is not None
