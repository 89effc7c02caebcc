"""A mixture of experts weighs experts as asked and treats every token by itself."""

from __future__ import annotations

import pytest
import torch
from transformers_twins import MemoryWeights

from evenflow.core.errors import ModelFormatError
from evenflow.execution.kernels.torch_ops import TorchOps
from evenflow.models.moe import SparseMoe
from evenflow.models.registry import build_model
from evenflow.models.spec import ModelSpec, MoeSpec

HIDDEN_SIZE, NUM_EXPERTS, EXPERTS_PER_TOKEN = 24, 16, 8


def row_by_row_router(x: torch.Tensor) -> torch.Tensor:
    weight = torch.randn(NUM_EXPERTS, HIDDEN_SIZE, generator=torch.Generator().manual_seed(1))
    return torch.stack([weight @ row for row in x])


def sparse_moe(norm_topk_prob: bool) -> SparseMoe:
    experts = [lambda x, factor=factor: x * (factor + 1.1) for factor in range(NUM_EXPERTS)]
    moe = MoeSpec(NUM_EXPERTS, EXPERTS_PER_TOKEN, HIDDEN_SIZE, norm_topk_prob)
    return SparseMoe(row_by_row_router, experts, moe)


@pytest.mark.parametrize("norm_topk_prob", [True, False])
def test_sparse_moe_gives_a_token_the_same_bits_whatever_its_batch(norm_topk_prob: bool) -> None:
    block = sparse_moe(norm_topk_prob)
    x = torch.randn(37, HIDDEN_SIZE, generator=torch.Generator().manual_seed(2))
    together = block(x)
    for num_tokens in (1, 2, 3, 5, 8, 17, 36):
        assert torch.equal(block(x[:num_tokens]), together[:num_tokens])
        assert torch.equal(block(x[37 - num_tokens :]), together[37 - num_tokens :])


@pytest.mark.parametrize("norm_topk_prob", [True, False])
def test_sparse_moe_equals_the_sum_over_chosen_experts(norm_topk_prob: bool) -> None:
    x = torch.randn(9, HIDDEN_SIZE, generator=torch.Generator().manual_seed(3))
    probabilities, chosen = row_by_row_router(x).softmax(-1).topk(EXPERTS_PER_TOKEN)
    if norm_topk_prob:
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    expected = x * (probabilities * (chosen + 1.1)).sum(-1, keepdim=True)
    torch.testing.assert_close(sparse_moe(norm_topk_prob)(x), expected)


@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe"])
def test_build_model_refuses_when_a_mixture_has_no_experts(architecture: str) -> None:
    spec = ModelSpec(
        architecture=architecture,
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=8,
    )
    with pytest.raises(ModelFormatError, match="names no experts"):
        build_model(spec, MemoryWeights({}), TorchOps())
