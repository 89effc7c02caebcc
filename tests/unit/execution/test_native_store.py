from __future__ import annotations

import pytest
import torch

from evenflow.execution.kernels.jobs import STORE_LAYOUT, StoreJob
from evenflow.execution.kernels.parallel import Arguments, ThreadTeam
from support.kernel_sets import KERNEL_SETS, NATIVE_SETS, kernel_set

NUM_BLOCKS, BLOCK_SIZE, NUM_KV_HEADS = 9, 4, 3
NUM_TOKENS = 21
UNTOUCHED = 3.0


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def empty_cache(head_dim: int, dtype: torch.dtype) -> torch.Tensor:
    """Return (2, num_blocks, num_kv_heads, block_size, head_dim): keys and values."""
    shape = (2, NUM_BLOCKS, NUM_KV_HEADS, BLOCK_SIZE, head_dim)
    return torch.full(shape, UNTOUCHED, dtype=dtype)


def write(
    name: str, cache: torch.Tensor, k: torch.Tensor, v: torch.Tensor, slots: torch.Tensor
) -> None:
    block_bytes, head_bytes, token_bytes = (s * cache.element_size() for s in cache[0].stride()[:3])
    job = StoreJob(
        num_tokens=k.shape[0],
        num_kv_heads=k.shape[1],
        head_dim=k.shape[2],
        source_keys=k.data_ptr(),
        key_token_bytes=4 * k.stride(0),
        key_head_bytes=4 * k.stride(1),
        source_values=v.data_ptr(),
        value_token_bytes=4 * v.stride(0),
        value_head_bytes=4 * v.stride(1),
        slots=slots.data_ptr(),
        keys=cache[0].data_ptr(),
        values=cache[1].data_ptr(),
        block_bytes=block_bytes,
        head_bytes=head_bytes,
        token_bytes=token_bytes,
        block_size=BLOCK_SIZE,
        is_bf16=int(cache.dtype == torch.bfloat16),
    )
    ThreadTeam().run(kernel_set(name).store, Arguments(STORE_LAYOUT).pack(*job))


CASES = [
    *((name, torch.float32) for name in KERNEL_SETS),
    *((name, torch.bfloat16) for name in NATIVE_SETS),
]


@pytest.mark.parametrize("head_dim", [7, 16, 20, 64, 80, 256])
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_store_writes_its_slots_only(name: str, dtype: torch.dtype, head_dim: int) -> None:
    k = random(NUM_TOKENS, NUM_KV_HEADS + 1, head_dim)[:, 1:]
    v = random(NUM_TOKENS, NUM_KV_HEADS, head_dim + 5, seed=1)[..., :head_dim]
    slots = torch.randperm(NUM_BLOCKS * BLOCK_SIZE, generator=torch.Generator().manual_seed(2))
    slots = slots[:NUM_TOKENS]
    cache, expected = empty_cache(head_dim, dtype), empty_cache(head_dim, dtype)
    write(name, cache, k, v, slots)
    blocks, offsets = slots // BLOCK_SIZE, slots % BLOCK_SIZE
    expected[0, blocks, :, offsets] = k.to(dtype)
    expected[1, blocks, :, offsets] = v.to(dtype)
    assert torch.equal(cache, expected)


@pytest.mark.parametrize("name", KERNEL_SETS)
def test_store_follows_the_strides_of_a_layout_with_heads_inside_tokens(name: str) -> None:
    k, v = random(5, NUM_KV_HEADS, 8), random(5, NUM_KV_HEADS, 8, seed=1)
    cache = torch.zeros(2, NUM_BLOCKS, BLOCK_SIZE, NUM_KV_HEADS, 8).transpose(2, 3)
    write(name, cache, k, v, torch.arange(2, 7))
    tokens = cache.transpose(2, 3).reshape(2, -1, NUM_KV_HEADS, 8)
    assert torch.equal(tokens[:, 2:7], torch.stack([k, v]))
    assert not tokens[:, :2].any()
    assert not tokens[:, 7:].any()


@pytest.mark.parametrize("name", NATIVE_SETS)
def test_store_rounds_to_bf16_as_torch_does(name: str) -> None:
    """All upper halves of a float's bits, each with lower halves at and beside the ties."""
    upper = torch.arange(1 << 16, dtype=torch.int64) << 16
    lower = torch.tensor([0x0000, 0x0001, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    bits = (upper[:, None] | lower).flatten()
    values = bits.to(torch.uint32).view(torch.float32)
    head_dim = values.numel() // (NUM_KV_HEADS * 2)
    k, v = values.view(2, 1, NUM_KV_HEADS, head_dim)
    cache = empty_cache(head_dim, torch.bfloat16)[:, :1]
    cache = cache.contiguous()
    write(name, cache, k, v, torch.tensor([2]))
    found = cache[:, 0, :, 2].reshape(-1)
    torch.testing.assert_close(found, values.bfloat16(), rtol=0, atol=0, equal_nan=True)
