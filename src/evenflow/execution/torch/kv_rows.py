"""How one head's key or value lies in a KV store, and the way in and out.

```
fp32, bf16, fp16   head_dim entries
int8               head_dim codes, and behind them their scale, a float32
```

A row's scale makes its largest entry 127: symmetric rounding of each token and head by itself, so
that a row depends on nothing but itself. (vLLM calls that int8_per_token_head.) A row whose largest
entry is below 2^-100 counts as zero.

Knows: dtypes, rounding.
Does not know: blocks, layers.
"""

from __future__ import annotations

import torch

KV_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
"""What `--kv-cache-dtype` names."""

_SCALE_BYTES = 4
_LARGEST_CODE = 127
_ZERO_BELOW = 2.0**-100


def row_width(head_dim: int, dtype: torch.dtype) -> int:
    """Return how many elements of `dtype` a row has."""
    return head_dim + (_SCALE_BYTES if dtype == torch.int8 else 0)


def encode(entries: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return rows of a store.

    Args:
        entries: (..., head_dim); where one is infinite or NaN, the row will be NaN.
        dtype: of the store.

    Returns:
        (..., row_width), of `dtype`.
    """
    if dtype != torch.int8:
        return entries.to(dtype)
    entries = entries.float()
    peaks = entries.abs().amax(-1, keepdim=True)
    is_zero = peaks < _ZERO_BELOW
    is_bad = ~peaks.isfinite()
    scales = (peaks / _LARGEST_CODE).masked_fill(is_zero, 0).masked_fill(is_bad, torch.nan)
    # Torch divides a number by a tensor in two roundings, and a tensor by a tensor in one.
    factors = torch.full_like(peaks, _LARGEST_CODE) / peaks
    codes = torch.round(entries * factors.masked_fill(is_zero | is_bad, 0)).nan_to_num()
    return torch.cat([codes.to(torch.int8), scales.view(torch.int8)], dim=-1)


def decode(rows: torch.Tensor) -> torch.Tensor:
    """Return the entries of rows of a store: (..., head_dim), fp32 where they were codes."""
    if rows.dtype != torch.int8:
        return rows
    codes, scales = rows[..., :-_SCALE_BYTES], rows[..., -_SCALE_BYTES:]
    # Memory of their own, since a view as floats must begin at a multiple of four.
    return codes.float() * scales.clone(memory_format=torch.contiguous_format).view(torch.float32)
