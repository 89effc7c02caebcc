"""Architectures and their weights: from a name to a model that can run a forward pass.

Knows: model files, hubs, tensor names, the mathematics of each architecture.
Does not know: requests, scheduling, how KV blocks are chosen.

Invariants:
    A model never allocates KV and never keeps state between two forward passes.
    Weights are loaded one tensor at a time; peak memory stays near the loaded size.
"""
