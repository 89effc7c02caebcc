"""What has to be so before any test module is imported, and around every test."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest
import torch

if not torch.cuda.is_available():
    # Triton decides by this whether it interprets its kernels: when it is imported, which
    # transformers does as well, when a kernel is defined, and when it first runs.
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def _the_log_stays_as_it_was() -> Iterator[None]:
    """Commands run inside a test send the log elsewhere; the next test may want to read it."""
    log = logging.getLogger("evenflow")
    handlers, propagate, level = log.handlers, log.propagate, log.level
    yield
    log.handlers, log.propagate = handlers, propagate
    log.setLevel(level)
