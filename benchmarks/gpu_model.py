"""Llama-3-8B with random weights on a GPU: a model of real size that needs no download.

Triton is imported where it is needed: machines without it import this module, too.
"""

from __future__ import annotations

import torch

from evenflow.execution.attention import Attention
from evenflow.execution.model import CausalLM
from evenflow.execution.ops import QuantisedRows
from evenflow.execution.torch.cuda_recorder import CudaRecorder
from evenflow.execution.torch.decode_recordings import DecodeRecordings, powers_of_two
from evenflow.execution.torch.kv_store import KVLayout, KVStore
from evenflow.execution.torch.model_runner import ModelRunner
from evenflow.models.registry import build_model
from evenflow.models.spec import ModelSpec
from evenflow.models.weights.shapes import tensor_shapes

DEVICE = "cuda"
BLOCK_SIZE = 16
DTYPE = torch.bfloat16
LLAMA_3_8B = ModelSpec(
    architecture="llama",
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    rope_theta=500_000.0,
    max_position_embeddings=8192,
)


class DeviceWeights:
    """Random weights, drawn on the GPU: matrices in bf16, norms in fp32.

    Args:
        spec: the model.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._shapes = tensor_shapes(spec)

    def names(self) -> frozenset[str]:
        """Return the names of all tensors."""
        return frozenset(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor."""
        return self._shapes[name]

    def tensor(self, name: str) -> torch.Tensor:
        """Make one tensor."""
        if name.endswith("norm.weight"):
            return torch.ones(self._shapes[name], device=DEVICE)
        return torch.randn(self._shapes[name], dtype=DTYPE, device=DEVICE).mul_(0.02)

    def stored(self, name: str) -> QuantisedRows | None:
        """Return None: nothing is quantised."""
        return None


def build_llama_3_8b() -> CausalLM:
    """Build the model on the GPU."""
    from evenflow.execution.kernels.triton.triton_ops import TritonOps

    return build_model(LLAMA_3_8B, DeviceWeights(LLAMA_3_8B), TritonOps())


def make_store(
    num_blocks: int,
    layout: KVLayout = "block_first",
    device: str = DEVICE,
    *,
    num_layers: int = LLAMA_3_8B.num_layers,
    pinned: bool = False,
) -> KVStore:
    """Make KV memory for the model; its content is whatever was there."""
    return KVStore(
        num_blocks,
        num_layers,
        LLAMA_3_8B.num_kv_heads,
        LLAMA_3_8B.head_dim,
        BLOCK_SIZE,
        layout,
        DTYPE,
        device,
        pinned=pinned,
    )


def build_attention(store: KVStore) -> Attention:
    """Build attention over KV memory on the GPU."""
    from evenflow.execution.kernels.triton.attention import TritonAttention

    return TritonAttention(store)


def record(
    model: CausalLM, attention: Attention, store: KVStore, max_num_seqs: int, max_model_len: int
) -> DecodeRecordings:
    """Record decode steps of up to `max_num_seqs` requests of up to `max_model_len` tokens."""
    device = store.data.device
    recordings = DecodeRecordings(
        lambda batch: model.forward(batch, attention),
        sizes=powers_of_two(max_num_seqs),
        max_num_blocks=-(-max_model_len // BLOCK_SIZE),
        device=device,
        record=CudaRecorder(device),
    )
    recordings.record_all()
    return recordings


def build_runner(
    model: CausalLM, attention: Attention, store: KVStore, recordings: DecodeRecordings | None
) -> ModelRunner:
    """Build an executor that samples on the GPU."""
    from evenflow.execution.torch.device_sampler import sample_on_device

    return ModelRunner(model, attention, store, sample=sample_on_device, recordings=recordings)
