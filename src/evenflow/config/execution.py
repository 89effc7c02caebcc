"""How a step is computed."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from evenflow.config.area import Area


class ExecutionConfig(Area):
    """Threads, kernels and the form of the weights."""

    table: ClassVar[str] = "execution"

    num_threads: int | None = Field(default=None, ge=1)
    """Threads that compute; none means torch's choice, one for each core."""

    linear: Literal["auto", "exact"] = "auto"
    """Matrix products: exact computes in fp32 and gives a request the same numbers whoever shares
    its batch; auto takes the fastest there is, which is exact at present."""

    attention_backend: Literal["auto", "cpu", "reference"] = "auto"
    """Attention kernel: the fastest for this machine (auto), the compiled CPU kernel (cpu), or the
    slow one that the others are tested against (reference)."""

    weight_cache: bool = True
    """Keep weights in loaded form under --cache after the first start, so that later starts are
    quick; takes as many bytes as the loaded model."""
