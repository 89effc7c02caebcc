"""How much memory this machine, or the container we run in, can still give."""

from __future__ import annotations

from pathlib import Path

import psutil

# A container sees its own group at the root of these: version 2 of cgroups, then version 1.
_GROUPS = (
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)


def free_memory_bytes(cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes that can be had, pages of the file cache counted as free."""
    free_bytes: int = psutil.virtual_memory().available
    for limit, usage, stat in _GROUPS:
        try:
            limit_bytes = int((cgroups / limit).read_text())
            usage_bytes = int((cgroups / usage).read_text())
            lines = (cgroups / stat).read_text().splitlines()
        except (OSError, ValueError):  # no such group, or its limit is "max"
            continue
        # Version 1 repeats every count with its subgroups, as total_*, further down.
        counts = {name.removeprefix("total_"): int(n) for name, n in map(str.split, lines)}
        cache_bytes = counts.get("inactive_file", 0) + counts.get("active_file", 0)
        free_bytes = min(free_bytes, max(0, limit_bytes - usage_bytes + cache_bytes))
    return free_bytes
