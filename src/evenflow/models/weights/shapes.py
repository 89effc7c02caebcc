"""Which tensors a model of a given description consists of, under Hugging Face names."""

from __future__ import annotations

from collections.abc import Iterator

from evenflow.models.spec import ModelSpec

Shape = tuple[int, ...]
_Named = Iterator[tuple[str, Shape]]

VOCABULARY = frozenset({"model.embed_tokens.weight", "lm_head.weight"})
"""Both ends of a model: token ids to vectors, and vectors to scores of token ids."""

_QK_NORM = frozenset({"qwen3", "qwen3_moe", "gemma3"})
_ROUTERS = ("mlp.gate.weight", "block_sparse_moe.gate.weight")


def tensor_shapes(spec: ModelSpec) -> dict[str, Shape]:
    """Return name and shape of every tensor the model needs, in the order of a forward pass."""
    return dict(_tensors(spec))


def linear_weights(spec: ModelSpec) -> dict[str, Shape]:
    """Return the weights that may be held in fewer bits: matrices, but for routers of experts."""
    return {
        name: shape
        for name, shape in tensor_shapes(spec).items()
        if len(shape) == 2 and not name.endswith(_ROUTERS)
    }


def _tensors(spec: ModelSpec) -> _Named:
    yield "model.embed_tokens.weight", (spec.vocab_size, spec.hidden_size)
    for layer in range(spec.num_layers):
        prefix = f"model.layers.{layer}"
        for name, shape in (*_norms(spec), *_attention(spec), *_feed_forward(spec, layer)):
            yield f"{prefix}.{name}", shape
    yield "model.norm.weight", (spec.hidden_size,)
    if not spec.tie_word_embeddings:
        yield "lm_head.weight", (spec.vocab_size, spec.hidden_size)


def _norms(spec: ModelSpec) -> _Named:
    yield "input_layernorm.weight", (spec.hidden_size,)
    yield "post_attention_layernorm.weight", (spec.hidden_size,)
    if spec.architecture == "gemma3":
        yield "pre_feedforward_layernorm.weight", (spec.hidden_size,)
        yield "post_feedforward_layernorm.weight", (spec.hidden_size,)
    if spec.architecture in _QK_NORM:
        yield "self_attn.q_norm.weight", (spec.head_dim,)
        yield "self_attn.k_norm.weight", (spec.head_dim,)


def _attention(spec: ModelSpec) -> _Named:
    query, key = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    bias = spec.attention_bias
    yield from _linear("self_attn.q_proj", query, spec.hidden_size, bias)
    yield from _linear("self_attn.k_proj", key, spec.hidden_size, bias)
    yield from _linear("self_attn.v_proj", key, spec.hidden_size, bias)
    yield from _linear("self_attn.o_proj", spec.hidden_size, query, spec.attention_output_bias)


def _feed_forward(spec: ModelSpec, layer: int) -> _Named:
    moe = spec.moe
    if moe is None or layer in moe.dense_layers:
        yield from _gated_mlp(
            spec, "mlp", ("gate_proj", "up_proj", "down_proj"), spec.intermediate_size
        )
        return
    block, projections = (
        ("block_sparse_moe", ("w1", "w3", "w2"))
        if spec.architecture == "mixtral"
        else ("mlp", ("gate_proj", "up_proj", "down_proj"))
    )
    yield f"{block}.gate.weight", (moe.num_experts, spec.hidden_size)
    for expert in range(moe.num_experts):
        prefix = f"{block}.experts.{expert}"
        yield from _gated_mlp(spec, prefix, projections, moe.intermediate_size)


def _gated_mlp(spec: ModelSpec, prefix: str, names: tuple[str, str, str], width: int) -> _Named:
    gate, up, down = names
    yield from _linear(f"{prefix}.{gate}", width, spec.hidden_size, spec.mlp_bias)
    yield from _linear(f"{prefix}.{up}", width, spec.hidden_size, spec.mlp_bias)
    yield from _linear(f"{prefix}.{down}", spec.hidden_size, width, spec.mlp_bias)


def _linear(name: str, out_features: int, in_features: int, bias: bool) -> _Named:
    yield f"{name}.weight", (out_features, in_features)
    if bias:
        yield f"{name}.bias", (out_features,)
