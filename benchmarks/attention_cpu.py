"""Paged attention on the CPU against torch's scaled_dot_product_attention.

Our kernel reads scattered blocks in place. It is compared with torch, called once per request, on

- `contiguous`: keys and values that already lie contiguously, as in no paged cache (a bound);
- `gathered`: keys and values gathered from the same scattered blocks first, as one would without
  a paged kernel.

All of them run in turn, round after round, over the memory of several layers. Times are medians.

The last line of stdout is JSON:

- `us`: microseconds per layer, by case and way (`ours`, `contiguous`, `gathered`);
- `ratio`: torch's time divided by ours, by case and way (above 1: ours is faster);
- `heads`: query heads, KV heads and entries per head;
- `threads`: torch.get_num_threads().

A case is named by its requests, new tokens each, and context after the step: `decode_8x1@512`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from evenflow.execution.batch import ForwardBatch
from evenflow.execution.kernels.cpu_attention import CpuPagedAttention
from evenflow.execution.torch.kv_store import KVStore

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
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    shape = (options.heads, options.kv_heads, options.head_dim)
    cases = [(1, 1, 512), (8, 1, 512), (32, 1, 512), (1, 256, 512)]
    if not options.quick:
        cases += [(1, 1, 4096), (8, 1, 2048), (1, 512, 512), (1, 256, 4096)]
    medians = {}
    for case in cases:
        kind = "decode" if case[1] == 1 else "prefill"
        name = f"{kind}_{case[0]}x{case[1]}@{case[2]}"
        with torch.inference_mode():
            medians[name] = measure(ways(*case, *shape), seconds=3 if options.quick else 10)
        print(name, {way: round(us, 1) for way, us in medians[name].items()}, file=sys.stderr)
    report = {
        "us": medians,
        "ratio": {
            name: {way: us / found["ours"] for way, us in found.items() if way != "ours"}
            for name, found in medians.items()
        },
        "heads": shape,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(report))


def ways(
    num_requests: int, num_new: int, context: int, num_heads: int, num_kv_heads: int, head_dim: int
) -> dict[str, Way]:
    """Return each way to attend, as a function of the layer."""
    num_blocks = -(-context // BLOCK_SIZE)
    store = KVStore(
        num_requests * num_blocks, NUM_LAYERS, num_kv_heads, head_dim, block_size=BLOCK_SIZE
    )
    store.data.normal_()
    tables = torch.randperm(num_requests * num_blocks).view(num_requests, num_blocks)
    where = torch.arange(context - num_new, context)
    slots = tables[:, where // BLOCK_SIZE] * BLOCK_SIZE + where % BLOCK_SIZE
    num_tokens = num_requests * num_new
    batch = ForwardBatch(
        token_ids=torch.zeros(num_tokens, dtype=torch.int64),
        positions=where.repeat(num_requests),
        slot_mapping=slots.flatten(),
        query_starts=torch.arange(0, num_tokens + 1, num_new, dtype=torch.int32),
        context_lens=torch.full((num_requests,), context, dtype=torch.int32),
        block_tables=tables.int(),
    )
    q = torch.randn(num_tokens, num_heads, head_dim)
    k, v = torch.randn(2, num_tokens, num_kv_heads, head_dim)
    attention = CpuPagedAttention(store)
    scale = head_dim**-0.5

    # For torch: (num_requests, 1, heads, tokens, head_dim), and a mask when rows differ.
    queries = q.view(num_requests, 1, num_new, num_heads, head_dim).transpose(2, 3).contiguous()
    keys, values = torch.randn(
        2, NUM_LAYERS, num_requests, 1, num_kv_heads, context, head_dim
    ).unbind(0)
    causal = num_new == context
    mask = None if causal or num_new == 1 else torch.arange(context) <= where[:, None]

    def torch_attention(request: int, key: torch.Tensor, value: torch.Tensor) -> None:
        F.scaled_dot_product_attention(
            queries[request], key, value, attn_mask=mask, is_causal=causal, enable_gqa=True
        )

    def ours(layer: int) -> None:
        attention.attend(layer, q, k, v, batch, scale=scale)

    def contiguous(layer: int) -> None:
        for request in range(num_requests):
            torch_attention(request, keys[layer, request], values[layer, request])

    def gather(cache: torch.Tensor, request: int) -> torch.Tensor:
        blocks = cache[tables[request]].transpose(0, 1)
        return blocks.reshape(1, num_kv_heads, -1, head_dim)[:, :, :context]

    def gathered(layer: int) -> None:
        for request in range(num_requests):
            key = gather(store.keys(layer), request)
            torch_attention(request, key, gather(store.values(layer), request))

    return {"ours": ours, "contiguous": contiguous, "gathered": gathered}


def measure(ways: dict[str, Way], seconds: float) -> dict[str, float]:
    """Return the median microseconds of each way, all run in turn for about `seconds`."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way(0)
    begin = time.perf_counter()
    layer = 0
    while time.perf_counter() - begin < seconds:
        layer = (layer + 1) % NUM_LAYERS
        for name, way in ways.items():
            start = time.perf_counter()
            way(layer)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) * 1e6 for name, found in times.items()}


if __name__ == "__main__":
    main()
