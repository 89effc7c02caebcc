"""What has to be so before any test module is imported."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    # Triton decides by this whether it interprets its kernels: when it is imported, which
    # transformers does as well, when a kernel is defined, and when it first runs.
    os.environ["TRITON_INTERPRET"] = "1"
