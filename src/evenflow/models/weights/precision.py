"""In which form weights are held and multiplied.

exact   fp32 weights and products
w4a8    weights of 4 bits, activations of 8
w8a8    weights of 8 bits, activations of 8

A GGUF file that is quantised already keeps the weights it has under w4a8 and w8a8 alike.
"""

from __future__ import annotations

from typing import Literal

from evenflow.config.execution import LinearChoice
from evenflow.core.errors import ConfigError

Precision = Literal["exact", "w4a8", "w8a8"]


def resolve_linear(
    choice: LinearChoice, *, is_quantised: bool, has_native_kernels: bool
) -> Precision:
    """Turn the setting --linear into what it means for one model on one machine.

    Args:
        choice: the setting.
        is_quantised: whether the model's file holds weights of a few bits (`Checkpoint`).
        has_native_kernels: whether there are kernels that multiply by such weights.

    Raises:
        ConfigError: a form is asked for by name that has no kernels here.
    """
    if choice == "auto":
        return "w4a8" if is_quantised and has_native_kernels else "exact"
    if choice != "exact" and not has_native_kernels:
        raise ConfigError(
            f"--linear {choice} cannot be had on this machine",
            why="weights of a few bits need the native kernels, which are not there",
            fix="install a C++ compiler (g++ or clang++) and start again, or set --linear exact",
        )
    return choice
