"""Weights kept in loaded form: made once, found again, made anew when damaged."""

from __future__ import annotations

import logging
import multiprocessing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from evenflow.models.weights.loaded_cache import cached

SHAPES = {"a.weight": (3, 5), "b.bias": (7,), "c.weight": (2, 2)}


class CountingSource:
    """Tensors of SHAPES; appends a line to a log for each one read."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def names(self) -> frozenset[str]:
        return frozenset(SHAPES)

    def shape(self, name: str) -> tuple[int, ...]:
        return SHAPES[name]

    def tensor(self, name: str) -> torch.Tensor:
        with self._log.open("a") as log:
            log.write(name + "\n")
        generator = torch.Generator().manual_seed(len(name) + ord(name[0]))
        return torch.randn(SHAPES[name], generator=generator)

    def reads(self) -> int:
        return len(self._log.read_text().splitlines()) if self._log.exists() else 0


@pytest.fixture
def source(tmp_path: Path) -> CountingSource:
    return CountingSource(tmp_path / "log")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights" / "m.safetensors"


def assert_same(path: Path, source: CountingSource) -> None:
    kept = cached(source, SHAPES, path)
    assert kept.names() == SHAPES.keys()
    for name in SHAPES:
        assert torch.equal(kept.tensor(name), CountingSource(path.parent / "x").tensor(name))


def test_cached_returns_the_tensors_of_the_source(path: Path, source: CountingSource) -> None:
    assert_same(path, source)


def test_cached_file_is_plain_safetensors(path: Path, source: CountingSource) -> None:
    cached(source, SHAPES, path)
    assert {name: tuple(t.shape) for name, t in load_file(path).items()} == SHAPES


def test_cached_reads_the_source_once(path: Path, source: CountingSource) -> None:
    cached(source, SHAPES, path)
    assert source.reads() == len(SHAPES)
    assert_same(path, source)
    assert source.reads() == len(SHAPES)


@pytest.mark.parametrize("kept_bytes", [0, 5, 40, -1])
def test_cached_makes_truncated_files_anew(
    path: Path, source: CountingSource, kept_bytes: int
) -> None:
    cached(source, SHAPES, path)
    path.write_bytes(path.read_bytes()[:kept_bytes])
    assert_same(path, source)
    assert source.reads() == 2 * len(SHAPES)


def test_cached_makes_files_of_other_shapes_anew(path: Path, source: CountingSource) -> None:
    cached(source, {"a.weight": (3, 5)}, path)
    assert_same(path, source)


def test_cached_leaves_nothing_when_interrupted(
    path: Path, source: CountingSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_name: str) -> torch.Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(source, "tensor", fail)
    with pytest.raises(KeyboardInterrupt):
        cached(source, SHAPES, path)
    assert {file.suffix for file in path.parent.iterdir()} <= {".lock"}


def test_cached_removes_files_of_dead_writers(path: Path, source: CountingSource) -> None:
    path.parent.mkdir()
    abandoned = path.with_name(f"{path.name}.tmp-1")
    abandoned.touch()
    cached(source, SHAPES, path)
    assert not abandoned.exists()


def test_cached_returns_the_source_when_disk_is_unwritable(
    path: Path, source: CountingSource, caplog: pytest.LogCaptureFixture
) -> None:
    path.parent.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        assert cached(source, SHAPES, path) is source
    assert "not kept" in caplog.text


def test_cached_reports_progress_up_to_the_total(path: Path, source: CountingSource) -> None:
    seen: list[tuple[int, int]] = []
    cached(source, SHAPES, path, lambda _what, done, total: seen.append((done, total)))
    assert seen == [(60, 104), (88, 104), (104, 104)]


def _open_kept(path: Path, log: Path, start: multiprocessing.synchronize.Barrier) -> None:
    start.wait()
    cached(CountingSource(log), SHAPES, path)


def test_cached_is_made_once_when_two_processes_want_it(
    path: Path, source: CountingSource, tmp_path: Path
) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Barrier(2)
    workers = [
        context.Process(target=_open_kept, args=(path, tmp_path / "log", start)) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert source.reads() == len(SHAPES)
    assert_same(path, source)
