"""Paged attention of the GPU back end: how right, how fast, how near to what the GPU can do."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from triton.errors import TritonError

from evenflow.execution.attention import Rotation
from evenflow.execution.batch import ForwardBatch
from evenflow.execution.kernels.reference import ReferenceAttention
from evenflow.execution.kernels.triton.attention import TritonAttention
from evenflow.execution.kernels.triton.tiles import Tiles, candidate_tiles
from evenflow.execution.torch.kv_store import KVLayout, KVStore
from gpu_model import BLOCK_SIZE, DEVICE, DTYPE, LLAMA_3_8B, make_store
from gpu_timing import seconds

Case = tuple[int, int, int]
"""Requests, new tokens of each, tokens of each once they are computed."""

PREFILL: list[Case] = [(1, 4096, 4096), (8, 2048, 2048), (1, 2048, 8192), (1, 16384, 16384)]
DECODE: list[Case] = [(1, 1, 32768), (8, 1, 8192), (32, 1, 2048), (32, 1, 8192), (256, 1, 1024)]
LAYOUTS: tuple[KVLayout, ...] = ("block_first", "layer_first")

_HEADS, _KV_HEADS, _HEAD_DIM = LLAMA_3_8B.num_heads, LLAMA_3_8B.num_kv_heads, LLAMA_3_8B.head_dim
_SCALE = LLAMA_3_8B.scale
_NUM_LAYERS = 2  # so that a layer's blocks do not lie side by side
_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


class Step:
    """A batch of one shape with its KV memory, whose blocks are scattered.

    Args:
        counts: new tokens of each request.
        lengths: tokens of each request once they are computed.
        layout: of the KV memory.
    """

    def __init__(
        self, counts: list[int], lengths: list[int], layout: KVLayout = "block_first"
    ) -> None:
        widths = [-(-length // BLOCK_SIZE) for length in lengths]
        ids = torch.randperm(sum(widths)).split(widths)
        tables = torch.zeros(len(counts), max(widths), dtype=torch.int32)
        positions, slots = [], []
        for row, (count, length) in enumerate(zip(counts, lengths, strict=True)):
            tables[row, : widths[row]] = ids[row]
            at = torch.arange(length - count, length)
            positions.append(at)
            slots.append(ids[row][at // BLOCK_SIZE] * BLOCK_SIZE + at % BLOCK_SIZE)
        starts = torch.tensor([0, *counts]).cumsum(0)
        self.store: KVStore = make_store(sum(widths), layout, num_layers=_NUM_LAYERS)
        self.store.data.normal_()
        self.batch = ForwardBatch(
            torch.zeros(sum(counts), dtype=torch.int64),
            torch.cat(positions),
            torch.cat(slots),
            starts.to(torch.int32),
            torch.tensor(lengths, dtype=torch.int32),
            tables,
        ).to(lambda tensor: tensor.to(DEVICE))
        num_tokens = sum(counts)
        self.q = _random(num_tokens, _HEADS, _HEAD_DIM)
        self.k, self.v = (_random(num_tokens, _KV_HEADS, _HEAD_DIM) for _ in range(2))
        # By no angle, since q is turned again and again.
        cos = torch.ones(num_tokens, _HEAD_DIM // 2, device=DEVICE)
        self.rotation = Rotation(cos, torch.zeros_like(cos))

    def attend(self, attention: TritonAttention | ReferenceAttention) -> torch.Tensor:
        """Write the step's keys and values and attend."""
        attention.rotate_store(0, self.q, self.k, self.v, self.rotation, self.batch)
        return attention.attend(0, self.q, self.batch, scale=_SCALE)


def errors() -> dict[str, float]:
    """Return |out - reference| / |reference| of a mixed batch with awkward lengths, by layout."""
    found: dict[str, float] = {}
    for layout in LAYOUTS:
        step = Step([1, 300, 1, 17, 1, 64], [1, 300, 1025, 517, 4000, 777], layout)
        expected = step.attend(ReferenceAttention(step.store)).double()
        out = step.attend(TritonAttention(step.store)).double()
        found[layout] = float((out - expected).norm() / expected.norm())
    return found


def prefill(*, quick: bool) -> dict[str, dict[str, float]]:
    """Time attention of prompts against torch's back ends; TFLOP/s by case."""
    cases = {}
    for num_requests, count, length in PREFILL[:2] if quick else PREFILL:
        flops = 4.0 * num_requests * _HEADS * _HEAD_DIM * count * (length - count / 2)
        case: dict[str, float] = {}
        for layout in LAYOUTS:
            step = Step([count] * num_requests, [length] * num_requests, layout)
            attention = TritonAttention(step.store)
            run_s = seconds(lambda step=step, attention=attention: step.attend(attention))
            case[layout] = flops / run_s / 1e12
        for name, run in _torch_ways(num_requests, count, length).items():
            case[name] = flops / seconds(run) / 1e12
        case["ratio"] = case["block_first"] / max(case.get(name, 0.0) for name in _BACKENDS)
        cases[f"{num_requests}x{count}@{length}"] = case
        _print("prefill", num_requests, count, length, case, "TFLOP/s")
    return cases


def decode(copy_tbs: float, *, quick: bool) -> dict[str, dict[str, float]]:
    """Time attention of one token each; TB/s of keys and values by case."""
    cases = {}
    for num_requests, count, length in DECODE[1:4] if quick else DECODE:
        num_bytes = 2 * num_requests * length * _KV_HEADS * _HEAD_DIM * DTYPE.itemsize
        case: dict[str, float] = {}
        for layout in LAYOUTS:
            step = Step([count] * num_requests, [length] * num_requests, layout)
            attention = TritonAttention(step.store)
            run_s = seconds(lambda step=step, attention=attention: step.attend(attention))
            case[layout] = num_bytes / run_s / 1e12
        case["copy_ratio"] = case["block_first"] / copy_tbs
        cases[f"{num_requests}x{count}@{length}"] = case
        _print("decode", num_requests, count, length, case, "TB/s")
    return cases


def sweep() -> None:
    """Print the times of other tile sizes."""
    capability = torch.cuda.get_device_capability()
    for name, (num_requests, count, length) in (("prefill", PREFILL[0]), ("decode", DECODE[3])):
        step = Step([count] * num_requests, [length] * num_requests)
        chosen, *others = candidate_tiles(_HEAD_DIM, DTYPE, capability)
        for tiles in [chosen, *others]:
            if tiles is chosen or getattr(tiles, name) != getattr(chosen, name):
                _print_tiles(name, step, tiles)


def _print_tiles(name: str, step: Step, tiles: Tiles) -> None:
    attention = TritonAttention(step.store, tiles)
    try:
        took = f"{seconds(lambda: step.attend(attention)) * 1e6:8.1f} us"
    except (RuntimeError, TritonError) as error:  # what does not fit a GPU is an answer, too
        took = type(error).__name__
    print(f"tiles {took} {getattr(tiles, name)}", flush=True)


def _torch_ways(
    num_requests: int, count: int, length: int
) -> dict[str, Callable[[], torch.Tensor]]:
    """Return those of torch's back ends that take a case; keys and values lie as they like it."""
    q = _random(num_requests, _HEADS, count, _HEAD_DIM)
    k, v = (_random(num_requests, _KV_HEADS, length, _HEAD_DIM) for _ in range(2))
    repeated = tuple(x.repeat_interleave(_HEADS // _KV_HEADS, dim=1) for x in (k, v))
    ways: dict[str, Callable[[], torch.Tensor]] = {}
    for name, backend in _BACKENDS.items():
        for keys, values in ((k, v), repeated):

            def run(
                backend: SDPBackend = backend,
                keys: torch.Tensor = keys,
                values: torch.Tensor = values,
            ) -> torch.Tensor:
                masks = (
                    {"is_causal": True}
                    if count == length
                    else {"attn_mask": causal_lower_right(count, length)}
                )
                grouped = keys.shape[1] < q.shape[1]
                with sdpa_kernel(backend):
                    return F.scaled_dot_product_attention(
                        q, keys, values, scale=_SCALE, enable_gqa=grouped, **masks
                    )

            try:
                run()
            except (RuntimeError, ValueError):
                continue
            ways[name] = run
            break
    return ways


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=DTYPE, device=DEVICE)


def _print(
    kind: str, num_requests: int, count: int, length: int, case: dict[str, float], unit: str
) -> None:
    figures = ", ".join(f"{name} {value:.3g}" for name, value in case.items())
    print(f"{kind} {num_requests}x{count}@{length}: {figures} ({unit})", flush=True)
