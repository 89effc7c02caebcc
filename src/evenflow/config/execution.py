"""How a step is computed."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from evenflow.config.area import Area

LinearChoice = Literal["auto", "exact", "w4a8", "w8a8"]


class ExecutionConfig(Area):
    """Threads, kernels and the form of the weights."""

    table: ClassVar[str] = "execution"

    num_threads: int | None = Field(default=None, ge=1)
    """Threads that compute; none means torch's choice, one for each core."""

    linear: LinearChoice = "auto"
    """Matrix products: exact computes in fp32; w4a8 and w8a8 keep weights of 4 or 8 bits and round
    what they are multiplied with to 8 (native kernels only). A quantised GGUF file keeps the very
    weights it has under both. auto is w4a8 for such a file if native kernels are there, else
    exact. A request gets the same numbers whoever shares its batch under each of them."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model computes: auto takes a CUDA GPU if there is one."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of weights and activations: auto is float32 on a CPU, which computes in nothing else,
    and on a GPU bfloat16, or float16 where it has no bfloat16."""

    attention_backend: Literal["auto", "cpu", "triton", "flashinfer", "reference"] = "auto"
    """Attention kernel: the fastest for this machine (auto), the compiled CPU kernel (cpu), those
    in Triton or of FlashInfer (triton, flashinfer: on a GPU), or the slow one that the others are
    tested against (reference)."""

    async_scheduling: bool = True
    """On a GPU, start the next step before the tokens of this one are known, wherever nothing is to
    be decided in between; the same tokens come out without it."""

    enforce_eager: bool = False
    """Launch the kernels of every step one by one, never as a recording (on a GPU, a CUDA graph):
    starts sooner and takes less memory, and generates more slowly."""

    weight_cache: bool = True
    """Keep weights in loaded form under --cache after the first start, so that later starts are
    quick; takes as many bytes as the loaded model."""
