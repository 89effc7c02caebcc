"""The seam between models and attention back ends, and the merge all partial attention rests on."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch

from evenflow.execution.batch import ForwardBatch


class Rotation(NamedTuple):
    """How far the heads of a step's tokens are turned: rotary position embeddings.

    Pair i is (x[i], x[i + rotary_dim / 2]) of the first `rotary_dim` entries of a head, as in
    GPT-NeoX, not two neighbours as in RoFormer (arXiv 2104.09864). The entries behind stay.

    Attributes:
        cos: (num_tokens, rotary_dim / 2), fp32; the last dimension is contiguous.
        sin: likewise, with the same strides.
    """

    cos: torch.Tensor
    sin: torch.Tensor


class Attention(Protocol):
    """Paged causal attention over a KV store it was built with."""

    def rotate_store(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        rotation: Rotation,
        batch: ForwardBatch,
    ) -> None:
        """Rotate the step's queries and keys, and store keys and values.

        Args:
            layer: index of the layer whose KV is meant.
            q: (num_tokens, num_heads, head_dim), rotated in place; may be a strided view whose last
                dimension is contiguous.
            k: (num_tokens, num_kv_heads, head_dim), rotated on its way into the store and left as
                it is; likewise.
            v: (num_tokens, num_kv_heads, head_dim); likewise.
            rotation: of q and k.
            batch: where each token's KV goes; nowhere if its slot is negative.
        """
        ...

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        batch: ForwardBatch,
        *,
        scale: float,
        window: int | None = None,
    ) -> torch.Tensor:
        """Attend to what is stored of all positions that a token sees.

        A token at position p sees positions `max(0, p + 1 - window)` to p of its own request.

        Args:
            layer: index of the layer whose KV is meant.
            q: (num_tokens, num_heads, head_dim), rotated; may be a strided view whose last
                dimension is contiguous.
            batch: whose tokens the rows of q are, and which blocks each request owns.
            scale: factor of the scores before the softmax.
            window: sliding window in tokens, the current one included; None sees everything.

        Returns:
            (num_tokens, num_heads, head_dim), contiguous.
        """
        ...

    def partial(
        self,
        layer: int,
        q: torch.Tensor,
        batch: ForwardBatch,
        start: int,
        stop: int,
        *,
        scale: float,
        window: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attend only to stored positions `start` (inclusive) to `stop` (exclusive).

        Returns:
            out: (num_tokens, num_heads, head_dim); rows that see nothing are zero.
            lse: (num_tokens, num_heads), log-sum-exp of the scaled scores; -inf where nothing is
                seen.
        """
        ...


def merge_partials(
    out_a: torch.Tensor, lse_a: torch.Tensor, out_b: torch.Tensor, lse_b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Combine attention over two disjoint sets of keys into attention over their union.

    With m = max(lse_a, lse_b) and w_i = exp(lse_i - m):
    out = (w_a out_a + w_b out_b) / (w_a + w_b) and lse = m + log(w_a + w_b)
    (FlashAttention-2, arXiv 2307.08691, section 3.1.1).

    Args:
        out_a: (..., head_dim).
        lse_a: (...,).
        out_b: (..., head_dim).
        lse_b: (...,).

    Returns:
        The merged (out, lse), same shapes. Where both sides saw nothing: zero and -inf.
    """
    peak = torch.maximum(lse_a, lse_b)
    shift = torch.where(torch.isneginf(peak), torch.zeros_like(peak), peak)
    weight_a = torch.exp(lse_a - shift)
    weight_b = torch.exp(lse_b - shift)
    total = weight_a + weight_b
    safe_total = torch.where(total == 0, torch.ones_like(total), total)
    out = (out_a * weight_a.unsqueeze(-1) + out_b * weight_b.unsqueeze(-1)) / safe_total.unsqueeze(
        -1
    )
    return out, shift + torch.log(total)
