"""Resident memory while a real model loads."""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from evenflow.config import load_config
from evenflow.models.sources import ModelFiles, resolve
from evenflow.models.weights.open import open_checkpoint
from evenflow.models.weights.shapes import tensor_shapes

STATUS = Path("/proc/self/status")

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(not STATUS.exists(), reason="reads what Linux says of a process"),
]

_IMPORT = "from evenflow.engine.llm import LLM\n"
_LOAD = "LLM({model!r}, cache={cache!r}, num_blocks_override=64, max_model_len=1024)\n"
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


def held_bytes(files: ModelFiles) -> int:
    """Return what the model needs: all tensors, and a tied embedding also packed as a linear."""
    spec = open_checkpoint(files).spec
    num_parameters = sum(math.prod(shape) for shape in tensor_shapes(spec).values())
    if spec.tie_word_embeddings:
        num_parameters += spec.vocab_size * spec.hidden_size
    return 4 * num_parameters


@pytest.fixture
def empty_cache() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:  # half a gigabyte, not to be kept by pytest
        yield Path(directory)


def test_loading_holds_the_weights_once(empty_cache: Path) -> None:
    files = resolve("smollm2", cache_dir=load_config().config.paths.cache)
    load = _IMPORT + _LOAD.format(model=str(files.path), cache=str(empty_cache))
    limit_bytes = peak_bytes(_IMPORT) + held_bytes(files) + MARGIN_BYTES
    assert not list(empty_cache.rglob("*.safetensors"))
    assert peak_bytes(load) < limit_bytes, "from the GGUF file"
    assert list(empty_cache.rglob("*.safetensors"))
    assert peak_bytes(load) < limit_bytes, "from the loaded form"
