"""The table of architectures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from evenflow.execution.model import CausalLM
from evenflow.execution.ops import Ops
from evenflow.models.gemma3 import Gemma3
from evenflow.models.llama import build_llama
from evenflow.models.mixtral import build_mixtral
from evenflow.models.qwen2 import build_qwen2
from evenflow.models.qwen3 import build_qwen3
from evenflow.models.qwen3_moe import build_qwen3_moe
from evenflow.models.spec import Architecture, ModelSpec
from evenflow.models.weights.source import WeightSource

ARCHITECTURES: Mapping[Architecture, Callable[[ModelSpec, WeightSource, Ops], CausalLM]] = (
    MappingProxyType(
        {
            "llama": build_llama,
            "qwen2": build_qwen2,
            "qwen3": build_qwen3,
            "gemma3": Gemma3,
            "mixtral": build_mixtral,
            "qwen3_moe": build_qwen3_moe,
        }
    )
)


def build_model(spec: ModelSpec, weights: WeightSource, ops: Ops) -> CausalLM:
    """Read the weights and build the model that `spec.architecture` names."""
    return ARCHITECTURES[spec.architecture](spec, weights, ops)
