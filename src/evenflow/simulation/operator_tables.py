"""Costs from the times of single operators, for any model whose operators were measured.

    {gpu}_gemm                     matrix products
    {gpu}_attention_context        attention of whole prompts, several of the same length at once
    {gpu}_attention_generation     attention of decodes
    {gpu}_moe                      the experts of a layer, by model
    collectives                    all-reduces

What was not measured is moving vectors: norms, rotations, activations. Their bytes at the memory's
bandwidth stand for it, and for each kernel at least what the smallest kernels take.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from evenflow.core.errors import ConfigError
from evenflow.execution.costs import CostModel
from evenflow.execution.costs.interpolation import Curve, Range
from evenflow.simulation.collectives import CollectiveCosts
from evenflow.simulation.expert_tables import expert_curve
from evenflow.simulation.gemm_tables import GemmTables
from evenflow.simulation.operator_attention import Heads, OperatorAttention
from evenflow.simulation.profile_tables import has_table
from evenflow.simulation.shapes import DeviceShape, ModelShape
from evenflow.simulation.table_costs import TableCosts

SMALLEST_KERNEL_S = 2e-6
"""What norms and rotations of a few tokens take in the layer tables of vLLM (1.9 to 2.7 us)."""


def operator_table_devices(directory: Path) -> set[str]:
    """Return the devices, as the tables call them, whose operators the folder has."""
    names = (path.name for path in directory.glob("*_gemm.csv.gz"))
    gpus = {name.removesuffix("_gemm.csv.gz") for name in names}
    return {
        gpu
        for gpu in gpus
        if has_table(directory, f"{gpu}_attention_context")
        and has_table(directory, f"{gpu}_attention_generation")
    }


def operator_table_costs(
    directory: Path,
    gpu: str,
    device: DeviceShape,
    model: ModelShape,
    *,
    tp: int = 1,
    collectives: CollectiveCosts | None = None,
) -> CostModel:
    """Return the cost model that operator tables make of a model.

    Args:
        directory: the folder of tables.
        gpu: the device, as the tables call it.
        device: the same device in numbers.
        model: what is served, in bfloat16.
        tp: devices that share each layer.
        collectives: between them.

    Raises:
        ConfigError: something of the model cannot be found in the tables.
    """
    if model.mla is not None:
        raise ConfigError(
            f"there are no tables for {model.name}",
            why="latent attention was not measured",
            fix="Use --costs roofline",
        )
    gemm = GemmTables(directory, gpu)
    heads = -(-model.num_heads // tp)
    kv_heads = -(-model.num_kv_heads // tp)
    qkv = gemm.curve((heads + 2 * kv_heads) * model.head_dim, model.hidden_size)
    output = gemm.curve(model.hidden_size, heads * model.head_dim)
    mlp = _mlp(directory, gpu, gemm, device, model, tp)
    vectors = _VectorKernels(device.bandwidth_bytes_per_s, model.dtype_bytes)
    norms = vectors.of([4 * model.hidden_size] * 2 + [2 * (heads + kv_heads) * model.head_dim])
    row_bytes = model.hidden_size * model.dtype_bytes

    def body_s(num_tokens: float) -> float:
        layers = qkv(num_tokens) + output(num_tokens) + norms(num_tokens)
        if collectives is not None:
            layers += 2 * collectives.all_reduce_s(int(num_tokens) * row_bytes, tp)
        return model.num_layers * layers + mlp(num_tokens)

    logits = gemm.curve(-(-model.vocab_size // tp), model.hidden_size)
    gemm.warn_of_scaled()
    name = f"{model.name} on {gpu}" + (f" x {tp}" if tp > 1 else "")
    return TableCosts(
        Curve([(n, body_s(n)) for n in qkv.arguments], Range(f"layers of {name}", "tokens")),
        logits,
        OperatorAttention(directory, gpu, Heads(heads, kv_heads, model.head_dim)),
        model.num_layers,
        f"operator times of {name} through vLLM (aiconfigurator), added up",
    )


def _mlp(
    directory: Path,
    gpu: str,
    gemm: GemmTables,
    device: DeviceShape,
    model: ModelShape,
    tp: int,
) -> Callable[[float], float]:
    """Return the seconds of the MLPs or experts of all layers, by tokens."""
    vectors = _VectorKernels(device.bandwidth_bytes_per_s, model.dtype_bytes)

    def dense(width: int) -> Callable[[float], float]:
        share = -(-width // tp)
        num_inputs = model.num_mlp_matrices - 1
        first = gemm.curve(num_inputs * share, model.hidden_size)
        last = gemm.curve(model.hidden_size, share)
        activation = vectors.of([(num_inputs + 1) * share])
        return lambda n: first(n) + last(n) + activation(n)

    num_dense = model.num_layers - model.num_sparse_layers
    if model.moe is None:
        layer = dense(model.intermediate_size)
        return lambda n: num_dense * layer(n)
    experts = expert_curve(directory, gpu, model, tp)
    shared_width = model.moe.num_shared_experts * model.moe.intermediate_size
    layers: list[tuple[int, Callable[[float], float]]] = [(model.num_sparse_layers, experts)]
    if num_dense:
        layers.append((num_dense, dense(model.intermediate_size)))
    if shared_width:
        layers.append((model.num_sparse_layers, dense(shared_width)))
    return lambda n: sum(count * layer(n) for count, layer in layers)


class _VectorKernels:
    """Kernels that do little more than move each token's vectors.

    Args:
        bandwidth: of the memory, bytes per second.
        entry_bytes: of one entry.
    """

    def __init__(self, bandwidth: float, entry_bytes: int) -> None:
        self._entry_s = entry_bytes / bandwidth

    def of(self, num_entries: list[int]) -> Callable[[float], float]:
        """Return the seconds by tokens of kernels that move so many entries for each token."""
        per_token = [count * self._entry_s for count in num_entries]
        return lambda num_tokens: sum(max(SMALLEST_KERNEL_S, s * num_tokens) for s in per_token)
