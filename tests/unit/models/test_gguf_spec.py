"""Model descriptions read from GGUF metadata."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from evenflow.core.errors import ModelFormatError, UnsupportedModelError
from evenflow.core.gguf_file import GGUFFile
from evenflow.models.spec import ModelSpec, MoeSpec, RopeScaling
from evenflow.models.weights.gguf_spec import spec_from_gguf
from support.gguf_files import HEAD_DIM, random_tensors, write_gguf, write_tiny


def spec_of(path: Path, architecture: str, **entries: object) -> ModelSpec:
    """Describe a tiny model; double underscores in keys stand for dots."""
    dotted = {key.replace("__", "."): value for key, value in entries.items()}
    return spec_from_gguf(GGUFFile(write_tiny(path / "m.gguf", architecture, dotted)))


def test_spec_from_gguf_reads_a_llama(tmp_path: Path) -> None:
    assert spec_of(tmp_path, "llama", rope__freq_base=5e5) == ModelSpec(
        architecture="llama",
        vocab_size=8,
        hidden_size=64,
        intermediate_size=96,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        rms_norm_eps=float(np.float32(1e-5)),
        rope_theta=500_000.0,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_ids=(2, 3, 7),
    )


def test_spec_from_gguf_reads_window_of_mistral(tmp_path: Path) -> None:
    assert spec_of(tmp_path, "llama", attention__sliding_window=32).layer_windows == (32, 32)


def test_spec_from_gguf_reads_biases_of_qwen2(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "qwen2")
    assert (spec.attention_bias, spec.attention_output_bias) == (True, False)


def test_spec_from_gguf_sees_untied_output(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", "llama", random_tensors("llama", tied=False))
    assert not spec_from_gguf(GGUFFile(path)).tie_word_embeddings


def test_spec_from_gguf_makes_every_sixth_layer_of_gemma3_full(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "gemma3", attention__sliding_window=512)
    assert spec.layer_windows == (512, 512)
    path = write_gguf(
        tmp_path / "n.gguf",
        "gemma3",
        random_tensors("gemma3"),
        {"attention.sliding_window": 512, "attention.sliding_window_pattern": 2},
    )
    spec = spec_from_gguf(GGUFFile(path))
    assert spec.layer_windows == (512, None)
    assert (spec.local_rope_theta, spec.activation) == (10_000.0, "gelu_tanh")


def test_spec_from_gguf_reads_window_flags_of_gemma3(tmp_path: Path) -> None:
    spec = spec_of(
        tmp_path,
        "gemma3",
        attention__sliding_window=512,
        attention__sliding_window_pattern=[False, True],
    )
    assert spec.layer_windows == (None, 512)


@pytest.mark.parametrize(
    ("name", "architecture"), [("mixtral", "mixtral"), ("qwen3moe", "qwen3_moe")]
)
def test_spec_from_gguf_reads_experts(tmp_path: Path, name: str, architecture: str) -> None:
    spec = spec_of(tmp_path, name)
    assert spec.architecture == architecture
    assert spec.moe == MoeSpec(
        num_experts=3, num_experts_per_tok=2, intermediate_size=96, norm_topk_prob=True
    )


def test_spec_from_gguf_reads_linear_scaling(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "qwen3", rope__scaling__type="linear", rope__scaling__factor=4.0)
    assert spec.rope_scaling == RopeScaling(kind="linear", factor=4.0)


def test_spec_from_gguf_reads_yarn_scaling(tmp_path: Path) -> None:
    spec = spec_of(
        tmp_path,
        "qwen2",
        rope__scaling__type="yarn",
        rope__scaling__factor=4.0,
        rope__scaling__original_context_length=32,
        rope__scaling__attn_factor=0.5,
    )
    assert spec.rope_scaling == RopeScaling(
        kind="yarn",
        factor=4.0,
        original_max_position_embeddings=32,
        attention_factor=0.5 * (1 + 0.1 * math.log(4.0)),
    )


def llama3_table(theta: float, factor: float, context: int) -> np.ndarray:
    """Return llama.cpp's table of divisors, one frequency at a time."""
    divisors = []
    for index in range(0, HEAD_DIM, 2):
        wavelength = 2 * math.pi * theta ** (index / HEAD_DIM)
        if wavelength < context / 4:
            divisors.append(1.0)
        elif wavelength > context:
            divisors.append(factor)
        else:
            smooth = (context / wavelength - 1) / 3
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, np.float32)


def write_with_table(path: Path, table: np.ndarray) -> GGUFFile:
    tensors = {**random_tensors("llama"), "rope_freqs.weight": table}
    return GGUFFile(write_gguf(path, "llama", tensors, {"rope.freq_base": 500_000.0}))


def test_spec_from_gguf_recovers_llama3_scaling(tmp_path: Path) -> None:
    file = write_with_table(tmp_path / "m.gguf", llama3_table(500_000.0, 32.0, 8192))
    assert spec_from_gguf(file).rope_scaling == RopeScaling(
        kind="llama3", factor=32.0, original_max_position_embeddings=8192
    )


def test_spec_from_gguf_ignores_table_of_ones(tmp_path: Path) -> None:
    file = write_with_table(tmp_path / "m.gguf", np.ones(HEAD_DIM // 2, np.float32))
    assert spec_from_gguf(file).rope_scaling is None


def test_spec_from_gguf_refuses_other_tables(tmp_path: Path) -> None:
    file = write_with_table(tmp_path / "m.gguf", llama3_table(500_000.0, 32.0, 2048))
    with pytest.raises(UnsupportedModelError, match="table of its own"):
        spec_from_gguf(file)


@pytest.mark.parametrize(
    ("entries", "error", "why"),
    [
        (
            {"rope__scaling__type": "longrope", "rope__scaling__factor": 2.0},
            UnsupportedModelError,
            "longrope",
        ),
        ({"rope__dimension_count": 8}, UnsupportedModelError, "rotates 8"),
        ({"expert_count": [1, 2]}, UnsupportedModelError, "differs between layers"),
        ({"rope__freq_base": -1.0}, ModelFormatError, "positive"),
        ({"rope__freq_base": "big"}, ModelFormatError, "number"),
    ],
)
def test_spec_from_gguf_refuses(
    tmp_path: Path, entries: dict[str, object], error: type[Exception], why: str
) -> None:
    with pytest.raises(error, match=why):
        spec_of(tmp_path, "llama", **entries)


def test_spec_from_gguf_lists_architectures_when_unknown(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", "mamba", {})
    with pytest.raises(UnsupportedModelError, match=r"'mamba'.*llama, qwen2, qwen3"):
        spec_from_gguf(GGUFFile(path))


def test_spec_from_gguf_names_the_missing_entry(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", "llama", {}, {"expert_count": 2})
    with pytest.raises(ModelFormatError, match="token_embd"):
        spec_from_gguf(GGUFFile(path))
