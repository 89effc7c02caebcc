"""evenflow: serves large language models the way an operating system runs processes.

>>> from evenflow import LLM, SamplingParams                                    # doctest: +SKIP
>>> llm = LLM("smollm2")                                                        # doctest: +SKIP
>>> llm.generate("The capital of France is", SamplingParams(max_tokens=8))      # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evenflow.core.errors import EvenflowError
    from evenflow.core.pooling import PoolingParams
    from evenflow.core.sampling import SamplingParams
    from evenflow.core.structured import StructuredOutput
    from evenflow.engine.llm import LLM
    from evenflow.engine.outputs import CompletionOutput, Delta, RequestMetrics, RequestOutput

_HOMES = {
    "LLM": "evenflow.engine.llm",
    "PoolingParams": "evenflow.core.pooling",
    "SamplingParams": "evenflow.core.sampling",
    "StructuredOutput": "evenflow.core.structured",
    "EvenflowError": "evenflow.core.errors",
    "CompletionOutput": "evenflow.engine.outputs",
    "Delta": "evenflow.engine.outputs",
    "RequestMetrics": "evenflow.engine.outputs",
    "RequestOutput": "evenflow.engine.outputs",
}

__all__ = [
    "LLM",
    "CompletionOutput",
    "Delta",
    "EvenflowError",
    "PoolingParams",
    "RequestMetrics",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutput",
]


def __getattr__(name: str) -> object:
    """Import the public names when they are used, so that `evenflow --help` loads no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'evenflow' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
