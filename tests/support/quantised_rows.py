"""Weights in the forms that GGUF files store, made of random bytes."""

from __future__ import annotations

import gguf
import numpy as np
import torch

from evenflow.core.gguf_file import GGML_TYPES
from evenflow.execution.kernels.quantised import PACKED_TYPES
from evenflow.execution.ops import QuantisedRows

STORED_TYPES = tuple(PACKED_TYPES)

_NUMBERS = {kind.name: number for number, kind in GGML_TYPES.items()}
_SCALES = {  # where the fp16 numbers of a block are
    "Q4_1": (0, 2),
    "Q5_1": (0, 2),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}


def in_features(name: str) -> int:
    """Return an odd number of blocks: 160, or 768 for types whose blocks are of 256."""
    block_size = GGML_TYPES[_NUMBERS[name]].block_size
    return 5 * 32 if block_size == 32 else 3 * 256


def random_rows(
    name: str, out_features: int, *, sane: bool = True, codes: int | None = None, seed: int = 0
) -> QuantisedRows:
    """Return a weight of random bytes.

    Args:
        name: of the type.
        out_features: rows.
        sane: whether its scales are as in real weights, not also infinite, NaN or subnormal.
        codes: what all bytes but the scales are; random by default.
        seed: of the bytes.
    """
    kind = GGML_TYPES[_NUMBERS[name]]
    rng = np.random.default_rng(seed)
    num_blocks = in_features(name) // kind.block_size
    blocks = rng.integers(0, 256, (out_features, num_blocks, kind.block_bytes), np.uint8)
    if codes is not None:
        blocks[:] = codes
    for place in _SCALES.get(name, (0,)) if sane else ():
        scales = rng.normal(0, 0.01, (out_features, num_blocks, 1)).astype(np.float16)
        blocks[:, :, place : place + 2] = scales.view(np.uint8)
    rows = torch.from_numpy(blocks.reshape(out_features, -1))
    return QuantisedRows(kind, rows, in_features(name))


def dequantised(rows: QuantisedRows) -> torch.Tensor:
    """Return what llama.cpp's own package makes of a weight, fp32."""
    kind = gguf.GGMLQuantizationType(_NUMBERS[rows.type.name])
    with np.errstate(invalid="ignore", over="ignore"):
        return torch.from_numpy(gguf.dequantize(rows.rows.numpy(), kind))
