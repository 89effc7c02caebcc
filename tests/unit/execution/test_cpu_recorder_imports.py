from __future__ import annotations

import subprocess
import sys

_RECORD = """
import sys, torch
from evenflow.execution.kernels.cpu_recorder import _OnlyKernels
from evenflow.execution.torch.huge_pages import Pool
with torch.inference_mode(), _OnlyKernels(Pool()):
    assert torch.empty(2, 3).view(6).shape == (6,)
print("torch._dynamo" in sys.modules)
"""


def test_recording_does_not_import_the_compiler_of_torch() -> None:
    """It would take longer, and more memory, than a small model."""
    command = [sys.executable, "-c", _RECORD]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "False"
