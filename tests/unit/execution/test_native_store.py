"""Rotation and store in one kernel: accuracy, bits, and memory beside heads and slots."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from evenflow.execution.attention import Rotation
from evenflow.execution.kernels.attention_job import KV_TYPES
from evenflow.execution.kernels.jobs import ROTATE_STORE_LAYOUT, RotateStoreJob
from evenflow.execution.kernels.parallel import Arguments, ThreadTeam
from evenflow.execution.kernels.reference import rotated
from evenflow.execution.torch.kv_rows import KV_DTYPES, decode, encode, row_width
from support.kernel_sets import KERNEL_SETS, NATIVE_SETS, kernel_set

NUM_BLOCKS, BLOCK_SIZE, NUM_HEADS, NUM_KV_HEADS = 9, 4, 6, 3
NUM_TOKENS = 21
UNTOUCHED = 3.0
EPSILON = 2.0**-24  # half an ulp, relative to 1


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def empty_cache(head_dim: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return (2, num_blocks, num_kv_heads, block_size, row_width): keys and values."""
    shape = (2, NUM_BLOCKS, NUM_KV_HEADS, BLOCK_SIZE, row_width(head_dim, dtype))
    return torch.full(shape, UNTOUCHED, dtype=dtype)


@dataclass
class Step:
    """New tokens whose heads lie between others', with entries behind them."""

    heads: torch.Tensor
    head_dim: int
    num_pairs: int
    slots: torch.Tensor

    @classmethod
    def of(cls, head_dim: int, num_pairs: int) -> Step:
        heads = random(NUM_TOKENS, 1 + NUM_HEADS + 2 * NUM_KV_HEADS, head_dim + 3)
        slots = torch.randperm(NUM_BLOCKS * BLOCK_SIZE, generator=torch.Generator().manual_seed(2))
        return cls(heads, head_dim, num_pairs, slots[:NUM_TOKENS])

    @property
    def q(self) -> torch.Tensor:
        return self.heads[:, 1 : 1 + NUM_HEADS, : self.head_dim]

    @property
    def k(self) -> torch.Tensor:
        return self.heads[:, 1 + NUM_HEADS : -NUM_KV_HEADS, : self.head_dim]

    @property
    def v(self) -> torch.Tensor:
        return self.heads[:, -NUM_KV_HEADS:, : self.head_dim]

    @property
    def rotation(self) -> Rotation:
        angles = 10 * random(NUM_TOKENS, self.num_pairs + 1, seed=1)
        return Rotation(angles.cos()[:, : self.num_pairs], angles.sin()[:, : self.num_pairs])

    def run(self, name: str, cache: torch.Tensor, num_tokens: int = NUM_TOKENS) -> torch.Tensor:
        """Store the first tokens and return all heads as the kernel leaves them."""
        heads = self.heads.clone()
        step = Step(heads, self.head_dim, self.num_pairs, self.slots)
        rotate_store(name, cache, step.q[:num_tokens], step.k, step.v, step.rotation, self.slots)
        return heads

    def stored(self, cache: torch.Tensor) -> torch.Tensor:
        """Return what lies in the slots: keys and values, (2, num_tokens, heads, head_dim)."""
        return cache[:, self.slots // BLOCK_SIZE, :, self.slots % BLOCK_SIZE].transpose(0, 1)


def rotate_store(
    name: str,
    cache: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    rotation: Rotation,
    slots: torch.Tensor,
) -> None:
    block_bytes, head_bytes, token_bytes = (s * cache.element_size() for s in cache[0].stride()[:3])
    job = RotateStoreJob(
        num_tokens=q.shape[0],
        num_heads=q.shape[1],
        num_kv_heads=k.shape[1],
        head_dim=q.shape[2],
        num_pairs=rotation.cos.shape[1],
        queries=q.data_ptr(),
        query_token_bytes=4 * q.stride(0),
        query_head_bytes=4 * q.stride(1),
        source_keys=k.data_ptr(),
        key_token_bytes=4 * k.stride(0),
        key_head_bytes=4 * k.stride(1),
        source_values=v.data_ptr(),
        value_token_bytes=4 * v.stride(0),
        value_head_bytes=4 * v.stride(1),
        cos=rotation.cos.data_ptr(),
        sin=rotation.sin.data_ptr(),
        table_token_bytes=4 * rotation.cos.stride(0),
        slots=slots.data_ptr(),
        keys=cache[0].data_ptr(),
        values=cache[1].data_ptr(),
        block_bytes=block_bytes,
        head_bytes=head_bytes,
        token_bytes=token_bytes,
        block_size=BLOCK_SIZE,
        kv_type=[KV_DTYPES[name] for name in KV_TYPES].index(cache.dtype),
    )
    ThreadTeam().run(kernel_set(name).rotate_store, Arguments(ROTATE_STORE_LAYOUT).pack(*job))


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


SHAPES = [(1, 0), (7, 3), (16, 8), (20, 10), (34, 17), (64, 32), (80, 15), (96, 31), (256, 128)]
"""Entries of a head, and its pairs that are turned."""


@pytest.mark.parametrize(("head_dim", "num_pairs"), SHAPES)
@pytest.mark.parametrize("name", KERNEL_SETS)
def test_rotate_store_equals_float64_and_writes_its_heads_and_slots_only(
    name: str, head_dim: int, num_pairs: int
) -> None:
    step, cache = Step.of(head_dim, num_pairs), empty_cache(head_dim)
    left = step.run(name, cache)
    keys, values = step.stored(cache)
    rotation = step.rotation
    # Three roundings of products and sums that may cancel: relative to the products.
    bound = 3 * EPSILON * 2 * float(step.heads.abs().max())
    found_q = left[:, 1 : 1 + NUM_HEADS, :head_dim]
    for found, before in [(found_q, step.q), (keys, step.k)]:
        exact = rotated(before.double(), rotation)
        torch.testing.assert_close(found.double(), exact, rtol=0, atol=bound)
        behind = slice(2 * num_pairs, None)
        assert torch.equal(found[..., behind], before[..., behind])
    assert torch.equal(values, step.v)
    left[:, 1 : 1 + NUM_HEADS, :head_dim] = step.q
    assert torch.equal(left, step.heads)
    cache[:, step.slots // BLOCK_SIZE, :, step.slots % BLOCK_SIZE] = UNTOUCHED
    assert torch.equal(cache, empty_cache(head_dim))


@pytest.mark.parametrize(("head_dim", "num_pairs"), SHAPES)
@pytest.mark.parametrize("name", NATIVE_SETS)
def test_rotate_store_rounds_turned_keys_once_when_the_store_is_bf16(
    name: str, head_dim: int, num_pairs: int
) -> None:
    step = Step.of(head_dim, num_pairs)
    wide, narrow = empty_cache(head_dim), empty_cache(head_dim, torch.bfloat16)
    assert torch.equal(step.run(name, narrow), step.run(name, wide))
    assert torch.equal(narrow, wide.bfloat16())


@pytest.mark.parametrize(("head_dim", "num_pairs"), SHAPES)
@pytest.mark.parametrize("name", NATIVE_SETS)
def test_rotate_store_rounds_turned_heads_to_codes_when_the_store_is_int8(
    name: str, head_dim: int, num_pairs: int
) -> None:
    step = Step.of(head_dim, num_pairs)
    wide, narrow = empty_cache(head_dim), empty_cache(head_dim, torch.int8)
    assert torch.equal(step.run(name, narrow), step.run(name, wide))
    assert torch.equal(step.stored(narrow), encode(step.stored(wide), torch.int8))
    narrow[:, step.slots // BLOCK_SIZE, :, step.slots % BLOCK_SIZE] = int(UNTOUCHED)
    assert torch.equal(narrow, empty_cache(head_dim, torch.int8))


@pytest.mark.parametrize("name", NATIVE_SETS)
def test_rotate_store_rounds_extremes_to_codes_as_the_slow_way_does(name: str) -> None:
    head_dim, tiny = 24, 2.0**-100
    k, v = torch.zeros(2, 1, NUM_KV_HEADS, head_dim)
    k[0, 0] = torch.linspace(-127, 127, head_dim).round() + 0.5  # ties
    k[0, 1, :3] = torch.tensor([torch.inf, 1.0, -2.0])
    k[0, 2, 20] = torch.nan
    v[0, 0, 5] = tiny
    v[0, 1, 5] = -torch.nextafter(torch.tensor(tiny), torch.tensor(0.0))
    v[0, 2] = torch.full((head_dim,), torch.finfo(torch.float32).max)
    cache = empty_cache(head_dim, torch.int8)
    no_rotation = Rotation(torch.empty(1, 0), torch.empty(1, 0))
    rotate_store(name, cache, k.clone(), k, v, no_rotation, torch.tensor([2]))
    found = cache[:, 0, :, 2]
    entries = torch.stack([k[0], v[0]])
    torch.testing.assert_close(
        decode(found), decode(encode(entries, torch.int8)), rtol=0, atol=0, equal_nan=True
    )
    assert decode(found)[0, 1:].isnan().all()


@pytest.mark.parametrize("name", KERNEL_SETS)
def test_rotate_store_gives_tokens_the_same_bits_in_any_company(
    name: str, two_threads: None
) -> None:
    step, whole = Step.of(64, 32), empty_cache(64)
    left = step.run(name, whole)
    torch.set_num_threads(1)
    for num_tokens in (1, 2, 9, NUM_TOKENS):
        cache = empty_cache(64)
        assert torch.equal(step.run(name, cache, num_tokens)[:num_tokens], left[:num_tokens])
        stored, expected = step.stored(cache), step.stored(whole)
        assert torch.equal(stored[:, :num_tokens], expected[:, :num_tokens])


@pytest.mark.parametrize("name", KERNEL_SETS)
def test_rotate_store_only_turns_the_queries_of_tokens_without_a_slot(name: str) -> None:
    step, cache, expected = Step.of(8, 4), empty_cache(8), empty_cache(8)
    left = step.run(name, expected)
    at = step.slots[[0, 7]]
    expected[:, at // BLOCK_SIZE, :, at % BLOCK_SIZE] = UNTOUCHED
    step.slots[[0, 7]] = torch.tensor([-1, -5])
    assert torch.equal(step.run(name, cache), left)
    assert torch.equal(cache, expected)


@pytest.mark.parametrize("name", KERNEL_SETS)
def test_rotate_store_follows_the_strides_of_a_layout_with_heads_inside_tokens(name: str) -> None:
    step, expected = Step.of(8, 4), empty_cache(8)
    cache = torch.full((2, NUM_BLOCKS, BLOCK_SIZE, NUM_KV_HEADS, 8), UNTOUCHED).transpose(2, 3)
    step.run(name, cache)
    step.run(name, expected)
    assert torch.equal(cache, expected)


@pytest.mark.parametrize("name", NATIVE_SETS)
def test_rotate_store_rounds_to_bf16_as_torch_does(name: str) -> None:
    """All upper halves of a float's bits, each with lower halves at and beside the ties."""
    upper = torch.arange(1 << 16, dtype=torch.int64) << 16
    lower = torch.tensor([0x0000, 0x0001, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    bits = (upper[:, None] | lower).flatten()
    values = bits.to(torch.uint32).view(torch.float32)
    head_dim = values.numel() // (NUM_KV_HEADS * 2)
    k, v = values.view(2, 1, NUM_KV_HEADS, head_dim)
    cache = empty_cache(head_dim, torch.bfloat16)[:, :1]
    cache = cache.contiguous()
    no_rotation = Rotation(torch.empty(1, 0), torch.empty(1, 0))
    rotate_store(name, cache, k.clone(), k, v, no_rotation, torch.tensor([2]))
    found = cache[:, 0, :, 2].reshape(-1)
    torch.testing.assert_close(found, values.bfloat16(), rtol=0, atol=0, equal_nan=True)
