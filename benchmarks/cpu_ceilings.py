"""How fast a model could possibly be served on this machine: the memory's rate, the cores' rate.

Every step reads all weights and the KV of all its requests from memory, and multiplies. The bound
of a load is the time of its steps if each took only the longer of the two, and nothing else: no
waiting, no sampling, no instruction that is not a product.

Knows: the machine's measured rates, a model's bytes and products.
Does not know: how fast any engine is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from evenflow.engine.backends import Backend
from evenflow.execution.torch.kv_store import KVStore
from evenflow.models.weights.open import Checkpoint
from evenflow.models.weights.shapes import tensor_shapes

_READ_BYTES = 1 << 29
_PRODUCT_SIZE = 2048
_SECONDS = 1.5


@dataclass(frozen=True)
class Machine:
    """What the machine reached on all cores, the best of many tries.

    Attributes:
        read_gb_per_s: reading memory.
        fp32_gflop_per_s: a large product of fp32 matrices, two operations a multiplication.
        int8_gop_per_s: the same of 8-bit integers.
    """

    read_gb_per_s: float
    fp32_gflop_per_s: float
    int8_gop_per_s: float


def measure_machine() -> Machine:
    """Measure the machine; takes some five seconds."""
    operations = 2 * _PRODUCT_SIZE**3 / 1e9
    values = torch.ones(_READ_BYTES // 4)  # written, so that each page has memory of its own
    read_s = _best(lambda: values.sum())
    a, b = torch.rand(2, _PRODUCT_SIZE, _PRODUCT_SIZE)
    fp32_s = _best(lambda: a @ b)
    return Machine(_READ_BYTES / 1e9 / read_s, operations / fp32_s, operations / _best(_int8()))


def _int8() -> Callable[[], object]:
    """Return a large product of 8-bit integers, by oneDNN."""
    shape = (_PRODUCT_SIZE, _PRODUCT_SIZE)
    a = torch.randint(0, 255, shape, dtype=torch.uint8)
    b = torch.randint(-127, 127, shape, dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(b, shape)
    scales, zeros = torch.ones(_PRODUCT_SIZE), torch.zeros(_PRODUCT_SIZE, dtype=torch.int64)
    rest = (packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], "")
    return lambda: torch.ops.onednn.qlinear_pointwise(a, 1.0, 0, *rest)


def _best(work: Callable[[], object]) -> float:
    """Return the shortest time of many runs, in seconds."""
    work()
    best = math.inf
    end = time.perf_counter() + _SECONDS
    while time.perf_counter() < end:
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return best


@dataclass(frozen=True)
class Bound:
    """The least time that requests can take.

    Attributes:
        memory_s: if nothing but reading took time.
        products_s: if nothing but multiplying took time.
        least_s: if each step took the longer of the two.
    """

    memory_s: float
    products_s: float
    least_s: float


@dataclass(frozen=True)
class Work:
    """What a model has to read and to multiply.

    Attributes:
        weight_bytes: read by every step.
        kv_bytes_per_token: read for every token of context, by every step.
        layer_products: multiplications with weights for a token, up to the last layer's output.
        vocabulary_products: those for its logits besides.
        attention_products: multiplications for a token and one token of its context.
        has_int8_products: whether weights are multiplied as 8-bit integers, else as fp32.
    """

    weight_bytes: int
    kv_bytes_per_token: int
    layer_products: int
    vocabulary_products: int
    attention_products: int
    has_int8_products: bool

    @classmethod
    def of(cls, checkpoint: Checkpoint, backend: Backend) -> Work:
        """Return the work of a dense model.

        Args:
            checkpoint: the model.
            backend: how it is computed.
        """
        spec, shapes = checkpoint.spec, tensor_shapes(checkpoint.spec)
        is_exact = backend.linear == "exact"
        fp32_bytes = 4 * sum(math.prod(shape) for shape in shapes.values())
        matrices = {name: math.prod(shape) for name, shape in shapes.items() if len(shape) == 2}
        vocabulary = spec.vocab_size * spec.hidden_size
        num_vocabularies = 1 if spec.tie_word_embeddings else 2
        return cls(
            weight_bytes=fp32_bytes if is_exact else checkpoint.weight_bytes(backend.linear),
            kv_bytes_per_token=KVStore.bytes_per_block(
                spec.num_layers, spec.num_kv_heads, spec.head_dim, 1, backend.kv_dtype
            ),
            layer_products=sum(matrices.values()) - num_vocabularies * vocabulary,
            vocabulary_products=vocabulary,
            attention_products=2 * spec.num_layers * spec.num_heads * spec.head_dim,
            has_int8_products=not is_exact,
        )

    def step_bytes(self, num_requests: int, context: float) -> float:
        """Return the bytes that a step of so many requests reads."""
        return self.weight_bytes + num_requests * context * self.kv_bytes_per_token

    def bound(self, machine: Machine, num_requests: int, prompt: int, output: int) -> Bound:
        """Return the least time in which `num_requests` of one shape can be completed."""
        pairs = num_requests * prompt * (prompt + 1) / 2
        products = num_requests * (prompt * self.layer_products + self.vocabulary_products)
        steps = [(self.weight_bytes, self._products_s(machine, products, pairs))]
        products = num_requests * (self.layer_products + self.vocabulary_products)
        steps += [
            (
                self.step_bytes(num_requests, context),
                self._products_s(machine, products, num_requests * context),
            )
            for context in range(prompt + 1, prompt + output)
        ]
        times = [(num_bytes / 1e9 / machine.read_gb_per_s, spent_s) for num_bytes, spent_s in steps]
        return Bound(
            memory_s=sum(read_s for read_s, _ in times),
            products_s=sum(spent_s for _, spent_s in times),
            least_s=sum(max(step) for step in times),
        )

    def _products_s(self, machine: Machine, products: float, pairs: float) -> float:
        """Return the time of multiplications with weights, and of pairs of tokens that attend."""
        rate = machine.int8_gop_per_s if self.has_int8_products else machine.fp32_gflop_per_s
        attention = 2 * pairs * self.attention_products / machine.fp32_gflop_per_s
        return (2 * products / rate + attention) / 1e9
