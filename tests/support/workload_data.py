"""Published workload data, which is not part of the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def workload_data(name: str) -> Path:
    """Return a file of the shared data, or skip the test where it is absent."""
    data = os.environ.get("EVENFLOW_TEST_DATA")
    folder = Path(data) if data else Path(__file__).parents[2] / ".." / "shared" / "data"
    path = folder / name
    if not path.exists():
        pytest.skip(f"no workload data at {path}; EVENFLOW_TEST_DATA names the folder")
    return path
