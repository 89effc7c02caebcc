"""What a GGUF file says about its model, as a `ModelSpec`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from evenflow.core.errors import ModelFormatError, UnsupportedModelError
from evenflow.core.gguf_file import GGUFFile
from evenflow.models.spec import Architecture, ModelSpec, MoeSpec, RopeScaling

_ARCHITECTURES: dict[str, Architecture] = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3moe": "qwen3_moe",
    "gemma3": "gemma3",
}

# An instruct model ends its turn with one of these, though many files name another end token.
_END_OF_TURN = ("<|im_end|>", "<end_of_turn>", "<|eot_id|>")

_GEMMA3_WINDOW_PERIOD = 6
_GEMMA3_LOCAL_THETA = 10_000.0
_GEMMA3_27B_LAYERS = 62  # the one size whose scores are not scaled by head_dim

_LLAMA3_CONTEXT = 8192


def spec_from_gguf(file: GGUFFile) -> ModelSpec:
    """Describe the model in a GGUF file.

    Raises:
        UnsupportedModelError: evenflow does not have its architecture, or a feature of it.
        ModelFormatError: a necessary entry or tensor is missing or of the wrong kind.
    """
    return _Reader(file).spec()


class _Reader:
    """Typed access to the entries of one architecture."""

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        self.metadata = file.metadata
        self.prefix = str(file.metadata.get("general.architecture"))
        if self.prefix not in _ARCHITECTURES:
            raise UnsupportedModelError(
                f"GGUF files of architecture {self.prefix!r} are not supported",
                fix=f"use one of {', '.join(_ARCHITECTURES)}",
            )
        self.architecture = _ARCHITECTURES[self.prefix]
        if self.architecture == "llama" and self.integer("expert_count", 0):
            self.architecture = "mixtral"
        self.num_layers = self.integer("block_count")

    def spec(self) -> ModelSpec:
        num_heads = self.integer("attention.head_count")
        hidden_size = self.integer("embedding_length")
        head_dim = self.head_dim(hidden_size, num_heads)
        tensors = self.file.tensors
        gemma = self.architecture == "gemma3"
        return ModelSpec(
            architecture=self.architecture,
            vocab_size=self.tensor_rows("token_embd.weight"),
            hidden_size=hidden_size,
            intermediate_size=self.integer("feed_forward_length"),
            num_layers=self.num_layers,
            num_heads=num_heads,
            num_kv_heads=self.integer("attention.head_count_kv", num_heads),
            head_dim=head_dim,
            rms_norm_eps=self.number("attention.layer_norm_rms_epsilon"),
            rope_theta=self.number("rope.freq_base", 10_000.0),
            rope_scaling=self.rope_scaling(head_dim),
            local_rope_theta=(
                self.number("rope.freq_base_swa", _GEMMA3_LOCAL_THETA) if gemma else None
            ),
            max_position_embeddings=self.integer("context_length"),
            tie_word_embeddings="output.weight" not in tensors,
            attention_bias="blk.0.attn_q.bias" in tensors,
            attention_output_bias="blk.0.attn_output.bias" in tensors,
            mlp_bias="blk.0.ffn_down.bias" in tensors,
            activation="gelu_tanh" if gemma else "silu",
            layer_windows=self.layer_windows(),
            attention_scale=self.attention_scale(hidden_size, num_heads),
            moe=self.moe(),
            bos_token_id=self.token_id("bos"),
            eos_token_ids=self.eos_token_ids(),
        )

    def integer(self, key: str, default: int | None = None) -> int:
        """Return an integer entry; an array of equal integers, one per layer, counts as one."""
        value = self.metadata.get(f"{self.prefix}.{key}", default)
        if isinstance(value, np.ndarray) and value.size and value.dtype.kind in "iu":
            if (value != value[0]).any():
                raise UnsupportedModelError(f"{self.prefix}.{key} differs between layers")
            value = int(value[0])
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self.malformed(key, value, "a count")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.metadata.get(f"{self.prefix}.{key}", default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
            raise self.malformed(key, value, "a positive number")
        return float(value)

    def malformed(self, key: str, value: object, wanted: str) -> ModelFormatError:
        return ModelFormatError(
            f"{self.file.path} describes its model incompletely",
            why=f"{self.prefix}.{key} is {value!r} and should be {wanted}",
            fix="convert the model with a current llama.cpp",
        )

    def tensor_rows(self, name: str) -> int:
        if name not in self.file.tensors:
            raise ModelFormatError(f"{self.file.path} has no tensor {name!r}")
        return self.file.tensors[name].shape[0]

    def head_dim(self, hidden_size: int, num_heads: int) -> int:
        if num_heads == 0:
            raise self.malformed("attention.head_count", num_heads, "positive")
        head_dim = self.integer("attention.key_length", hidden_size // num_heads)
        if head_dim == 0 or head_dim % 2:
            raise self.malformed("attention.key_length", head_dim, "even and positive")
        rotated = self.integer("rope.dimension_count", head_dim)
        value_dim = self.integer("attention.value_length", head_dim)
        if rotated != head_dim or value_dim != head_dim:
            raise UnsupportedModelError(
                f"{self.file.path} rotates {rotated} and weighs {value_dim} entries of "
                f"{head_dim}-entry heads",
                why="evenflow rotates whole heads, and keys and values have the same size",
            )
        return head_dim

    def layer_windows(self) -> tuple[int | None, ...]:
        if self.architecture not in ("llama", "mixtral", "gemma3"):
            return ()
        window = self.integer("attention.sliding_window", 0)
        if window == 0:
            return ()
        if self.architecture != "gemma3":
            return (window,) * self.num_layers
        return tuple(window if sliding else None for sliding in self.gemma3_sliding_layers())

    def gemma3_sliding_layers(self) -> list[bool]:
        """Read the pattern: a flag for each layer, or the distance between full layers."""
        key = "attention.sliding_window_pattern"
        pattern = self.metadata.get(f"{self.prefix}.{key}")
        if isinstance(pattern, np.ndarray) and pattern.shape == (self.num_layers,):
            return [bool(sliding) for sliding in pattern]
        period = self.integer(key, _GEMMA3_WINDOW_PERIOD)
        return [period == 0 or (layer + 1) % period != 0 for layer in range(self.num_layers)]

    def attention_scale(self, hidden_size: int, num_heads: int) -> float | None:
        if self.architecture == "gemma3" and self.num_layers == _GEMMA3_27B_LAYERS:
            return math.sqrt(num_heads / hidden_size)
        return None

    def moe(self) -> MoeSpec | None:
        num_experts = self.integer("expert_count", 0)
        if num_experts == 0:
            return None
        dense_layers = frozenset(
            layer
            for layer in range(self.num_layers)
            if f"blk.{layer}.ffn_gate_exps.weight" not in self.file.tensors
        )
        return MoeSpec(
            num_experts=num_experts,
            num_experts_per_tok=self.integer("expert_used_count"),
            intermediate_size=self.integer(
                "expert_feed_forward_length", self.integer("feed_forward_length")
            ),
            norm_topk_prob=True,  # not recorded; llama.cpp rescales in both architectures
            dense_layers=dense_layers,
        )

    def token_id(self, role: str) -> int | None:
        value = self.metadata.get(f"tokenizer.ggml.{role}_token_id")
        return value if isinstance(value, int) else None

    def eos_token_ids(self) -> tuple[int, ...]:
        tokens = self.metadata.get("tokenizer.ggml.tokens")
        ids = {self.token_id("eos"), self.token_id("eot")}
        if isinstance(tokens, list):
            ids.update(tokens.index(text) for text in _END_OF_TURN if text in tokens)
        return tuple(sorted(token_id for token_id in ids if token_id is not None))

    def rope_scaling(self, head_dim: int) -> RopeScaling | None:
        if "rope_freqs.weight" in self.file.tensors:
            return self.llama3_scaling(head_dim)
        kind = self.metadata.get(f"{self.prefix}.rope.scaling.type", "none")
        if kind == "none":
            return None
        factor = self.number("rope.scaling.factor")
        if kind == "linear":
            return RopeScaling(kind="linear", factor=factor)
        if kind == "yarn":
            return self.yarn_scaling(factor)
        raise UnsupportedModelError(
            f"{self.file.path} scales its rotary embedding by {kind!r}",
            fix="linear, yarn and llama3 scaling are supported",
        )

    def yarn_scaling(self, factor: float) -> RopeScaling:
        # llama.cpp multiplies its own factor of cos and sin by this one.
        extra = self.number("rope.scaling.attn_factor", 1.0)
        own = 1.0 + 0.1 * math.log(factor)
        return RopeScaling(
            kind="yarn",
            factor=factor,
            original_max_position_embeddings=self.integer("rope.scaling.original_context_length"),
            beta_fast=self.number("rope.scaling.yarn_beta_fast", 32.0),
            beta_slow=self.number("rope.scaling.yarn_beta_slow", 1.0),
            attention_factor=None if extra == 1.0 else extra * own,
        )

    def llama3_scaling(self, head_dim: int) -> RopeScaling | None:
        """Recover the parameters behind a table of divisors, one per rotary frequency."""
        table = self.file.tensors["rope_freqs.weight"]
        if table.type.name != "F32" or table.shape != (head_dim // 2,):
            raise ModelFormatError(
                f"{self.file.path} has a damaged rope_freqs.weight",
                why=f"it is {table.type.name} of shape {table.shape}",
            )
        divisors = self.file.rows(table).view("<f4").ravel()
        factor = float(divisors.max())
        if factor == 1.0:
            return None
        scaling = RopeScaling(
            kind="llama3",
            factor=factor,
            original_max_position_embeddings=self.integer(
                "rope.scaling.original_context_length", _LLAMA3_CONTEXT
            ),
        )
        theta = self.number("rope.freq_base", 10_000.0)
        if not np.allclose(divisors, _llama3_divisors(scaling, theta, head_dim), rtol=1e-3):
            raise UnsupportedModelError(
                f"{self.file.path} scales its rotary frequencies by a table of its own",
                why=f"it is not that of Llama 3 for factor {factor:g}",
            )
        return scaling


def _llama3_divisors(scaling: RopeScaling, theta: float, head_dim: int) -> npt.NDArray[Any]:
    """Return what Llama 3 divides each rotary frequency by, (head_dim / 2,)."""
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    rotations = (
        scaling.original_max_position_embeddings
        / (2 * math.pi)
        * theta ** (-np.arange(0, head_dim, 2) / head_dim)
    )
    kept = np.clip((rotations - low) / (high - low), 0.0, 1.0)
    return 1.0 / (kept + (1.0 - kept) / scaling.factor)
