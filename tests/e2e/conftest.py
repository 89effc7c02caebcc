"""One real server with a real model for each module that asks for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.served_model import served

ADMIN_KEY = "adm-1"
MAX_MODEL_LEN = 2048


@pytest.fixture(scope="module")
def smollm2_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Host and port of a server with SmolLM2-135M-Instruct."""
    flags = ("--admin-api-key", ADMIN_KEY, "--num-blocks-override", "256")
    limits = ("--max-model-len", str(MAX_MODEL_LEN))
    with served(tmp_path_factory.mktemp("served"), *flags, *limits, model="smollm2") as address:
        yield address
