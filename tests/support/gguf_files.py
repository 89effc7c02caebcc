"""Small GGUF files of every supported architecture, written with llama.cpp's own writer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

HIDDEN, WIDTH, HEADS, KV_HEADS, HEAD_DIM, VOCAB, LAYERS, EXPERTS = 64, 96, 4, 2, 16, 8, 2, 3

TOKENS = ["<unk>", "<s>", "</s>", "<|im_end|>", "a", "b", "é", "<end_of_turn>"]


def write_gguf(
    path: Path,
    architecture: str,
    tensors: Mapping[str, np.ndarray],
    entries: Mapping[str, object] | None = None,
    storage: gguf.GGMLQuantizationType | None = None,
    special: Mapping[str, gguf.GGMLQuantizationType] | None = None,
) -> Path:
    """Write a file with the metadata of a tiny model.

    Args:
        path: the file to write.
        architecture: as llama.cpp names it.
        tensors: fp32 arrays by GGUF name.
        entries: further metadata below the architecture's prefix.
        storage: type in which matrices other than routers are stored, fp32 by default.
        special: tensors stored in another type.
    """
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_token_list(TOKENS)
    writer.add_token_scores([0.5] * VOCAB)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for key, value in (entries or {}).items():
        name = f"{architecture}.{key}"
        if isinstance(value, list):
            writer.add_array(name, value)
        else:
            kinds = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32}
            kinds[type(value)](name, value)
    for name, values in tensors.items():
        is_linear = values.ndim > 1 and "ffn_gate_inp" not in name
        kind = (special or {}).get(name, storage if is_linear else None)
        if kind is None:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random_tensors(architecture: str, *, tied: bool = True) -> dict[str, np.ndarray]:
    """Return random tensors of the tiny model under GGUF names."""
    rng = np.random.default_rng(7)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (VOCAB, HIDDEN),
        "output_norm.weight": (HIDDEN,),
    }
    if not tied:
        shapes["output.weight"] = (VOCAB, HIDDEN)
    for layer in range(LAYERS):
        for name, shape in _layer_shapes(architecture).items():
            shapes[f"blk.{layer}.{name}"] = shape
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def _layer_shapes(architecture: str) -> dict[str, tuple[int, ...]]:
    query, key = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (HIDDEN,),
        "attn_q.weight": (query, HIDDEN),
        "attn_k.weight": (key, HIDDEN),
        "attn_v.weight": (key, HIDDEN),
        "attn_output.weight": (HIDDEN, query),
        "ffn_norm.weight": (HIDDEN,),
    }
    if architecture in ("qwen3", "qwen3moe", "gemma3"):
        shapes |= {"attn_q_norm.weight": (HEAD_DIM,), "attn_k_norm.weight": (HEAD_DIM,)}
    if architecture == "gemma3":
        shapes |= {"post_attention_norm.weight": (HIDDEN,), "post_ffw_norm.weight": (HIDDEN,)}
    if architecture == "qwen2":
        shapes |= {"attn_q.bias": (query,), "attn_k.bias": (key,), "attn_v.bias": (key,)}
    if architecture in ("mixtral", "qwen3moe"):
        return shapes | {
            "ffn_gate_inp.weight": (EXPERTS, HIDDEN),
            "ffn_gate_exps.weight": (EXPERTS, WIDTH, HIDDEN),
            "ffn_up_exps.weight": (EXPERTS, WIDTH, HIDDEN),
            "ffn_down_exps.weight": (EXPERTS, HIDDEN, WIDTH),
        }
    return shapes | {
        "ffn_gate.weight": (WIDTH, HIDDEN),
        "ffn_up.weight": (WIDTH, HIDDEN),
        "ffn_down.weight": (HIDDEN, WIDTH),
    }


MOE_ENTRIES = {"expert_count": EXPERTS, "expert_used_count": 2, "expert_feed_forward_length": WIDTH}


def write_tiny(
    path: Path,
    architecture: str,
    entries: Mapping[str, object] | None = None,
    storage: gguf.GGMLQuantizationType | None = None,
    *,
    tied: bool = True,
) -> Path:
    """Write a complete tiny model; "mixtral" is written as llama.cpp does, under llama."""
    moe = MOE_ENTRIES if architecture in ("mixtral", "qwen3moe") else {}
    prefix = "llama" if architecture == "mixtral" else architecture
    tensors = random_tensors(architecture, tied=tied)
    return write_gguf(path, prefix, tensors, {**moe, **(entries or {})}, storage)
