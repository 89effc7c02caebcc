from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import torch

from evenflow.execution.torch.huge_pages import Pool, drop_pages

SMAPS = Path("/proc/self/smaps")
NUM_PAGES = 64


def resident_bytes(path: Path) -> int:
    """Return how much of a file's mappings in this process is in memory."""
    lines = iter(SMAPS.read_text().splitlines())
    found = 0
    for line in lines:
        if line.endswith(str(path)):
            found += next(int(entry.split()[1]) for entry in lines if entry.startswith("Rss:"))
    return 1024 * found


@pytest.fixture
def mapped_file(tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """A file of `NUM_PAGES` pages, each full of its number, and a mapping of it."""
    path = tmp_path / "weights"
    path.write_bytes(b"".join(bytes([page]) * mmap.PAGESIZE for page in range(NUM_PAGES)))
    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return path, torch.frombuffer(mapping, dtype=torch.uint8)


@pytest.mark.skipif(not SMAPS.exists(), reason="reads what Linux says of a process")
def test_drop_pages_gives_back_all_pages_within_a_view(
    mapped_file: tuple[Path, torch.Tensor],
) -> None:
    path, mapped = mapped_file
    assert mapped.sum() > 0
    assert resident_bytes(path) == NUM_PAGES * mmap.PAGESIZE
    drop_pages(mapped[1 : 10 * mmap.PAGESIZE + 1])
    assert resident_bytes(path) == (NUM_PAGES - 9) * mmap.PAGESIZE


def test_dropped_pages_are_read_again(mapped_file: tuple[Path, torch.Tensor]) -> None:
    _, mapped = mapped_file
    before = mapped.clone()
    drop_pages(mapped)
    assert torch.equal(mapped, before)


def test_drop_pages_leaves_a_view_without_a_whole_page(
    mapped_file: tuple[Path, torch.Tensor],
) -> None:
    _, mapped = mapped_file
    mapped[:] = 7
    drop_pages(mapped[1 : 2 * mmap.PAGESIZE - 1])
    drop_pages(mapped[5:5])
    assert torch.equal(mapped, torch.full_like(mapped, 7))


def test_pool_hands_out_again_what_no_tensor_uses() -> None:
    pool = Pool()
    first = pool.take((3, 50), torch.float32)
    place, view = first.data_ptr(), first.view(2, -1)[1]
    del first
    assert pool.take((150,), torch.float32).data_ptr() != place  # the view is still there
    del view
    again = pool.take((2, 100), torch.float32)  # of another shape and about as large
    assert again.data_ptr() == place
    assert again.shape == (2, 100)


def test_pool_aligns_and_separates_tensors_of_all_sizes() -> None:
    pool = Pool()
    tensors = [pool.take((size,), torch.uint8) for size in (0, 1, 63, 64, 65, 5000, 70_000) * 2]
    assert not any(tensor.data_ptr() % 64 for tensor in tensors)
    for number, tensor in enumerate(tensors):
        tensor.fill_(number)
    assert all((tensor == number).all() for number, tensor in enumerate(tensors))
