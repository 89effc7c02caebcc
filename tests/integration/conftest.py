"""One loaded model for all integration tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from evenflow import LLM


@pytest.fixture(scope="session")
def smollm2() -> Iterator[LLM]:
    """SmolLM2-135M-Instruct with a few thousand tokens of KV memory."""
    return LLM("smollm2", num_blocks_override=256, max_model_len=2048)
