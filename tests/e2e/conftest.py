"""One real server with a real model for each module that asks for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.served_model import ADMIN_KEY, MAX_MODEL_LEN, served


@pytest.fixture(scope="module")
def smollm2_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Host and port of a server with SmolLM2-135M-Instruct."""
    flags = ("--admin-api-key", ADMIN_KEY, "--max-model-len", str(MAX_MODEL_LEN))
    limits = ("--num-blocks-override", "256", "--max-num-seqs", "8")
    folder = tmp_path_factory.mktemp("served")
    with served(folder, *flags, *limits, model="smollm2") as address:
        yield address
