"""Paged attention on the CPU: our kernels, both KV layouts, all KV types, and torch's attention.

Each way attends over the same requests with its own KV memory of several layers:

- `native`, `portable`: our kernels in C++ (the best set the processor can run) and in numba, over
  scattered block-first blocks of fp32; `avx2` and so on: another set, where --isa names it;
- `layer_first`, `bf16`, `int8`: `native` over the other layout, and over blocks of other types;
- `contiguous`: torch's scaled_dot_product_attention, once per request, over keys and values that
  already lie contiguously, as in no paged cache (a bound);
- `gathered`: the same over keys and values gathered from scattered blocks first;
- `read`: torch sums as many contiguous bytes as there are fp32 keys and values: what memory gives.

All of them run in turn, in another order in each round. Times are medians.

The last line of stdout is JSON:

- `us`: microseconds per layer, by case and way;
- `ratio`: a way's time divided by that of `native`, by case and way (above 1: `native` is faster);
- `layout_ratio`: time of `native` over block-first divided by that over layer-first blocks, by case
  (above 1: block-first blocks cost time);
- `gbps`: bytes of keys and values per second, in units of 10^9, by decode case and way;
- `heads`: query heads, KV heads and entries per head;
- `threads`: torch.get_num_threads().

A case is named by its requests, new tokens each, and context after the step: `decode_8x1@512`.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from evenflow.execution.attention import Rotation
from evenflow.execution.batch import ForwardBatch
from evenflow.execution.kernels.cpu_attention import CpuPagedAttention
from evenflow.execution.kernels.cpu_kernels import CpuKernels, portable_kernels
from evenflow.execution.kernels.native.library import ISAS, load_native_kernels
from evenflow.execution.torch.kv_rows import KV_DTYPES, encode
from evenflow.execution.torch.kv_store import KVLayout, KVStore

NUM_LAYERS = 4  # more memory than one layer's, as in a model: the caches do not keep it all
BLOCK_SIZE = 16

Way = Callable[[int], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer cases and rounds, under 50 s")
    parser.add_argument("--heads", type=int, default=9, help="query heads")
    parser.add_argument("--kv-heads", type=int, default=3, help="key and value heads")
    parser.add_argument("--head-dim", type=int, default=64, help="entries per head")
    parser.add_argument("--threads", type=int, default=None, help="default: what torch takes")
    parser.add_argument("--isa", nargs="*", choices=ISAS, default=[], help="other kernels, too")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    shape = (options.heads, options.kv_heads, options.head_dim)
    kernels = {"native": load_native_kernels(), "portable": portable_kernels()}
    kernels |= {isa: load_native_kernels(isa) for isa in options.isa}
    cases = [(1, 1, 512), (8, 1, 512), (32, 1, 512), (1, 256, 512)]
    if not options.quick:
        cases += [(1, 1, 4096), (8, 1, 2048), (1, 512, 512), (1, 256, 4096)]
    medians, gbps = {}, {}
    for case in cases:
        kind = "decode" if case[1] == 1 else "prefill"
        name = f"{kind}_{case[0]}x{case[1]}@{case[2]}"
        scene = Scene(*case, *shape)
        with torch.inference_mode():
            medians[name] = measure(ways(scene, kernels), seconds=6 if options.quick else 20)
        if kind == "decode":
            gbps[name] = {
                way: scene.kv_bytes(KV_DTYPES.get(way, torch.float32)) / us / 1e3
                for way, us in medians[name].items()
            }
        print(name, {way: round(us, 1) for way, us in medians[name].items()}, file=sys.stderr)
    report = {
        "us": medians,
        "ratio": {
            name: {way: us / found["native"] for way, us in found.items() if way != "native"}
            for name, found in medians.items()
        },
        "layout_ratio": {
            name: found["native"] / found["layer_first"] for name, found in medians.items()
        },
        "gbps": gbps,
        "heads": shape,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(report))


class Scene:
    """Requests that have context and a few new tokens each.

    Attributes:
        q: (num_tokens, num_heads, head_dim).
        k: (num_tokens, num_kv_heads, head_dim).
        v: (num_tokens, num_kv_heads, head_dim).
    """

    def __init__(
        self,
        num_requests: int,
        num_new: int,
        context: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
    ) -> None:
        self.num_requests, self.num_new, self.context = num_requests, num_new, context
        self.num_kv_heads, self.head_dim = num_kv_heads, head_dim
        self.num_blocks = num_requests * -(-context // BLOCK_SIZE)
        tables = torch.randperm(self.num_blocks).view(num_requests, -1)
        where = torch.arange(context - num_new, context)
        slots = tables[:, where // BLOCK_SIZE] * BLOCK_SIZE + where % BLOCK_SIZE
        num_tokens = num_requests * num_new
        self.batch = ForwardBatch(
            token_ids=torch.zeros(num_tokens, dtype=torch.int64),
            positions=where.repeat(num_requests),
            slot_mapping=slots.flatten(),
            query_starts=torch.arange(0, num_tokens + 1, num_new, dtype=torch.int32),
            context_lens=torch.full((num_requests,), context, dtype=torch.int32),
            block_tables=tables.int(),
        )
        self.q = torch.randn(num_tokens, num_heads, head_dim)
        self.k, self.v = torch.randn(2, num_tokens, num_kv_heads, head_dim)
        # By no angle, since q is turned again and again.
        cos = torch.ones(num_tokens, head_dim // 2)
        self.rotation = Rotation(cos, torch.zeros_like(cos))

    def kv_bytes(self, dtype: torch.dtype) -> int:
        """Return what keys and values of one layer take."""
        shape = (1, self.num_kv_heads, self.head_dim, self.num_requests * self.context)
        return KVStore.bytes_per_block(*shape, dtype)

    def store(
        self, layout: KVLayout = "block_first", dtype: torch.dtype = torch.float32
    ) -> KVStore:
        """Return KV memory that is full of numbers."""
        store = KVStore(
            self.num_blocks,
            NUM_LAYERS,
            self.num_kv_heads,
            self.head_dim,
            BLOCK_SIZE,
            layout,
            dtype,
        )
        entries = torch.randn(*store.blocks.shape[:-1], self.head_dim)
        store.blocks.copy_(encode(entries, dtype))
        return store

    def ours(self, store: KVStore, kernels: CpuKernels) -> Way:
        """Return our way to attend."""
        attention = CpuPagedAttention(store, kernels)
        scale = self.head_dim**-0.5

        def way(layer: int) -> None:
            attention.rotate_store(layer, self.q, self.k, self.v, self.rotation, self.batch)
            attention.attend(layer, self.q, self.batch, scale=scale)

        return way


def ways(scene: Scene, kernels: dict[str, CpuKernels]) -> dict[str, Way]:
    """Return each way to attend, as a function of the layer."""
    native = kernels["native"]
    found = {name: scene.ours(scene.store(), chosen) for name, chosen in kernels.items()}
    found["layer_first"] = scene.ours(scene.store("layer_first"), native)
    for name in ("bf16", "int8"):
        found[name] = scene.ours(scene.store(dtype=KV_DTYPES[name]), native)
    memory = torch.randn(NUM_LAYERS, scene.kv_bytes(torch.float32) // 4)
    return {**found, **torch_ways(scene), "read": lambda layer: memory[layer].sum()}


def torch_ways(scene: Scene) -> dict[str, Way]:
    """Return torch's ways to attend, over contiguous and over gathered keys and values."""
    store = scene.store()
    num_requests, context = scene.num_requests, scene.context
    # (num_requests, 1, heads, tokens, head_dim), and a mask when rows differ.
    queries = scene.q.view(num_requests, 1, scene.num_new, -1, scene.head_dim)
    queries = queries.transpose(2, 3).contiguous()
    keys, values = torch.randn(
        2, NUM_LAYERS, num_requests, 1, scene.num_kv_heads, context, scene.head_dim
    ).unbind(0)
    causal = scene.num_new == context
    positions = scene.batch.positions[: scene.num_new, None]
    mask = None if causal or scene.num_new == 1 else torch.arange(context) <= positions

    def attend(request: int, key: torch.Tensor, value: torch.Tensor) -> None:
        F.scaled_dot_product_attention(
            queries[request], key, value, attn_mask=mask, is_causal=causal, enable_gqa=True
        )

    def contiguous(layer: int) -> None:
        for request in range(num_requests):
            attend(request, keys[layer, request], values[layer, request])

    def gather(cache: torch.Tensor, request: int) -> torch.Tensor:
        blocks = cache[scene.batch.block_tables[request]].transpose(0, 1)
        return blocks.reshape(1, scene.num_kv_heads, -1, scene.head_dim)[:, :, :context]

    def gathered(layer: int) -> None:
        for request in range(num_requests):
            key = gather(store.keys(layer), request)
            attend(request, key, gather(store.values(layer), request))

    return {"contiguous": contiguous, "gathered": gathered}


def measure(ways: dict[str, Way], seconds: float) -> dict[str, float]:
    """Return the median microseconds of each way, all run in turn for about `seconds`."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way(0)
    begin = time.perf_counter()
    order, layer, turns = list(ways), 0, random.Random(0)
    while time.perf_counter() - begin < seconds:
        layer = (layer + 1) % NUM_LAYERS
        for name in order:
            start = time.perf_counter()
            ways[name](layer)
            times[name].append(time.perf_counter() - start)
        turns.shuffle(order)  # what ran before leaves the caches and threads in some state
    return {name: statistics.median(found) * 1e6 for name, found in times.items()}


if __name__ == "__main__":
    main()
