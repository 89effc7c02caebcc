"""Resident memory while a real model loads."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from evenflow.config import load_config
from evenflow.execution.torch.kv_store import KVStore
from evenflow.models.sources import resolve
from evenflow.models.weights.open import Checkpoint, open_checkpoint

STATUS = Path("/proc/self/status")

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(not STATUS.exists(), reason="reads what Linux says of a process"),
]

_IMPORT = "from evenflow.engine.llm import LLM\n"
_LOAD = (
    "LLM({model!r}, cache={cache!r}, linear={linear!r}, num_blocks_override=64,"
    " max_model_len=1024)\n"
)
# Not ru_maxrss, which a child begins with at the peak of the process that forked it.
_REPORT = f"""
status = open({str(STATUS)!r}).read()
print(status.split("VmHWM:")[1].split()[0])
"""

MARGIN_BYTES = 128 * 2**20
"""For the tokeniser (30 MiB), the library of compiled kernels (15 MiB) and what the allocator keeps
of temporaries (40 MiB). A second copy of the embedding alone would take 108 MiB more."""


def peak_bytes(script: str) -> int:
    """Return the largest resident memory of a fresh process, mapped files included."""
    command = [sys.executable, "-c", script + _REPORT]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(result.stdout) * 1024


def load_script(checkpoint: Checkpoint, cache: Path, linear: str) -> str:
    return _IMPORT + _LOAD.format(model=str(checkpoint.path), cache=str(cache), linear=linear)


@pytest.fixture(scope="module")
def import_bytes() -> int:
    """What a process has that only imports."""
    return peak_bytes(_IMPORT)


@pytest.fixture
def checkpoint() -> Checkpoint:
    return open_checkpoint(resolve("smollm2", cache_dir=load_config().config.paths.cache))


@pytest.fixture
def empty_cache() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:  # half a gigabyte, not to be kept by pytest
        yield Path(directory)


def test_loading_fp32_weights_holds_them_once(
    checkpoint: Checkpoint, empty_cache: Path, import_bytes: int
) -> None:
    load = load_script(checkpoint, empty_cache, "exact")
    limit_bytes = import_bytes + checkpoint.weight_bytes("exact") + MARGIN_BYTES
    assert not list(empty_cache.rglob("*.safetensors"))
    assert peak_bytes(load) < limit_bytes, "from the GGUF file"
    assert list(empty_cache.rglob("*.safetensors"))
    assert peak_bytes(load) < limit_bytes, "from the loaded form"


def test_loading_weights_as_they_are_stored_holds_them_once(
    checkpoint: Checkpoint, import_bytes: int
) -> None:
    cache = load_config().config.paths.cache  # of the native kernels
    peak = peak_bytes(load_script(checkpoint, cache, "w4a8"))
    weight_bytes = checkpoint.weight_bytes("w4a8")
    assert peak < import_bytes + weight_bytes + MARGIN_BYTES
    spec = checkpoint.spec
    block_bytes = KVStore.bytes_per_block(spec.num_layers, spec.num_kv_heads, spec.head_dim, 16)
    assert peak < 1.3 * (weight_bytes + 64 * block_bytes + 250 * 2**20)
