"""Turns a step plan into tokens: executors, attention, kernels, sampling.

Knows: torch, tensors, KV storage, how a batch is laid out for a forward pass.
Does not know: which request deserves to run, how blocks are chosen, HTTP.

Invariants:
    A request's logits are the same, bit for bit, whatever else is in its batch and however its
    tokens were cut into chunks (CPU path): every reduction runs in an order fixed by the row alone.
    Models and attention see block ids only; they never allocate.
"""
