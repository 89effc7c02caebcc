"""Kernels for CUDA, written in Triton: `TritonAttention`, `TritonOps` and `draw`.

Knows: device tensors, the processors of a GPU.
Does not know: the host's copy of a batch. What is launched follows from shapes alone, and the
    device finds its work in the batch's own tensors; so nothing waits for the device, and all of it
    can be captured in a CUDA graph.

Invariants:
    A request's result does not depend on the other requests of its batch: tiles and splits lie at
    fixed positions of its context, and partial results are merged in ascending order.
    Inputs are fp16, bf16 or fp32; every sum is kept in fp32 (in fp64 over the vocabulary).
"""
