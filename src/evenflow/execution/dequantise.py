"""From the bytes of a stored weight to fp32, for every type that GGUF files come in.

Floats are read by torch. All other types are left to gguf, which takes 0.3 s to import, so it is
imported when the first of them comes.
"""

from __future__ import annotations

import torch

from evenflow.core.errors import UnsupportedModelError
from evenflow.core.gguf_file import GGMLType

_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_CHUNK_ITEMS = 1 << 20  # dequantised at a time, to keep temporaries small


def dequantise(rows: torch.Tensor, storage: GGMLType) -> torch.Tensor:
    """Return fresh fp32 values, (num_rows, entries per row).

    Args:
        rows: uint8 (num_rows, bytes per row), contiguous.
        storage: how entries are stored in them.

    Raises:
        UnsupportedModelError: gguf does not dequantise this type.
    """
    if storage.name in _FLOATS:
        return rows.clone().view(_FLOATS[storage.name]).to(torch.float32)
    import gguf

    kind = gguf.GGMLQuantizationType[storage.name]
    num_rows, row_bytes = rows.shape
    row_size = row_bytes // storage.block_bytes * storage.block_size
    values = torch.empty(num_rows, row_size)
    step = max(1, _CHUNK_ITEMS // row_size)
    try:
        for start in range(0, num_rows, step):
            chunk = slice(start, start + step)
            values.numpy()[chunk] = gguf.dequantize(rows[chunk].numpy(), kind)
    except NotImplementedError as error:
        raise UnsupportedModelError(
            f"tensors of type {storage.name} cannot be dequantised",
            why=str(error),
            fix="use a file of another quantisation, Q4_K_M or Q8_0 for instance",
        ) from error
    return values
