"""`Attention` by FlashInfer's paged kernels, where that library is installed.

FlashInfer plans a batch on the host before it runs: it reads context lengths back, once per batch
and kind of layer, and what it launches depends on them. So it cannot be captured in a CUDA graph,
and how it splits the keys of a request depends on the batch; `TritonAttention` has neither
limitation.

Knows: FlashInfer's wrappers for pages of heads ("HND").
Does not know: how they compute.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

import torch

from evenflow.core.errors import ConfigError
from evenflow.execution.attention import Rotation
from evenflow.execution.batch import ForwardBatch
from evenflow.execution.kernels.triton.attention import TritonAttention
from evenflow.execution.torch.kv_store import KVStore

_WORKSPACE_BYTES = 256 << 20  # what the library asks for; shared by all plans
_TENSOR_CORE_GROUP = 4  # query heads per KV head from which decode pays for tensor cores


@dataclass(slots=True, frozen=True)
class Pages:
    """The blocks of a batch in the form FlashInfer takes.

    Attributes:
        starts: (num_requests + 1,), int32, on the host: request i owns entries
            `starts[i]:starts[i + 1]` of `ids`.
        ids: (num_blocks,), int32, on the device.
        last_lens: (num_requests,), int32, on the host: tokens in each request's last block.
    """

    starts: torch.Tensor
    ids: torch.Tensor
    last_lens: torch.Tensor

    @classmethod
    def of(cls, batch: ForwardBatch, block_size: int) -> Pages:
        """Collect them; waits for the device."""
        contexts = batch.context_lens.cpu()
        counts = (contexts + block_size - 1) // block_size
        starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()
        columns = torch.arange(batch.block_tables.shape[1], device=batch.block_tables.device)
        is_used = columns < counts.to(columns.device).unsqueeze(1)
        last_lens = contexts - (counts - 1) * block_size
        return cls(starts, batch.block_tables[is_used].int(), last_lens.int())


def is_available() -> bool:
    """Return whether FlashInfer is installed."""
    return importlib.util.find_spec("flashinfer") is not None


class FlashInferAttention:
    """Paged attention over a store in 16 bits on a GPU.

    Args:
        store: the KV memory it writes to and reads from.

    Raises:
        ConfigError: FlashInfer is not installed, or cannot read the store.
    """

    def __init__(self, store: KVStore) -> None:
        if not is_available():
            raise ConfigError(
                "FlashInfer attention is not available",
                why="the package flashinfer is not installed",
                fix="pip install flashinfer-python, or use the Triton kernels",
            )
        if store.data.dtype not in (torch.float16, torch.bfloat16):
            raise ConfigError(
                "FlashInfer cannot read this KV store",
                why=f"it holds {store.data.dtype}",
                fix="use float16 or bfloat16, or the Triton kernels",
            )
        self.store = store
        self._library: Any = importlib.import_module("flashinfer")
        self._triton = TritonAttention(store)
        self._workspace = torch.empty(_WORKSPACE_BYTES, dtype=torch.uint8, device=store.data.device)
        self._planned: ForwardBatch | None = None
        self._plans: dict[tuple[int, float], Any] = {}
        self._wrappers: dict[tuple[bool, int, float], Any] = {}

    def rotate_store(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        rotation: Rotation,
        batch: ForwardBatch,
    ) -> None:
        """Rotate q in place, and store k, rotated, and v, in Triton: one kernel does it all."""
        self._triton.rotate_store(layer, q, k, v, rotation, batch)

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        batch: ForwardBatch,
        *,
        scale: float,
        window: int | None = None,
    ) -> torch.Tensor:
        """Attend to all stored positions that a token sees (see `Attention.attend`)."""
        plan = self._plan(q, batch, scale, -1 if window is None else window - 1)
        cache = (self.store.keys(layer), self.store.values(layer))
        out: torch.Tensor = plan.run(q.contiguous(), cache)
        return out

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
        """Attend to stored positions `start` to `stop` only, in Triton: they may cut a block."""
        return self._triton.partial(layer, q, batch, start, stop, scale=scale, window=window)

    def _plan(self, q: torch.Tensor, batch: ForwardBatch, scale: float, window_left: int) -> Any:
        """Return a wrapper that is planned for a batch; layers that are alike share one."""
        if self._planned is not batch:
            self._planned, self._plans = batch, {}
            self._pages = Pages.of(batch, self.store.block_size)
        key = (window_left, scale)
        if key not in self._plans:
            self._plans[key] = self._planned_wrapper(q, batch, scale, window_left)
        return self._plans[key]

    def _planned_wrapper(
        self, q: torch.Tensor, batch: ForwardBatch, scale: float, window_left: int
    ) -> Any:
        store, pages = self.store, self._pages
        is_decode = batch.num_tokens == batch.num_requests
        wrapper = self._wrapper(is_decode, q.shape[1], window_left, scale)
        common = {
            "num_qo_heads": q.shape[1],
            "num_kv_heads": store.num_kv_heads,
            "page_size": store.block_size,
            "window_left": window_left,
            "sm_scale": scale,
            "q_data_type": q.dtype,
            "kv_data_type": store.data.dtype,
        }
        if is_decode:
            wrapper.plan(
                indptr=pages.starts,
                indices=pages.ids,
                last_page_len=pages.last_lens,
                head_dim=store.head_dim,
                **common,
            )
        else:
            wrapper.plan(
                qo_indptr=batch.query_starts.cpu(),
                paged_kv_indptr=pages.starts,
                paged_kv_indices=pages.ids,
                paged_kv_last_page_len=pages.last_lens,
                head_dim_qk=store.head_dim,
                causal=True,
                **common,
            )
        return wrapper

    def _wrapper(self, is_decode: bool, num_heads: int, window_left: int, scale: float) -> Any:
        """Return the wrapper of a kind of layer; it holds a plan, so kinds cannot share one."""
        key = (is_decode, window_left, scale)
        if key not in self._wrappers:
            if is_decode:
                group = num_heads // self.store.num_kv_heads
                self._wrappers[key] = self._library.BatchDecodeWithPagedKVCacheWrapper(
                    self._workspace, "HND", use_tensor_cores=group >= _TENSOR_CORE_GROUP
                )
            else:
                self._wrappers[key] = self._library.BatchPrefillWithPagedKVCacheWrapper(
                    self._workspace, "HND"
                )
        return self._wrappers[key]
