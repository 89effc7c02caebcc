"""Free memory under the limits of a container, read from files like the kernel's."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from evenflow.engine.free_memory import free_memory_bytes

NAMES = {
    1: ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    2: ("memory.max", "memory.current", "memory.stat"),
}
STATS = {
    1: "inactive_file 1\nactive_file 2\ntotal_inactive_file 300\ntotal_active_file 40\n",
    2: "anon 500\ninactive_file 300\nactive_file 40\n",
}


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = psutil.virtual_memory()._replace(available=5000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


def write_group(root: Path, version: int, limit: str, usage: int) -> Path:
    for name, text in zip(NAMES[version], (limit, str(usage), STATS[version]), strict=True):
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize("version", [1, 2])
def test_free_memory_is_what_the_container_has_left(tmp_path: Path, version: int) -> None:
    # 340 of the 900 bytes in use are file cache, which the kernel gives back when asked.
    assert free_memory_bytes(write_group(tmp_path, version, "2000\n", 900)) == 1440


@pytest.mark.parametrize("version", [1, 2])
def test_free_memory_is_none_when_the_container_is_full(tmp_path: Path, version: int) -> None:
    assert free_memory_bytes(write_group(tmp_path, version, "2000\n", 3000)) == 0


@pytest.mark.parametrize(("version", "limit"), [(1, "9223372036854771712"), (2, "max")])
def test_free_memory_is_the_machines_when_the_container_has_no_limit(
    tmp_path: Path, version: int, limit: str
) -> None:
    assert free_memory_bytes(write_group(tmp_path, version, limit, 900)) == 5000


def test_free_memory_is_the_machines_without_groups(tmp_path: Path) -> None:
    assert free_memory_bytes(tmp_path) == 5000
