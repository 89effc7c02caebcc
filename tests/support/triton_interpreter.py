"""Runs Triton kernels where there is no GPU: under Triton's interpreter, mended.

`tests/conftest.py` tells Triton to interpret, before anything imports it.

The interpreter keeps bf16 as 16 bits of an integer: it multiplies those integers in `tl.dot`, and
it cuts fp32 off instead of rounding it. Hardware does neither. It leaves products to BLAS, where on
some processors a row's bits depend on its place; hardware adds all rows alike. And it patches
Triton's language again at every call of one kernel function by another, for half of the time it
takes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

_convert = interpreter._convert_float


def _convert_float(data: Any, source: Any, target: Any, rounding: Any) -> Any:
    if source == tl.float32 and target == tl.bfloat16:
        rounded = torch.from_numpy(np.ascontiguousarray(data)).bfloat16()
        return rounded.view(torch.int16).numpy().view(np.uint16)
    return _convert(data, source, target, rounding)


def _create_dot(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
    sums = np.einsum("...ik,...kj->...ij", _widened(a), _widened(b), dtype=d.data.dtype)
    return interpreter.TensorHandle(sums + d.data, d.dtype.scalar)


def _widened(operand: Any) -> Any:
    if operand.dtype.scalar != tl.bfloat16:
        return operand.data
    return (operand.data.astype(np.uint32) << 16).view(np.float32)


_patched: set[Any] = set()
_call_patching = interpreter.InterpretedFunction.__call__


def _call(self: Any, *arguments: Any, **options: Any) -> Any:
    if self.fn in _patched:
        return self.rewrite()(*arguments, **options)
    _patched.add(self.fn)
    return _call_patching(self, *arguments, **options)


interpreter.InterpretedFunction.__call__ = _call
interpreter._convert_float = _convert_float
interpreter.InterpreterBuilder.create_dot = _create_dot
